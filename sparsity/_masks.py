"""Masks as parametrizations, and the view of all masks of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrize
from typing_extensions import Self

from sparsity._bits import keep
from sparsity._errors import near_matches
from sparsity._gradient import PassMasked, collector_of
from sparsity._report import LayerDensity, masks_html, masks_text
from sparsity._select import SKIPPED, join, maskable
from sparsity._sharded import aligned, group_of, host, local
from sparsity._sharded_gradient import GradientMask
from sparsity._structure import Structure
from sparsity._written import is_written, zeroed


class Mask(nn.Module):
    """The parametrization of one weight: a bool buffer ``mask``, True where the weight is active.

    The stored weight is zero where the mask is False, so the forward pass uses it as it is, and only gradients are
    masked. A forward pass that finds a weight written to since (a dense state dict was loaded, an optimizer without an
    engine made a step) zeroes it first; compiled code and sharded weights leave that to `Masks.apply` and the engine.

    Attributes:
        sharded: What masks the gradient instead, once the mask is sharded like its weight (see `shard_masks`).

    Args:
        mask: Bool tensor of the weight's shape.
        nonzeros: Number of True in ``mask``; on the meta device, where it can't be counted, the number to come.
        structure: The pattern that ``mask`` was drawn in, or None for single weights.
    """

    mask: Tensor
    sharded: GradientMask | None

    def __init__(self, mask: Tensor, nonzeros: int, structure: Structure | None = None) -> None:
        super().__init__()
        self.structure = structure
        self.sharded = None
        self.register_buffer("mask", mask)
        self._planned = nonzeros

    def forward(self, weight: Tensor) -> Tensor:
        """Return ``weight`` unchanged, with a masked gradient."""
        if not torch.compiler.is_compiling():
            if forward_ad._current_level >= 0:
                return torch.where(self.mask, weight, 0)  # a function with a rule for this could not be compiled
            if is_written(weight, self.mask) and self.sharded is None:
                with torch.no_grad():
                    self.zero(weight)
        if self.sharded is not None or not torch.is_grad_enabled():
            return weight
        if torch._C._are_functorch_transforms_active():  # compilers would pass over a function's own backward
            return torch.where(self.mask, weight, 0)
        return PassMasked.apply(weight, self.mask)  # pyright: ignore

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return what is stored when ``weight`` is assigned: zero where masked."""
        return torch.where(self.mask, weight, 0)

    def zero(self, weight: Tensor) -> None:
        """Set the masked entries of ``weight`` to zero, in place."""
        keep(local(weight), local(aligned(self.mask, weight)))
        zeroed(weight, self.mask)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # How torch moves and converts tensors. An engine may be collecting gradients by the mask's memory.
        collector = collector_of(self.mask)
        moved = super()._apply(fn, recurse)
        if collector is not None:
            collector.move(self.mask)
        return moved

    def extra_repr(self) -> str:
        """Return the shape, and the structure if there is one, for ``print(model)``."""
        structure = "" if self.structure is None else f", structure={self.structure}"
        return f"shape={tuple(self.mask.shape)}{structure}"


@dataclass(frozen=True)
class MaskedWeight:
    """A parameter with its mask.

    Attributes:
        chain: The parametrizations of the weight, which own the parameter.
        holder: The one of them that masks.
    """

    chain: parametrize.ParametrizationList
    holder: Mask

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter that an optimizer trains: what ``fully_shard`` made of it, once it is sharded."""
        # Not kept here, so that the whole weights of a model that gets sharded are freed. FSDP2 shows another parameter
        # while it has gathered a weight.
        sharded = self.holder.sharded
        return self.chain.original if sharded is None else sharded.parameter  # pyright: ignore


class Masks(Mapping[str, Tensor]):
    """The masks of a model, by the name that each weight had before it got a mask.

    A mapping from path to bool tensor, True where the weight is active. The tensors are those that the model uses, and
    all counts are taken from them when asked for, so the object stays up to date while an engine rewires the model.

    Masks of a sharded model are sharded too, once an engine is attached or `shard_masks` was called: DTensors. Counts
    are those of all processes then, which have to ask for them together.

    Attributes:
        weights: Parameter and mask by path.
        tied: Other names of masked weights, with the path their mask is listed under.
        left: Linear, convolution and attention weights without a mask, with the reason why.
    """

    def __init__(self, weights: Mapping[str, MaskedWeight], tied: Mapping[str, str], left: Mapping[str, str]) -> None:
        self.weights = dict(weights)
        self.tied = dict(tied)
        self.left = dict(left)

    def __getitem__(self, path: str) -> Tensor:
        found = self.weights.get(self.tied.get(path, path))
        if found is None:
            reason = f" It is dense: {self.left[path]}." if path in self.left else ""
            raise KeyError(f"No mask for {path!r}.{reason}{near_matches(path, self.weights)}")
        return found.holder.mask

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def layers(self) -> tuple[LayerDensity, ...]:
        """Shape, nonzeros and density of each masked weight."""
        counts = self._counts()
        return tuple(
            LayerDensity(path, tuple(weight.holder.mask.shape), counts[path]) for path, weight in self.weights.items()
        )

    @property
    def structures(self) -> dict[str, Structure]:
        """The pattern of each mask that was drawn in one (``structure`` of `sparsify`), by path."""
        drawn = {path: weight.holder.structure for path, weight in self.weights.items()}
        return {path: structure for path, structure in drawn.items() if structure is not None}

    @property
    def total(self) -> int:
        """Number of weights that have a mask, active or not."""
        return sum(mask.numel() for mask in self.values())

    @property
    def nonzeros(self) -> int:
        """Number of active weights."""
        return sum(self._counts().values())

    @property
    def density(self) -> float:
        """Share of active weights; 1.0 without any mask."""
        return self.nonzeros / self.total if self.weights else 1.0

    @property
    def sparsity(self) -> float:
        """Share of zeros, 1 - density."""
        return 1 - self.density

    @torch.no_grad()
    def apply(self) -> None:
        """Zero the masked weights now, after weights were edited by hand.

        An attached engine does so after every step, and a forward pass before it uses a weight that was written to.
        """
        for weight in self.weights.values():
            weight.holder.zero(weight.parameter)

    def _counts(self) -> dict[str, int]:
        # One transfer for all layers instead of one for each.
        holders = {path: weight.holder for path, weight in self.weights.items()}
        real = [path for path, holder in holders.items() if not holder.mask.is_meta]
        masks = [holders[path].mask for path in real]
        sums = host([local(mask).count_nonzero() for mask in masks], [group_of(mask) for mask in masks])
        counts = {path: holder._planned for path, holder in holders.items()}
        return {**counts, **dict(zip(real, sums, strict=True))}

    def __str__(self) -> str:
        return masks_text(self.layers, self.left)

    def __repr__(self) -> str:
        # Debuggers and tracebacks ask for this in one process only, and counting would wait for the others.
        sharded = any(weight.holder.sharded is not None for weight in self.weights.values())
        return f"<Masks of {len(self)} weights, {'sharded' if sharded else f'sparsity {self.sparsity:.4f}'}>"

    def _repr_html_(self) -> str:
        return masks_html(self.layers, self.left)


def masks_of(model: nn.Module) -> Masks:
    """Find the masks of a model that was sparsified, also in a deep copy or a part of one; empty if there are none.

    Example:
        >>> import sparsity
        >>> net = nn.Linear(8, 4)
        >>> masks = sparsity.sparsify(net, 0.5)
        >>> list(sparsity.masks_of(net))
        ['weight']
    """
    weights: dict[str, MaskedWeight] = {}
    tied: dict[str, str] = {}
    paths: dict[Mask, str] = {}
    for path, module, name in masked_sites(unwrap(model)):
        chain: Any = module.parametrizations[name]  # pyright: ignore
        holder = next(each for each in chain if isinstance(each, Mask))
        if holder in paths:
            tied[path] = paths[holder]
        else:
            paths[holder] = path
            weights[path] = MaskedWeight(chain, holder)
    if not weights:
        return Masks({}, {}, {})
    selection = maskable(unwrap(model))
    left = {path: reason for path, reason in selection.left.items() if path not in weights and path not in tied}
    left.update({candidate.path: SKIPPED for candidate in selection.chosen})
    return Masks(weights, tied, left)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the user's module inside the wrappers of torch.compile and DistributedDataParallel."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(model._modules.get("_orig_mod"), nn.Module):
            model = model._modules["_orig_mod"]  # pyright: ignore
        else:
            return model


def masked_sites(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield path, module and name of every weight with a mask, a tied weight once for each of its modules."""
    for prefix, module in model.named_modules():
        if parametrize.is_parametrized(module):
            for name, chain in module.parametrizations.items():  # pyright: ignore
                if any(isinstance(each, Mask) for each in chain):
                    yield join(prefix, name), module, name


def own_class(module: nn.Module) -> None:
    """Give a parametrized module a class of its own, before a parametrization is added or removed.

    torch keeps the properties of parametrized weights in a class that a module shares with its deep copies, so that
    removing one from a copy would take it from the original too.
    """
    if parametrize.is_parametrized(module):
        shared = type(module)
        members = {name: value for name, value in vars(shared).items() if name not in ("__dict__", "__weakref__")}
        module.__class__ = type(shared.__name__, shared.__bases__, members)  # pyright: ignore

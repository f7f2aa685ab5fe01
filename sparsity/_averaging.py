"""Averages of weights (EMA, SWA) that stay sparse while the masks of their source move."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.optim.swa_utils import AveragedModel

from sparsity._errors import MaskError
from sparsity._masks import Mask, Masks, masked_sites, masks_of, unwrap
from sparsity._sharded import is_sharded, local
from sparsity._sharding import shard_masks


def follow(average: nn.Module, model: nn.Module) -> Masks:
    """Keep an averaged copy of a model as sparse as the model, from now on.

    For ``torch.optim.swa_utils.AveragedModel``, ``timm.utils.ModelEmaV3`` and whatever else averages the parameters of
    a deep copy. Such a copy keeps the masks it was made with, or weights that the model dropped long ago. Call this
    once; the loop stays as it is. The copy gets the model's masks now, and at the end of each optimizer step (of any
    optimizer) that changed them. Masks that change outside of a step, as by `prune`, need another call.

    A weight that is dropped becomes exactly zero in the average, and its past is forgotten. The average of one that is
    grown starts where the weight itself starts: at zero, or at what the rule's ``initial`` gave, just as torch's
    averages start at the model's first weights. It is an average over the weight's present life with the usual lag, not
    corrected for it; the lag fades as the average's memory does. So let updates end (``until``) well before training
    does, or start averaging after them.

    Under FSDP2 the average is a second model, sharded alike (such models refuse deep copies), whose parameters the loop
    averages; to be called in all processes.

    The copy can be saved, loaded, folded, compiled and exported as any model with masks, and its BatchNorm updated
    (``update_bn``). Following ends when the copy or the model is folded or gone.

    Args:
        average: The average, or the averaged module inside it; on any device and of any floating dtype.
        model: The model with masks that it averages, or a module around it.

    Returns:
        The masks of the average, a live view.

    Raises:
        MaskError: One of them is no module; the model has no masks; the average is no copy of it with masks; or it is
            an ``AveragedModel`` that takes the equal average of buffers too, which torch can't do with masks (see
            `equal_average`).
        EngineError: They are sharded in another way than by rows (see `shard_masks`).

    Example:
        >>> import sparsity
        >>> from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
        >>> net = nn.Linear(8, 4)
        >>> masks = sparsity.sparsify(net, 0.5)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> engine = sparsity.set_(net, optimizer, every=2)
        >>> ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        >>> averaged = sparsity.follow(ema, net)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     net(torch.randn(5, 8)).square().mean().backward()
        ...     optimizer.step()
        ...     ema.update_parameters(net)
        >>> int((sparsity.fold(ema).module.weight != 0).sum())
        12
    """
    wrong = next((each for each in (average, model) if not isinstance(each, nn.Module)), None)  # pyright: ignore
    if wrong is not None:
        raise MaskError(f"Average and model are modules, got {type(wrong).__name__}. Pass the .module of a wrapper.")
    if isinstance(average, AveragedModel) and average.use_buffers and not (average.avg_fn or average.multi_avg_fn):
        raise MaskError(
            "This AveragedModel averages buffers equally, but torch can't subtract masks, which are bool. Make it with "
            "avg_fn=sparsity.equal_average, which copies what is not floating-point, or with use_buffers=False."
        )
    shard_masks(average)
    shard_masks(model)
    pairs = _pairs(average, model)
    for pair in pairs:
        pair.sync()
        _following[pair.twin.holder] = pair
    _watch()
    return masks_of(average)


@torch.no_grad()
def equal_average(averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
    """Return the equal average of ``count`` tensors and one more; of tensors that are not floating-point, the latter.

    The ``avg_fn`` of an ``AveragedModel`` with ``use_buffers=True`` (SWA, Izmailov et al. 2018), whose own can't
    average masks.

    Example:
        >>> equal_average(torch.tensor(2.0), torch.tensor(5.0), count=2)
        tensor(3.)
        >>> equal_average(torch.tensor(True), torch.tensor(False), count=2)
        tensor(False)
    """
    return averaged + (current - averaged) / (count + 1) if averaged.is_floating_point() else current


class _Site:
    """A masked weight, looked up when needed: parameters and buffers may be replaced (``load_state_dict``, ``to``)."""

    def __init__(self, path: str, module: nn.Module, name: str) -> None:
        self.path = path
        # Weak, because the parametrization holds the mask by which pairs are kept.
        self._chain: weakref.ref[Any] = weakref.ref(module.parametrizations[name])  # pyright: ignore
        self._mask = weakref.ref(next(each for each in self._chain() if isinstance(each, Mask)))  # pyright: ignore

    @property
    def holder(self) -> Mask:
        """The parametrization with the mask."""
        holder = self._mask()
        if holder is None:
            raise ReferenceError(self.path)
        return holder

    @property
    def weight(self) -> Tensor:
        """The stored weight, of a sharded one what this process has."""
        sharded = self.holder.sharded
        return local(self._chain().original if sharded is None else sharded.parameter).detach()  # pyright: ignore

    @property
    def mask(self) -> Tensor:
        """The mask, of a sharded one what this process has."""
        return local(self.holder.mask)

    @property
    def alive(self) -> bool:
        """Whether the model still exists and has this mask."""
        return self._chain() is not None and self._mask() is not None


class _Pair:
    """One weight of an average, and the same one in the model that it averages."""

    def __init__(self, twin: _Site, source: _Site) -> None:
        self.twin = twin
        self._source = source
        self._seen: tuple[Tensor | None, int] = None, 0

    @property
    def alive(self) -> bool:
        """Whether both models still exist and have masks."""
        return self.twin.alive and self._source.alive

    def changed(self) -> bool:
        """Tell whether the source's mask was written to since `sync`, without looking at its values."""
        mask, version = self._seen
        return mask is None or mask is not self._source.mask or mask._version != version

    @torch.no_grad()
    def sync(self) -> None:
        """Take over the source's mask, forget what was dropped, and start what was grown."""
        source = self._source.mask
        self._seen = source, source._version
        mask, weight = self.twin.mask, self.twin.weight
        new = source.to(mask.device)
        start = torch.where(new, self._source.weight.to(weight), 0)
        weight.copy_(torch.where(mask & new, weight, start))
        mask.copy_(new)


_following: weakref.WeakKeyDictionary[Mask, _Pair] = weakref.WeakKeyDictionary()
_watching: list[Any] = []


def _watch() -> None:
    # Of all optimizers, so that it does not matter which engine moves the masks, or that another one does later on.
    if not _watching:
        _watching.append(register_optimizer_step_post_hook(_after_step))


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for holder, pair in list(_following.items()):
        if not pair.alive:
            del _following[holder]
        elif pair.changed():
            pair.sync()
    if not _following:
        _watching.pop().remove()


def _pairs(average: nn.Module, model: nn.Module) -> list[_Pair]:
    sources, twins = list(_sites(model)), list(_sites(average))
    if not sources:
        raise MaskError("The model has no masks. Call sparsity.sparsify(model, sparsity) first, then make the average.")
    if not twins:
        raise MaskError("The average has no masks. Make it from the model after sparsity.sparsify(model, sparsity).")
    if {id(site.holder) for site in sources} & {id(site.holder) for site in twins}:
        raise MaskError("The average is the model itself, or shares masks with it. Pass a deep copy.")
    inside, within = _prefixes(twins[0].path, sources[0].path)
    for twin, source in zip(twins, sources, strict=False):
        one, other = twin.holder.mask.shape, source.holder.mask.shape
        expected = inside + source.path[len(within) :]
        if twin.path != expected or not source.path.startswith(within) or one != other:
            raise MaskError(
                f"The average is no copy of the model: it has the masked weight {twin.path!r} of {tuple(one)} where "
                f"{expected!r} of {tuple(other)} was expected."
            )
        if is_sharded(twin.holder.mask) != is_sharded(source.holder.mask):
            raise MaskError(
                f"Of the average and the model only one is sharded (weight {source.path!r}). fully_shard both alike: "
                "the average takes over each process's part."
            )
    if len(twins) != len(sources):
        raise MaskError(f"The average has {len(twins)} masked weights, but the model {len(sources)}.")
    return [_Pair(twin, source) for twin, source in zip(twins, sources, strict=True)]


def _prefixes(one: str, other: str) -> tuple[str, str]:
    """Return what two paths of the same weight have in front, such as ``module.`` and nothing."""
    parts, others = one.split("."), other.split(".")
    while parts and others and parts[-1] == others[-1]:
        parts.pop()
        others.pop()
    return "".join(f"{part}." for part in parts), "".join(f"{part}." for part in others)


def _sites(model: nn.Module) -> Iterator[_Site]:
    """Yield the masked weights, tied ones once."""
    seen = set()
    for path, module, name in masked_sites(unwrap(model)):
        site = _Site(path, module, name)
        if site.holder not in seen:
            seen.add(site.holder)
            yield site

"""Weights of the original model into the trunk and every head of a split model, and back out of one head."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fxsplit._errors import FxSplitWarning, NoEffectWarning, SpecError, SplitError, near_matches
from fxsplit._split._model import SplitModel

_SHOWN = 5


@dataclass(frozen=True)
class LoadReport:
    """What `load_pretrained` did not do; all empty if everything fitted.

    Attributes:
        missing: Names that the net needs and the state dict lacks.
        unexpected: Names in the state dict that the original model doesn't have.
        mismatched: Names whose shapes differ, with ``(shape in the state dict, shape in the net)``.
        unused: Names of the original model that its graph doesn't use, so that the net doesn't hold them. No problem.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    unused: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every tensor of the net was filled, and nothing unknown was in the state dict."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        mismatched = [f"{name} {list(got)} instead of {list(want)}" for name, (got, want) in self.mismatched.items()]
        lines = [
            _line("missing", self.missing),
            _line("unexpected", self.unexpected),
            _line("of another shape", mismatched),
            _line("not used by the net", self.unused),
        ]
        return "; ".join(filter(None, lines)) or "everything was loaded"


@dataclass(frozen=True)
class Slot:
    """A tensor of the net that belongs to one of the original model.

    Attributes:
        name: In the original's state dict.
        tensor: In the net; for a masked weight, what is stored.
        masks: Parametrizations that the net has on top, in the order in which they are applied.
    """

    name: str
    tensor: Tensor
    masks: tuple[nn.Module, ...]

    def fitted(self, value: Tensor) -> Tensor:
        """What to store so that the weight becomes ``value``, where the masks let it."""
        value = value.to(self.tensor.device, self.tensor.dtype)
        for mask in reversed(self.masks):
            value = mask.right_inverse(value)  # type: ignore[operator]
        return value

    def value(self) -> Tensor:
        """The weight that the net computes with."""
        value = self.tensor.detach()
        with torch.no_grad():
            for mask in self.masks:
                value = mask(value)
        return value.clone()


def load_pretrained(net: SplitModel, state_dict: Mapping[str, Tensor], strict: bool = True) -> LoadReport:
    """Copy the weights of the original model into the trunk and into every head, in place.

    Masked weights stay masked: what a mask hides stays zero. Values are converted to the net's dtypes and devices. A
    weight that the original ties to another one is taken under its own name, or else under any of its other names.

    Args:
        net: From `fxsplit.split` or `fxsplit.neurotrailify`, with or without masks.
        state_dict: Of the original model, under its names.
        strict: Refuse a state dict that lacks something, or holds something unknown or of another shape; the net is
            unchanged then. False copies what fits.

    Returns:
        What did not fit, and what the net has no use for.

    Raises:
        SpecError: If ``strict``, and the state dict doesn't fit.
        SplitError: ``net`` is no split model, or on the meta device.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> net = fxsplit.split(fxsplit.trace(model, torch.zeros(1, 4)), "1")
        >>> report = fxsplit.load_pretrained(net, model.state_dict())
        >>> torch.equal(net.head_outputs(torch.ones(2, 4))[1], model(torch.ones(2, 4)))
        True
    """
    parts = _parts(net)
    names = net.source.names
    order = {name: position for position, name in enumerate(names)}
    # Where a state dict does not tie what the net ties, the last one stays, as in the original's load_state_dict.
    slots = sorted((slot for _, part in parts for slot in _slots(net, part)), key=lambda slot: order[slot.name])
    on_meta = next((slot.name for slot in slots if slot.tensor.is_meta), None)
    if on_meta is not None:
        raise SplitError(
            f"{on_meta!r} is on the meta device and can't hold values: call net.to_empty(device='cpu') first."
        )
    given = {_plain_name(name, names): value for name, value in state_dict.items()}
    by_tensor = {names[name]: value for name, value in given.items() if name in names}
    found = {slot.name: given.get(slot.name, by_tensor.get(names[slot.name])) for slot in slots}
    mismatched = {
        slot.name: (tuple(value.shape), tuple(slot.tensor.shape))
        for slot in slots
        if (value := found[slot.name]) is not None and value.shape != slot.tensor.shape
    }
    held = {names[slot.name] for slot in slots}
    report = LoadReport(
        missing=tuple(name for name, value in found.items() if value is None),
        unexpected=tuple(name for name in given if name not in names),
        mismatched=mismatched,
        unused=tuple(name for name in given if name in names and names[name] not in held),
    )
    if strict and not report.complete:
        raise SpecError(_refusal(net, report))
    if not any(value is not None and name not in mismatched for name, value in found.items()):
        warnings.warn(f"load_pretrained changed nothing: {report}.", NoEffectWarning, stacklevel=2)
    with torch.no_grad():
        for slot in slots:
            value = found[slot.name]
            if value is not None and slot.name not in mismatched:
                slot.tensor.copy_(slot.fitted(value))
    return report


def head_state_dict(net: SplitModel, index: int) -> dict[str, Tensor]:
    """The trunk and one head as a state dict under the original model's names; copies, with masks applied.

    The original model loads it with ``load_state_dict`` and then computes what the head computes. Tensors that the
    traced call doesn't use are not in the net, so they are not in the result either: load with ``strict=False`` if the
    model has any.

    Args:
        net: From `fxsplit.split` or `fxsplit.neurotrailify`.
        index: Number of the head, negative ones counted from the end.

    Raises:
        SplitError: ``net`` is no split model, or has no such head.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> net = fxsplit.split(fxsplit.trace(model, torch.zeros(1, 4)), "1")
        >>> list(fxsplit.head_state_dict(net, 2))
        ['0.weight', '0.bias', '2.weight', '2.bias']
    """
    parts = dict(_parts(net))
    heads = net.num_heads
    if isinstance(index, bool) or not isinstance(index, int) or not -heads <= index < heads:
        raise SplitError(
            f"index must be a whole number from {-heads} to {heads - 1}, as the net has {heads} heads; got {index!r}."
        )
    names = net.source.names
    found: dict[str, Slot] = {}
    tensors: dict[str, Slot] = {}
    for part in ("trunk", f"heads.{index % heads}"):
        for slot in _slots(net, parts[part]):
            # Behind the cut a module that runs on both sides is the head's.
            found[slot.name] = slot
            tensors.setdefault(names[slot.name], slot)
    result = {name: found.get(name, tensors.get(first)) for name, first in names.items()}
    values = {name: slot.value() for name, slot in result.items() if slot is not None}
    _warn_of_untied(values, names)
    return values


def _parts(net: Any) -> list[tuple[str, nn.Module]]:
    if not isinstance(net, SplitModel):
        raise SplitError(f"Expected a split model, got {type(net).__name__}; make one with fxsplit.split.")
    return [("trunk", net.trunk), *((f"heads.{index}", head) for index, head in enumerate(net.heads))]


def _slots(net: SplitModel, part: nn.Module) -> Iterator[Slot]:
    """The tensors of the trunk or a head that have a name in the original's state dict."""
    names = net.source.names
    masked = {f"{owner}{name}": chain for owner, name, chain in _added(part, names)}
    for name, tensor in part.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            continue  # extra state of a module, which belongs to no tensor
        if name in names:
            yield Slot(name, tensor, ())
        elif (plain := _plain_name(name, names)) in masked:
            yield Slot(plain, tensor, masked[plain])


def _added(part: nn.Module, names: Mapping[str, str]) -> Iterator[tuple[str, str, tuple[nn.Module, ...]]]:
    """Parametrizations that the original lacks: ``(path of the module and a dot, name of the weight, chain)``."""
    for path, module in part.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        if parametrize.is_parametrized(module):
            for name, chain in module.parametrizations.items():  # type: ignore[union-attr,operator]
                if f"{prefix}{name}" in names:
                    yield prefix, name, tuple(chain)


def _plain_name(name: str, names: Mapping[str, str]) -> str:
    """The original's name of what a net with masks stores as ``<module>.parametrizations.<name>.original``."""
    before, parametrized, rest = name.rpartition("parametrizations.")
    plain = f"{before}{rest.removesuffix('.original')}"
    return plain if parametrized and name not in names and rest.endswith(".original") and plain in names else name


def _refusal(net: SplitModel, report: LoadReport) -> str:
    hint = near_matches(report.unexpected[0], report.missing) if report.unexpected and report.missing else ""
    return (
        f"the state dict is not one of {net.source.name}, nothing was loaded: {report}.{hint} Give the state dict of "
        "the original model, or load what fits with strict=False."
    )


def _line(title: str, items: Any) -> str:
    shown = [str(item) for item in items]
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return f"{title}: {', '.join(shown[:_SHOWN])}{more}" if shown else ""


def _warn_of_untied(values: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
    differing = [
        (name, names[name])
        for name, value in values.items()
        if names[name] in values and not value.is_meta and not torch.equal(value, values[names[name]])
    ]
    if differing:
        listed = ", ".join(f"{name} and {first}" for name, first in differing)
        warnings.warn(
            f"The original ties weights that differ between trunk and head: {listed}. Make the original without ties "
            "(tie_word_embeddings=False) before it loads them; a tied one keeps the last.",
            FxSplitWarning,
            stacklevel=3,
        )

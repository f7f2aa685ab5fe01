"""The tensors in an engine's state: complete from the start, of the right masks, and none lost on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sparsity._errors import EngineError, listed
from sparsity._masks import MaskedWeight
from sparsity._sharded import aligned

Memory = Mapping[str, Mapping[str, Tensor]]
FIELDS = ("step", "skipped", "missed", "seed", "memory", "collected", "masks", "start", "tensors")


def complete(
    memory: Memory, declared: Mapping[str, torch.dtype | None], weights: Mapping[str, MaskedWeight]
) -> dict[str, dict[str, Tensor]]:
    """Return a copy of ``memory`` with zeros for what is declared and not there yet.

    torch.distributed.checkpoint loads into tensors that are there, and a new engine remembers nothing.
    """
    copied = {path: {name: value.clone() for name, value in kept.items()} for path, kept in memory.items()}
    for path, weight in weights.items():
        for name, dtype in declared.items():
            kept = copied.setdefault(path, {})
            if name not in kept:
                kept[name] = torch.zeros_like(weight.parameter, dtype=dtype, requires_grad=False)
    return copied


def placed(memory: Memory, masks: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return a copy of ``memory`` with what has the shape of a mask placed like it."""

    def one(value: Tensor, mask: Tensor) -> Tensor:
        return aligned(value.clone(), mask) if value.shape == mask.shape else value.clone()

    return {path: {name: one(value, masks[path]) for name, value in kept.items()} for path, kept in memory.items()}


def names(memory: Memory, collected: Mapping[str, Tensor]) -> list[str]:
    """Return the names of all tensors, to be saved with them."""
    return [name for name, _, _ in _tensors(memory, collected)]


def check(state: Mapping[str, Any], masks: Mapping[str, Tensor]) -> None:
    """Check that ``state`` is one of an engine that keeps ``masks``, and has all tensors that were in it.

    Raises:
        EngineError: It is not.
    """
    unknown = [name for name in state if name not in FIELDS]
    missing = [name for name in FIELDS if name not in state]
    if unknown or missing:
        found = [f"has {listed(unknown)}"] if unknown else []
        found += [f"lacks {listed(missing)}"] if missing else []
        raise EngineError(f"This is no state of an engine, as Engine.state_dict returns it: it {' and '.join(found)}.")
    saved = {path: tuple(shape) for path, shape in state["masks"].items()}
    own = {path: tuple(mask.shape) for path, mask in masks.items()}
    path = next((path for path in {**own, **saved} if own.get(path) != saved.get(path)), None)
    if path is not None:
        raise EngineError(
            f"The state is of an engine with other masks: that of {path!r} has the shape {saved.get(path)} there and "
            f"{own.get(path)} here (None: no such mask). Load it into an engine on the model it was saved with."
        )
    present = list(_tensors(state["memory"], state["collected"]))
    for _, path, value in present:
        if path not in masks:
            raise EngineError(f"The state is of an engine with other masks: no {path!r} of {tuple(value.shape)}.")
    for path, value in state["collected"].items():  # what a rule keeps may have any shape
        if value.shape != masks[path].shape:
            raise EngineError(f"The state is of an engine with other masks: no {path!r} of {tuple(value.shape)}.")
    lost = set(state["tensors"]) - {name for name, _, _ in present}
    if lost:
        raise EngineError(
            f"The state was saved with {listed(sorted(lost))}, which it lacks now. torch.distributed.checkpoint loads "
            "only what is in the state to load into: name what a rule of your own keeps in Rule(memory=...), and save "
            "between two steps, not in the middle of an accumulation."
        )


def _tensors(memory: Memory, collected: Mapping[str, Tensor]) -> Iterator[tuple[str, str, Tensor]]:
    """Yield name, path of the weight and value of every tensor."""
    for path, kept in memory.items():
        for name, value in kept.items():
            yield f"memory of {path}: {name}", path, value
    for path, value in collected.items():
        yield f"collected of {path}", path, value

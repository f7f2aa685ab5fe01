"""Finds the dtypes in a recording that follow the model's, by recording it once more in another dtype."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxsplit._trace._inputs import Inputs, map_tensors
from fxsplit._trace._preserve import preserved, seed_everything
from fxsplit._trace._recorder import Recorder
from fxsplit._trace._records import Record, map_value


@dataclass(frozen=True, slots=True)
class DtypeOf:
    """The dtype of the tensor that record number ``index`` produced."""

    index: int


def main_dtype(model: nn.Module) -> torch.dtype | None:
    """The dtype of the first floating parameter."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), None)


def record_as_other_dtype(
    model: nn.Module,
    base: Recorder,
    inputs: Inputs,
    is_leaf: Callable[[nn.Module, str], bool],
    opened: Set[str],
) -> Recorder | None:
    """Record ``model`` in eval mode with everything of its dtype in another; None if no operation names the dtype.

    The model is put back. Its weights exist twice while this runs, the copy in half the memory for float32.
    """
    dtype = main_dtype(model)
    if dtype is None or not any(_names(record, dtype) for record in base.records):
        return None
    other = torch.bfloat16 if dtype is torch.float32 else torch.float32

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(other) if tensor.dtype is dtype else tensor

    args, kwargs, named = inputs.make(inputs.schedule()[0])
    casts = {id(value): map_tensors(value, cast) for value in named.values()}
    with preserved(model):
        _cast_in_place(model, cast)
        recorder = Recorder(model, is_leaf, None, opened=opened)
        model.eval()
        seed_everything()
        recorder.run(
            tuple(casts.get(id(value), value) for value in args),
            {name: casts.get(id(value), value) for name, value in kwargs.items()},
            {name: casts[id(value)] for name, value in named.items()},
        )
    return recorder


def add_dtypes(values: list[Any], base: Sequence[Record], other: Sequence[Record]) -> None:
    """Replace dtypes in ``values`` that were different in the ``other`` run by those of nearby tensors."""
    latest: dict[str, int] = {}
    for index, (one, two) in enumerate(zip(base, other, strict=True)):
        followed = _differing(one, two)
        source = latest.get(one.path, latest.get(""))
        if followed is not None and source is not None:
            marker = DtypeOf(source)
            values[index] = map_value(values[index], lambda v, d=followed, m=marker: m if v is d else v)
        if one.is_tensor and one.dtype is not None and one.dtype.is_floating_point and one.dtype != two.dtype:
            # The innermost module first: a tensor of its own keeps the reading inside of it.
            latest[one.path] = latest[""] = index


def _differing(one: Record, two: Record) -> torch.dtype | None:
    a, b = _dtypes(one), _dtypes(two)
    return next((x for x, y in zip(a, b, strict=False) if x != y and x.is_floating_point), None)


def _dtypes(record: Record) -> list[torch.dtype]:
    found: list[torch.dtype] = []
    map_value((record.args, record.kwargs), lambda v: found.append(v) if isinstance(v, torch.dtype) else v)
    return found


def _names(record: Record, dtype: torch.dtype) -> bool:
    return dtype in _dtypes(record)


def _cast_in_place(model: nn.Module, cast: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Give every module cast tensors; tied ones stay tied."""
    done: dict[int, torch.Tensor] = {}

    def once(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in done:
            new = cast(tensor.detach())
            is_parameter = isinstance(tensor, nn.Parameter)
            done[id(tensor)] = nn.Parameter(new, requires_grad=tensor.requires_grad) if is_parameter else new
        return done[id(tensor)]

    for module in model.modules():
        _replace(module._parameters, once)
        _replace(module._buffers, once)
        _replace(module.__dict__, once)


def _replace(registry: dict[str, Any], new: Callable[[torch.Tensor], torch.Tensor]) -> None:
    for name, value in list(registry.items()):
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            registry[name] = new(value)

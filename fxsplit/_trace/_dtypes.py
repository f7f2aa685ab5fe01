"""Finds the dtypes in a recording that follow the model's, by recording it once more in another dtype."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxsplit._random import seed_everything
from fxsplit._trace._inputs import Inputs, map_tensors
from fxsplit._trace._merge import same_value
from fxsplit._trace._nested import combine, map_value
from fxsplit._trace._preserve import preserved
from fxsplit._trace._recorder import Recorder
from fxsplit._trace._records import Record, Ref

_LIMITS = ("min", "max", "eps", "tiny")
_FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class DtypeOf:
    """The dtype of the tensor that record number ``index`` produced, or that dtype's ``limit``, like "min".

    Without an index, the dtype of the model's weights.
    """

    index: int | None
    limit: str = ""


class WeightsDtype(nn.Module):
    """Returns the dtype that the model is cast to: a graph reads it here, and depends on no weight for it."""

    like: torch.Tensor

    def __init__(self, like: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("like", torch.zeros((), dtype=like.dtype, device=like.device), persistent=False)

    def forward(self) -> torch.dtype:
        """The dtype."""
        return self.like.dtype


def main_dtype(model: nn.Module) -> torch.dtype | None:
    """The dtype of the first floating parameter."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), None)


def record_as_other_dtype(
    model: nn.Module,
    base: Recorder,
    inputs: Inputs,
    new_recorder: Callable[[], Recorder],
) -> Recorder | None:
    """Record ``model`` in eval mode with everything of its dtype in another; None if nothing reads or names the dtype.

    The model is put back. Its weights exist twice while this runs, the copy in half the memory for float32.
    """
    dtype = main_dtype(model)
    if dtype is None or not (base.dtype_read or any(_names(record, dtype) for record in base.records)):
        return None
    other = torch.bfloat16 if dtype is torch.float32 else torch.float32

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(other) if tensor.dtype is dtype else tensor

    args, kwargs, named = inputs.make(inputs.schedule()[0])
    casts = {id(value): map_tensors(value, cast) for value in named.values()}
    with preserved(model):
        _cast_in_place(model, cast)
        recorder = new_recorder()
        model.eval()
        seed_everything()
        recorder.run(
            tuple(casts.get(id(value), value) for value in args),
            {name: casts.get(id(value), value) for name, value in kwargs.items()},
            {name: casts[id(value)] for name, value in named.items()},
        )
    return recorder


def add_dtypes(values: list[Any], base: Sequence[Record], other: Sequence[Record], live: Sequence[bool]) -> list[str]:
    """Replace dtypes in ``values`` that were different in the ``other`` run by those of live tensors nearby.

    Those that were read from a parameter follow the parameters. The limits of a dtype, as masks use them, follow too.
    Returns what cannot follow.
    """
    latest: dict[str, int] = {}
    lost: list[str] = []

    def follow(source: int | None, path: str, of_weights: bool) -> Callable[..., Any]:
        def leaf(value: Any, one: Any, two: Any) -> Any:
            if same_value(one, two):
                return value
            limit = _limit(one, two)
            if limit is not None and (source is not None or of_weights):
                return DtypeOf(None if of_weights else source, limit)
            seen = ("a tensor", "another tensor") if isinstance(one, Ref) else (repr(one), repr(two))
            lost.append(f"{seen[0]} in {path or 'the model itself'}, in another dtype {seen[1]}")
            return value

        return leaf

    for index, (one, two) in enumerate(zip(base, other, strict=True)):
        if not live[index]:
            continue
        # A tensor of the same module first: then the dtype is read inside of it.
        source = latest.get(one.path, latest.get(""))
        seen = (values[index], (one.args, one.kwargs), (two.args, two.kwargs))
        changed = f"{one.key[1]} in {one.path or 'the model itself'}, in another dtype with other arguments"
        values[index] = combine(seen, follow(source, one.path, one.of_weights), lambda line=changed: lost.append(line))
        if one.is_tensor and one.dtype is not None and one.dtype.is_floating_point and one.dtype is not two.dtype:
            latest[one.path] = latest[""] = index
    return lost


def _limit(one: Any, two: Any) -> str | None:
    """How ``one`` and ``two`` follow a dtype: "" for the dtype itself, "min", "max" ... for its limits."""
    if isinstance(one, torch.dtype) and isinstance(two, torch.dtype) and one.is_floating_point:
        return ""
    if isinstance(one, float) and isinstance(two, float):
        for limit in _LIMITS:
            if {one, two} <= {getattr(torch.finfo(dtype), limit) for dtype in _FLOATING}:
                return limit
    return None


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

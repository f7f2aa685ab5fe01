"""Runs a traced model and compares it with what the original returned."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fxsplit._random import seed_everything
from fxsplit._trace._fit import Sizes
from fxsplit._trace._inputs import Inputs
from fxsplit._trace._model import TracedModel
from fxsplit._trace._objects import rebuild_output
from fxsplit._trace._preserve import preserved
from fxsplit._trace._records import Ref
from fxsplit._trace._shadow import shadowing

_TOLERANCE = 1e-3


def difference(
    traced: TracedModel, inputs: Inputs, sizes: Sizes, train: bool, expected: Sequence[torch.Tensor]
) -> str | None:
    """Say how ``traced`` deviates from ``expected`` with the same inputs, mode and seed; None if it does not."""
    _, _, named = inputs.make(sizes)
    found: list[torch.Tensor] = []

    def collect(value: object) -> Ref | None:
        if isinstance(value, torch.Tensor):
            found.append(value)
        return None

    with preserved(traced), torch.no_grad(), shadowing(traced):
        traced.train(train)
        seed_everything()
        try:
            rebuild_output(traced(*named.values()), collect, [])
        except Exception as error:
            return f"it raises {type(error).__name__}: {error}"
    if [tensor.shape for tensor in found] != [tensor.shape for tensor in expected]:
        return "it returns tensors of other shapes"
    worst = max((_distance(a, b) for a, b in zip(found, expected, strict=True)), default=0.0)
    return f"its output differs by {worst:.1e}, relative to the largest value" if worst > _TOLERANCE else None


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    if a.is_meta or a.numel() == 0:
        return 0.0
    x, y = (t.detach().to(torch.complex128 if t.is_complex() else torch.float64).nan_to_num() for t in (a, b))
    return float((x - y).abs().max() / y.abs().max().clamp_min(1e-12))

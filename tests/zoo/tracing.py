"""What a trace of a model of the zoos is compared by."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fxsplit._trace import TracedModel, trace
from fxsplit._trace._inputs import as_example
from tests.checks import assert_same, assert_unchanged, scalar, seeded, snapshot

Inputs = Callable[[int], dict[str, Tensor]]


def check_trace(model: nn.Module, inputs: Inputs, batches: tuple[int, ...] = (2, 3)) -> TracedModel:
    """Bit for bit: outputs in eval mode at several batch sizes; a train step's outputs, gradients and buffers."""
    model.eval()
    example = inputs(2)
    before = snapshot(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        traced = trace(model, example)
    assert_unchanged(before, model)
    with torch.no_grad():
        for batch in batches:
            feed = inputs(batch)
            assert_same(traced(**feed), model(**feed))
    check_step(model, traced, inputs(2))
    assert traced.report.coarse_leaves == []
    assert traced.report.dropped == []
    return traced


def check_step(
    model: nn.Module, traced: nn.Module, example: Any, view: Callable[[Any], Any] = lambda output: output
) -> None:
    """One train step from the same state and seed; ``view`` turns an output into containers that torch can flatten."""
    args, kwargs = as_example(example)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    results: list[Any] = []
    for module in (model, traced):
        module.train()
        out = view(seeded(lambda module=module: module(*args, **kwargs)))
        scalar(out).backward()
        after = {name: buffer.clone() for name, buffer in model.named_buffers()}
        results.append((out, [p.grad for p in model.parameters()], after))
        model.zero_grad()
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        module.eval()
    assert_same(results[1], results[0])


def images(name: str, channels: int = 3, size: int = 64) -> Inputs:
    """Normal images under the name of the model's argument."""
    return lambda batch: {name: torch.randn(batch, channels, size, size)}

"""Sparse or dense, layer by layer: by the model of costs where it is clear, by a short measurement where it is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, fx

from sparsity.runtime._choice import Choice
from sparsity.runtime._model import Work, dense_seconds, sparse_seconds
from sparsity.runtime._modules import DenseConv, DenseLinear
from sparsity.runtime._ops import Conv, Layer, Linear, Shape
from sparsity.runtime._plan import Epilogue, Plan
from sparsity.runtime._program import Ops
from sparsity.runtime._timing import one_thread, seconds
from sparsity.runtime._tuned import Tuned, tuned_times

_CLEAR = 2.5
"""Predicted ratio beyond which nothing is measured."""
_SECONDS_PER_LAYER = 0.05
_DENSE = 0.95
"""Density above which a weight counts as dense, whatever its few zeros come from."""
_FEW_ROWS = 8
_FEW_SAMPLES = 4
"""Samples for which choices are made where the batch is larger: a plan runs large batches in parts."""
_LEAVING = 10e-6
"""Seconds that it takes to leave a region for a dense layer and come back."""


def choose(ops: Ops, batch: int, isa: str, tune: bool) -> None:
    """Decide for every layer which kernel runs it.

    Args:
        ops: The operations, with what follows layers folded into them.
        batch: Size of the batch to decide for.
        isa: Instruction set of the sparse kernels.
        tune: Whether to measure layers for which the model of costs is not clear.

    In a network of which no weight has zeros, all layers are dense.
    """
    few = min(batch, _FEW_SAMPLES)
    counts = {layer: int(torch.count_nonzero(layer.weight())) for layer in ops.layers}
    works = {
        layer: work_of(layer, ops.source.shapes, count, few, ops.source.facts.batch) for layer, count in counts.items()
    }
    if all(work.density > _DENSE for work in works.values()):
        for layer, work in works.items():
            seconds_for_batch = dense_seconds(work, isa) * batch / few
            layer.choice = Choice(False, "no zeros", work.nonzeros, seconds_for_batch)
        return
    with tuned_times(isa) as known:
        for layer, work in works.items():
            choice = _choice(layer, work, isa, known if tune else None)
            layer.choice = dataclasses.replace(choice, predicted=choice.predicted * batch / few)


def work_of(layer: Layer, shapes: dict[fx.Node, Shape], nonzeros: int, batch: int, recorded: int) -> Work:
    """The size of a layer's work on ``batch`` samples; shapes were recorded on ``recorded`` samples."""
    out, given = shapes[layer.node], shapes[layer.source]
    outputs = _scaled(out, batch, recorded)
    inputs = _scaled(given, batch, recorded)
    pixels = max(1, outputs // layer.shape[0])
    if isinstance(layer, Conv):
        size = (given[2], given[3])
        return Work("conv2d", layer.shape, nonzeros, pixels, inputs, layer.stride, size, layer.groups)
    return Work("linear", layer.shape, nonzeros, pixels, inputs)


def _scaled(shape: Shape, batch: int, recorded: int) -> int:
    size = 1
    for each in shape:
        size *= each
    return max(1, size * batch // recorded) if shape and shape[0] % recorded == 0 else size


def _choice(layer: Layer, work: Work, isa: str, known: Tuned | None) -> Choice:
    nonzeros = work.nonzeros
    if isinstance(layer, Conv) and not layer.plannable:
        reason = "groups" if layer.groups != 1 else "dilation"
        return Choice(False, f"no sparse kernel for {reason}", nonzeros, dense_seconds(work, isa))
    sparse, dense = sparse_seconds(work, isa), dense_seconds(work, isa) + _LEAVING
    clear = not dense / _CLEAR < sparse < dense * _CLEAR
    if known is None or clear:
        reason = f"predicted {_ratio(sparse, dense)}"
        return Choice(sparse < dense, reason, nonzeros, min(sparse, dense))
    got = known.lookup(work)
    if got is None:
        got = _measure(layer, work, layer.weight())
        known.store(work, got)
    won = got[0] < got[1] + _LEAVING
    return Choice(won, f"measured {_ratio(*got)}", nonzeros, sparse if won else dense, *got)


def _ratio(sparse: float, dense: float) -> str:
    return f"{dense / sparse:.1f}x faster than dense" if sparse < dense else f"sparse {sparse / dense:.1f}x slower"


def _measure(layer: Layer, work: Work, weight: Tensor) -> tuple[float, float]:
    """CPU seconds in the sparse and in the dense kernel on one thread, on random input."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), one_thread():
        if isinstance(layer, Conv):
            samples = max(1, work.inputs // (layer.shape[1] * work.size[0] * work.size[1]))
            x = torch.randn(samples, layer.shape[1], *work.size, generator=generator)
            dense = DenseConv(_bare_conv(layer, weight))
        else:
            x = torch.randn(work.pixels, layer.shape[1], generator=generator)
            dense = DenseLinear(Linear(layer.node, [], layer.path, layer.shape, lambda: weight, layer.bias))
        # What oneDNN returns has channels last, and plans take it with channels first.
        # Where a weight is used for a few rows only, most of the time goes into reading it.
        cold = work.pixels <= _FEW_ROWS
        taken = seconds(
            [_sparse_call(layer, work, weight, x), lambda: dense(x).contiguous()], _SECONDS_PER_LAYER, cold=cold
        )
    return taken[0], taken[1]


def _bare_conv(layer: Conv, weight: Tensor) -> Conv:
    sizes = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "groups": layer.groups}
    return Conv(layer.node, [], layer.path, layer.shape, lambda: weight, layer.bias, **sizes)


def _sparse_call(layer: Layer, work: Work, weight: Tensor, x: Tensor) -> Callable[[], object]:
    plan = Plan()
    source = plan.buffer(x[0].numel())
    if isinstance(layer, Conv):
        size = [
            (n + 2 * p - k) // s + 1
            for n, p, k, s in zip(work.size, layer.padding, layer.shape[2:], layer.stride, strict=True)
        ]
        out = torch.empty(len(x), layer.shape[0], *size)
        target = plan.buffer(out[0].numel())
        sizes = {"size": work.size, "stride": layer.stride, "padding": layer.padding}
        plan.conv2d(source, target, weight, layer.bias, affine=None, epilogue=Epilogue(), **sizes)
    else:
        out = torch.empty(len(x), layer.shape[0])
        target = plan.buffer(layer.shape[0])
        plan.linear(source, target, weight, layer.bias, rows=1, affine=None, epilogue=Epilogue())
    plan.finish([source], [target], 0)
    return lambda: plan.run([x], [out], len(x), 1)

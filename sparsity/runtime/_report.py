"""What a compiled network runs, layer by layer, and why: as text and as HTML for notebooks."""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from sparsity._table import folded, html_table, text_table
from sparsity.runtime._emit import Program
from sparsity.runtime._ops import Layer
from sparsity.runtime._torch_form import bytes_of

_HEADERS = ("layer", "weight", "density", "kernel", "predicted ms", "measured ms", "GFLOP/s", "kB", "why")
_FOLD_ABOVE = 40


@dataclass(frozen=True)
class LayerReport:
    """One convolution or linear layer.

    Attributes:
        path: Name of the layer in the network.
        shape: Shape of its weight.
        nonzeros: Number of weights that are not zero.
        kernel: ``'sparse'`` or ``'dense'``.
        reason: Why that kernel.
        predicted: Seconds for the example that the model of costs expects, on one thread.
        measured: Seconds for the example on one thread; None if nothing was measured.
        flops: Operations on nonzeros for the example, two per multiplication.
        bytes: Memory of the weights.
    """

    path: str
    shape: tuple[int, ...]
    nonzeros: int
    kernel: str
    reason: str
    predicted: float
    measured: float | None
    flops: int
    bytes: int

    @property
    def density(self) -> float:
        """Share of weights that are not zero."""
        return self.nonzeros / math.prod(self.shape)

    @property
    def gflops(self) -> float | None:
        """Operations on nonzeros in 1e9 per second; None if nothing was measured."""
        return None if not self.measured else self.flops / self.measured / 1e9


@dataclass(frozen=True)
class CompileReport:
    """What a compiled network runs and why.

    Attributes:
        layers: Every convolution and linear layer.
        regions: Number of plans, each of which runs in one parallel region.
        others: What else runs in torch, with how often.
        notes: What was decided for the network as a whole, and what fell back.
        seconds: Time of compiling.
        shapes: Shapes of the inputs that it was compiled for.
    """

    layers: tuple[LayerReport, ...]
    regions: int
    others: dict[str, int]
    notes: tuple[str, ...]
    seconds: float
    shapes: tuple[tuple[int, ...], ...]

    @property
    def bytes(self) -> int:
        """Memory of the weights of all layers."""
        return sum(layer.bytes for layer in self.layers)

    @property
    def nonzeros(self) -> int:
        """Number of weights of all layers that are not zero."""
        return sum(layer.nonzeros for layer in self.layers)

    @property
    def fallbacks(self) -> tuple[LayerReport, ...]:
        """Layers that have zeros and run in the dense kernel all the same."""
        return tuple(layer for layer in self.layers if layer.kernel == "dense" and layer.density < 1)

    def __str__(self) -> str:
        return "\n".join([text_table(_HEADERS, [*map(_cells, self.layers), self._total()]), *self._lines()])

    def _repr_html_(self) -> str:
        rows = [*map(_cells, self.layers), self._total()]
        table = html_table(_HEADERS, rows[:-1], foot=rows[-1])
        lines = "".join(f"<p>{html.escape(line)}</p>" for line in self._lines())
        if len(self.layers) > _FOLD_ABOVE:
            table = folded(f"{len(self.layers)} layers", table)
        return f"<div>{table}{lines}</div>"

    def _total(self) -> tuple[str, ...]:
        total = sum(math.prod(layer.shape) for layer in self.layers)
        measured = [layer.measured for layer in self.layers if layer.measured is not None]
        sparse = sum(layer.kernel == "sparse" for layer in self.layers)
        return (
            f"{len(self.layers)} layers",
            f"{total:,}",
            f"{self.nonzeros / total:.3f}" if total else "-",
            f"{sparse} sparse",
            _ms(sum(layer.predicted for layer in self.layers)),
            _ms(sum(measured)) if measured else "-",
            "",
            f"{self.bytes / 1e3:,.0f}",
            "",
        )

    def _lines(self) -> list[str]:
        shapes = ", ".join(str(list(shape)) for shape in self.shapes)
        lines = [f"compiled in {self.seconds:.1f} s for inputs {shapes}: {self.regions} regions"]
        if self.others:
            calls = ", ".join(f"{count} {name}" for name, count in sorted(self.others.items()))
            lines.append(f"in torch besides layers: {calls}")
        return [*lines, *self.notes]


def make_report(
    program: Program,
    times: Mapping[str, float],
    samples: Mapping[str, int],
    notes: list[str],
    seconds: float,
    shapes: tuple[tuple[int, ...], ...],
) -> CompileReport:
    """Describe a program.

    Args:
        program: What runs.
        times: Measured seconds by key of `measure`; may be empty.
        samples: Samples of the example in each region.
        notes: What was decided for the whole.
        seconds: Time of compiling.
        shapes: Shapes of the inputs.
    """
    layers: list[LayerReport] = []
    for name, body in program.bodies.items():
        for op, step in body.steps.items():
            if isinstance(op, Layer):
                info = body.region.plan.steps[step]
                flops = info.flops * samples.get(name, 1)
                layers.append(_layer(op, "sparse", times.get(f"{name}.{step}"), flops, info.bytes))
    for name, op in program.dense.items():
        module = program.module.get_submodule(name)
        flops = samples.get(name, 0)
        layers.append(_layer(op, "dense", times.get(name), flops, bytes_of(module)))  # pyright: ignore
    return CompileReport(
        tuple(layers), len(program.bodies), dict(Counter(program.others)), tuple(notes), seconds, shapes
    )


def _layer(op: Layer, kernel: str, measured: float | None, flops: int, size: int) -> LayerReport:
    choice = op.choice
    if choice is None:
        raise AssertionError(f"{op.path} has no choice")
    return LayerReport(
        op.path, op.shape, choice.nonzeros, kernel, choice.reason, choice.predicted, measured, flops, size
    )


def _cells(layer: LayerReport) -> tuple[str, ...]:
    return (
        layer.path,
        " x ".join(map(str, layer.shape)),
        f"{layer.density:.3f}",
        layer.kernel,
        _ms(layer.predicted),
        "-" if layer.measured is None else _ms(layer.measured),
        "-" if layer.gflops is None else f"{layer.gflops:.1f}",
        f"{layer.bytes / 1e3:,.1f}",
        layer.reason,
    )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3f}"

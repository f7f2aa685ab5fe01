"""Drawing of a split model: trunk, cut, parallel heads and vote as one inline SVG."""

from __future__ import annotations

import os
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import fx, nn

from fxsplit._draw._layout import Scene, render
from fxsplit._errors import FxSplitError
from fxsplit._summary._totals import Summary, summary
from fxsplit._table import human
from fxsplit._trace import trace


@dataclass(frozen=True)
class Drawing:
    """An SVG document that displays itself in notebooks and can be saved; ``text`` stands in where SVG is not shown."""

    svg: str
    text: str

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the SVG document.

        Raises:
            FxSplitError: ``path`` does not end in ``.svg``, the only format there is.
        """
        if Path(path).suffix.lower() != ".svg":
            raise FxSplitError(f"Drawing.save: writes SVG, so the file must be called *.svg, got {os.fspath(path)!r}.")
        Path(path).write_text(self.svg, encoding="utf-8")

    def __str__(self) -> str:
        return self.text

    def _repr_svg_(self) -> str:
        return self.svg

    def _repr_mimebundle_(
        self, include: Container[str] | None = None, exclude: Container[str] | None = None
    ) -> dict[str, str]:
        # JupyterLab shows image/svg+xml as an <img>, which has no tooltips; as HTML it is inline.
        bundle = {"text/html": f"<div>{self.svg}</div>", "image/svg+xml": self.svg, "text/plain": self.text}
        kept = {mime: data for mime, data in bundle.items() if include is None or mime in include}
        return {mime: data for mime, data in kept.items() if exclude is None or mime not in exclude}


def draw(net: nn.Module, *, example: object = None) -> Drawing:
    """Draw a split model block by block, the cut in red; or the chain of blocks of a model that is not split.

    Every box shows the block's path, number of operations, output shape (at the batch size of the recording),
    parameters and nonzeros; the filled share of the box is its density. Long chains are folded.

    Args:
        net: A SplitModel, a TracedModel or any module that `trace` takes.
        example: Example input for tracing; only used if ``net`` is neither split nor traced.

    Raises:
        TraceError: ``net`` had to be traced and could not be.

    Example:
        >>> import torch, fxsplit
        >>> drawing = fxsplit.draw(torch.nn.Sequential(torch.nn.Linear(3, 5)), example=torch.zeros(1, 3))
        >>> drawing.svg.startswith("<svg")
        True
    """
    graph = net if isinstance(net, fx.GraphModule) else trace(net, example)
    sizes = summary(graph)
    inputs = ", ".join(str(node.target) for node in graph.graph.nodes if node.op == "placeholder")
    scene = Scene(_title(sizes), sizes, inputs, _crossing(graph), _vote(graph, sizes.heads))
    return Drawing(render(scene), "\n".join([*scene.title, *scene.crossing]))


def mimebundle(
    net: nn.Module, include: Container[str] | None = None, exclude: Container[str] | None = None
) -> dict[str, str]:
    """What a split model displays in a notebook: its drawing, with a few lines of text as the fallback."""
    return draw(net)._repr_mimebundle_(include, exclude)


def _title(sizes: Summary) -> list[str]:
    total = sizes.total
    density = f", density {total.density:.3f}"
    stored = f"{human(total.nonzeros)} nonzeros of {human(total.params)} parameters{density}"
    if not sizes.heads:
        return [
            "dense single model" if total.density == 1 else "single model",
            stored,
            f"{human(total.flops)} FLOPs per sample",
        ]
    blocks = sum(row.is_block for row in sizes.rows if row.component == "trunk")
    in_head = sum(row.is_block for row in sizes.rows if row.component == "heads.0")
    heads = "1 head" if sizes.heads == 1 else f"{sizes.heads} heads"
    against = [("dense single", 1), *([(f"ensemble of {sizes.heads}", sizes.heads)] if sizes.heads > 1 else [])]
    return [
        f"{heads} of {in_head} blocks on a trunk of {blocks} blocks",
        stored,
        *(_comparison(sizes, name, models) for name, models in against),
    ]


def _comparison(sizes: Summary, name: str, models: int) -> str:
    stored, dense = sizes.parameter_ratio / models, sizes.dense_flops_ratio / models
    uniform, masked = sizes.uniform_flops_ratio / models, sizes.masked_flops_ratio / models
    flops = f"{dense:.3f}x dense, {uniform:.3f}x uniform density, {masked:.3f}x actual masks"
    return f"against the {name}: nonzeros {stored:.3f}x, FLOPs {flops}"


def _crossing(graph: fx.GraphModule) -> list[str]:
    cut: Any = getattr(graph, "cut", None)
    if cut is None:
        return []
    lines = [f"cut after {cut.path}" if cut.path else "cut before the first layer"]
    for tensor in sorted(cut.crossing, key=lambda crossing: not crossing.main):
        shape = "x".join(map(str, tensor.shape or ())) or "scalar"
        dtype = str(tensor.dtype).removeprefix("torch.")
        side = "" if tensor.main else f", side input{f' from {tensor.path}' if tensor.path else ''}"
        lines.append(f"{tensor.name} {shape} {dtype}{side}")
    return lines


def _vote(graph: fx.GraphModule, heads: int) -> str:
    vote = getattr(graph, "vote", None)
    joined = "1 head" if heads == 1 else f"{heads} heads"
    return f"{type(vote).__name__} of {joined}" if isinstance(vote, nn.Module) else ""

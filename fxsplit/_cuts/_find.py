"""Cuts: the places where a traced model can be split into a trunk and heads, and what crosses there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fxsplit._cuts._flow import BEFORE
from fxsplit._cuts._survey import Survey
from fxsplit._graph import is_tensor


@dataclass(frozen=True)
class Crossing:
    """One tensor that passes a cut.

    Attributes:
        name: Node that makes it.
        path: Innermost module that makes it, ``''`` for the model itself or one of its inputs.
        shape: Its shape at the batch size of the recording.
        dtype: Its data type.
        main: Whether it carries the computation, as every branch does that runs in parallel and every skip connection
            that is still open; the others are side inputs (masks, position encodings, another tower).
    """

    name: str
    path: str
    shape: tuple[int, ...] | None
    dtype: torch.dtype | None
    main: bool

    def __str__(self) -> str:
        shape = "?" if self.shape is None else "x".join(map(str, self.shape)) or "scalar"
        return f"{self.name} [{shape}]"


@dataclass(frozen=True)
class Cut:
    """A boundary between trunk and heads: the end of the module ``path``. `split` accepts every one.

    Attributes:
        path: The last module of the trunk; ``''`` for the empty trunk.
        index: Number of blocks in the trunk; what an integer split means.
        crossing: Tensors that pass it and go to every head, the main ones first.
        params_before: Parameters of the trunk.
        params_after: Parameters of one head. A parameter that is used on both sides counts in both.
        flops_before: FLOPs (2 x MAC) of the trunk for one sample, attention products included.
        flops_after: FLOPs of one head.
        clean: Whether exactly one crossing tensor is a main one.
        node: The last node of the trunk; ``''`` for the empty trunk.
    """

    path: str
    index: int
    crossing: tuple[Crossing, ...]
    params_before: int
    params_after: int
    flops_before: int
    flops_after: int
    clean: bool
    node: str

    @property
    def share(self) -> float:
        """The trunk's share of the model's FLOPs, or of its parameters if no FLOPs were counted."""
        before, after = self.flops_before, self.flops_after
        if not before + after:
            before, after = self.params_before, self.params_after
        return before / (before + after) if before else 0.0

    def __str__(self) -> str:
        place = f"after {self.path!r}" if self.path else "before the first layer"
        return f"cut {place}: {', '.join(map(str, self.crossing))}"


class Cuts(tuple[Cut, ...]):
    """A tuple of cuts in the order of execution, shown as a table."""

    _HEADERS = (
        "index",
        "path",
        "main tensors",
        "side inputs",
        "params before",
        "after",
        "FLOPs before",
        "after",
        "share",
        "clean",
    )

    def _rows(self) -> list[list[object]]:
        from fxsplit._table import human

        return [
            [
                cut.index,
                cut.path,
                ", ".join(str(c) for c in cut.crossing if c.main),
                ", ".join(str(c) for c in cut.crossing if not c.main),
                human(cut.params_before),
                human(cut.params_after),
                human(cut.flops_before),
                human(cut.flops_after),
                f"{cut.share:.0%}",
                "yes" if cut.clean else "no",
            ]
            for cut in self
        ]

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        from fxsplit._table import text_table

        return text_table(self._HEADERS, self._rows())

    def _repr_html_(self) -> str:
        from fxsplit._table import html_table

        return html_table(self._HEADERS, self._rows())


def find_cuts(model_or_graph: nn.Module, example: Any = None, *, every_module: bool = False) -> Cuts:
    """List where a model can be split: after each of its blocks.

    Blocks are what a person would name: the residual blocks, transformer layers or stages that the model repeats, and
    what stands in the same lists; a model that repeats none (VGG) is cut between its layers. Several main tensors pass
    a cut where branches run in parallel (HRNet) or features are collected for a decoder (U-Nets).

    Args:
        model_or_graph: A model, or what `fxsplit.trace` made of it.
        example: Example input; only used to trace a model.
        every_module: List the ends of all modules. Those within a residual block are not ``clean``, because its skip
            connection crosses too; `split` accepts such a Cut all the same, but not its path.

    Returns:
        The cuts in order of execution. ``print`` shows them as a table.

    Raises:
        TraceError: The model cannot be traced.
        SplitError: It is split already.

    Example:
        >>> import torch, fxsplit
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> [cut.path for cut in fxsplit.find_cuts(net, torch.zeros(1, 4))]
        ['1']
    """
    graph = model_or_graph
    if not isinstance(graph, fx.GraphModule):
        from fxsplit._trace import trace

        graph = trace(graph, example)
    survey = Survey(graph)
    exits = survey.exits if every_module else survey.blocks
    return Cuts(cut_at(survey, path, moment) for path, moment in exits.items())


def recorded_cut(graph: fx.GraphModule, path: str, node: str) -> Cut:
    """The cut of a traced graph that was stored as the path and the last node of its trunk, both empty for none."""
    survey = Survey(graph)
    return cut_at(survey, path, survey.moments[node]) if node else empty_cut(survey)


def cut_at(survey: Survey, path: str, moment: int) -> Cut:
    """Describe the cut at the end of ``path``."""
    verdict = survey.judge(moment, path)
    last = survey.last_node(moment)
    return _describe(survey, path, moment, verdict.mains, verdict.sides, "" if last is None else last.name)


def empty_cut(survey: Survey) -> Cut:
    """The cut before everything: an empty trunk, so that the heads are whole models."""
    inputs = survey.flow.alive(BEFORE)
    main = next((n for n in inputs if n.meta.get("dtype") is not None and n.meta["dtype"].is_floating_point), None)
    mains = tuple([main] if main is not None else inputs[:1])
    return _describe(survey, "", BEFORE, mains, tuple(n for n in inputs if n not in mains), "")


def _describe(
    survey: Survey, path: str, moment: int, mains: tuple[fx.Node, ...], sides: tuple[fx.Node, ...], last: str
) -> Cut:
    crossing = tuple(
        Crossing(
            node.name,
            node.meta["path"] if is_tensor(node) else "",
            node.meta.get("shape"),
            node.meta.get("dtype"),
            node in mains,
        )
        for node in (*mains, *sides)
    )
    before, after = survey.sizes.params(moment), survey.sizes.flops(moment)
    index = sum(block_exit <= moment for block_exit in survey.blocks.values())
    return Cut(path, index, crossing, *before, *after, len(mains) == 1 or not path, last)

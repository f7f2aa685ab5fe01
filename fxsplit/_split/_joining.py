"""Puts a trunk, heads and a vote together under one graph: the last step of every surgery."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from torch import fx, nn

from fxsplit._arguments import CALL_KEY
from fxsplit._cuts._find import Cut
from fxsplit._cuts._flow import Flow
from fxsplit._graph import is_source
from fxsplit._parametrized import parametrized_tensors
from fxsplit._split._emission import head_outputs_graph, whole_graph
from fxsplit._split._model import SPEC, SplitModel, SplitState
from fxsplit._split._partition import Partition
from fxsplit._split._report import SplitReport
from fxsplit._split._source import describe_source
from fxsplit._trace._guards import attach, guard_of

Model = TypeVar("Model", bound=SplitModel)


def join(
    kind: type[Model],
    flow: Flow,
    parts: Partition,
    trunk: fx.GraphModule,
    heads: Sequence[fx.GraphModule],
    voting: nn.Module,
    cut: Cut,
    report: SplitReport,
    spec: dict[str, Any],
) -> Model:
    """Put the parts of a split model together.

    Args:
        kind: Class of the result.
        flow: Of the traced graph.
        parts: What crosses from the trunk to the heads, and what they return.
        trunk: Returns the crossing values and the outputs that the heads don't make.
        heads: Take the crossing values and the direct inputs; each returns the leaves of the output.
        voting: Joins the leaves of the heads.
        cut: Where the graph was cut.
        report: What the surgery did.
        spec: Plain data that replays it.
    """
    graph = flow.root
    whole, separate = whole_graph(flow, parts, len(heads)), head_outputs_graph(flow, parts, len(heads))
    for composed in (whole, separate):
        attach(composed, guard_of(graph.graph))
    components = {"trunk": trunk, **{f"heads.{index}": head for index, head in enumerate(heads)}}
    state = SplitState(separate, cut, report, _origins(flow.nodes, components), _summary(graph), describe_source(graph))
    net: Any = kind.build(whole, trunk, heads, voting, state, spec, graph.training)
    net.meta[SPEC]["parametrized"] = parametrized_tensors(net)  # a file holds no others, but for masks
    net.meta[CALL_KEY] = graph.meta.get(CALL_KEY, ())
    net.meta["batch"] = graph.meta["batch"]  # the shapes and FLOPs of the nodes are at this batch size
    return net


def _origins(nodes: Iterable[fx.Node], components: Mapping[str, fx.GraphModule]) -> dict[str, str]:
    """Original paths of all copied modules; the containers around them are new and plain."""
    originals = {str(n.target) for n in nodes if n.op == "call_module" and not is_source(n)}
    return {
        f"{name}.{path}": path
        for name, component in components.items()
        for target in dict.fromkeys(str(n.target) for n in component.graph.nodes if n.op == "call_module")
        if target in originals
        for path, _ in component.get_submodule(target).named_modules(prefix=target, remove_duplicate=False)
    }


def _summary(graph: fx.GraphModule) -> Any:
    from fxsplit._summary._totals import source_summary

    return source_summary(graph)

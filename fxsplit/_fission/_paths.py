"""Heads that leave a trunk at several places: the structure of a Network Fission Ensemble, with all weights dense."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from torch import fx

from fxsplit._cuts._flow import Flow
from fxsplit._cuts._locate import At, Place, locate
from fxsplit._cuts._survey import Survey
from fxsplit._ensemble._rewriting import assemble_trunk
from fxsplit._errors import CutError
from fxsplit._graph import output_leaves
from fxsplit._split._copying import assemble, copy_values
from fxsplit._split._emission import head_graph, trunk_outputs
from fxsplit._split._joining import join
from fxsplit._split._model import SplitModel
from fxsplit._split._partition import Partition, divide
from fxsplit._split._report import SplitReport
from fxsplit._split._surgery import Init, draw_heads, make_spec
from fxsplit._trace import TracedModel
from fxsplit._vote import Vote, make_vote


def build(graph: TracedModel, at: Sequence[At], members: int, init: Init, vote: Vote, seed: int) -> SplitModel:
    """Let one head leave at each cut but the last, where all others leave.

    Args:
        graph: The traced model.
        at: The cuts, in the order of execution.
        members: Number of heads.
        init: See `fxsplit.split`.
        vote: See `fxsplit.split`.
        seed: Of fresh heads.

    Raises:
        CutError: A cut is not legal, or the order is another one.
    """
    survey = Survey(graph)
    flow = survey.flow
    places = [locate(survey, each) for each in at]
    _check_order(places)
    sides = [divide(flow, p.moment, [c.name for c in p.cut.crossing if c.main]) for p in places]
    parts = _together(flow, sides)
    trunk, copies = assemble_trunk(flow, parts)
    _keep_values(trunk, parts, sides, copies)
    rules: dict[str, str] = {}
    heads = []
    for index, drawn in enumerate(draw_heads(graph, sides[0], members, init, seed, {}, (), rules)):
        own = sides[min(index, len(sides) - 1)]
        own = dataclasses.replace(own, crossing=parts.crossing, inputs=parts.inputs, leaves=parts.leaves)
        heads.append(assemble("Head", head_graph(flow, own), copy_values(graph, own.head, drawn), graph))
    report = SplitReport(
        side_inputs=tuple(c for place in places for c in place.cut.crossing if not c.main),
        cloned=tuple(n.name for n in flow.nodes if n in parts.cloned),
        passed=tuple(parts.passed),
        init=rules,
        trace=graph.report,
    )
    cut = places[0].cut
    spec = make_spec(graph, cut, members, init, vote, seed=seed)
    cuts = [{"path": place.cut.path, "node": place.cut.node} for place in places]
    spec["method"] = {"name": "fission", "members": members, "cuts": cuts}
    return join(SplitModel, flow, parts, trunk, heads, make_vote(vote, list(parts.leaves)), cut, report, spec)


def _check_order(places: Sequence[Place]) -> None:
    for before, after in itertools.pairwise(places):
        if before.moment >= after.moment:
            raise CutError(
                f"The cuts of a fission have to be in the order of execution, but {after.cut.path!r} does not come "
                f"after {before.cut.path!r}."
            )


def _together(flow: Flow, sides: Sequence[Partition]) -> Partition:
    """The sides of the last cut, where the trunk also hands out what the heads of earlier cuts need."""
    last = sides[-1]
    places = [p for p in output_leaves(flow.root.graph) if any(p in side.leaves for side in sides)]
    leaves = {p: next(side.leaves[p] for side in sides if p in side.leaves) for p in places}
    made = [leaves[p] for p in places if p not in last.leaves]
    return dataclasses.replace(
        last,
        crossing=tuple(dict.fromkeys([*(node for side in sides for node in side.crossing), *made])),
        inputs=tuple(dict.fromkeys(node for side in sides for node in side.inputs)),
        cloned=frozenset().union(*(side.cloned for side in sides)),
        leaves=leaves,
        passed={p: node for p, node in last.passed.items() if p not in leaves},
    )


def _keep_values(
    trunk: fx.GraphModule, parts: Partition, sides: Sequence[Partition], copies: dict[fx.Node, fx.Node]
) -> None:
    """Hand out copies of values that the trunk itself overwrites after the cut that they are handed out at."""
    overwritten = {n for side in sides[:-1] for n in side.crossing if n in side.cloned and n in copies}
    if not overwritten:
        return
    results = trunk_outputs(parts)
    returned = [copies[node] for node in results]
    for node in overwritten:
        with trunk.graph.inserting_after(copies[node]):
            kept = trunk.graph.call_method("clone", (copies[node],))
        kept.meta = dict(node.meta) | {"flops": 0}
        returned[results.index(node)] = kept
    output = next(node for node in reversed(trunk.graph.nodes) if node.op == "output")
    output.args = (returned[0] if len(returned) == 1 else tuple(returned),)
    trunk.recompile()

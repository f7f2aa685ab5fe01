"""Where any model may be cut, held against the dominator tree of networkx."""

from __future__ import annotations

import networkx
import pytest

import fxsplit
from fxsplit._flops import other_flops
from tests.oracle import SOURCE, crossing, dominators, flow, is_legal, last_node
from tests.strategies import Case, cases, holds_for


@holds_for(case=cases())
def test_cuts_are_those_that_the_dominator_tree_allows(case: Case) -> None:
    model = case.build()
    traced = fxsplit.trace(model, case.example())
    graph = traced.graph
    cuts = {cut.path: cut for cut in fxsplit.find_cuts(traced, every_module=True)}
    assert set(case.legal) <= cuts.keys()
    assert not set(case.illegal) & cuts.keys()
    tree = networkx.immediate_dominators(flow(graph), SOURCE)
    for path, cut in cuts.items():
        last = last_node(graph, path)
        assert is_legal(graph, last), path
        assert [item.name for item in cut.crossing if item.main] == [cut.crossing[0].name]
        assert {item.name for item in cut.crossing} >= {node.name for node in crossing(graph, last)}
        main = cut.crossing[0].name
        for side in cut.crossing[1:]:
            assert side.name not in dominators(tree, main), (path, side)
            assert main not in dominators(tree, side.name), (path, side)


@holds_for(case=cases(max_blocks=3))
def test_refused_paths_name_what_crosses_and_where_to_cut_instead(case: Case) -> None:
    traced = fxsplit.trace(case.build(), case.example())
    cuts = {cut.path for cut in fxsplit.find_cuts(traced, every_module=True)}
    for path, _ in traced.source.named_modules():
        nodes = [n for n in traced.graph.nodes if n.op != "output" and path in n.meta["modules"]]
        if path and nodes and not is_legal(traced.graph, nodes[-1]):
            assert path not in cuts
            with pytest.raises(fxsplit.CutError, match=path):
                fxsplit.split(traced, path, heads=2)


@holds_for(case=cases())
def test_sizes_before_and_after_a_cut_add_up(case: Case) -> None:
    model = case.build()
    traced = fxsplit.trace(model, case.example())
    total = sum(parameter.numel() for parameter in model.parameters())
    flops = sum(fxsplit.layer_flops(traced).values()) + other_flops(traced)
    for cut in fxsplit.find_cuts(traced, every_module=True):
        assert cut.flops_before + cut.flops_after == flops
        assert cut.params_before + cut.params_after >= total
        if cut.path in case.legal:
            prefixes = case.trunk_prefixes(cut.path)
            before = sum(p.numel() for name, p in model.named_parameters() if name.startswith(prefixes))
            assert cut.params_before == before

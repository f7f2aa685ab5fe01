"""Where any model may be cut, held against the dominator tree of networkx."""

from __future__ import annotations

import networkx
from hypothesis import strategies as st
from torch import fx

import fxsplit
from fxsplit._flops import other_flops
from tests.checks import assert_same
from tests.oracle import SOURCE, crossing, dominators, flow, is_legal
from tests.strategies import Case, PathCase, all_cases, call, cases, holds_for, path_cases


@holds_for(case=all_cases())
def test_cuts_are_those_that_the_dominator_tree_allows(case: Case) -> None:
    model = case.build()
    traced = fxsplit.trace(model, case.example())
    graph = traced.graph
    cuts = {cut.path: cut for cut in fxsplit.find_cuts(traced, every_module=True)}
    clean = {path for path, cut in cuts.items() if cut.clean}
    assert set(case.legal) <= clean
    assert set(case.illegal) <= cuts.keys() - clean
    tree = networkx.immediate_dominators(flow(graph), SOURCE)
    for path, cut in cuts.items():
        last = next(node for node in graph.nodes if node.name == cut.node)
        assert {item.name for item in cut.crossing} >= {node.name for node in crossing(graph, last)}
        mains = [item.name for item in cut.crossing if item.main]
        assert mains == [item.name for item in cut.crossing[: len(mains)]]
        assert cut.clean == (len(mains) == 1)
        if not cut.clean:
            continue
        assert is_legal(graph, last), path
        computed = {node.name for node in graph.nodes if node.op != "placeholder"}
        for side in (item for item in cut.crossing[1:] if item.name in computed):
            assert side.name not in dominators(tree, mains[0]), (path, side)
            assert mains[0] not in dominators(tree, side.name), (path, side)


@holds_for(case=cases(max_blocks=3))
def test_refused_paths_name_what_crosses_and_where_to_cut_instead(case: Case) -> None:
    traced = fxsplit.trace(case.build(), case.example())
    cuts = {cut.path for cut in fxsplit.find_cuts(traced, every_module=True) if cut.clean}
    ends = {path: nodes_of(traced, path)[-1:] for path, _ in traced.source.named_modules() if path}
    blocks = {tuple(ends[cut.path]): cut for cut in fxsplit.find_cuts(traced)}
    for path, end in ends.items():
        if end and not is_legal(traced.graph, end[0]):
            assert path not in cuts
            cut = cut_or_refusal(traced, path)
            if isinstance(cut, str):
                assert path in cut
                assert tuple(end) not in blocks
                continue
            # Enough to ask for a cut are the place where a block ends, and a module whose results are all that cross.
            block = blocks.get(tuple(end))
            mains = {tensor.name for tensor in cut.crossing if tensor.main}
            assert len(mains) > 1
            assert mains <= {node.name for node in nodes_of(traced, path)} or block is not None
            assert block is None or cut.crossing == block.crossing


def cut_or_refusal(traced: fxsplit.TracedModel, path: str) -> fxsplit.Cut | str:
    try:
        return fxsplit.split(traced, path, heads=2).cut
    except fxsplit.CutError as error:
        return str(error)


def nodes_of(traced: fxsplit.TracedModel, path: str) -> list[fx.Node]:
    return [node for node in traced.graph.nodes if node.op != "output" and path in node.meta["modules"]]


@holds_for(case=all_cases(), data=st.data())
def test_every_module_exit_is_a_cut(case: Case, data: st.DataObject) -> None:
    """Whatever crosses: the trunk runs once, each copied head is the model, and sizes add up."""
    model = case.build()
    traced = fxsplit.trace(model, case.example())
    cut = data.draw(st.sampled_from(fxsplit.find_cuts(traced, every_module=True)))
    net = fxsplit.split(traced, cut, heads=3, init="copy")
    assert net.cut == cut
    assert sum(p.numel() for p in net.parameters()) == cut.params_before + 3 * cut.params_after
    calls = []
    net.trunk.register_forward_hook(lambda *_: calls.append(1))
    for batch in (2, 3):
        expected = call(model, case.example(batch))
        for output in call(net.head_outputs, case.example(batch)):
            assert_same(output, expected)
    assert len(calls) == 2


@holds_for(case=path_cases())
def test_blocks_are_cuts_though_several_tensors_cross(case: PathCase) -> None:
    model = case.build()
    traced = fxsplit.trace(model, case.example())
    cuts = fxsplit.find_cuts(traced)
    assert {cut.path: sum(item.main for item in cut.crossing) for cut in cuts} == case.mains
    assert [cut.path for cut in cuts] == list(case.mains)
    for cut in cuts:
        net = fxsplit.split(traced, cut.path, heads=2, init="copy")
        for output in call(net.head_outputs, case.example(3)):
            assert_same(output, call(model, case.example(3)))


@holds_for(case=all_cases())
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

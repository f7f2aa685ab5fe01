"""Cuts of small nets, worked out by hand."""

from __future__ import annotations

import time
from pathlib import Path

import networkx
import pytest
import torch
from torch import Tensor, fx, nn

import fxsplit
from fxsplit import CutError, Cuts, SplitError


class Block(nn.Module):
    """conv -> relu -> conv, added to its input: 3 * 3 * 9 * 2 + 6 = 168 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 3, 3, padding=1)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.relu(self.conv1(x)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 1)
        self.stage1 = nn.Sequential(Block(), Block())
        self.stage2 = nn.Sequential(Block())
        self.head = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stage2(self.stage1(self.stem(x))).mean((2, 3)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = (nn.Conv2d(2, 2, 1) for _ in range(3))
        self.up2, self.up1 = (nn.Conv2d(4, 2, 1) for _ in range(2))
        self.head = nn.Conv2d(2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(one)
        up = self.up2(torch.cat([two, self.bottom(two)], 1))
        return self.head(self.up1(torch.cat([one, up], 1)))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 3), nn.Linear(2, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(torch.cat([self.left(x), self.right(y)], 1))


@pytest.fixture(scope="module")
def residual() -> fxsplit.TracedModel:
    return fxsplit.trace(Residual(), torch.randn(2, 1, 4, 4))


def paths(model: nn.Module, example: object = None) -> list[str]:
    return [cut.path for cut in fxsplit.find_cuts(model, example)]


def clean_paths(model: nn.Module) -> list[str]:
    return [cut.path for cut in fxsplit.find_cuts(model, every_module=True) if cut.clean]


def test_blocks_of_a_residual_net(residual: fxsplit.TracedModel) -> None:
    cuts = fxsplit.find_cuts(residual)
    assert isinstance(cuts, Cuts)
    assert isinstance(cuts, tuple)
    assert [(cut.path, cut.index) for cut in cuts] == [("stage1.0", 1), ("stage1.1", 2), ("stage2.0", 3)]
    assert all(cut.clean for cut in cuts)


def test_sizes_around_a_cut(residual: fxsplit.TracedModel) -> None:
    cut = fxsplit.find_cuts(residual)[0]
    # stem 1*3+3, a block 2*(3*3*9+3), head 3*5+5
    assert (cut.params_before, cut.params_after) == (6 + 168, 168 + 168 + 20)
    stem, block, head = 2 * (3 * 1) * 16, 2 * (2 * 3 * 3 * 9) * 16, 2 * (3 * 5)
    assert (cut.flops_before, cut.flops_after) == (stem + block, 2 * block + head)
    (crossing,) = cut.crossing
    assert (crossing.path, crossing.shape, crossing.dtype, crossing.main) == (
        "stage1.0",
        (2, 3, 4, 4),
        torch.float32,
        True,
    )
    assert cut.node == crossing.name


def test_every_module_lists_all_exits_and_says_which_are_clean(residual: fxsplit.TracedModel) -> None:
    cuts = fxsplit.find_cuts(residual, every_module=True)
    inner = ["conv1", "relu", "conv2"]
    within = {block: [f"{block}.{name}" for name in inner] for block in ("stage1.0", "stage1.1", "stage2.0")}
    assert [cut.path for cut in cuts] == [
        "stem",
        *within["stage1.0"],
        "stage1.0",
        *within["stage1.1"],
        "stage1.1",
        "stage1",
        *within["stage2.0"],
        "stage2.0",
        "stage2",
    ]
    assert clean_paths(residual) == ["stem", "stage1.0", "stage1.1", "stage1", "stage2.0", "stage2"]
    open_skip = next(cut for cut in cuts if cut.path == "stage1.1.relu")
    assert [(c.path, c.main) for c in open_skip.crossing] == [("stage1.1.relu", True), ("stage1.0", True)]


def test_a_cut_with_an_open_skip_connection_is_made_when_it_is_given_itself(residual: fxsplit.TracedModel) -> None:
    x = torch.randn(2, 1, 4, 4)
    cuts = fxsplit.find_cuts(residual, every_module=True)
    assert len([cut for cut in cuts if not cut.clean]) == 9
    for cut in cuts:
        net = fxsplit.split(residual, cut, init="copy")
        assert all(torch.equal(output, residual(x)) for output in net.head_outputs(x)), cut.path
        assert net.cut == cut
        assert not net.report.side_inputs


def test_a_path_may_name_a_stage_or_its_last_block(residual: fxsplit.TracedModel) -> None:
    stage = fxsplit.split(residual, "stage1", init="copy").cut
    block = fxsplit.split(residual, "stage1.1", init="copy").cut
    assert (stage.node, stage.index) == (block.node, block.index)


def test_a_module_list_ends_where_its_last_module_ends() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return self.head(x)

    traced = fxsplit.trace(Listed(), torch.zeros(1, 4))
    assert (
        fxsplit.split(traced, "layers", init="copy").cut.node == fxsplit.split(traced, "layers.1", init="copy").cut.node
    )


def test_an_open_skip_connection_is_no_cut(residual: fxsplit.TracedModel) -> None:
    with pytest.raises(CutError) as error:
        fxsplit.split(residual, "stage1.1.conv1")
    text = str(error.value)
    assert "'stage1.1.conv1'" in text
    assert "2 tensors cross" in text
    assert "stage1.0, 2x3x4x4" in text  # the skip connection
    assert "stage1.1.conv1, 2x3x4x4" in text
    assert "'stage1.0' before it, 'stage1.1' after it" in text
    assert "pass the Cut from find_cuts(model, every_module=True)" in text


def test_unet_can_be_cut_before_its_first_and_after_its_last_skip() -> None:
    traced = fxsplit.trace(UNet(), torch.randn(2, 2, 3, 3))
    assert clean_paths(traced) == ["down1", "up1"]
    for path in ("down2", "bottom", "up2"):
        with pytest.raises(CutError, match="'down1' before it, 'up1' after it"):
            fxsplit.split(traced, path)


def test_an_input_used_later_is_a_side_input() -> None:
    traced = fxsplit.trace(TwoInputs(), (torch.randn(2, 4), torch.randn(2, 2)))
    left, right = fxsplit.find_cuts(traced, every_module=True)
    assert [(c.name, c.main) for c in left.crossing] == [("left", True), ("y", False)]
    assert [(c.name, c.main) for c in right.crossing] == [("right", True), ("left", False)]


def test_a_mask_read_everywhere_does_not_make_a_half_block_a_cut() -> None:
    """The mask reaches every layer on a way around the residual stream."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(3, 3)
            self.mix = nn.ModuleList([nn.Linear(3, 3) for _ in range(2)])
            self.mlp = nn.ModuleList([nn.Linear(3, 3) for _ in range(2)])
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            bias = 1.0 - mask
            x = self.embed(x)
            for mix, mlp in zip(self.mix, self.mlp, strict=True):
                x = x + mix(x * bias) * bias
                x = x + mlp(x)
            return self.head(x)

    traced = fxsplit.trace(Masked(), (torch.randn(2, 3), torch.ones(2, 3)))
    assert clean_paths(traced) == ["embed"]
    cut = fxsplit.find_cuts(traced, every_module=True)[0]
    assert [c.name for c in cut.crossing if not c.main] == [
        n.name for n in traced.graph.nodes if n.target in ("rsub", "__rsub__")
    ]
    with pytest.raises(CutError):
        fxsplit.split(traced, "mix.0")


def test_plain_chain_is_cut_before_every_layer_but_the_first() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
    )
    assert paths(net, torch.randn(2, 1, 6, 6)) == ["1", "5"]


def test_integers_and_shares_count_blocks(residual: fxsplit.TracedModel) -> None:
    def path(at: int | float) -> str:
        return fxsplit.split(residual, at, heads=1, init="copy").cut.path

    assert [path(n) for n in (1, 2, 3)] == ["stage1.0", "stage1.1", "stage2.0"]
    assert [path(share) for share in (0.01, 1 / 3, 2 / 3, 1.0)] == ["stage1.0", "stage1.0", "stage1.1", "stage2.0"]


def test_zero_blocks_are_an_empty_trunk(residual: fxsplit.TracedModel) -> None:
    net = fxsplit.split(residual, 0, init="copy")
    assert net.cut.path == ""
    assert net.cut.index == 0
    assert (net.cut.params_before, net.cut.flops_before) == (0, 0)
    assert not list(net.trunk.parameters())
    assert sum(p.numel() for p in net.parameters()) == 3 * sum(p.numel() for p in residual.parameters())
    x = torch.randn(2, 1, 4, 4)
    assert all(torch.equal(output, residual(x)) for output in net.head_outputs(x))


def test_a_cut_of_find_cuts_can_be_given_back(residual: fxsplit.TracedModel) -> None:
    for cut in fxsplit.find_cuts(residual, every_module=True):
        assert fxsplit.split(residual, cut, heads=1, init="copy").cut == cut
    empty = fxsplit.split(residual, 0, heads=1, init="copy").cut
    assert fxsplit.split(residual, empty, heads=1, init="copy").cut == empty


@pytest.mark.parametrize("at", ["stage1.1.relu", "stage1.0", 0, "auto"])
def test_any_cut_is_repeated_by_a_file(residual: fxsplit.TracedModel, tmp_path: Path, at: str | int) -> None:
    cuts = {cut.path: cut for cut in fxsplit.find_cuts(residual, every_module=True)}
    net = fxsplit.split(residual, cuts.get(at, at) if isinstance(at, str) else at, heads=2)
    fxsplit.save(net, tmp_path / "net")
    again = fxsplit.load(tmp_path / "net", Residual())
    x = torch.randn(2, 1, 4, 4)
    assert again.cut == net.cut
    assert torch.equal(again(x), net(x))


def test_a_cut_of_another_graph_is_refused(residual: fxsplit.TracedModel) -> None:
    cut = fxsplit.find_cuts(fxsplit.trace(UNet(), torch.randn(2, 2, 3, 3)), every_module=True)[0]
    with pytest.raises(CutError, match=r"no module 'down1'"):
        fxsplit.split(residual, cut)


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (4, "after 1 to 3 blocks"),
        (-1, "after 1 to 3 blocks"),
        (0.0, "above 0 and at most 1"),
        (1.5, "above 0 and at most 1"),
        (float("nan"), "above 0 and at most 1"),
        (True, "got True"),
        (None, "got None"),
        ("", "leaves nothing for the heads"),
        ("stage1.9", "Did you mean 'stage1.1'"),
        ("stage1.0.relu.x", "no module"),
        ("head", "Nothing is left for the heads"),
    ],
)
def test_impossible_places(residual: fxsplit.TracedModel, at: object, message: str) -> None:
    with pytest.raises(CutError, match=message):
        fxsplit.split(residual, at)  # type: ignore[arg-type]


def test_a_module_that_never_runs_is_named() -> None:
    net = Residual()
    net.unused = nn.Linear(2, 2)
    with pytest.raises(CutError, match="'unused' is part of the model but computes nothing"):
        fxsplit.split(fxsplit.trace(net, torch.randn(2, 1, 4, 4)), "unused")


def test_only_traced_graphs_are_cut() -> None:
    with pytest.raises(SplitError, match="Expected a traced graph"):
        fxsplit.split(Residual(), 1)  # type: ignore[arg-type]
    with pytest.raises(SplitError, match=r"fxsplit\.trace did not make"):
        fxsplit.find_cuts(fx.symbolic_trace(Residual()))


def test_cuts_print_as_a_table(residual: fxsplit.TracedModel) -> None:
    cuts = fxsplit.find_cuts(residual)
    head, first, *_ = str(cuts).splitlines()
    assert "path" in head
    assert "stage1.0" in first
    assert "2x3x4x4" in first
    assert cuts._repr_html_().count("<tr>") == 4
    assert "stage1.0" in str(cuts[0])


def clean_by_dominators(traced: fxsplit.TracedModel, cut: fxsplit.Cut) -> bool:
    """Independent definition: with all side tensors merged into one node, that node does not dominate the main one."""
    graph = fxsplit.to_networkx(traced)
    tensors = graph.subgraph([n for n, shape in graph.nodes(data="shape") if shape is not None]).copy()
    tensors.add_edges_from(("input", n) for n, op in graph.nodes(data="op") if op == "placeholder")
    main = next(c.name for c in cut.crossing if c.main)
    sides = [c.name for c in cut.crossing if c.name != main and graph.nodes[c.name]["op"] != "placeholder"]
    for side in sides:
        networkx.contracted_nodes(tensors, sides[0], side, self_loops=False, copy=False)
    dominators = networkx.immediate_dominators(tensors, "input")
    node, found = main, []
    while node != "input":
        node = dominators[node]
        found.append(node)
    return not set(found) & set(sides)


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (Residual(), torch.randn(2, 1, 4, 4)),
        (UNet(), torch.randn(2, 2, 3, 3)),
        (TwoInputs(), (torch.randn(2, 4), torch.randn(2, 2))),
    ],
)
def test_clean_cuts_agree_with_the_dominator_tree(model: nn.Module, example: object) -> None:
    traced = fxsplit.trace(model, example)
    cuts = [cut for cut in fxsplit.find_cuts(traced, every_module=True) if cut.crossing]
    assert any(cut.clean for cut in cuts)
    assert [clean_by_dominators(traced, cut) for cut in cuts] == [cut.clean for cut in cuts]


def test_networkx_graph_of_a_split_model_has_its_components(residual: fxsplit.TracedModel) -> None:
    net = fxsplit.split(residual, "stage1.0", heads=2, init="copy")
    graph = fxsplit.to_networkx(net)
    assert networkx.is_directed_acyclic_graph(graph)
    parts = dict.fromkeys(("trunk", "heads.0", "heads.1", "vote", ""), 0)
    for _, data in graph.nodes(data=True):
        parts[data["component"]] += data["params"]
    assert parts == {"trunk": 174, "heads.0": 356, "heads.1": 356, "vote": 0, "": 0}
    readers = set(graph.successors(f"trunk.{net.cut.node}"))
    assert readers == {f"heads.{i}.{name}" for i in range(2) for name in ("stage1_1_conv1", "add_1")}
    assert networkx.has_path(graph, "x", "output")
    with pytest.raises(fxsplit.FxSplitError, match="traced or split"):
        fxsplit.to_networkx(nn.Linear(1, 1))  # type: ignore[arg-type]


def test_token_ids_read_again_at_the_end_are_a_side_input() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.layer, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, ids: Tensor) -> Tensor:
            ids = ids.view(-1, ids.shape[-1])
            x = self.layer(self.embed(ids))
            return self.head(x[torch.arange(x.shape[0]), ids.argmax(-1)])

    traced = fxsplit.trace(Pooled(), torch.randint(0, 9, (2, 5)))
    cuts = fxsplit.find_cuts(traced, every_module=True)
    assert [cut.path for cut in cuts] == ["embed", "layer"]
    assert [(c.dtype, c.main) for c in cuts[1].crossing] == [(torch.float32, True), (torch.int64, False)]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8, bias=False)
        self.out = nn.Linear(8, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.mix(x)
        return self.out(nn.functional.scaled_dot_product_attention(x, x, x))


def test_attention_products_count_once_a_sample() -> None:
    (cut,) = fxsplit.find_cuts(Attention(), torch.randn(3, 2, 5, 8), every_module=True)
    # 2 heads of 5 tokens: two products of 5 x 5 x 8 each, and 10 rows of a linear layer on both sides
    assert (cut.path, cut.flops_before, cut.flops_after) == ("mix", 2 * 10 * 64, 2 * 10 * 64 + 2 * 2 * (2 * 25 * 8))


def test_a_second_name_of_a_module_is_that_module() -> None:
    twice = nn.Linear(4, 4)
    graph = fxsplit.trace(nn.Sequential(twice, nn.ReLU(), twice, nn.Linear(4, 2)), torch.randn(2, 4))
    assert fxsplit.split(graph, "2", heads=1, init="copy").cut.node == "_0_1"


def test_cuts_are_shown_as_a_table() -> None:
    cuts = fxsplit.find_cuts(Attention(), torch.randn(3, 2, 5, 8), every_module=True)
    assert repr(cuts) == str(cuts)
    assert "main tensors" in repr(cuts)


def test_the_table_shows_the_trunks_share(residual: fxsplit.TracedModel) -> None:
    # FLOPs of the stem, of each of three blocks and of the head, as above
    shares = [(96 + n * 5184) / (96 + 3 * 5184 + 30) for n in (1, 2, 3)]
    assert [cut.share for cut in fxsplit.find_cuts(residual)] == pytest.approx(shares)
    assert [line.split()[-2] for line in str(fxsplit.find_cuts(residual)).splitlines()[1:]] == ["34%", "67%", "100%"]


def test_auto_is_the_block_nearest_to_a_third_by_flops(residual: fxsplit.TracedModel) -> None:
    net = fxsplit.split(residual, "auto", init="copy")
    assert (net.cut.path, net.meta["fxsplit_spec"]["split"]) == ("stage1.0", "stage1.0")
    equal = nn.Sequential(*(nn.Linear(4, 4) for _ in range(8)))
    assert fxsplit.split(fxsplit.trace(equal, torch.zeros(2, 4)), "auto", init="copy").cut.path == "2"  # 3/8, not 2/8
    top_heavy = nn.Sequential(nn.Linear(20, 4), *(nn.Linear(4, 4) for _ in range(7)))
    net = fxsplit.split(fxsplit.trace(top_heavy, torch.zeros(2, 20)), "auto", init="copy")
    assert (net.cut.path, net.cut.share) == ("0", 80 / (80 + 7 * 16))


def test_auto_goes_by_parameters_where_no_flops_are_counted() -> None:
    class Scale(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(size, 3))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight.sum(0)

    model = nn.Sequential(Scale(1), Scale(1), Scale(1), Scale(1), Scale(1), Scale(1))
    net = fxsplit.split(fxsplit.trace(model, torch.ones(2, 3)), "auto", init="copy")
    assert (net.cut.path, net.cut.flops_before, net.cut.flops_after) == ("1", 0, 0)


def test_auto_needs_blocks() -> None:
    with pytest.raises(CutError, match="has none; name a module by its path"):
        fxsplit.split(fxsplit.trace(nn.Linear(3, 2), torch.zeros(1, 3)), "auto")


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.fc1(x) * mask
        return x + self.fc2(x)


class Stack(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.cells = nn.ModuleList([Cell() for _ in range(depth)])
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for cell in self.cells:
            x = cell(x, mask)
        return self.head(x)


def test_the_cost_of_cuts_grows_with_the_graph_and_not_with_its_square() -> None:
    def seconds(graph: fxsplit.TracedModel) -> float:
        taken = []
        for _ in range(3):
            start = time.process_time()
            fxsplit.find_cuts(graph, every_module=True)
            taken.append(time.process_time() - start)
        return min(taken)

    short, long = (fxsplit.trace(Stack(depth), (torch.randn(2, 4), torch.ones(2, 4))) for depth in (25, 200))
    assert len(fxsplit.find_cuts(long)) == 200
    assert seconds(long) < 3 * 8 * seconds(short)  # quadratic: 64 times

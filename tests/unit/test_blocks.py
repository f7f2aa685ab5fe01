from __future__ import annotations

import pytest
from torch import fx

from fxsplit._summary._blocks import group_nodes


def chain(*steps: tuple[str, str]) -> list[fx.Node]:
    """Nodes from ``(op, path)``: a module's own call if op is 'm', something that happens inside the module if 'f'."""
    graph = fx.Graph()
    value = graph.placeholder("x")
    for op, path in steps:
        value = graph.call_module(path, (value,)) if op == "m" else graph.call_function(abs, (value,))
        names = path.split(".") if path else []
        value.meta = {"path": path, "modules": tuple(".".join(names[: i + 1]) for i in range(len(names)))}
    return [node for node in graph.nodes if node.op != "placeholder"]


def grouped(nodes: list[fx.Node], blocks: list[str]) -> list[tuple[str, bool, int]]:
    return [(group.path, group.is_block, len(group.nodes)) for group in group_nodes(nodes, blocks)]


def test_blocks_and_what_lies_around_them() -> None:
    around = [("m", "conv1"), ("m", "pool")], [("f", ""), ("m", "fc")]
    blocks = [("m", "layer.0.conv"), ("f", "layer.0"), ("m", "layer.1.conv")]
    nodes = chain(*around[0], *blocks, *around[1])
    assert grouped(nodes, ["layer.0", "layer.1"]) == [
        ("conv1 ... pool", False, 2),
        ("layer.0", True, 2),
        ("layer.1", True, 1),
        ("fc", False, 2),
    ]


def test_blocks_that_are_single_layers_take_in_what_precedes_them() -> None:
    nodes = chain(("m", "0"), ("m", "1"), ("m", "2"), ("m", "3"), ("m", "4"))
    assert grouped(nodes, ["1", "3"]) == [("1", True, 2), ("3", True, 2), ("4", False, 1)]


def test_a_stretch_between_two_blocks_and_a_block_called_twice() -> None:
    nodes = chain(("m", "a.x"), ("f", "n"), ("m", "a.x"), ("m", "a.x"))
    assert grouped(nodes, ["a"]) == [("a", True, 1), ("n", False, 1), ("a", True, 2)]


@pytest.mark.parametrize(
    ("paths", "label"),
    [
        (["stem.conv", "stem.bn"], "stem.conv ... bn"),
        (["stem.conv", "stem.conv"], "stem.conv"),
        (["model.embed", "model", "model.rotary"], "model.embed ... rotary"),
        (["norm", "head.drop"], "norm ... head"),
        (["", "fc"], "fc"),
        ([""], "abs_1"),
        (["", ""], "abs_1 ... abs_2"),
    ],
)
def test_labels(paths: list[str], label: str) -> None:
    assert [group[0] for group in grouped(chain(*(("f", path) for path in paths)), [])] == [label]


def test_nothing_to_group() -> None:
    assert group_nodes([], ["a"]) == []

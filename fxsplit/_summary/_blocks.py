"""Group the nodes of a graph by block, for display: the blocks themselves and what lies before, between and after."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import fx


@dataclass(frozen=True)
class Group:
    """Neighbouring nodes shown as one: a block under its path, or a stretch outside all blocks."""

    path: str
    is_block: bool
    nodes: tuple[fx.Node, ...]


def group_nodes(nodes: Iterable[fx.Node], blocks: Sequence[str]) -> list[Group]:
    """Cut a sequence of nodes into groups.

    A block is named by its module. If that module is a single node (a model without block classes is cut after plain
    layers), the block is that node with everything since the block before.

    Args:
        nodes: In graph order, with the metadata ``path`` and ``modules``.
        blocks: Paths of the blocks, as in the block cuts of the model the nodes come from.
    """
    known = set(blocks)
    groups: list[Group] = []
    loose: list[fx.Node] = []
    for node in nodes:
        path = next((p for p in node.meta.get("modules", ()) if p in known), None)
        if path is None:
            loose.append(node)
        elif node.op == "call_module" and node.meta.get("path") == path:
            groups.append(Group(path, True, (*loose, node)))
            loose = []
        elif groups and groups[-1].path == path and not loose:
            groups[-1] = Group(path, True, (*groups[-1].nodes, node))
        else:
            groups += _outside(loose)
            groups.append(Group(path, True, (node,)))
            loose = []
    return groups + _outside(loose)


def _outside(nodes: Sequence[fx.Node]) -> list[Group]:
    return [Group(_label(nodes), False, tuple(nodes))] if nodes else []


def _label(nodes: Sequence[fx.Node]) -> str:
    """``'conv1 ... maxpool'``: the first and last module of a stretch, up to where their paths part."""
    paths = [path.split(".") for node in nodes if (path := node.meta.get("path"))]
    if not paths:
        return nodes[0].name if len(nodes) == 1 else f"{nodes[0].name} ... {nodes[-1].name}"
    first, last = paths[0], paths[-1]
    shared = next((i for i, names in enumerate(zip(*paths, strict=False)) if len(set(names)) > 1), min(map(len, paths)))
    start, end = ".".join(first[: shared + 1]), ".".join(last[shared : shared + 1])
    return start if first[: shared + 1] == last[: shared + 1] else f"{start} ... {end or last[-1]}"

"""Legal cuts found independently of the code under test: by the dominator tree that networkx computes."""

from __future__ import annotations

from collections.abc import Iterator

import networkx
from torch import fx

SOURCE = "inputs of the model"


def flow(graph: fx.Graph) -> networkx.DiGraph:
    """How tensors and sizes flow from the inputs; constants and parameters are no sources."""
    flow = networkx.DiGraph()
    flow.add_node(SOURCE)
    for node in graph.nodes:
        if node.op == "placeholder":
            flow.add_edge(SOURCE, node.name)
        elif node.op != "output":
            flow.add_edges_from((parent.name, node.name) for parent in node.all_input_nodes)
    return flow


def dominators(tree: dict[str, str], name: str) -> Iterator[str]:
    """The nodes that every way from the inputs to ``name`` passes, nearest first, without itself and the source."""
    while name in tree and tree[name] not in (name, SOURCE):
        name = tree[name]
        yield name


def ends_the_model(node: fx.Node) -> bool:
    """Whether a node only puts outputs together: the output itself, or the call of the class that it returns."""
    return node.op == "output" or (
        node.op == "call_function" and isinstance(node.target, type) and all(map(ends_the_model, node.users))
    )


def crossing(graph: fx.Graph, last: fx.Node) -> list[fx.Node]:
    """The tensors that are computed up to ``last`` and used by an operation after it."""
    nodes = list(graph.nodes)
    place = {node: index for index, node in enumerate(nodes)}
    return [
        node
        for node in nodes[: place[last] + 1]
        if node.op != "get_attr"
        and node.meta["shape"] is not None
        and any(place[user] > place[last] and not ends_the_model(user) for user in node.users)
    ]


def last_node(graph: fx.Graph, path: str) -> fx.Node:
    """The last node recorded inside the module at ``path``."""
    return [n for n in graph.nodes if n.op != "output" and path in n.meta["modules"]][-1]


def is_legal(graph: fx.Graph, last: fx.Node) -> bool:
    """Whether the tensors that cross after ``last`` are one main tensor and side inputs unrelated to it."""
    tree = networkx.immediate_dominators(flow(graph), SOURCE)
    computed = [node.name for node in crossing(graph, last) if node.op != "placeholder"]
    return any(
        all(other not in dominators(tree, main) and main not in dominators(tree, other) for other in computed)
        for main in computed
    )

"""A dense graph module as plain data that can be pickled, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn


@dataclass(frozen=True)
class _Reference:
    """A node, by its place in the graph."""

    index: int


@dataclass(frozen=True)
class _Record:
    op: str
    name: str
    target: Any
    args: Any
    kwargs: Any


@dataclass(frozen=True)
class Stored:
    """Nodes in order, and what they refer to by name."""

    nodes: tuple[_Record, ...]
    modules: dict[str, nn.Module]
    constants: dict[str, Any]


def stored(module: fx.GraphModule) -> Stored:
    """Take a graph module apart; functions are pickled by name, modules and constants as they are."""
    place = {node: index for index, node in enumerate(module.graph.nodes)}
    nodes = tuple(
        _Record(node.op, node.name, node.target, *_mapped((node.args, node.kwargs), place))
        for node in module.graph.nodes
    )
    names = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    return Stored(nodes, dict(module.named_children()), {name: getattr(module, name) for name in names})


def restored(state: Stored) -> fx.GraphModule:
    """Put a graph module together again."""
    root, graph = nn.Module(), fx.Graph()
    for name, child in state.modules.items():
        root.add_module(name, child)
    for name, value in state.constants.items():
        if isinstance(value, Tensor):
            root.register_buffer(name, value)
        else:
            setattr(root, name, value)
    made: list[fx.Node] = []
    for record in state.nodes:
        args, kwargs = _unmapped((record.args, record.kwargs), made)
        made.append(graph.create_node(record.op, record.target, args, kwargs, name=record.name))
    return fx.GraphModule(root, graph, class_name="DenseProgram").eval()


def _mapped(value: Any, place: dict[fx.Node, int]) -> Any:
    if isinstance(value, fx.Node):
        return _Reference(place[value])
    if isinstance(value, tuple):
        return tuple(_mapped(each, place) for each in value)
    if isinstance(value, list):
        return [_mapped(each, place) for each in value]
    if isinstance(value, dict):
        return {key: _mapped(each, place) for key, each in value.items()}
    if isinstance(value, slice):
        return slice(*(_mapped(each, place) for each in (value.start, value.stop, value.step)))
    return value


def _unmapped(value: Any, made: list[fx.Node]) -> Any:
    if isinstance(value, _Reference):
        return made[value.index]
    if isinstance(value, tuple):
        return tuple(_unmapped(each, made) for each in value)
    if isinstance(value, list):
        return [_unmapped(each, made) for each in value]
    if isinstance(value, dict):
        return {key: _unmapped(each, made) for key, each in value.items()}
    if isinstance(value, slice):
        return slice(*(_unmapped(each, made) for each in (value.start, value.stop, value.step)))
    return value

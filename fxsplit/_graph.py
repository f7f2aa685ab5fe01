"""Questions about single nodes of a traced graph, and which nodes only rebuild the model's output."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, fx, nn

from fxsplit._errors import SplitError

_SIZE_METHODS = frozenset({"size", "dim", "numel", "stride", "ndimension", "nelement", "element_size", "get_device"})
_SIZE_ATTRIBUTES = frozenset({"shape", "dtype", "device", "ndim", "layout", "itemsize", "nbytes", "is_cuda"})


def require_traced(graph: object) -> fx.GraphModule:
    """Return ``graph`` if it is a traced graph of an unsplit model.

    Raises:
        SplitError: It is something else.
    """
    if not isinstance(graph, fx.GraphModule):
        raise SplitError(
            f"Expected a traced graph, got {type(graph).__name__}. Make one with fxsplit.trace(model, example)."
        )
    if "fxsplit_spec" in graph.meta:
        raise SplitError("This model is split already. Cut and split the original model instead.")
    paths = all("modules" in node.meta for node in graph.graph.nodes if node.op != "output")
    if not paths or not hasattr(graph, "source"):  # trunk and heads have paths, but no model that they were traced from
        raise SplitError(
            f"This {type(graph).__name__} is a GraphModule that fxsplit.trace did not make: no path can be looked up. "
            "Trace the original model with fxsplit.trace(model, example)."
        )
    return graph


def fetch(root: nn.Module, target: str) -> Any:
    """The module, tensor or value under a dotted path."""
    value: Any = root
    for name in target.split("."):
        value = getattr(value, name)
    return value


def target_name(node: fx.Node) -> str:
    """Name of the function or method that a node calls, without its namespace."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def is_tensor(node: fx.Node) -> bool:
    """Whether a node's value is one tensor."""
    return node.meta.get("shape") is not None


def is_source(node: fx.Node) -> bool:
    """Whether a node's value needs no other node: a parameter, buffer or constant, or a train/eval switch.

    Such nodes have no place in the order of execution: they go wherever they are used.
    """
    return node.op == "get_attr" or (node.op == "call_module" and not node.all_input_nodes)


def is_getter(node: fx.Node) -> bool:
    """Whether a node takes something out of another value: an item or an attribute."""
    return node.op == "call_function" and node.target in (operator.getitem, getattr)


def is_container(node: fx.Node) -> bool:
    """Whether a node's value is a tuple, list, dict or object that later nodes take tensors out of."""
    if is_tensor(node) or is_size(node):
        return False
    if node.meta.get("container"):
        return True
    return any(
        is_getter(user) and user.args[0] is node and (is_tensor(user) or is_container(user)) for user in node.users
    )


def is_size(node: fx.Node) -> bool:
    """Whether a node reads a size, dtype or device of a tensor: it depends on the tensor's form, not on its data."""
    if node.op == "call_method":
        return node.target in _SIZE_METHODS
    return node.op == "call_function" and node.target is getattr and node.args[1] in _SIZE_ATTRIBUTES


def output_node(graph: fx.Graph) -> fx.Node:
    """The node that returns."""
    return next(node for node in reversed(graph.nodes) if node.op == "output")


def output_assembly(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that do nothing but build the returned object: calls of a class, such as a ModelOutput, on its fields."""
    found: set[fx.Node] = set()
    open_nodes = list(output_node(graph).all_input_nodes)
    while open_nodes:
        node = open_nodes.pop()
        if node.op == "call_function" and isinstance(node.target, type) and not is_tensor(node):
            found.add(node)
            open_nodes += node.all_input_nodes
    return found


def output_leaves(graph: fx.Graph) -> dict[str, fx.Node]:
    """The values that the model returns, by their place: ``{'logits': node}``, ``{'0': node, '1.a': node}``."""
    assembly = output_assembly(graph)
    leaves: dict[str, fx.Node] = {}

    def visit(value: object, place: str) -> None:
        if isinstance(value, fx.Node):
            if value in assembly:
                for key, item in (*enumerate(value.args), *value.kwargs.items()):
                    visit(item, _join(place, key if len(value.args) != 1 or value.kwargs else ""))
            else:
                leaves[place] = value
        elif isinstance(value, (tuple, list)):
            # An ordered dict is rebuilt from its items.
            pairs = value and all(isinstance(i, tuple) and len(i) == 2 and isinstance(i[0], str) for i in value)
            for key, item in value if pairs else enumerate(value):
                visit(item, _join(place, key))
        elif isinstance(value, dict):
            for key, item in value.items():
                visit(item, _join(place, key))

    visit(output_node(graph).args[0], "")
    return leaves


def _join(place: str, key: object) -> str:
    return ".".join(filter(None, (place, str(key))))


def named_tensors(root: nn.Module, nodes: Iterable[fx.Node]) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers that nodes read, with their paths; a tensor comes once for every path it has."""
    for target in dict.fromkeys(str(node.target) for node in nodes if node.op in ("call_module", "get_attr")):
        value = fetch(root, target)
        if isinstance(value, Tensor):
            yield target, value
        elif isinstance(value, nn.Module):
            yield from value.named_parameters(prefix=target, remove_duplicate=False)
            yield from value.named_buffers(prefix=target, remove_duplicate=False)


def keep_persistence(copied: nn.Module, original: nn.Module) -> None:
    """Leave out of ``copied``'s state dict the buffers that are left out of ``original``'s.

    Copying a graph module makes its containers anew; older versions of torch.fx make every buffer in them persistent.
    """
    originals = dict(original.named_modules())
    for path, module in copied.named_modules():
        if path in originals:
            module._non_persistent_buffers_set |= originals[path]._non_persistent_buffers_set & module._buffers.keys()

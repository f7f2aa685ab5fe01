"""What a flat graph really does: one run that records shapes and constants, and which calls write in place."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sparsity.runtime._example import Arguments

OUT_OF_PLACE = "out_of_place"
"""Key in a node's meta: its module is to be copied with ``inplace=False``."""
_CONSTANT_SIZE = 1 << 20
_IN_PLACE_OPERATORS = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
_RANDOM = ("rand", "dropout", "bernoulli", "normal", "multinomial", "poisson", "uniform", "exponential")


@dataclass
class Facts:
    """What is known of the nodes of a graph.

    Attributes:
        batch: Size of dimension 0 of the inputs in the recorded run.
        shapes: Shape of every node that makes a float32 tensor.
        constants: Value of every small node that depends on no input.
        chains: Nodes that share memory which one of them writes to; they have to run in this order.
    """

    batch: int
    shapes: dict[fx.Node, tuple[int, ...]] = field(default_factory=dict)
    constants: dict[fx.Node, Tensor] = field(default_factory=dict)
    chains: list[list[fx.Node]] = field(default_factory=list)


def observe(net: nn.Module, graph: fx.Graph, arguments: Arguments) -> Facts:
    """Run ``graph`` over ``net`` and record its facts; calls in place are made out of place in ``graph``.

    What writes where others may look (views, containers) stays as it is and is recorded as a chain.

    Raises:
        TypeError: The arguments are not those of the graph.
    """
    run = _Run(net, graph, arguments)
    with torch.no_grad():
        run.all()
    return run.facts


class _Run:
    """The state of one run: live values, and who shares memory with whom."""

    def __init__(self, net: nn.Module, graph: fx.Graph, arguments: Arguments) -> None:
        self.net, self.graph = net, graph
        self.given = _by_placeholder(graph, arguments)
        first = next(iter(value for value in pytree.tree_leaves(arguments) if isinstance(value, Tensor)))
        self.facts = Facts(batch=len(first) if first.ndim else 1)
        self.values: dict[fx.Node, Any] = {}
        self.left = {node: len(node.users) for node in graph.nodes}
        self.sharing: dict[int, list[fx.Node]] = defaultdict(list)
        self.fixed: set[fx.Node] = set()

    def all(self) -> None:
        for node in list(self.graph.nodes):
            if node.op == "output":
                break
            readers = dict.fromkeys(node.all_input_nodes)
            value = self._call(node)
            self.values[node] = value
            self._record(node, value)
            for each in (*readers, node):
                for key in _storages(self.values.get(each)):
                    if node not in self.sharing[key]:
                        self.sharing[key].append(node)
            for each in readers:
                self.left[each] -= 1
            for each in (*readers, node):
                if self.left[each] == 0:
                    self._free(each)
        self.facts.chains = [chain for chain in self.facts.chains if len(chain) > 1]

    def _call(self, node: fx.Node) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda each: self.values[each])
        if node.op == "placeholder":
            return self.given[node]
        if node.op == "get_attr":
            return _attribute(self.net, str(node.target))
        versions = {each: _versions(self.values[each]) for each in node.all_input_nodes}
        if node.op == "call_module":
            value = self.net.get_submodule(str(node.target))(*args, **kwargs)
        elif node.op == "call_method":
            value = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            value = node.target(*args, **kwargs)  # pyright: ignore
        written = [each for each in node.all_input_nodes if _versions(self.values[each]) != versions[each]]
        if written:
            self._settle(node, written, value)
        return value

    def _settle(self, node: fx.Node, written: list[fx.Node], value: Any) -> None:
        """Make a call in place one out of place if nobody looks at that memory by another name, else keep its order."""
        target = node.args[0] if node.args else None
        alone = (
            len(written) == 1
            and isinstance(target, fx.Node)
            and written[0] is target
            and target.op not in ("placeholder", "get_attr")
            and isinstance(value, Tensor)
            and isinstance(self.values[target], Tensor)
            and value.data_ptr() == self.values[target].data_ptr()
            and value.shape == self.values[target].shape
            and not self._other_views(node, target)
        )
        if alone and isinstance(target, fx.Node) and _out_of_place(self.net, node):
            later = False
            for user in list(target.users):
                if user is not node and not _before(self.graph, user, node):
                    user.replace_input_with(target, node)
                    later = True
            if later:
                self.left[node] = len(node.users)
            self.left[target] = sum(1 for user in target.users if user not in self.values)
            return
        for each in written:
            for key in _storages(self.values[each]):
                chain = self.sharing[key]
                if all(chain is not known for known in self.facts.chains):
                    self.facts.chains.append(chain)

    def _other_views(self, node: fx.Node, target: fx.Node) -> bool:
        keys = set(_storages(self.values[target]))
        return any(
            keys & set(_storages(value))
            for each, value in self.values.items()
            if each is not target and each is not node and self.left[each] > (node in each.users)
        )

    def _record(self, node: fx.Node, value: Any) -> None:
        if not isinstance(value, Tensor):
            return
        if value.dtype == torch.float32 and value.layout == torch.strided:
            self.facts.shapes[node] = tuple(value.shape)
        inputs = node.all_input_nodes
        constant = node.op == "get_attr" or (
            node.op in ("call_function", "call_method")
            and bool(inputs)
            and all(each in self.facts.constants for each in inputs)
            and not any(part in str(node.target) for part in _RANDOM)
        )
        if (constant and value.numel() <= _CONSTANT_SIZE) or node.op == "get_attr":
            self.facts.constants[node] = value.detach()

    def _free(self, node: fx.Node) -> None:
        keys = _storages(self.values.pop(node, None))
        kept = {key for value in self.values.values() for key in _storages(value)}
        for key in keys:
            if key not in kept:
                # The address may come back for memory that has nothing to do with this.
                self.sharing.pop(key, None)


def _by_placeholder(graph: fx.Graph, arguments: Arguments) -> dict[fx.Node, Any]:
    """What each placeholder stands for in a call with these arguments."""
    args, kwargs = arguments
    nodes = [node for node in graph.nodes if node.op == "placeholder"]
    if len(args) > len(nodes):
        raise TypeError(f"the network takes {len(nodes)} arguments, the example has {len(args)}")
    given: dict[fx.Node, Any] = dict(zip(nodes, args, strict=False))
    names = {str(node.target): node for node in nodes}
    for name, value in kwargs.items():
        if name not in names or names[name] in given:
            raise TypeError(f"the network's inputs are {list(names)}, the example gives {name!r}")
        given[names[name]] = value
    for node in nodes:
        if node not in given:
            if not node.args:
                raise TypeError(f"the example lacks the input {str(node.target)!r}")
            given[node] = node.args[0]
    return given


def _attribute(root: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(root.get_submodule(owner), name)


def _leaves(value: Any) -> Iterable[Tensor]:
    return (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor))


def _storages(value: Any) -> list[int]:
    return [leaf.untyped_storage().data_ptr() for leaf in _leaves(value) if leaf.layout == torch.strided]


def _versions(value: Any) -> list[int]:
    return [leaf._version for leaf in _leaves(value)]


def _before(graph: fx.Graph, first: fx.Node, second: fx.Node) -> bool:
    return first < second


def _out_of_place(net: nn.Module, node: fx.Node) -> bool:
    """Turn a call in place into the same call out of place, if there is one; whether there is."""
    if node.op == "call_method":
        name = str(node.target)
        if name.endswith("_") and not name.startswith("_") and hasattr(Tensor, name[:-1]):
            node.target = name[:-1]
            return True
        replaced = {"__iadd__": "__add__", "__imul__": "__mul__", "__isub__": "__sub__"}.get(name)
        node.target = replaced or name
        return replaced is not None
    if node.op == "call_module":
        if getattr(net.get_submodule(str(node.target)), "inplace", False) is not True:
            return False
        node.meta[OUT_OF_PLACE] = True
        return True
    if node.target in _IN_PLACE_OPERATORS:
        node.target = _IN_PLACE_OPERATORS[node.target]  # pyright: ignore
        return True
    if node.kwargs.get("inplace") is True:
        node.kwargs = {**node.kwargs, "inplace": False}
        return True
    name = getattr(node.target, "__name__", "")
    plain = getattr(torch, name[:-1], None) if name.endswith("_") and not name.endswith("__") else None
    if plain is not None and getattr(torch, name, None) is node.target:
        node.target = plain
        return True
    return False

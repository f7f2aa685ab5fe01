"""From units to a program: a graph module that calls regions, dense layers, and whatever else the network has."""

from __future__ import annotations

import copy
import functools
import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from sparsity._masks import own_class
from sparsity.runtime._facts import OUT_OF_PLACE
from sparsity.runtime._lower_modules import ACT
from sparsity.runtime._memory import Lifetime, first_fit
from sparsity.runtime._ops import Buffers, Layer, Op, Shape
from sparsity.runtime._plan import Plan
from sparsity.runtime._program import Ops
from sparsity.runtime._region import Ports, Region
from sparsity.runtime._regions import Unit, side_by_side
from sparsity.runtime._torch_form import module_of


@dataclass
class Body:
    """What a region was made from.

    Attributes:
        region: The module.
        ops: The operations in it, in order; weights are read back from the plan.
        inputs: The values that go into it.
        outputs: The values that come out of it.
        steps: Step in the plan of each operation that has one.
    """

    region: Region
    ops: list[Op]
    inputs: list[fx.Node]
    outputs: list[fx.Node]
    steps: dict[Op, int]


@dataclass
class Program:
    """A network that can run.

    Attributes:
        module: Returns a pair: the network's output, and the list of the heads' outputs or None.
        shapes: Shapes of the values that operations refer to.
        bodies: The region of each name in ``module``.
        dense: The layers that run in torch, by name in ``module``.
        others: What else runs in torch: names of functions, methods and module classes, in order.
    """

    module: fx.GraphModule
    shapes: dict[fx.Node, Shape]
    bodies: dict[str, Body] = field(default_factory=dict)
    dense: dict[str, Layer] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


def emit(ops: Ops, units: list[Unit], threads: int | None) -> Program:
    """Write the program of ``units``; weights are copied, packed into plans or prepacked for torch."""
    writer = _Writer(ops, threads)
    for unit in units:
        writer.write(unit)
    return writer.finish()


class _Writer:
    """The graph and the modules being written."""

    def __init__(self, ops: Ops, threads: int | None) -> None:
        self.ops, self.threads = ops, threads
        self.source = ops.source
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.values: dict[fx.Node, fx.Node] = {}
        self.program = Program(fx.GraphModule(nn.Module(), fx.Graph()), self.source.shapes)
        self.copies: dict[int, Any] = {}
        self.tensors: dict[int, torch.Tensor] = {}

    def write(self, unit: Unit) -> None:
        if unit.planned:
            self._region(unit)
        else:
            for op in unit.ops:
                self.values[op.node] = self._in_torch(op)

    def finish(self) -> Program:
        output = next(node for node in self.source.graph.nodes if node.op == "output")
        self.graph.output(fx.map_arg(output.args[0], self.values.__getitem__))
        self.graph.lint()
        module = fx.GraphModule(self.root, self.graph, class_name="SparseProgram")
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        self.program.module = module.eval()
        return self.program

    def _region(self, unit: Unit) -> None:
        made = {op.node for op in unit.ops}
        inputs = list(dict.fromkeys(node for op in unit.ops for node in op.inputs if node not in made))
        inside = set(unit.ops)
        outputs = [
            op.node
            for op in unit.ops
            if op.node in self.ops.outputs or any(reader not in inside for reader in self.ops.readers(op.node))
        ]
        threads = torch.get_num_threads() if self.threads is None else self.threads
        if threads > 1:
            unit.ops = side_by_side(unit.ops)
        body = build_region(unit, inputs, outputs, self.source.shapes, self.threads)
        name = f"region_{len(self.program.bodies)}"
        self.program.bodies[name] = body
        call = self._call(body.region, name, inputs)
        if len(outputs) == 1:
            self.values[outputs[0]] = call
            return
        for index, node in enumerate(outputs):
            self.values[node] = self.graph.call_function(operator.getitem, (call, index))

    def _in_torch(self, op: Op) -> fx.Node:
        if not isinstance(op, Layer) and op.verbatim:
            return self._verbatim(op.node)
        module = module_of(op, self.source.shapes)
        call = self._call(module, op.path if isinstance(op, Layer) else op.node.name, op.inputs)
        if isinstance(op, Layer):
            op.weight = module.dense_weight  # pyright: ignore
            self.program.dense[str(call.target)] = op
        else:
            self.program.others.append(type(op).__name__)
        return call

    def _call(self, module: nn.Module, name: str, inputs: list[fx.Node]) -> fx.Node:
        name = name.replace(".", "_")
        while hasattr(self.root, name):
            name += "_"
        self.root.add_module(name, module)
        return self.graph.call_module(name, tuple(self.values[node] for node in inputs))

    def _verbatim(self, node: fx.Node) -> fx.Node:
        if node.op not in ("placeholder", "get_attr"):
            self.program.others.append(_name(self.source.root, node))
        copied = self.graph.node_copy(node, self.values.__getitem__)
        if node.op == "get_attr":
            copied.target = self._constant(str(node.target))
        elif node.op == "call_module":
            copied.target = self._leaf(node)
        return copied

    def _constant(self, path: str) -> str:
        name = path.replace(".", "_")
        if not hasattr(self.root, name):
            owner, _, attribute = path.rpartition(".")
            value = getattr(self.source.root.get_submodule(owner), attribute)
            if isinstance(value, torch.Tensor):
                self.root.register_buffer(name, self._copy(value.detach()))
            else:
                setattr(self.root, name, value)
        return name

    def _leaf(self, node: fx.Node) -> str:
        path = str(node.target)
        kind = "".join(f"_{key}" for key in (OUT_OF_PLACE, ACT) if node.meta.get(key))
        name = path.replace(".", "_") + kind
        if not hasattr(self.root, name):
            module = plain_copy(self.source.root.get_submodule(path), self.copies)
            if node.meta.get(OUT_OF_PLACE):
                module.inplace = False  # pyright: ignore
            if node.meta.get(ACT) == "norm":
                module.act = nn.Identity()
            self.root.add_module(name, module)
        return name

    def _copy(self, value: torch.Tensor) -> torch.Tensor:
        # Tied tensors stay one.
        if value.data_ptr() not in self.tensors:
            self.tensors[value.data_ptr()] = value.clone()
        return self.tensors[value.data_ptr()]


def build_region(
    unit: Unit,
    inputs: list[fx.Node],
    outputs: list[fx.Node],
    shapes: dict[fx.Node, tuple[int, ...]],
    threads: int | None,
) -> Body:
    """Make the plan of a unit, with its buffers placed by lifetime."""
    plan = Plan()
    buffers = Buffers(plan, unit.frame, shapes)
    for node in inputs:
        buffers.target(node)
    given = list(buffers.index.values())
    steps: dict[Op, int] = {}
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for op in unit.ops:
        step = op.emit(buffers)
        if step is None:
            continue
        steps[op] = step
        if isinstance(op, Layer):
            op.weight = functools.partial(plan.weight, step)
        first[buffers.index[op.node]] = step
        for node in (*op.inputs, op.node):
            last[buffers.index[node]] = step
    returned = list(dict.fromkeys(buffers.index[node] for node in outputs))
    floats = {buffers.index[op.node]: buffers.floats(op.node) for op in unit.ops}
    inner = [index for index in first if index not in returned]
    offsets, arena = first_fit({index: Lifetime(floats[index], first[index], last[index]) for index in inner})
    for index, offset in offsets.items():
        plan.place(index, offset)
    plan.finish(given, returned, arena)
    owner = {}
    for node in outputs:
        owner.setdefault(buffers.index[node], buffers.sample(node))
    ports = Ports(
        rows=unit.frame[0] == "rows",
        inputs=tuple(buffers.sample(node) for node in inputs),
        buffers=tuple(owner[index] for index in returned),
        outputs=tuple((returned.index(buffers.index[node]), buffers.sample(node)) for node in outputs),
    )
    return Body(Region(plan, ports, arena, threads), unit.ops, inputs, outputs, steps)


def _name(root: nn.Module, node: fx.Node) -> str:
    if node.op == "call_module":
        return type(root.get_submodule(str(node.target))).__name__
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def plain_copy(module: nn.Module, copies: dict[int, Any]) -> nn.Module:
    """Copy a leaf module with plain weights in place of parametrized ones; tied tensors stay tied over all copies."""
    memo: dict[int, Any] = copies
    copied = copy.deepcopy(module, memo)
    for each in copied.modules():
        if parametrize.is_parametrized(each):
            own_class(each)
            for name in list(each.parametrizations):  # pyright: ignore
                parametrize.remove_parametrizations(each, name, leave_parametrized=True)
        for hooks in (each._forward_hooks, each._forward_pre_hooks, each._backward_hooks):
            hooks.clear()
    return copied.eval()

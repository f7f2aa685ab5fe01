"""Writes merged records as a torch.fx graph and puts the model's modules under it."""

from __future__ import annotations

import builtins
import keyword
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fxsplit._containers import mark_container
from fxsplit._errors import TraceError
from fxsplit._graph import keep_persistence
from fxsplit._trace._dtypes import DtypeOf, WeightsDtype
from fxsplit._trace._fit import SizeExpr
from fxsplit._trace._merge import Switch
from fxsplit._trace._model import ModeSwitch, TracedModel
from fxsplit._trace._records import Call, Record, Ref

# Where a size is read: (position of the tensor's record, dimension).
Sources = dict[str, tuple[int, int]]
_WEIGHTS_DTYPE = "_dtype"


@dataclass(frozen=True)
class Program:
    """Merged records, ready to be written; ``inputs`` are the positions of the example's tensors."""

    records: list[Record]
    values: list[tuple[tuple[Any, ...], dict[str, Any]]]
    output: Any
    live: list[bool]
    inputs: list[int]
    sources: Sources
    extras: dict[str, Any]


def emit(program: Program, model: nn.Module) -> TracedModel:
    """Build the traced model of ``program``; modules are shared with ``model``."""
    writer = _Writer(program, model)
    graph = writer.write()
    _check_names(graph)
    graph.lint()
    traced = TracedModel(_root(model, writer.extras), graph, class_name=type(model).__name__)
    originals = dict(model.named_modules())
    for path, module in traced.named_modules():
        original = originals.get(path, module)
        if original is not module:
            # Containers are new, empty modules; leaves are the model's own.
            module.training = original.training
            mark_container(module)
    keep_persistence(traced, model)
    return traced


def _check_names(graph: fx.Graph) -> None:
    """Refuse paths that torch.fx cannot write as Python code."""
    for node in graph.nodes:
        if node.op not in ("call_module", "get_attr") or _is_code(node.target):
            continue
        around = [path for path in node.meta["modules"] if path != node.target and _is_code(path)]
        other = f", or keep the module around it whole with leaf=[{around[-1]!r}]" if around else ""
        raise TraceError(
            f"the model uses {node.target!r}, but a graph is Python code, in which names are no keywords and hold no "
            f"quotes. Rename it{other}."
        )


def _is_code(path: str) -> bool:
    return not any(keyword.iskeyword(name) or set(name) & set('"\\\n') for name in path.split("."))


class _Writer:
    """Adds node after node; sizes and the device are read from the inputs once, at the top."""

    def __init__(self, program: Program, model: nn.Module) -> None:
        self._program = program
        self._graph = fx.Graph()
        self._nodes: dict[int, fx.Node] = {}
        self._sizes: dict[tuple[Any, ...], fx.Node] = {}
        self._dtypes: dict[int, fx.Node] = {}
        self._switches: dict[tuple[str, str], str] = {}
        self._top = self._graph._root
        self._model = model
        self._device = next((parameter.device for parameter in model.parameters()), None)
        self._record: Record = program.records[0]
        self.extras: dict[str, Any] = dict(program.extras)

    def write(self) -> fx.Graph:
        """Write the whole graph."""
        records = self._program.records
        for index, record in enumerate(records):
            if record.op == "placeholder":
                self._nodes[index] = self._describe(self._graph.placeholder(record.target), record)
                self._top = self._nodes[index]
        for index, record in enumerate(records):
            if index in self._nodes or not (self._program.live[index] or index in self._program.inputs):
                continue
            self._record = record
            self._nodes[index] = self._write_record(index, record)
            if index in self._program.inputs:
                self._top = self._nodes[index]
        self._record = Record("output", "output", (), {}, ())
        self._graph.output(self._argument(self._program.output))
        return self._graph

    def _write_record(self, index: int, record: Record) -> fx.Node:
        args, kwargs = (self._argument(value) for value in self._program.values[index])
        if record.op == "get_attr":
            return self._describe(self._graph.get_attr(record.target), record)
        if record.mutates and not record.grad and args and isinstance(args[0], fx.Node):
            # The run wrote without a gradient: write through an alias, and go on with the tensor itself.
            alias = self._describe(self._graph.call_method("detach", (args[0],)), record, flops=0)
            self._describe(self._graph.create_node(record.op, record.target, (alias, *args[1:]), kwargs), record)
            return args[0]
        node = self._describe(self._graph.create_node(record.op, record.target, args, kwargs), record)
        if record.dtype is not None and record.dtype.is_floating_point and not record.grad:
            node = self._describe(self._graph.call_method("detach", (node,)), record, flops=0)
        return node

    def _describe(self, node: fx.Node, record: Record, flops: int | None = None) -> fx.Node:
        node.meta["path"] = record.path
        if record.whole:
            node.meta["container"] = True
        node.meta["modules"] = record.modules
        node.meta["shape"] = record.shape
        node.meta["dtype"] = record.dtype
        node.meta["flops"] = record.flops if flops is None else flops
        return node

    def _plain(self, node: fx.Node, modules: tuple[str, ...] = ()) -> fx.Node:
        return self._describe(node, Record("", "", (), {}, modules))

    def _argument(self, value: Any) -> Any:
        if isinstance(value, Call):
            args, kwargs = self._argument(value.args), self._argument(value.kwargs)
            return self._plain(self._graph.call_function(value.target, args, kwargs), self._record.modules)
        if isinstance(value, (list, tuple)):
            return type(value)(self._argument(item) for item in value)
        if isinstance(value, dict):
            return {key: self._argument(item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(*(self._argument(item) for item in (value.start, value.stop, value.step)))
        if isinstance(value, Ref):
            return self._nodes[value.index]
        if isinstance(value, DtypeOf):
            return self._dtype_of(value)
        if isinstance(value, SizeExpr):
            return self._size(value)
        if isinstance(value, Switch):
            return self._switch(value)
        if isinstance(value, torch.device) and value == self._device:
            return self._at_top(("device",), builtins.getattr, (self._nodes[self._program.inputs[0]], "device"))
        return value

    def _dtype_of(self, source: DtypeOf) -> fx.Node:
        dtype = self._weights_dtype() if source.index is None else self._tensor_dtype(source.index)
        if not source.limit:
            return dtype
        limits = self._plain(self._graph.call_function(torch.finfo, (dtype,)), self._record.modules)
        return self._plain(self._graph.call_function(builtins.getattr, (limits, source.limit)), self._record.modules)

    def _tensor_dtype(self, index: int) -> fx.Node:
        if index not in self._dtypes:
            tensor = self._nodes[index]
            with self._graph.inserting_after(tensor):
                read = self._graph.call_function(builtins.getattr, (tensor, "dtype"))
            self._dtypes[index] = self._plain(read, self._program.records[index].modules)
        return self._dtypes[index]

    def _weights_dtype(self) -> fx.Node:
        if _WEIGHTS_DTYPE not in self.extras:
            weight = next(p for p in self._model.parameters() if p.is_floating_point())
            self.extras[_WEIGHTS_DTYPE] = WeightsDtype(weight)
        return self._plain(self._graph.call_module(_WEIGHTS_DTYPE), self._record.modules)

    def _size(self, size: SizeExpr) -> fx.Node:
        node, *others = (self._read_size(symbol) for symbol in size.symbols)
        for other in others:
            node = self._at_top(size.symbols, operator.mul, (node, other))
        key: tuple[Any, ...] = size.symbols
        for function, number, neutral in (
            (operator.mul, size.factor.numerator, 1),
            (operator.floordiv, size.factor.denominator, 1),
            (operator.add, size.offset, 0),
        ):
            if number != neutral:
                key = (*key, function, number)
                node = self._at_top(key, function, (node, number))
        return node

    def _read_size(self, symbol: str) -> fx.Node:
        index, dim = self._program.sources[symbol]
        return self._at_top(("size", symbol), "size", (self._nodes[index], dim))

    def _at_top(self, key: tuple[Any, ...], target: Any, args: tuple[Any, ...]) -> fx.Node:
        """Write a value that only depends on the inputs behind them, once, outside of all modules."""
        if key not in self._sizes:
            with self._graph.inserting_after(self._top):
                op = "call_method" if isinstance(target, str) else "call_function"
                self._top = self._plain(self._graph.create_node(op, target, args))
            self._sizes[key] = self._top
        return self._sizes[key]

    def _switch(self, switch: Switch) -> fx.Node:
        path = self._record.owner
        name = self._switches.setdefault((path, repr(switch)), f"_switch_{len(self._switches)}")
        if name not in self.extras:
            self.extras[name] = ModeSwitch(switch.train, switch.evaluation)
            self.extras[name].train(self._model.get_submodule(path).training)
        return self._plain(self._graph.call_module(name), self._record.modules)


def _root(model: nn.Module, extras: dict[str, Any]) -> nn.Module:
    """A stand-in for ``model`` that also holds the extras; it shares everything with it."""
    root = nn.Module()
    root.training = model.training
    root._modules.update(model._modules)
    root._parameters.update(model._parameters)
    root._buffers.update(model._buffers)
    root._non_persistent_buffers_set.update(model._non_persistent_buffers_set)
    for name, value in extras.items():
        if isinstance(value, nn.Module):
            root.add_module(name, value)
        else:
            root.register_buffer(name, value)
    return root

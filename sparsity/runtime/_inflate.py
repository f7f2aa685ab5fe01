"""A compiled program as a dense graph module again: for other shapes, for files, for copies."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx, nn

from sparsity.runtime._emit import Body, Program
from sparsity.runtime._torch_form import module_of


def inflate(program: Program) -> fx.GraphModule:
    """Write a program with every operation of its regions as a module in torch, weights read back from the plans.

    The rest is shared with the program.
    """
    root, graph = nn.Module(), fx.Graph()
    values: dict[fx.Node, Any] = {}
    for node in program.module.graph.nodes:
        body = program.bodies.get(str(node.target)) if node.op == "call_module" else None
        if body is not None:
            values[node] = _inflated(program, body, str(node.target), root, graph, [values[n] for n in node.args])
        elif node.target is operator.getitem and isinstance(values[node.args[0]], list):
            values[node] = values[node.args[0]][node.args[1]]
        elif node.op == "output":
            graph.output(fx.map_arg(node.args[0], values.__getitem__))
        else:
            values[node] = graph.node_copy(node, values.__getitem__)
            if node.op == "call_module":
                root.add_module(node.target, program.module.get_submodule(node.target))
            elif node.op == "get_attr":
                _share(program.module, root, node.target)
    return fx.GraphModule(root, graph, class_name="DenseProgram").eval()


def _inflated(
    program: Program, body: Body, name: str, root: nn.Module, graph: fx.Graph, inputs: list[fx.Node]
) -> fx.Node | list[fx.Node]:
    made: dict[fx.Node, fx.Node] = dict(zip(body.inputs, inputs, strict=True))
    for index, op in enumerate(body.ops):
        path = f"{name}_{index}"
        root.add_module(path, module_of(op, program.shapes))
        made[op.node] = graph.call_module(path, tuple(made[each] for each in op.inputs))
    outputs = [made[node] for node in body.outputs]
    return outputs[0] if len(outputs) == 1 else outputs


def _share(source: nn.Module, root: nn.Module, name: str) -> None:
    value = getattr(source, name)
    if name in source._buffers:
        root.register_buffer(name, value)
    else:
        setattr(root, name, value)

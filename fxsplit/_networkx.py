"""Traced and split models as networkx graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx, nn

from fxsplit._errors import FxSplitError
from fxsplit._graph import is_getter, named_tensors, output_node
from fxsplit._split._model import SPEC

if TYPE_CHECKING:
    import networkx


def to_networkx(graph: fx.GraphModule) -> networkx.DiGraph:
    """The data flow of a traced or split model as a directed graph, for analysis.

    A node has the name of its fx node (inside trunk and heads with a prefix: ``'heads.0.fc'``) and the attributes
    ``op``, ``path``, ``shape``, ``dtype``, ``flops``, ``params`` (parameters that it uses) and ``component``
    (``'trunk'``, ``'heads.0'``, ``'vote'``, or ``''`` outside of them). In a split model the trunk's results point
    directly to their readers in the heads.

    Args:
        graph: From `fxsplit.trace` or `fxsplit.split`.

    Raises:
        FxSplitError: It is no graph, or networkx is not installed.

    Example:
        >>> import networkx, torch, fxsplit
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> graph = fxsplit.to_networkx(fxsplit.trace(net, torch.zeros(1, 4)))
        >>> networkx.is_directed_acyclic_graph(graph), sum(params for _, params in graph.nodes(data="params"))
        (True, 58)
    """
    try:
        import networkx
    except ImportError as error:
        raise FxSplitError("to_networkx needs networkx: pip install 'fxsplit[graph]'.") from error
    if not isinstance(graph, fx.GraphModule):
        raise FxSplitError(f"to_networkx needs a traced or split model, got {type(graph).__name__}; see fxsplit.trace.")
    result = networkx.DiGraph()
    _add(result, graph, "", {})
    return result


def _add(
    result: networkx.DiGraph, module: fx.GraphModule, prefix: str, names: dict[fx.Node, list[str]]
) -> list[list[str]]:
    """Add the nodes of a graph; ``names`` says what its placeholders stand for. Returns what its results stand for."""
    for node in module.graph.nodes:
        callee = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if node in names or (node.op == "output" and prefix):
            continue
        if isinstance(callee, fx.GraphModule):
            inside = [n for n in callee.graph.nodes if n.op == "placeholder"]
            given = {
                inner: names[outer]
                for inner, outer in zip(inside, node.args, strict=True)
                if isinstance(outer, fx.Node)
            }
            results = _add(result, callee, f"{node.target}.", given)
            names[node] = [name for one in results for name in one]
            if isinstance(output_node(callee.graph).args[0], tuple):
                names |= {user: results[int(str(user.args[1]))] for user in node.users if is_getter(user)}
            continue
        names[node] = [prefix + node.name]
        component = prefix[:-1] or ("vote" if node.target == "vote" and SPEC in module.meta else "")
        result.add_node(names[node][0], op=node.op, component=component, **_facts(module, node))
        for value in node.all_input_nodes:
            result.add_edges_from((source, names[node][0]) for source in names[value])
    returned = output_node(module.graph).args[0]
    results = returned if isinstance(returned, tuple) else (returned,)
    return [names[value] for value in results if isinstance(value, fx.Node)] if prefix else []


def _facts(module: fx.GraphModule, node: fx.Node) -> dict[str, object]:
    tensors = {id(tensor): tensor for _, tensor in named_tensors(module, [node]) if isinstance(tensor, nn.Parameter)}
    return {
        "path": node.meta.get("path", ""),
        "shape": node.meta.get("shape"),
        "dtype": node.meta.get("dtype"),
        "flops": node.meta.get("flops", 0),
        "params": sum(tensor.numel() for tensor in tensors.values()),
    }

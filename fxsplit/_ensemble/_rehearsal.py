"""Runs parts of a traced graph on inputs like its example, to see what becomes of a batch that is put together anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fxsplit._errors import FxSplitError
from fxsplit._trace import TracedModel
from fxsplit._trace._example import complete
from fxsplit._trace._fit import BATCH
from fxsplit._trace._inputs import bind, map_tensors, symbolic
from fxsplit._trace._preserve import preserved

Observe = Callable[[fx.Node, tuple[Any, ...]], None]


class RehearsalError(FxSplitError, RuntimeError):
    """A node failed; the cause says how."""

    def __init__(self, node: fx.Node) -> None:
        super().__init__(node.name)
        self.node = node


def example_inputs(graph: TracedModel, batch: int) -> dict[fx.Node, Any]:
    """The example of a trace with ``batch`` rows, by placeholder; on the meta device if the model is."""
    source = graph.source
    arguments = complete(source, bind(source, graph.example))
    inputs = symbolic(arguments).make({BATCH: batch})[2]
    if any(parameter.is_meta for parameter in graph.parameters()):
        inputs = {name: map_tensors(value, lambda t: t.to("meta")) for name, value in inputs.items()}
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    return dict(zip(placeholders, inputs.values(), strict=True))


def varied(value: Any, seed: int) -> Any:
    """Other values in the same containers: noise on floating tensors, integers and bools in another order."""

    def vary(tensor: Tensor) -> Tensor:
        if tensor.is_meta or tensor.numel() < 2:
            return tensor
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed))
            return tensor.detach() + noise.to(tensor.device, tensor.dtype)
        return tensor.roll(1 + seed % tensor.shape[-1], -1)

    return map_tensors(value, vary)


def rehearse(
    graph: TracedModel, nodes: Iterable[fx.Node], given: Mapping[fx.Node, Any], observe: Observe | None = None
) -> dict[fx.Node, Any]:
    """Compute nodes in eval mode and return all values; the model and the random state stay as they were.

    Args:
        graph: Holds the nodes.
        nodes: What to compute, in order of execution, with all that it needs.
        given: Values that are not computed.
        observe: Called with every node and its positional arguments, right before it runs.

    Raises:
        RehearsalError: A node fails.
    """
    runner = fx.Interpreter(graph, garbage_collect_values=False)
    runner.env = dict(given)
    with preserved(graph), torch.no_grad():
        graph.eval()
        for node in nodes:
            if node in runner.env:
                continue
            if observe is not None:
                observe(node, runner.fetch_args_kwargs_from_env(node)[0])
            try:
                runner.env[node] = runner.run_node(node)
            except Exception as error:
                # The layers fail in their own ways when their input has another shape.
                raise RehearsalError(node) from error
    return runner.env

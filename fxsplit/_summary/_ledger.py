"""Adds up what the nodes of a graph hold and compute, without counting a parameter twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, fx, nn

from fxsplit._errors import FxSplitError, near_matches
from fxsplit._flops import NodeCost, node_costs, recorded_batch
from fxsplit._params import parameter_names, raw_parameter


@dataclass(frozen=True)
class Cost:
    """Size and cost of one part of a model; FLOPs are 2 x MAC per sample of convolution and linear weights.

    Attributes:
        params: Parameters.
        nonzeros: Parameters that no mask holds at zero.
        maskable: Elements of all convolution and linear weights and of whatever else carries a mask.
        active: Of these, the elements that no mask holds at zero.
        flops: FLOPs if everything were dense.
        flops_masked: FLOPs with the actual masks: each layer's dense FLOPs times its own density.
        other: FLOPs that belong to no weight (attention products), in none of the numbers above.
    """

    params: int = 0
    nonzeros: int = 0
    maskable: int = 0
    active: int = 0
    flops: int = 0
    flops_masked: int = 0
    other: int = 0

    @property
    def density(self) -> float:
        """Share of the parameters that is not held at zero."""
        return self.nonzeros / self.params if self.params else 1.0

    @property
    def maskable_density(self) -> float:
        """Share of the maskable weights that is not held at zero: 1 - S."""
        return self.active / self.maskable if self.maskable else 1.0


class Ledger:
    """What every node of a graph uses and costs, so that any set of nodes can be added up without counting twice."""

    def __init__(self, graph: fx.GraphModule, masks: Mapping[str, Tensor]) -> None:
        names = parameter_names(graph)
        self.numel = {names[id(parameter)]: parameter.numel() for parameter in graph.parameters()}
        self.active = self.numel | _active(graph, names, masks)
        self.batch = recorded_batch(graph)
        self.split = isinstance(graph._modules.get("heads"), nn.ModuleList) and "trunk" in graph._modules
        self.prefix: dict[fx.Node, str] = {}
        self.costs: dict[fx.Node, NodeCost] = {}
        self.uses: dict[fx.Node, frozenset[str]] = {}
        for prefix, node, cost in node_costs(graph):
            owner = graph.get_submodule(prefix)
            self.prefix[node] = prefix
            self.costs[node] = cost
            self.uses[node] = frozenset(names[id(p)] for p in _parameters(owner, node) if id(p) in names)
        self.maskable = {path for cost in self.costs.values() for path in cost.weights} | set(masks)

    @property
    def nodes(self) -> list[fx.Node]:
        return list(self.costs)

    def components(self) -> dict[str, list[fx.Node]]:
        """Nodes by component, in graph order: ``trunk``, ``heads.<i>``, ``vote``; ``model`` if it is not split."""
        found: dict[str, list[fx.Node]] = {}
        for node, prefix in self.prefix.items():
            # Between trunk, heads and vote a split model only hands values on.
            if prefix or not self.split or node.target == "vote":
                found.setdefault(prefix or ("vote" if self.split else "model"), []).append(node)
        return found

    def cost(self, nodes: Iterable[fx.Node], everything: bool = False) -> Cost:
        """Add up nodes; ``everything`` includes the parameters that no node uses."""
        used: set[str] = set(self.numel) if everything else set()
        flops: Counter[str] = Counter()
        other = 0
        for node in nodes:
            used |= self.uses[node]
            flops.update(self.costs[node].weights)
            other += self.costs[node].other
        maskable = used & self.maskable
        masked = sum(count * self.active[path] / self.numel[path] for path, count in flops.items())
        return Cost(
            params=sum(self.numel[path] for path in used),
            nonzeros=sum(self.active[path] for path in used),
            maskable=sum(self.numel[path] for path in maskable),
            active=sum(self.active[path] for path in maskable),
            flops=round(sum(flops.values()) / self.batch),
            flops_masked=round(masked / self.batch),
            other=round(other / self.batch),
        )


def _active(graph: nn.Module, names: Mapping[int, str], masks: Mapping[str, Tensor]) -> dict[str, int]:
    shapes = {names[id(parameter)]: parameter.shape for parameter in graph.parameters()}
    for path, mask in masks.items():
        if path not in shapes:
            raise FxSplitError(f"summary: mask for {path!r}, which is no parameter.{near_matches(path, shapes)}")
        if mask.shape != shapes[path]:
            raise FxSplitError(
                f"summary: the mask for {path!r} has shape {tuple(mask.shape)}, but the weight {tuple(shapes[path])}."
            )
    counted = getattr(masks, "layers", None)
    if counted is not None:
        # Masks that know their counts: without a transfer per layer, and on the meta device the only way to count.
        return {layer.path: layer.nonzeros for layer in counted}
    if any(mask.is_meta for mask in masks.values()):
        raise FxSplitError(
            "summary: masks on the meta device have no values to count; pass the result of sparsify, which knows "
            "how many weights it left active: summary(net, masks)."
        )
    return {path: int(mask.sum()) for path, mask in masks.items()}


def _parameters(owner: nn.Module, node: fx.Node) -> Iterable[nn.Parameter]:
    if node.op == "call_module":
        yield from owner.get_submodule(str(node.target)).parameters()
    for source in node.all_input_nodes:
        if source.op == "get_attr":
            path, _, name = str(source.target).rpartition(".")
            parameter = raw_parameter(owner.get_submodule(path), name)
            if parameter is not None:
                yield parameter

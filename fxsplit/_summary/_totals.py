"""Size and cost of a traced or split model: per block and in total, every number with its convention."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, fx, nn

from fxsplit._cuts._find import find_cuts
from fxsplit._flops import layer_flops, other_flops
from fxsplit._params import find_masks
from fxsplit._summary._blocks import Group, group_nodes
from fxsplit._summary._ledger import Cost, Ledger
from fxsplit._summary._text import as_html, as_text
from fxsplit._trace import trace

Shape = tuple[int, ...]


@dataclass(frozen=True)
class SourceSummary:
    """The dense single model a split model was made from, as plain data."""

    params: int
    flops: Mapping[str, int]
    other_flops: int
    blocks: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One block, or the stretch between two blocks, of one component (``'trunk'``, ``'heads.0'``, ``'vote'``)."""

    component: str
    path: str
    is_block: bool
    ops: int
    shape: Shape | None
    cost: Cost


@dataclass(frozen=True, repr=False)
class Summary:
    """Rows per block and totals, plain data; prints as text and displays as HTML.

    Attributes:
        rows: In graph order; a parameter used by two rows counts in both.
        parts: Total per component; a parameter shared by two heads counts in both.
        total: The whole model; every parameter counts once.
        single: The dense single model of the source, or of the model itself if it is not split.
        heads: Number of heads, 0 for a model that is not split.
    """

    rows: tuple[Row, ...]
    parts: Mapping[str, Cost]
    total: Cost
    single: Cost
    heads: int

    @property
    def flops_uniform(self) -> float:
        """FLOPs under uniform density, the convention of the paper's tables: dense FLOPs x (1 - S)."""
        return self.total.flops * self.total.maskable_density

    @property
    def parameter_ratio(self) -> float:
        """Parameters that are stored (nonzeros) over the parameters of the dense single model."""
        return self.total.nonzeros / self.single.params if self.single.params else 1.0

    @property
    def dense_flops_ratio(self) -> float:
        """FLOPs without masks over those of the dense single model."""
        return self._ratio(self.total.flops)

    @property
    def uniform_flops_ratio(self) -> float:
        """FLOPs under uniform density over those of the dense single model: the paper's column."""
        return self._ratio(self.flops_uniform)

    @property
    def masked_flops_ratio(self) -> float:
        """FLOPs of the actual masks over those of the dense single model: what is really trained."""
        return self._ratio(self.total.flops_masked)

    def _ratio(self, flops: float) -> float:
        return flops / self.single.flops if self.single.flops else 1.0

    def __str__(self) -> str:
        return as_text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return as_html(self)


def summary(net: nn.Module, masks: Mapping[str, Tensor] | None = None, *, example: object = None) -> Summary:
    """Summarise a split model, a traced graph, or a model that is traced first.

    Parameters, nonzeros and FLOPs are given side by side under named conventions, because published numbers mix
    them: dense, uniform density (dense FLOPs x density of the maskable weights, as in the paper's tables), and the
    actual masks.

    Args:
        net: A SplitModel, a TracedModel or any module that `trace` takes.
        masks: Bool masks by weight path, True = active; by default those found on the weights themselves.
        example: Example input for tracing; only used if ``net`` is neither split nor traced.

    Raises:
        FxSplitError: A mask names no parameter of ``net``, or has another shape.
        TraceError: ``net`` had to be traced and could not be.

    Example:
        >>> import torch, fxsplit
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
        >>> fxsplit.summary(net, example=torch.zeros(1, 3)).total.flops
        50
    """
    graph = net if isinstance(net, fx.GraphModule) else trace(net, example)
    source: SourceSummary | None = getattr(graph, "source_summary", None)
    blocks = tuple(cut.path for cut in find_cuts(graph)) if source is None else source.blocks
    ledger = Ledger(graph, find_masks(graph) if masks is None else masks)
    rows: list[Row] = []
    parts: dict[str, Cost] = {}
    for component, nodes in ledger.components().items():
        # What joins the heads belongs to no module of the original, whatever its nodes say.
        groups = [Group("vote", False, tuple(nodes))] if component == "vote" else group_nodes(nodes, blocks)
        rows += [
            Row(component, group.path, group.is_block, len(group.nodes), _shape(group.nodes), ledger.cost(group.nodes))
            for group in groups
        ]
        parts[component] = ledger.cost(nodes)
    total = ledger.cost(ledger.nodes, everything=True)
    if source is None:
        single = Cost(total.params, total.params, total.maskable, total.maskable, total.flops, total.flops, total.other)
    else:
        flops = sum(source.flops.values())
        single = Cost(source.params, source.params, flops=flops, flops_masked=flops, other=source.other_flops)
    return Summary(tuple(rows), parts, total, single, sum(part.startswith("heads.") for part in parts))


def source_summary(graph: fx.GraphModule) -> SourceSummary:
    """What a split model must remember of its dense source so that `summary` can compare with it."""
    return SourceSummary(
        params=sum(parameter.numel() for parameter in graph.parameters()),
        flops=layer_flops(graph),
        other_flops=other_flops(graph),
        blocks=tuple(cut.path for cut in find_cuts(graph)),
    )


def _shape(nodes: Iterable[fx.Node]) -> Shape | None:
    return next((shape for node in reversed(tuple(nodes)) if (shape := node.meta.get("shape")) is not None), None)

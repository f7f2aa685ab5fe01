"""Parameters and FLOPs before and after any moment of a traced graph."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from functools import cached_property
from itertools import accumulate

from torch import nn

from fxsplit._cuts._flow import Flow
from fxsplit._flops import node_costs, recorded_batch
from fxsplit._graph import named_tensors


class Sizes:
    """Sums over a graph that are made once and looked up for every moment."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow

    @cached_property
    def _spans(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """``(moment, size)`` of the first uses and of the last uses of all parameters."""
        uses: dict[int, list[int]] = {}
        sizes: dict[int, int] = {}
        for node in self._flow.nodes:
            if node.op not in ("call_module", "get_attr"):
                continue
            users = (node,) if node in self._flow.moment else self._flow.readers[node]
            moments = [self._flow.moment[n] for n in users if n in self._flow.moment]
            for _, tensor in named_tensors(self._flow.root, [node]) if moments else ():
                if isinstance(tensor, nn.Parameter):
                    uses.setdefault(id(tensor), []).extend(moments)
                    sizes[id(tensor)] = tensor.numel()
        first = [(min(moments), sizes[key]) for key, moments in uses.items()]
        return first, [(max(moments), sizes[key]) for key, moments in uses.items()]

    @cached_property
    def _first_uses(self) -> _Sums:
        return _Sums(self._spans[0])

    @cached_property
    def _last_uses(self) -> _Sums:
        return _Sums(self._spans[1])

    def params(self, moment: int) -> tuple[int, int]:
        """Parameters used up to a moment, and after it; one that is used on both sides counts twice."""
        return self._first_uses.until(moment), self._last_uses.total - self._last_uses.until(moment)

    @cached_property
    def _costs(self) -> _Sums:
        """The FLOPs of every node that computes something, for the batch of the recording."""
        return _Sums(
            (self._flow.moment[node], sum(cost.weights.values()) + cost.other)
            for _, node, cost in node_costs(self._flow.root)
            if node in self._flow.moment
        )

    def flops(self, moment: int) -> tuple[int, int]:
        """FLOPs per sample up to a moment, and after it."""
        batch = recorded_batch(self._flow.root)
        before = self._costs.until(moment)
        return before // batch, (self._costs.total - before) // batch


class _Sums:
    """Sums of amounts up to any moment."""

    def __init__(self, amounts: Iterable[tuple[int, int]]) -> None:
        ordered = sorted(amounts)
        self._moments = [moment for moment, _ in ordered]
        self._sums = [0, *accumulate(amount for _, amount in ordered)]

    def until(self, moment: int) -> int:
        return self._sums[bisect_right(self._moments, moment)]

    @property
    def total(self) -> int:
        return self._sums[-1]

"""The unmasked gradients of all masked weights, collected in the steps that need them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsity._distributed import average, check_agreed, in_any, size_of
from sparsity._errors import EngineError
from sparsity._gradient import DenseGradient
from sparsity._masks import MaskedWeight
from sparsity._sharded import aligned, group_of, host, is_sharded, local
from sparsity._sharded_gradient import ShardedGradient


class Collection:
    """Collects while it is open; in between it holds nothing.

    Args:
        weights: Parameter and mask by path.
        group: The processes whose gradients count.
    """

    def __init__(self, weights: Mapping[str, MaskedWeight], group: Any) -> None:
        self._weights = weights
        self._group = group
        self._collectors: dict[str, DenseGradient | ShardedGradient] = {}

    def open(self) -> None:
        """Start anew."""
        self.close()
        for path, weight in self._weights.items():
            self._collectors[path] = _collector(weight)

    def close(self) -> None:
        """Stop, and free the memory."""
        for collector in self._collectors.values():
            collector.close()
        self._collectors = {}

    def take(self, step: int) -> dict[str, Tensor]:
        """Return, of every weight with a gradient, the unmasked one, averaged over processes; then stop.

        Raises:
            EngineError: A gradient didn't come from a backward pass since this was opened, or only in some processes.
        """
        gradients = {p: each.total for p, each in self._collectors.items() if each.total is not None}
        collected = {path: path in gradients for path in self._weights}
        self.close()
        device = next(iter(self._weights.values())).holder.mask.device
        if size_of(self._group) > 1:
            collected = in_any(collected, self._group, device)
        present = {p: has_gradient(w) and (collected[p] or _is_nonzero(w)) for p, w in self._weights.items()}
        if size_of(self._group) > 1:
            check_agreed(present, self._group, device)
            for path, weight in self._weights.items():
                # A weight that only other processes used in this step has its gradient from them.
                if present[path] and path not in gradients:
                    gradients[path] = torch.zeros_like(weight.parameter)
            # Those of sharded weights are averages already.
            mine = [gradients[path] for path, has in present.items() if has]
            average([gradient for gradient in mine if not is_sharded(gradient)], self._group)
        missing = next((path for path, has in present.items() if has and path not in gradients), None)
        if missing is not None:
            raise EngineError(
                f"{missing!r} has a gradient at step {step}, but not from a backward pass through the masked "
                "model since the last step, so the gradients of its zeros are unknown. Attach the engine, move the "
                "model and load checkpoints between two steps, before the forward pass."
            )
        return {path: gradients[path] for path, has in present.items() if has}

    def state(self) -> dict[str, Tensor]:
        """Return what has been collected so far, to go on in the middle of an accumulation."""
        return {p: each.total.clone() for p, each in self._collectors.items() if each.total is not None}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state`; without an open collection it is dropped."""
        for path, total in state.items():
            if path in self._collectors:
                self._collectors[path].total = aligned(total.detach().clone(), self._weights[path].parameter.detach())


def has_gradient(weight: MaskedWeight) -> bool:
    """Tell whether a weight is trained and has a gradient."""
    return weight.parameter.requires_grad and weight.parameter.grad is not None


def _is_nonzero(weight: MaskedWeight) -> bool:
    # Zeros that nobody collected are what zero_grad(set_to_none=False) leaves of a weight that is not used.
    gradient = weight.parameter.grad
    return gradient is not None and bool(host([local(gradient).any()], [group_of(gradient)])[0])


def _collector(weight: MaskedWeight) -> DenseGradient | ShardedGradient:
    site = weight.holder.sharded
    return DenseGradient(weight.holder.mask, weight.parameter) if site is None else ShardedGradient(site)

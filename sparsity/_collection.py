"""The unmasked gradients of all masked weights, collected in the steps that need them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import ReferenceType, ref

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
        self._used: dict[str, tuple[ReferenceType[Tensor], int]] = {}

    def open(self, *, stepped: bool = False) -> None:
        """Start anew; ``stepped`` tells that the optimizer has just used the gradients that there are."""
        self.close()
        if stepped:
            self._used = {
                path: (ref(gradient), local(gradient)._version)
                for path, weight in self._weights.items()
                if (gradient := weight.parameter.grad) is not None
            }
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
        present = {path: self._has_new(path, collected[path]) for path in self._weights}
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
                "model since the last step, so the gradients of its zeros are unknown. Attach the engine and load "
                "checkpoints between two steps, before the forward pass; call optimizer.step() after the backward "
                "pass and not in a hook of it; and fold the model only after training."
            )
        return {path: gradients[path] for path, has in present.items() if has}

    def _has_new(self, path: str, collected: bool) -> bool:
        weight = self._weights[path]
        gradient = weight.parameter.grad
        if not has_gradient(weight) or gradient is None:
            return False
        if collected:
            return True
        # Zeros that nobody collected are what zero_grad(set_to_none=False) leaves of a weight that is not used. What
        # the last step used is no gradient of this one: Lightning's weight averaging ends in a step without a new one.
        zero = not host([local(gradient).any()], [group_of(gradient)])[0]
        used, version = self._used.get(path, (None, 0))
        return not zero and (used is None or used() is not gradient or local(gradient)._version != version)

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


def _collector(weight: MaskedWeight) -> DenseGradient | ShardedGradient:
    site = weight.holder.sharded
    return DenseGradient(weight.holder.mask, weight.parameter) if site is None else ShardedGradient(site)

"""Counts the optimizer steps that were really made, without waiting for the device in each of them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.optim import Optimizer

from sparsity._sharded import joined, local


def left_out(optimizer: Optimizer) -> bool:
    """Tell whether the step that runs now will change nothing, because a GradScaler found an infinite gradient.

    Most optimizers are not called in such a step. Fused ones are: they get ``found_inf`` and read it on the device.
    """
    found = getattr(optimizer, "found_inf", None)
    return isinstance(found, Tensor) and bool(found.item())


def unscaled(optimizer: Optimizer, gradient: Tensor | None) -> Tensor | None:
    """Return a gradient without the loss scale that a fused optimizer has yet to divide by, in this step."""
    scale = getattr(optimizer, "grad_scale", None)
    if gradient is None or not isinstance(scale, Tensor):
        return gradient
    part = local(gradient)
    return joined(part / scale.to(part.device), gradient)


class StepCount:
    """A number of steps that is exact whenever someone asks, and an upper bound in between.

    Whether a fused optimizer leaves a step out is known on the device only. The count takes steps for made until a
    question depends on it; then it waits for the device, once.

    Args:
        steps: Steps made so far.
    """

    def __init__(self, steps: int = 0) -> None:
        self._bound = steps
        self._left_out: Tensor | None = None

    def add(self, optimizer: Optimizer) -> None:
        """Count the step that ``optimizer`` just ended, unless it was left out."""
        self._bound += 1
        found = getattr(optimizer, "found_inf", None)
        if isinstance(found, Tensor):
            one = (found != 0).sum()
            self._left_out = one if self._left_out is None else self._left_out + one.to(self._left_out.device)

    def exact(self) -> int:
        """Return the number of steps made."""
        if self._left_out is not None:
            self._bound -= int(self._left_out.item())
            self._left_out = None
        return self._bound

    def satisfies(self, due: Callable[[int], bool]) -> bool:
        """Tell whether ``due`` holds for the exact number of steps, waiting for the device only if it may.

        It may if it holds for the bound or for the number before. The bound passes every number, and is made exact
        where ``due`` holds, so that no number is passed over.
        """
        if self._left_out is not None and (due(self._bound) or due(self._bound - 1)):
            self.exact()
        return due(self._bound)

"""Mask the gradient of a sharded weight, and show the unmasked one to whoever asks for it.

Under FSDP2 a forward pass sees the whole weight, but no process holds its whole mask. So the gradient is masked after
the processes have added it up and each has its rows, in a hook that FSDP2 calls there. That costs no communication,
and what a `ShardedGradient` collects is the mean over the processes already.
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn

from sparsity._sharded import joined, local


class ShardedGradient:
    """The sum of the unmasked gradients of one sharded weight since its ``.grad`` was last reset.

    Starts anew when ``.grad`` was set to None, or was written to by others since the last backward pass: most likely
    set to zero.

    Args:
        site: The hook of the weight.
    """

    def __init__(self, site: GradientMask) -> None:
        self.total: Tensor | None = None
        self._site = site
        self._accumulated: tuple[Tensor, int] | None = None
        site.collector = weakref.ref(self)

    def add(self, gradient: Tensor, mask: Tensor) -> None:
        """Take in ``.grad``, in which entries of active weights are summed up, and those of others are new."""
        own = local(gradient)
        if self.total is None or self._was_reset(gradient):
            self.total = joined(own.clone(), gradient)
        else:
            before = local(self.total)
            torch.where(local(mask), own, before.add_(own), out=before)

    def remember(self, gradient: Tensor) -> None:
        """Remember ``.grad`` as it is after it was masked."""
        self._accumulated = gradient, gradient._version

    def close(self) -> None:
        """Stop collecting and free the memory."""
        self.total = self._accumulated = None
        if self._site.collector is not None and self._site.collector() is self:
            self._site.collector = None

    def _was_reset(self, gradient: Tensor) -> bool:
        if self._accumulated is None:  # what is there was restored from a checkpoint
            return False
        known, version = self._accumulated
        # FSDP2 adds to the local part, and so does masking: only others write to the DTensor.
        return gradient is not known or gradient._version != version


class GradientMask:
    """The hook of one sharded weight, called after its ``.grad`` was added to.

    Args:
        parameter: The sharded weight.
        holder: The `Mask` that has its mask, sharded alike.
    """

    def __init__(self, parameter: nn.Parameter, holder: nn.Module) -> None:
        self.parameter = parameter
        self.collector: weakref.ref[ShardedGradient] | None = None
        self._holder = holder
        # A frozen weight takes no hook, but may be trained later.
        frozen = not parameter.requires_grad
        parameter.requires_grad_(True).register_post_accumulate_grad_hook(self)
        parameter.requires_grad_(not frozen)

    @torch.no_grad()
    def __call__(self, parameter: Tensor) -> None:
        """Set the gradient of masked weights to zero, after showing it to the collector if there is one."""
        gradient = parameter.grad
        if gradient is None:
            return
        collector = self.collector() if self.collector is not None else None
        if collector is not None:
            collector.add(gradient, self._holder.mask)  # pyright: ignore
        self._holder.zero(gradient)  # pyright: ignore
        if collector is not None:
            collector.remember(gradient)

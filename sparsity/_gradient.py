"""Pass a weight through unchanged, mask its gradient, and show the unmasked gradient to whoever asks for it.

An update of the masks by gradient needs the gradients of the zeros too, but only in the steps that update. So nothing
is stored in between: a `DenseGradient` opened for a mask adds up what arrives until it is closed.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad

from sparsity._bits import keep, kept
from sparsity._unshared import unshared

_Key = tuple[torch.device, int]
# By the storage of the mask and not by object, since compiled code hands over other tensor objects than eager code.
_open: weakref.WeakValueDictionary[_Key, DenseGradient] = weakref.WeakValueDictionary()


class DenseGradient:
    """The sum of the unmasked gradients of one weight since its ``.grad`` was last reset.

    It adds up over micro-batches just as ``.grad`` does, and starts anew when ``.grad`` was set to None or to zero, so
    that gradients of a discarded step (zero_grad, or a step that a GradScaler skips) don't count.

    Args:
        mask: The mask that the weight's gradient passes.
        weight: The parameter whose ``.grad`` tells when an accumulation starts.
    """

    def __init__(self, mask: Tensor, weight: nn.Parameter) -> None:
        self.total: Tensor | None = None
        self._weight = weight
        # What a backward pass has brought; it counts once ``.grad`` got it too, which `autograd.grad` does not change.
        self._arrived: Tensor | None = None
        self._starts = True
        self._was_reset: Tensor | None = None
        self._backward = -1
        self._accumulated: tuple[int, int] | None = None
        self._stop_watching = _watch(weight, weakref.WeakMethod(self._count), self)
        # Kept, so that no other tensor gets its memory, by which it is found.
        self._mask = mask
        self._key = _key(mask)
        _open[self._key] = self

    def add(self, gradient: Tensor) -> None:
        """Take one contribution; a tied weight makes several in one backward pass."""
        backward = torch._C._current_graph_task_id()
        if self._arrived is not None and backward == self._backward:
            self._arrived.add_(gradient.detach())
            return
        self._backward, self._arrived = backward, gradient.detach().clone()
        grad = self._weight.grad
        self._starts = grad is None
        # Someone wrote to it since the last backward pass. If it is zero now, it was reset; decided on the device,
        # without waiting for it.
        self._was_reset = None if grad is None or _version(grad) == self._accumulated else ~grad.any()

    def move(self, mask: Tensor) -> None:
        """Go on with a mask that has other memory now, as a model's tensors have that were moved."""
        if _open.get(self._key) is self:
            del _open[self._key]
        self._mask, self._key = mask, _key(mask)
        self.total = None if self.total is None else self.total.to(mask.device)
        _open[self._key] = self

    def close(self) -> None:
        """Stop collecting and free the memory."""
        self.total = self._arrived = None
        self._stop_watching()
        if _open.get(self._key) is self:
            del _open[self._key]

    def _count(self, weight: Tensor) -> None:
        """Count what has arrived, since ``.grad`` was just added to."""
        if weight.grad is not None:
            self._accumulated = _version(weight.grad)
        if self._arrived is None:
            return
        if self.total is None or self._starts:
            self.total = self._arrived
        else:
            if self._was_reset is not None:
                self.total.masked_fill_(self._was_reset, 0)
            self.total.add_(self._arrived)
        self._arrived = None


def collector_of(mask: Tensor) -> DenseGradient | None:
    """Return what collects the gradient that ``mask`` is about to mask, if something does."""
    return _open.get(_key(mask)) if _open else None


def _watch(weight: nn.Parameter, count: weakref.WeakMethod[Any], owner: DenseGradient) -> Callable[[], Any]:
    """Call ``count`` after the weight's ``.grad`` was added to, until ``owner`` is gone or the result is called."""

    def call(weight: Tensor) -> None:
        method = count()
        if method is not None:
            method(weight)

    # A frozen weight takes no hook, but may be trained before the step.
    frozen = not weight.requires_grad
    handle = weight.requires_grad_(True).register_post_accumulate_grad_hook(call)
    weight.requires_grad_(not frozen)
    # By the collector's end and not by a reference to it: a cycle would outlive it.
    return weakref.finalize(owner, handle.remove)


def _version(tensor: Tensor) -> tuple[int, int]:
    """Tell the present content of a tensor from all others, without looking at it."""
    return tensor.data_ptr(), tensor._version


def _key(mask: Tensor) -> _Key:
    return mask.device, mask.data_ptr()


def _masked(gradient: Tensor, mask: Tensor, own: bool) -> Tensor:
    """Return the gradient where the mask is True, and zero elsewhere; in its own memory if it is our ``own``."""
    # torch.func and forward differentiation train nothing, and need operations that they know.
    if is_functorch_wrapped_tensor(gradient) or is_functorch_wrapped_tensor(mask) or forward_ad._current_level >= 0:
        return torch.where(mask, gradient, 0)
    _collect(gradient, mask)
    if torch.is_grad_enabled():  # a second derivative needs an operation that autograd knows
        return torch.where(mask, gradient, 0)
    if not own:
        return kept(gradient, mask)
    keep(gradient, mask)
    return gradient


def _collect(gradient: Tensor, mask: Tensor) -> None:
    collector = collector_of(mask)
    if collector is not None:
        collector.add(gradient)


# Compiled code calls one opaque operator, so that opening a collector changes nothing that a compiled graph depends on.
# It can't be replayed by a CUDA graph, which would not call it.
@torch.library.custom_op("sparsity::mask_gradient", mutates_args=("gradient",), tags=[torch.Tag.cudagraph_unsafe])
def _mask_in_place(gradient: Tensor, mask: Tensor) -> None:
    _collect(gradient, mask)
    keep(gradient, mask)


@_mask_in_place.register_fake
def _(gradient: Tensor, mask: Tensor) -> None:
    return None


def _masked_by_operator(gradient: Tensor, mask: Tensor) -> Tensor:
    """Do as `_masked` in compiled code, whose compiler sees where it may spare the copy."""
    operator = torch.ops.sparsity.mask_gradient.default
    return torch.ops.higher_order.auto_functionalized(operator, gradient=gradient, mask=mask)[1]


class PassMasked(torch.autograd.Function):
    """The identity on a weight whose masked entries are zero in storage; the backward pass masks the gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor) -> Tensor:
        """Return ``weight`` itself, as a view, and keep the mask for the backward pass."""
        # An attribute instead of save_for_backward, whose hooks may move or copy what they save.
        ctx.mask = mask
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient, exactly zero where the mask is False."""
        if torch.compiler.is_compiling():
            return _masked_by_operator(gradients[0], ctx.mask), None
        own = unshared(gradients)  # before anything else refers to them
        return _masked(gradients[0], ctx.mask, own), None

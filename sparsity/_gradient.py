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

from sparsity._bits import kept

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
        self._backward = -1
        self._accumulated: tuple[int, int] | None = None
        self._stop_watching = _watch(weight, weakref.WeakMethod(self._remember), self)
        # Kept, so that no other tensor gets its memory, by which it is found.
        self._mask = mask
        self._key = _key(mask)
        _open[self._key] = self

    def add(self, gradient: Tensor) -> None:
        """Add one contribution; a tied weight makes several in one backward pass."""
        backward = torch._C._current_graph_task_id()
        grad, goes_on = self._weight.grad, backward == self._backward
        self._backward = backward
        if self.total is None or (grad is None and not goes_on):
            self.total = gradient.detach().clone()
            return
        if grad is not None and not goes_on and _version(grad) != self._accumulated:
            # Someone wrote to it since the last backward pass. If it is zero now, it was reset; decided on the device,
            # without waiting for it.
            self.total.masked_fill_(~grad.any(), 0)
        self.total.add_(gradient.detach())

    def close(self) -> None:
        """Stop collecting and free the memory."""
        self.total = None
        self._stop_watching()
        if _open.get(self._key) is self:
            del _open[self._key]

    def _remember(self, weight: Tensor) -> None:
        if weight.grad is not None:
            self._accumulated = _version(weight.grad)


def _watch(weight: nn.Parameter, remember: weakref.WeakMethod[Any], owner: DenseGradient) -> Callable[[], Any]:
    """Call ``remember`` after the weight's ``.grad`` was added to, until ``owner`` is gone or the result is called."""

    def call(weight: Tensor) -> None:
        method = remember()
        if method is not None:
            method(weight)

    if not weight.requires_grad:  # takes no hook, and gets no gradient
        return lambda: None
    # By the collector's end and not by a reference to it: a cycle would outlive it.
    return weakref.finalize(owner, weight.register_post_accumulate_grad_hook(call).remove)


def _version(tensor: Tensor) -> tuple[int, int]:
    """Tell the present content of a tensor from all others, without looking at it."""
    return tensor.data_ptr(), tensor._version


def _key(mask: Tensor) -> _Key:
    return mask.device, mask.data_ptr()


def _masked(gradient: Tensor, mask: Tensor) -> Tensor:
    if _open:
        collector = _open.get(_key(mask))
        if collector is not None:
            collector.add(gradient)
    # A second derivative needs an operation that autograd knows.
    return torch.where(mask, gradient, 0) if torch.is_grad_enabled() else kept(gradient, mask)


# Compiled code calls the same function as one opaque operator, so that opening a collector changes nothing that a
# compiled graph depends on. It can't be replayed by a CUDA graph, which would not call it.
@torch.library.custom_op("sparsity::masked_gradient", mutates_args=(), tags=[torch.Tag.cudagraph_unsafe])
def _masked_operator(gradient: Tensor, mask: Tensor) -> Tensor:
    return _masked(gradient, mask)


@_masked_operator.register_fake
def _(gradient: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, gradient, 0)


class PassMasked(torch.autograd.Function):
    """The identity on a weight whose masked entries are zero in storage; the backward pass masks the gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, mask: Tensor) -> Tensor:
        """Return ``weight`` itself, as a view."""
        return weight.view_as(weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Keep the mask for the backward pass."""
        # An attribute instead of save_for_backward, whose hooks may move or copy what they save.
        ctx.mask = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient, exactly zero where the mask is False."""
        masked = _masked_operator if torch.compiler.is_compiling() else _masked
        return masked(gradients[0], ctx.mask), None

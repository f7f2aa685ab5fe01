"""Pass a weight through unchanged, mask its gradient, and show the unmasked gradient to whoever asks for it.

An update of the masks by gradient needs the gradients of the zeros too, but only in the steps that update. So nothing
is stored in between: a `DenseGradient` opened for a mask adds up what arrives until it is closed.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

_Key = tuple[torch.device, int]
# By the storage of the mask and not by object, since compiled code hands over other tensor objects than eager code.
_open: WeakValueDictionary[_Key, DenseGradient] = WeakValueDictionary()


class DenseGradient:
    """The sum of the unmasked gradients of one weight since its ``.grad`` was last None.

    It adds up over micro-batches just as ``.grad`` does, and starts anew when ``.grad`` was reset, so that gradients
    of a discarded step (zero_grad, or a step that a GradScaler skips) don't count.

    Args:
        mask: The mask that the weight's gradient passes.
        weight: The parameter whose ``.grad`` tells when an accumulation starts.
    """

    def __init__(self, mask: Tensor, weight: nn.Parameter) -> None:
        self.total: Tensor | None = None
        self._weight = weight
        self._backward = -1
        self._key = _key(mask)
        _open[self._key] = self

    def add(self, gradient: Tensor) -> None:
        """Add one contribution; a tied weight makes several in one backward pass."""
        backward = torch._C._current_graph_task_id()
        starts = backward != self._backward and self._weight.grad is None
        self._backward = backward
        if self.total is None or starts:
            self.total = gradient.detach().clone()
        else:
            self.total.add_(gradient.detach())

    def close(self) -> None:
        """Stop collecting and free the memory."""
        self.total = None
        if _open.get(self._key) is self:
            del _open[self._key]


def _key(mask: Tensor) -> _Key:
    return mask.device, mask.data_ptr()


def _masked(gradient: Tensor, mask: Tensor) -> Tensor:
    if _open:
        collector = _open.get(_key(mask))
        if collector is not None:
            collector.add(gradient)
    # Not a product: that would turn an infinite gradient of a masked weight into NaN.
    return torch.where(mask, gradient, 0)


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

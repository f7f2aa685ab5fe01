"""Tells whether a gradient belongs to the backward pass alone, so that it may be changed in place."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Holders of a tensor in C++ and of its storage, and holders of their Python objects.
_References = tuple[int, int, int, int]


def unshared(gradients: tuple[Tensor, ...]) -> bool:
    """Tell whether nobody else holds the gradient that the ``backward`` of an autograd function was called with.

    This is known from numbers of references, compared with those of a gradient that is certainly unshared, and without
    them False. A view, or memory that torch didn't allocate, counts as shared.

    Args:
        gradients: The arguments themselves, since any other variable would be a reference more.
    """
    watched = torch._C._len_torch_dispatch_stack() > 0 or torch._C._are_functorch_transforms_active()
    if watched or type(gradients[0]) is not Tensor or gradients[0]._is_view():
        return False
    alone = _alone()
    return alone is not None and _references(gradients) == alone and gradients[0].untyped_storage().resizable()


def _references(gradients: tuple[Tensor, ...]) -> _References:
    storage = gradients[0].untyped_storage()
    of_tensor, of_storage = gradients[0]._use_count(), torch._C._storage_Use_Count(storage._cdata)  # pyright: ignore
    return of_tensor, of_storage, sys.getrefcount(gradients[0]), sys.getrefcount(storage)


@functools.cache
def _alone() -> _References | None:
    """Count the references of an unshared gradient; None if they do not differ from those of a shared one."""
    holders: list[Callable[[Tensor], Any]] = [Tensor.detach, Tensor.untyped_storage, lambda gradient: gradient]
    try:
        alone = _counted(lambda gradient: None)
        shared = [_counted(holder) for holder in holders]
    except (AttributeError, TypeError):  # another version of torch
        return None
    return None if alone in shared else alone


def _counted(hold: Callable[[Tensor], Any]) -> _References:
    """Count the references of a gradient of which someone has kept the result of ``hold``."""
    seen: list[Any] = []
    with torch._C.DisableTorchFunction(), torch.enable_grad():
        weight = torch.ones(1, device="cpu", requires_grad=True)
        _Gradient.apply(_Probe.apply(weight, seen), hold, seen).backward()
    return seen[-1]


class _Gradient(torch.autograd.Function):
    """Hands out a gradient, and keeps in ``seen`` what ``hold`` makes of it."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, hold: Callable[[Tensor], Any], seen: list[Any]) -> Tensor:
        ctx.hold, ctx.seen = hold, seen
        return weight.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradient = torch.ones(1, device="cpu")
        ctx.seen.append(ctx.hold(gradient))
        return gradient, None, None


class _Probe(torch.autograd.Function):
    """Counts the references of the gradient that it gets, just as a mask does."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, seen: list[Any]) -> Tensor:
        ctx.seen = seen
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ctx.seen.append(_references(gradients))
        return gradients[0], None

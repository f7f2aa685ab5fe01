"""Copies of tensors that are made when something reads them: an initialiser overwrites most of what it gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_OVERWRITING = {
    torch.ops.aten.normal_.default,
    torch.ops.aten.uniform_.default,
    torch.ops.aten.zero_.default,
    torch.ops.aten.fill_.Scalar,
    torch.ops.aten.fill_.Tensor,
    torch.ops.aten.copy_.default,
    torch.ops.aten.exponential_.default,
}
# These reach the memory without passing the dispatcher.
_UNSEEN = {"numpy", "__array__", "tolist", "data_ptr", "untyped_storage", "storage", "__dlpack__", "share_memory_"}


class LazyCopies:
    """A context in which uninitialised tensors get the values of others when an operation reads them.

    Example:
        >>> copies = LazyCopies()
        >>> drawn, scaled, left = (copies.add(torch.ones(2)) for _ in range(3))
        >>> with copies:
        ...     drawn.zero_(), scaled.mul_(3)
        (tensor([0., 0.]), tensor([3., 3.]))
        >>> copies.pending(drawn), copies.pending(left)
        (False, True)
    """

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[Tensor, Tensor]] = {}
        self._open = ExitStack()

    def add(self, source: Tensor) -> Tensor:
        """Return memory for a copy of ``source``."""
        copied = torch.empty_like(source.detach())
        address = copied.untyped_storage().data_ptr()
        if address:
            self._waiting[address] = (copied, source.detach())
        return copied

    def pending(self, tensor: Tensor) -> bool:
        """Whether nothing has read or written a tensor from `add` so far: its memory is uninitialised."""
        return tensor.untyped_storage().data_ptr() in self._waiting

    def __enter__(self) -> LazyCopies:
        self._open.enter_context(_Operations(self))
        self._open.enter_context(_MemoryAccess(self))
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def write_whole(self, target: object, others: Sequence[Tensor]) -> bool:
        """Forget a tensor of which an operation overwrites every element and reads none."""
        if not isinstance(target, Tensor) or not self.pending(target):
            return False
        address = target.untyped_storage().data_ptr()
        copied = self._waiting[address][0]
        if target.numel() != copied.numel() or target.dtype != copied.dtype or not _is_dense(target):
            return False
        if any(other.untyped_storage().data_ptr() == address for other in others):
            return False
        del self._waiting[address]
        return True

    def fill(self, tensors: Sequence[Tensor]) -> None:
        """Copy what has been put off for ``tensors`` and for what they are views of."""
        for tensor in tensors:
            found = self._waiting.pop(tensor.untyped_storage().data_ptr(), None)
            if found is not None:
                found[0].copy_(found[1])


class _Operations(TorchDispatchMode):
    def __init__(self, copies: LazyCopies) -> None:
        super().__init__()
        self._copies = copies

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        tensors = list(_tensors((args, kwargs)))
        whole = func in _OVERWRITING and self._copies.write_whole(args[0], tensors[1:])
        if not whole and not func.is_view:
            self._copies.fill(tensors)
        return func(*args, **(kwargs or {}))


class _MemoryAccess(TorchFunctionMode):
    def __init__(self, copies: LazyCopies) -> None:
        super().__init__()
        self._copies = copies

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__name__", "") in _UNSEEN:
            self._copies.fill(list(_tensors((args, kwargs))))
        return func(*args, **(kwargs or {}))


def _tensors(values: object) -> Iterator[Tensor]:
    return (value for value in pytree.tree_leaves(values) if isinstance(value, Tensor))


def _is_dense(tensor: Tensor) -> bool:
    """Whether a tensor fills a gapless range of memory, each place once."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True

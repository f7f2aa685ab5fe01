"""Operations on large tensors and their masks at the speed of memory, by their bits and piece by piece."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsity._kernel import WORTH, kernel, lengths, pointers

PIECE = 1 << 18
_INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_WORDS = 128  # of eight bools each, which may be added up before a byte overflows


def kept(tensor: Tensor, mask: Tensor) -> Tensor:
    """Return ``tensor`` where ``mask`` is True, and zero elsewhere; not differentiable.

    A product of integers is several times faster than choosing or filling, and exact where a product of floats would
    make -0.0 of a negative number and NaN of an infinite one.
    """
    result = torch.empty_like(tensor)
    for part, source, active in _pieces(_integers(result), _integers(tensor), mask):
        torch.mul(source, active, out=part)
    return result


def keep(tensor: Tensor, mask: Tensor) -> None:
    """Set ``tensor`` to zero where ``mask`` is False, in place."""
    if not _by_kernel(tensor, mask, outside=False):
        for part, active in _pieces(_integers(tensor.detach()), mask):
            part.mul_(active)


def fill(tensor: Tensor, places: Tensor, value: float = 0.0) -> None:
    """Set ``tensor`` to ``value`` where ``places`` is True, in place."""
    if value or tensor.device.type != "cpu" or tensor.itemsize not in _INTEGER:
        tensor.masked_fill_(places, value)
    elif not _by_kernel(tensor, places, outside=True):
        for part, chosen in _pieces(_integers(tensor.detach()), places):
            part.mul_(~chosen)


def count(mask: Tensor) -> Tensor:
    """Return the number of True in a bool tensor, as a tensor on its device."""
    if mask.device.type != "cpu" or not mask.is_contiguous() or mask.storage_offset() % 8:
        return mask.count_nonzero()
    flat = mask.view(-1)
    whole = flat.numel() // (8 * _WORDS) * (8 * _WORDS)
    sums = flat[:whole].view(torch.int64).view(_WORDS, -1).sum(0).view(torch.uint8)
    return sums.sum(dtype=torch.int64) + flat[whole:].count_nonzero()


def slices(length: int) -> Sequence[slice]:
    """Return the pieces of a vector on the CPU that stay in its cache from one operation to the next.

    An operation on a whole large tensor reads and writes memory, and each tensor that it makes on its way is memory
    that the system has to clear first, which takes longer than the operation.
    """
    return [slice(start, start + PIECE) for start in range(0, length, PIECE)]


def _by_kernel(tensor: Tensor, mask: Tensor, outside: bool) -> bool:
    """Keep ``tensor`` where ``mask`` is True, or False with ``outside``, by a kernel, which only reads what is zero.

    Return whether there is one.
    """
    alike = tensor.shape == mask.shape and _plain(tensor.detach()) and _plain(mask)
    if tensor.numel() < WORTH or tensor.itemsize == 1 or not alike:
        return False
    library = kernel("masking")
    if library is None:
        return False
    where = pointers([tensor]), pointers([mask]), lengths([tensor])
    library.masking_keep(1, *where, tensor.itemsize, outside, torch.get_num_threads())
    torch.autograd.graph.increment_version(tensor)
    return True


def _plain(tensor: Tensor) -> bool:
    return type(tensor) is Tensor and tensor.device.type == "cpu" and tensor.is_contiguous()


def _pieces(*tensors: Tensor) -> Sequence[tuple[Tensor, ...]]:
    if not all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors):
        return [tensors]
    return list(zip(*(tensor.view(-1).split(PIECE) for tensor in tensors), strict=True))


def _integers(tensor: Tensor) -> Tensor:
    return tensor.view(_INTEGER[tensor.itemsize])

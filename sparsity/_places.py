"""The places where a mask is True: reads, writes and moves the entries there, without a look at the rest."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Places:
    """Where a mask is True, as it is now, in row-major order whatever the layout of tensors in memory.

    Takes 4 bytes for each place.

    Args:
        mask: Bool tensor.
    """

    def __init__(self, mask: Tensor) -> None:
        self._mask, self._version = mask, mask._version
        kind = torch.int32 if mask.numel() < 2**31 else torch.int64
        self._index = mask.reshape(-1).nonzero().flatten().to(kind)
        # Of tensors that are not row-major: by their strides, which hardly ever change.
        self._otherwise: dict[tuple[int, ...], Tensor] = {}

    def __len__(self) -> int:
        return len(self._index)

    def are_of(self, mask: Tensor) -> bool:
        """Tell whether ``mask`` is the one, and has not been written to since."""
        return mask is self._mask and mask._version == self._version

    def read(self, tensor: Tensor) -> Tensor:
        """Return the entries of a tensor of the mask's shape, as a vector."""
        return _line(tensor).index_select(0, self._at(tensor))

    def write(self, tensor: Tensor, values: Tensor) -> None:
        """Set the entries of a tensor of the mask's shape, in place."""
        _line(tensor).index_copy_(0, self._at(tensor).long(), values)

    def spread(self, values: Tensor, fill: float) -> Tensor:
        """Return a tensor of the mask's shape with ``values`` at the places and ``fill`` elsewhere."""
        tensor = torch.full(self._mask.shape, fill, dtype=values.dtype, device=values.device)
        self.write(tensor, values)
        return tensor

    def moved(self, new: Places, vectors: Mapping[str, Tensor], fill: Mapping[str, float]) -> dict[str, Tensor]:
        """Return what vectors of entries here become at ``new`` places, with ``fill`` at those that are not here."""
        if not vectors:
            return {}
        stays = new._mask.reshape(-1)[self._index.to(new._mask.device)]
        was = torch.zeros(self._mask.numel(), dtype=torch.bool, device=stays.device)
        was[self._index.to(stays.device).long()] = True
        kept = was[new._index]
        result = {}
        for name, values in vectors.items():
            result[name] = torch.full((len(new),), fill[name], dtype=values.dtype, device=values.device)
            result[name][kept.to(values.device)] = values[stays.to(values.device)]
        return result

    def _at(self, tensor: Tensor) -> Tensor:
        if tensor.is_contiguous():
            return self._index
        strides = tensor.stride()
        if strides not in self._otherwise:
            coordinates = torch.unravel_index(self._index.long(), self._mask.shape)
            offsets = sum(each * stride for each, stride in zip(coordinates, strides, strict=True))
            self._otherwise[strides] = torch.as_tensor(offsets).to(self._index.dtype)
        return self._otherwise[strides]


def _line(tensor: Tensor) -> Tensor:
    """Return all of the memory that ``tensor`` lies in, as a vector that shares it."""
    tensor = tensor.detach()
    if tensor.is_contiguous():
        return tensor.view(-1)
    length = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.as_strided((length,), (1,))

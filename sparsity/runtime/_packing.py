"""Weights in a file: as a bit mask and the values that are not zero, where that is smaller."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedWeight:
    """A weight of ``shape``: one bit for each entry, and the nonzero values in order."""

    shape: tuple[int, ...]
    bits: bytes
    values: Tensor


def pack_weight(weight: Tensor) -> Tensor | PackedWeight:
    """Pack a weight if a fifth of it or more is zero.

    Example:
        >>> packed = pack_weight(torch.eye(8))
        >>> len(packed.bits), len(packed.values)
        (8, 8)
    """
    kept = weight != 0
    if int(kept.sum()) > 0.8 * weight.numel():
        return weight.contiguous()
    bits = np.packbits(kept.contiguous().numpy().reshape(-1)).tobytes()
    return PackedWeight(tuple(weight.shape), bits, weight[kept].clone())


def unpack_weight(packed: Tensor | PackedWeight) -> Tensor:
    """The weight again.

    Example:
        >>> torch.equal(unpack_weight(pack_weight(torch.eye(8))), torch.eye(8))
        True
    """
    if isinstance(packed, Tensor):
        return packed
    weight = torch.zeros(packed.shape)
    flat = np.unpackbits(np.frombuffer(packed.bits, dtype=np.uint8), count=weight.numel()).astype(bool)
    weight[torch.from_numpy(flat).view(packed.shape)] = packed.values
    return weight

"""The two ends of a MIMO network: the inputs of all members side by side, and each member's part of the outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SideBySide(nn.Module):
    """Puts the inputs of M members side by side.

    Shapes: with one dimension more than the model's input, ``[B, M, ...]`` holds an input for each member; without it,
    ``[B, ...]`` is taken by all of them. The result has M times the size along ``dim``.

    Args:
        members: Number of members M.
        ndim: Dimensions of the model's input.
        dim: Along which to concatenate.
    """

    def __init__(self, members: int, ndim: int, dim: int) -> None:
        super().__init__()
        self.members = members
        self.ndim = ndim
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate one input per member."""
        inputs = [x] * self.members if x.ndim == self.ndim else list(x.unbind(1))
        return torch.cat(inputs, self.dim)

    def extra_repr(self) -> str:
        """Shown by print."""
        return f"members={self.members}, dim={self.dim}"


class Share(nn.Module):
    """The m-th of M equal parts of a tensor along ``dim``, in memory of its own."""

    def __init__(self, index: int, members: int, dim: int) -> None:
        super().__init__()
        self.index = index
        self.members = members
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Cut out the part."""
        size = x.shape[self.dim] // self.members
        # What follows may overwrite it, or view it as if it were whole.
        return x.narrow(self.dim, self.index * size, size).contiguous()

    def extra_repr(self) -> str:
        """Shown by print."""
        return f"{self.index} of {self.members}, dim={self.dim}"

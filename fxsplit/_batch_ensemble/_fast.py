"""The weights of a layer that each member has for itself: factors for its inputs and outputs, and a bias."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fxsplit._errors import SplitError

Draw = Callable[[torch.Size], Tensor]

_DEVIATION = 0.5


def _normal(shape: torch.Size) -> Tensor:
    return 1 + _DEVIATION * torch.randn(shape)


def _signs(shape: torch.Size) -> Tensor:
    return torch.randint(2, shape) * 2.0 - 1


_DRAWS: dict[str, Draw] = {"normal": _normal, "signs": _signs}


def make_draw(fast: str | Draw) -> Draw:
    """The function that draws factors for ``fast=``.

    Raises:
        SplitError: ``fast`` is neither one of the names nor a function.
    """
    if not isinstance(fast, str) and callable(fast):
        return fast
    if fast in _DRAWS:
        return _DRAWS[fast]
    raise SplitError(
        f"fast must be {', '.join(map(repr, _DRAWS))} or a function from a shape [M, features] to a tensor, got "
        f"{fast!r}."
    )


def drawn(draw: Draw, members: int, features: int, like: Tensor) -> Tensor:
    """Factors ``[M, features]`` with the dtype and device of ``like``.

    Raises:
        SplitError: The user's function returns something else.
    """
    shape = torch.Size((members, features))
    if like.is_meta:
        return like.new_empty(shape)
    value = draw(shape)  # on the CPU, so that a seed means the same everywhere
    if not isinstance(value, Tensor) or value.shape != shape:
        got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise SplitError(f"The function given as fast= returned {got} for the shape {list(shape)}.")
    return value.detach().to(like.device, like.dtype)


class Factor(nn.Module):
    """Multiplies the features of each member by factors of its own: ``x r_m``, and adds ``b_m`` if there is a bias.

    Shapes: ``[M B, ...]``, with the rows of the first member first.

    Args:
        weight: Factors ``[M, features]``.
        dim: Dimension of the features.
        bias: ``[M, features]`` or None.
    """

    def __init__(self, weight: Tensor, dim: int, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift each member's rows."""
        members = len(self.weight)
        shape = [members, 1, *([1] * (x.ndim - 1))]
        shape[self.dim + 1 if self.dim >= 0 else self.dim] = -1
        rows = x.unflatten(0, (members, -1))
        # In the dtype of the activations, which autocast may have made smaller.
        scaled = rows * self.weight.view(shape).to(x.dtype)
        if isinstance(self.bias, Tensor):
            scaled = scaled + self.bias.view(shape).to(x.dtype)
        return scaled.flatten(0, 1)

    def extra_repr(self) -> str:
        """Shown by print."""
        return f"members={len(self.weight)}, features={self.weight.shape[1]}, bias={self.bias is not None}"


class Repeat(nn.Module):
    """Gives every member the whole batch: ``[B, ...]`` to ``[M B, ...]``, one member after the other."""

    def __init__(self, members: int) -> None:
        super().__init__()
        self.members = members

    def forward(self, x: Tensor) -> Tensor:
        """Repeat the batch."""
        return x.repeat(self.members, *([1] * (x.ndim - 1)))

    def extra_repr(self) -> str:
        """Shown by print."""
        return f"members={self.members}"


class Rows(nn.Module):
    """The m-th of M members' part of a value: of the rows of a tensor, or of a number that counts them."""

    def __init__(self, index: int, members: int) -> None:
        super().__init__()
        self.index = index
        self.members = members

    def forward(self, value: Tensor | int) -> Tensor | int:
        """Cut out the part."""
        if not isinstance(value, Tensor):
            return value // self.members
        rows = value.shape[0] // self.members
        return value.narrow(0, self.index * rows, rows)

    def extra_repr(self) -> str:
        """Shown by print."""
        return f"{self.index} of {self.members}"

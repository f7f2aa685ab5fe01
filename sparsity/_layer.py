"""What the functions of a method may look at: one weight with its mask, gradients and optimizer state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparsity._errors import EngineError
from sparsity._sharded import aligned, whole


@dataclass(frozen=True)
class Layer:
    """One masked weight in one step. Its tensors have the weight's shape, and are no copies: they are only to be read.

    Of a sharded weight (``fully_shard``) they are DTensors, which compute as if one process had the whole weight. A
    function may return a DTensor, or a plain tensor of the weight's shape that is the same in all processes.

    Attributes:
        path: Name of the weight.
        weight: Its values, detached, zero where masked.
        mask: Bool, True where active, before the update.
        gradient: The unmasked gradient of this step up to a positive factor (loss scaling, clipping and the mean over
            processes are not in it), or None if the rule does not ask for it.
        generator: A random generator on the weight's device for this layer and step alone.
        masked_gradient: The weight's ``.grad``, as the optimizer is about to use it.
        state: The optimizer's state of this weight, to be read only. A compact one (``compact_state`` of `Engine`) is
            shown in the weight's shape, with the values that states start with where the weight is not active.
        memory: Tensors of any shape that a rule keeps of this weight from step to step, saved with the engine.
    """

    path: str
    weight: Tensor
    mask: Tensor
    gradient: Tensor | None
    generator: torch.Generator
    masked_gradient: Tensor | None = None
    state: Mapping[str, Any] = field(default_factory=dict)
    memory: dict[str, Tensor] = field(default_factory=dict)

    def dense_gradient(self) -> Tensor:
        """Return ``gradient``.

        Raises:
            EngineError: The rule does not ask for it.
        """
        if self.gradient is None:
            raise EngineError(f"The gradient of the zeros of {self.path!r} is needed: make the rule with dense=True.")
        return self.gradient

    def draw(self, fill: Callable[..., Any]) -> Tensor:
        """Return random numbers of the weight's shape, the same whether or not the weight is sharded.

        They are drawn for the whole weight and the rows of this process kept.

        Args:
            fill: Called with a tensor to fill in place and ``generator``, such as ``Tensor.exponential_``.
        """
        drawn = torch.empty(self.weight.shape, device=self.weight.device)
        fill(drawn, generator=self.generator)
        return aligned(drawn, self.weight)

    def scaled_gradient(self) -> Tensor:
        """Return the unmasked gradient in the units of ``masked_gradient``: unscaled, clipped, averaged as that is.

        Where the weight is active both are known, and their least-squares ratio is the factor. Without any active
        gradient it is zero.

        Raises:
            EngineError: The rule does not ask for the unmasked gradient.
        """
        dense = self.dense_gradient()
        if self.masked_gradient is None:
            return dense
        active = torch.where(self.mask, dense, 0).float()
        factor = (active * self.masked_gradient).sum() / active.square().sum().clamp_min(torch.finfo().tiny)
        return dense * whole(factor).to(dense.dtype)


def hint_to_call(value: object) -> str:
    """Return a hint for who has passed on a function that makes scores instead of what it makes."""
    return " It was called as a score: write it with its arguments, or with ()." if isinstance(value, Layer) else ""


Score = Callable[[Layer], Tensor]

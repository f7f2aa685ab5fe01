"""BatchEnsemble: members that share each weight up to a factor of rank one (Wen et al. 2020, arXiv 2002.06715)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

import fxsplit
from recipes._errors import RecipeError
from recipes.methods._method import MakeNet, Method, seeded


@dataclass(frozen=True)
class BatchEnsemble(Method):
    """All members in one large batch, with weights W s r^T.

    Args:
        members: Number of members, M.
        fast: How the factors are drawn, as of `fxsplit.batch_ensemble`.
        fast_lr: Learning rate of the factors, relative to that of the shared weights (the paper's multiplier of their
            gradients, which is the same for SGD).
        vote: How predictions are averaged.
    """

    members: int = 4
    fast: str = "normal"
    fast_lr: float = 0.5
    vote: str = "prob"
    key = "batch-ensemble"

    def __post_init__(self) -> None:
        if self.members < 1:
            raise RecipeError(f"members must be at least 1, got {self.members}.")

    @property
    def label(self) -> str:
        """``BatchEnsemble (M=4)``."""
        return f"BatchEnsemble (M={self.members})"

    @property
    def heads(self) -> int:
        """Number of members."""
        return self.members

    def network(self, make: MakeNet, example: Any, seed: int, number: int = 0) -> nn.Module:
        """Give the layers of a model their factors."""
        return fxsplit.batch_ensemble(
            seeded(make, seed), self.members, fast=self.fast, vote=self.vote, seed=seed, example=example
        )

    def groups(self, net: nn.Module) -> list[dict[str, Any]]:
        """Factors and biases of the members learn more slowly and do not decay."""
        assert isinstance(net, fxsplit.BatchEnsembleModel)
        return [
            {"params": list(net.slow_parameters())},
            {"params": list(net.fast_parameters()), "lr_factor": self.fast_lr, "weight_decay": 0.0},
        ]


def batch_ensemble(members: int, fast_lr: float = 0.5) -> BatchEnsemble:
    """Members that share each weight up to a factor of rank one."""
    return BatchEnsemble(members, fast_lr=fast_lr)

"""Networks with a shared trunk and several heads: TreeNet, and with masks NeuroTrails."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

import fxsplit
from recipes._errors import RecipeError
from recipes.methods._method import Callbacks, Criterion, MakeNet, Method, seeded
from recipes.methods._rewiring import Rewiring, Rigl, Sparse
from sparsity import Engine

Split = int | float | str


@dataclass(frozen=True)
class Tree(Method):
    """A trunk with M heads: dense a TreeNet (Lee et al. 2015), sparse and rewired NeuroTrails (arXiv 2505.17909).

    Args:
        split: Where the trunk ends, as of `fxsplit.split`.
        members: Number of heads, M.
        sparse: Masks of trunk and heads; without, they are dense.
        rewiring: What becomes of the masks.
        vote: How predictions are averaged, as of `fxsplit.split`.
        total: Whether the loss is the sum over heads, as in the authors' code for language models; else the mean.
    """

    split: Split = "auto"
    members: int = 3
    sparse: Sparse = field(default_factory=lambda: Sparse(0.0))
    rewiring: Rewiring = field(default_factory=Rigl)
    vote: str = "prob"
    total: bool = False

    def __post_init__(self) -> None:
        if self.members < 1:
            raise RecipeError(f"members must be at least 1, got {self.members}.")

    @property
    def key(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride] (one class, two systems)
        """``neurotrails`` with masks, ``treenet`` without."""
        return "neurotrails" if self.sparse.sparsity else "treenet"

    @property
    def label(self) -> str:
        """``TreeNet (M=3)`` or ``NeuroTrails (M=3, S=0.8)``."""
        if not self.sparse.sparsity:
            return f"TreeNet (M={self.members})"
        kind = "" if isinstance(self.rewiring, Rigl) else f", {self.rewiring.name}"
        return f"NeuroTrails (M={self.members}, S={self.sparse.sparsity:g}{kind})"

    @property
    def heads(self) -> int:
        """Number of heads."""
        return self.members

    def network(self, make: MakeNet, example: Any, seed: int, number: int = 0) -> nn.Module:
        """Split a model, and put masks on."""
        net = fxsplit.neurotrailify(
            seeded(make, seed), self.split, self.members, 0.0, example=example, vote=self.vote, seed=seed
        )
        self.rewiring.prepare(net, self.sparse, seed)
        return net

    def loss(self, net: nn.Module, criterion: Criterion, x: Any, y: Tensor) -> Tensor:
        """Return the mean over heads of the criterion, or its sum."""
        mean = super().loss(net, criterion, x, y)
        return mean * self.members if self.total else mean

    def attach(
        self, net: nn.Module, optimizer: Optimizer, steps: int, callbacks: Callbacks, seed: int
    ) -> Engine | None:
        """Attach the engine of `rewiring` to a sparse network."""
        if not self.sparse.sparsity:
            return None
        return self.rewiring.attach(net, optimizer, steps, self.sparse, callbacks, seed)

    def training_flops(self, masked: float, dense: float) -> float:
        """Return the mean training FLOPs of an example, by the formula for `rewiring`."""
        return self.rewiring.flops(masked, dense) if self.sparse.sparsity else super().training_flops(masked, dense)


def treenet(split: Split, members: int) -> Tree:
    """A dense trunk with dense heads."""
    return Tree(split, members)


def neurotrails(split: Split, members: int, sparsity: float, every: int, fraction: float = 0.5, **sparse: Any) -> Tree:
    """A sparse trunk with sparse heads, ERK densities, rewired by RigL."""
    return Tree(split, members, Sparse(sparsity, **sparse), Rigl(every, fraction))

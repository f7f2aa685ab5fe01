"""EDST ensemble: tickets collected one after the other from a single sparse training (Liu et al. 2022, 2106.14568)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer

import sparsity
from recipes._errors import RecipeError
from recipes.methods._join import joined
from recipes.methods._method import Callbacks, MakeNet, Method, seeded
from recipes.methods._rewiring import Sparse
from sparsity import Engine


@dataclass(frozen=True)
class TicketRule(sparsity.Rule):
    """A rule that also makes an update at each of some steps, with a share of its own.

    Args:
        escapes: Steps that make such an update.
        escape: Share of the active weights that it replaces.
    """

    escapes: tuple[int, ...] = ()
    escape: float = 0.8

    def due(self, step: int) -> bool:
        """Tell whether ``step`` makes an update."""
        return step in self.escapes or super().due(step)

    def share(self, step: int) -> float:
        """Return the share to replace at ``step``."""
        return self.escape if step in self.escapes else super().share(step)


@dataclass(frozen=True)
class Edst(Method):
    """One sparse training that explores first, then refines one ticket after the other; the tickets vote.

    RigL (or SET) rewires throughout, with a share that falls along a cosine over the whole training; between tickets a
    large share is replaced at once, to leave the basin of the last one.

    Args:
        members: Number of tickets, M.
        explore: Share of the training before the first ticket's refinement.
        refine: Share of the training for each ticket after the first; None divides what follows ``explore`` evenly.
        sparse: Masks.
        every: Steps between updates.
        fraction: Share of the active weights that the first update replaces.
        escape: Share that is replaced between tickets (the paper's q).
    """

    members: int = 7
    explore: float = 150 / 850
    refine: float | None = None
    sparse: Sparse = field(default_factory=lambda: Sparse(0.9))
    every: int = 1000
    fraction: float = 0.5
    escape: float = 0.8
    key = "edst"

    def __post_init__(self) -> None:
        if self.members < 1:
            raise RecipeError(f"members must be at least 1, got {self.members}.")
        if not 0 <= self.explore < 1 or self.explore + (self.refine or 0) * (self.members - 1) >= 1:
            raise RecipeError(
                f"explore={self.explore:g} and refine={self.refine} leave no training for {self.members} tickets."
            )
        if not self.sparse.sparsity:
            raise RecipeError("An EDST ensemble is sparse: set sparsity above 0.")

    @property
    def label(self) -> str:
        """``EDST ensemble (M=7, S=0.9)``."""
        return f"EDST ensemble (M={self.members}, S={self.sparse.sparsity:g})"

    @property
    def heads(self) -> int:
        """Number of tickets."""
        return self.members

    def network(self, make: MakeNet, example: Any, seed: int, number: int = 0) -> nn.Module:
        """Build the one network that is trained."""
        net = seeded(make, seed)
        self.sparse.apply(net, seed)
        return net

    def snapshots(self, steps: int) -> tuple[int, ...]:
        """Return the steps after which a ticket is finished."""
        each = (1 - self.explore) / self.members if self.refine is None else self.refine
        return tuple(round(steps * (1 - each * later)) for later in reversed(range(self.members)))

    def attach(
        self, net: nn.Module, optimizer: Optimizer, steps: int, callbacks: Callbacks, seed: int
    ) -> Engine | None:
        """Attach RigL, with an update of its own between tickets.

        Raises:
            RecipeError: Training is too short for so many tickets.
        """
        tickets = self.snapshots(steps)
        if len(set(tickets)) < self.members or tickets[0] < 1 or steps <= self.every:
            raise RecipeError(
                f"{steps} steps are too few for {self.members} tickets and an update every {self.every}. Train longer."
            )
        rule = TicketRule(
            self.every,
            steps,
            sparsity.cosine(self.fraction, steps),
            sparsity.drop.magnitude,
            sparsity.grow.gradient,
            dense=True,
            # The first step after a ticket was taken.
            escapes=tickets[:-1],
            escape=self.escape,
        )
        return Engine(net, optimizer, rule, seed=seed, callback=callbacks)

    def join(self, make: MakeNet, example: Any, networks: Sequence[nn.Module]) -> nn.Module:
        """Make one module of the tickets."""
        return joined(make, example, networks, self.sparse)


def edst_ensemble(members: int, sparsity: float, every: int, **settings: Any) -> Edst:
    """Tickets of one sparse training."""
    return Edst(members, sparse=Sparse(sparsity), every=every, **settings)

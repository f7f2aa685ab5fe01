"""Networks that are trained by themselves: the single one, the full ensemble, and the same with masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer

from recipes._errors import RecipeError
from recipes.methods._join import joined
from recipes.methods._method import Callbacks, MakeNet, Method, seeded
from recipes.methods._rewiring import OneShot, Rewiring, Rigl, Set, Sparse, Static
from sparsity import Engine


@dataclass(frozen=True)
class Single(Method):
    """One network, dense or sparse.

    Args:
        sparse: Its masks; without, it is dense.
        rewiring: What becomes of the masks.
    """

    sparse: Sparse = field(default_factory=lambda: Sparse(0.0))
    rewiring: Rewiring = field(default_factory=Static)
    key = "single"

    @property
    def label(self) -> str:
        """``Single dense``, or the way of sparse training and S."""
        if not self.sparse.sparsity:
            return "Single dense"
        return f"Single {self.rewiring.name} (S={self.sparse.sparsity:g})"

    def network(self, make: MakeNet, example: Any, seed: int, number: int = 0) -> nn.Module:
        """Build it, with masks if it is sparse."""
        net = seeded(make, seed)
        self.rewiring.prepare(net, self.sparse, seed)
        return net

    def attach(
        self, net: nn.Module, optimizer: Optimizer, steps: int, callbacks: Callbacks, seed: int
    ) -> Engine | None:
        """Attach the engine of `rewiring` to a sparse network."""
        if not self.sparse.sparsity:
            return None
        return self.rewiring.attach(net, optimizer, steps, self.sparse, callbacks, seed)

    def join(self, make: MakeNet, example: Any, networks: Sequence[nn.Module]) -> nn.Module:
        """Make the trained network the only head of a module; the vote is what it says."""
        return joined(make, example, networks, self.sparse, "mean")

    def training_flops(self, masked: float, dense: float) -> float:
        """Return the mean training FLOPs of an example, by the formula for `rewiring`."""
        return self.rewiring.flops(masked, dense) if self.sparse.sparsity else super().training_flops(masked, dense)


@dataclass(frozen=True)
class Ensemble(Single):
    """Independently initialised and trained networks (deep ensemble, Lakshminarayanan et al. 2017), dense or sparse.

    Args:
        sparse: Masks of each; without, they are dense.
        rewiring: What becomes of the masks.
        members: Number of networks, M.
    """

    members: int = 3
    key = "ensemble"

    def __post_init__(self) -> None:
        if self.members < 1:
            raise RecipeError(f"members must be at least 1, got {self.members}.")

    @property
    def label(self) -> str:
        """``Full ensemble (M=3)``, or with masks ``DST ensemble (M=3, S=0.8)``."""
        if not self.sparse.sparsity:
            return f"Full ensemble (M={self.members})"
        kind = "DST" if isinstance(self.rewiring, (Rigl, Set)) else self.rewiring.name.capitalize()
        return f"{kind} ensemble (M={self.members}, S={self.sparse.sparsity:g})"

    @property
    def heads(self) -> int:
        """Number of networks."""
        return self.members

    @property
    def networks(self) -> int:
        """Number of networks."""
        return self.members

    def network(self, make: MakeNet, example: Any, seed: int, number: int = 0) -> nn.Module:
        """Build one member, with the weights and masks of its own seed."""
        # Seeds from 1 on: the first network shall not be the single dense network over again.
        return super().network(make, example, seed + number + 1)

    def join(self, make: MakeNet, example: Any, networks: Sequence[nn.Module]) -> nn.Module:
        """Make one module of the trained members."""
        return joined(make, example, networks, self.sparse)


def single_dense() -> Single:
    """One dense network."""
    return Single()


def static_sparse(sparsity: float, **sparse: Any) -> Single:
    """One sparse network whose masks stay as they were drawn."""
    return Single(Sparse(sparsity, **sparse), Static())


def set_sparse(sparsity: float, every: int, fraction: float = 0.5, **sparse: Any) -> Single:
    """One sparse network that SET rewires (Mocanu et al. 2018)."""
    return Single(Sparse(sparsity, **sparse), Set(every, fraction))


def rigl_sparse(sparsity: float, every: int, fraction: float = 0.5, **sparse: Any) -> Single:
    """One sparse network that RigL rewires (Evci et al. 2020)."""
    return Single(Sparse(sparsity, **sparse), Rigl(every, fraction))


def pruned(sparsity: float, at: float = 0.5, **sparse: Any) -> Single:
    """One network that is pruned once by global magnitude, then fine-tuned (Han et al. 2015)."""
    return Single(Sparse(sparsity, **sparse), OneShot(at))


def full_ensemble(members: int) -> Ensemble:
    """Independently trained dense networks."""
    return Ensemble(members=members)


def dst_ensemble(members: int, sparsity: float, every: int, fraction: float = 0.5, **sparse: Any) -> Ensemble:
    """Independently trained sparse networks, each rewired by RigL (Liu et al. 2022)."""
    return Ensemble(Sparse(sparsity, **sparse), Rigl(every, fraction), members)

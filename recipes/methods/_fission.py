"""Network Fission Ensembles: one network's weights, shared out among several exits (Lee and Lee 2024, 2408.02301)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

import fxsplit
import sparsity
from recipes._errors import RecipeError
from recipes.methods._method import Callbacks, Criterion, MakeNet, Method, seeded
from recipes.methods._tree import Split
from sparsity import Engine


@dataclass(frozen=True)
class Fission(Method):
    """Paths through one network, each with weights of its own.

    Args:
        at: Where paths leave, in order: as of `fxsplit.fission`.
        members: Number of paths, M.
        sparsity: Share of the network's weights that belong to no path, drawn at random by ERK before they are shared
            out.
        temperature: Of the distillation from the mean of all paths.
        vote: How predictions are averaged.
    """

    at: tuple[Split, ...] = (1 / 3, 2 / 3)
    members: int = 3
    sparsity: float = 0.0
    temperature: float = 3.0
    vote: str = "prob"
    key = "fission"

    def __post_init__(self) -> None:
        if not 1 <= len(self.at) < self.members:
            raise RecipeError(f"{self.members} members part at 1 to {self.members - 1} places, got {len(self.at)}.")
        if not 0 <= self.sparsity < 1:
            raise RecipeError(f"sparsity must be at least 0 and below 1, got {self.sparsity}.")

    @property
    def label(self) -> str:
        """``NFE (M=3)``, with S where it isn't zero."""
        return f"NFE (M={self.members}{f', S={self.sparsity:g}' if self.sparsity else ''})"

    @property
    def heads(self) -> int:
        """Number of paths."""
        return self.members

    def network(self, make: MakeNet, example: Any, seed: int, number: int = 0) -> nn.Module:
        """Share a model's weights out."""
        model = seeded(make, seed)
        masks = None
        if self.sparsity:
            masks = {path: mask.clone() for path, mask in sparsity.sparsify(model, self.sparsity, seed=seed).items()}
            sparsity.fold(model)
        return fxsplit.fission(model, self.at, self.members, vote=self.vote, seed=seed, masks=masks, example=example)

    def loss(self, net: nn.Module, criterion: Criterion, x: Any, y: Tensor) -> Tensor:
        """Return the sum over paths of the criterion, and of the distillation from their mean."""
        assert isinstance(net, fxsplit.SplitModel)
        outputs = net.head_outputs(x)
        losses = [criterion(output, y) for output in outputs]
        flat = [(output if isinstance(output, Tensor) else output.logits).flatten(0, -2) for output in outputs]
        return sum(losses[1:], losses[0]) + fxsplit.ensemble_distillation(flat, self.temperature)

    def attach(
        self, net: nn.Module, optimizer: Optimizer, steps: int, callbacks: Callbacks, seed: int
    ) -> Engine | None:
        """Keep weights that belong to other paths at zero."""
        return sparsity.static(net, optimizer, callback=callbacks, seed=seed)


def network_fission(at: tuple[Split, ...], members: int, sparsity: float = 0.0) -> Fission:
    """Paths through one network, each with weights of its own."""
    return Fission(at, members, sparsity)

"""How masks move while a sparse network trains, as settings: RigL, SET, fixed masks, one-shot pruning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

import sparsity
from recipes._errors import RecipeError
from recipes._require import require
from recipes.methods._method import Callbacks
from sparsity._flops import rigl_training_flops

SELECTORS = {
    "attention": sparsity.attention,
    "classifier": sparsity.classifier,
    "depthwise": sparsity.depthwise,
    "embeddings": sparsity.embeddings,
    "first_layer": sparsity.first_layer,
}


@dataclass(frozen=True)
class Sparse:
    """Which weights are masked, and how the density is spread over them.

    Args:
        sparsity: Share of the masked weights that is zero, S; 0 leaves a network dense.
        allocation: As of `sparsity.sparsify`.
        skip: What stays dense: ``attention``, ``classifier``, ``first_layer`` ... of `sparsity`, or paths.
        include: What is masked besides linear layers and convolutions: ``embeddings``, or paths.
    """

    sparsity: float = 0.8
    allocation: str = "erk"
    skip: tuple[str, ...] = ()
    include: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(0 <= self.sparsity < 1, "sparsity", "be at least 0 and below 1", self.sparsity)

    def apply(self, net: nn.Module, seed: int, *, dense: bool = False) -> None:
        """Put masks on a network, in place; with ``dense`` they have no zeros yet."""
        if not self.sparsity:
            return
        sparsity.sparsify(
            net,
            0.0 if dense else self.sparsity,
            self.allocation,
            [SELECTORS.get(name, name) for name in self.skip],
            seed,
            include=[SELECTORS.get(name, name) for name in self.include],
        )


@dataclass(frozen=True)
class Rewiring(ABC):
    """What becomes of the masks of a network in training."""

    name = ""

    def prepare(self, net: nn.Module, sparse: Sparse, seed: int) -> None:
        """Put the masks on that training starts with."""
        sparse.apply(net, seed)

    @abstractmethod
    def attach(
        self, net: nn.Module, optimizer: Optimizer, steps: int, sparse: Sparse, callbacks: Callbacks, seed: int
    ) -> sparsity.Engine:
        """Attach an engine for a training of ``steps`` optimizer steps; the callbacks hear of each update."""

    def flops(self, masked: float, dense: float) -> float:
        """Mean training FLOPs of an example, from forward FLOPs (Evci et al. 2020, app. H)."""
        return sparsity.sparse_training_flops(masked)


@dataclass(frozen=True)
class _Moving(Rewiring):
    every: int = 100
    fraction: float = 0.5
    floor: float = 0.0

    def __post_init__(self) -> None:
        require(self.every >= 1, "every", "be at least 1", self.every)
        require(0 < self.fraction <= 1, "fraction", "be above 0 and at most 1", self.fraction)
        require(0 <= self.floor <= self.fraction, "floor", f"lie in [0, fraction={self.fraction}]", self.floor)

    def _schedule(self, steps: int) -> Any:
        self.check(steps)
        return sparsity.cosine(self.fraction, steps, self.floor) if self.floor else self.fraction

    def check(self, steps: int) -> None:
        """Refuse a training that ends before the first update.

        Raises:
            RecipeError: It does.
        """
        if steps <= self.every:
            raise RecipeError(
                f"A network would train for {steps} steps, but its first topology update comes after {self.every}. "
                "Lower every, or train for longer."
            )


@dataclass(frozen=True)
class Rigl(_Moving):
    """Drop the smallest weights, grow those of largest gradient, until the end of training (Evci et al. 2020).

    Args:
        every: Steps between updates, the paper's delta T.
        fraction: Share of the active weights that the first update replaces; it falls along a cosine.
        floor: The share at the end.
        temperature: Of soft magnitude for dropping, as for language models; None drops the smallest.
    """

    temperature: float | None = None
    name = "RigL"

    def __post_init__(self) -> None:
        super().__post_init__()
        usable = self.temperature is None or 0 < self.temperature < float("inf")
        require(usable, "temperature", "be positive, or None to drop the smallest", self.temperature)

    def attach(
        self, net: nn.Module, optimizer: Optimizer, steps: int, sparse: Sparse, callbacks: Callbacks, seed: int
    ) -> sparsity.Engine:
        """Attach RigL, with soft magnitude if there is a temperature."""
        fraction = self._schedule(steps)
        if self.temperature is None:
            return sparsity.rigl(net, optimizer, self.every, steps, fraction, callback=callbacks, seed=seed)
        preset = sparsity.Preset(
            self.every,
            sparsity.drop.soft_magnitude(self.temperature),
            sparsity.grow.gradient,
            dense=True,
            fraction=self.fraction,
            floor=self.floor,
        )
        return sparsity.trails(net, optimizer, steps, preset, callback=callbacks, seed=seed)

    def flops(self, masked: float, dense: float) -> float:
        """One gradient of all weights for every ``every`` others."""
        return rigl_training_flops(masked, dense, self.every)


@dataclass(frozen=True)
class Set(_Moving):
    """Drop the smallest weights and grow others at random, until the end of training (SET, Mocanu et al. 2018).

    Args:
        every: Steps between updates.
        fraction: Share of the active weights that the first update replaces; it falls along a cosine.
        floor: The share at the end.
    """

    name = "SET"

    def attach(
        self, net: nn.Module, optimizer: Optimizer, steps: int, sparse: Sparse, callbacks: Callbacks, seed: int
    ) -> sparsity.Engine:
        """Attach SET."""
        return sparsity.set_(net, optimizer, self.every, steps, self._schedule(steps), callback=callbacks, seed=seed)


@dataclass(frozen=True)
class Static(Rewiring):
    """Masks stay as they were drawn."""

    name = "static"

    def attach(
        self, net: nn.Module, optimizer: Optimizer, steps: int, sparse: Sparse, callbacks: Callbacks, seed: int
    ) -> sparsity.Engine:
        """Keep masked weights at zero."""
        return sparsity.static(net, optimizer, callback=callbacks, seed=seed)


@dataclass(frozen=True)
class OneShot(Rewiring):
    """Train dense, mask the weights of smallest magnitude in all layers together at once, go on with fixed masks.

    Args:
        at: Share of the training after which weights are pruned (the paper: half).
    """

    at: float = 0.5
    name = "pruned"

    def prepare(self, net: nn.Module, sparse: Sparse, seed: int) -> None:
        """Masks without a zero: they are part of the network before the pruning, so that checkpoints fit."""
        sparse.apply(net, seed, dense=True)

    def attach(
        self, net: nn.Module, optimizer: Optimizer, steps: int, sparse: Sparse, callbacks: Callbacks, seed: int
    ) -> sparsity.Engine:
        """Attach an engine with one update, which only drops.

        Raises:
            RecipeError: It would come before the second step, or after the last.
        """
        when = round(self.at * steps)
        if not 1 <= when < steps:
            raise RecipeError(f"Pruning after {self.at:g} of {steps} steps leaves no training on one side of it.")
        shapes = {layer.path: layer.shape for layer in sparsity.masks_of(net).layers}
        # Only the sum of these counts, since scores are compared over all layers.
        final = sparsity.allocate(shapes, sparse.sparsity, "uniform")
        rule = sparsity.Rule(
            every=1,
            until=when + 1,
            begin=when,
            fraction=sparsity.constant(0.0),
            drop=sparsity.drop.magnitude,
            grow=sparsity.grow.uniform,
            scope=sparsity.over_layers,
            target=lambda step, path: final[path],
        )
        return sparsity.Engine(net, optimizer, rule, seed=seed, callback=callbacks)

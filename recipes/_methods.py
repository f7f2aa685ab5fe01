"""The systems an experiment compares: how each is built from a dense network, and how it is rewired while training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import fxsplit
import sparsity
from sparsity._flops import rigl_training_flops

MakeNet = Callable[[], nn.Module]
Split = int | float | str


@dataclass(frozen=True)
class Dynamics:
    """How masks move during training, until the last step.

    Args:
        engine: Attaches the engine: `sparsity.rigl`, `sparsity.set_`, ...
        flops: Mean training FLOPs of an example, from forward FLOPs (masked, dense) and `every`.
        every: Steps between topology updates (the paper's delta T).
        fraction: Share of the active weights dropped in the first update; it decays to 0 along a cosine.
    """

    engine: Callable[..., Any]
    flops: Callable[[float, float, int], float]
    every: int
    fraction: float

    def attach(self, net: nn.Module, optimizer: Optimizer, steps: int, callback: Callable[[Any], None]) -> Any:
        """Attach the engine for a training of `steps` steps; `callback` hears of each update."""
        return self.engine(net, optimizer, every=self.every, until=steps, fraction=self.fraction, callback=callback)


@dataclass(frozen=True)
class Method:
    """One row of a results table.

    Args:
        key: Its name in files.
        label: Its name in tables.
        build: From a factory of dense networks, example inputs and a seed to the networks that make up the system.
            They are trained one by one, independently; their heads vote together.
        dynamics: How masks move; None if there are none, or if they stay.
    """

    key: str
    label: str
    build: Callable[[MakeNet, Tensor, int], list[nn.Module]]
    dynamics: Dynamics | None = None


def seeded(make: MakeNet, seed: int) -> nn.Module:
    """Build a network whose initial weights follow from the seed alone."""
    torch.manual_seed(seed)
    return make()


def single_dense() -> Method:
    """One dense network."""

    def build(make: MakeNet, example: Tensor, seed: int) -> list[nn.Module]:
        return [seeded(make, seed)]

    return Method("single", "Single dense", build)


def full_ensemble(heads: int) -> Method:
    """Independently initialised and trained dense networks (deep ensemble, Lakshminarayanan et al. 2017)."""

    def build(make: MakeNet, example: Tensor, seed: int) -> list[nn.Module]:
        # Seeds from 1 on: the first network shall not be the single dense network over again.
        return [seeded(make, seed + number) for number in range(1, heads + 1)]

    return Method("ensemble", f"Full ensemble (M={heads})", build)


def _split_network(make: MakeNet, example: Tensor, seed: int, **surgery: Any) -> list[nn.Module]:
    # The vote is that of the results table: the mean of the probabilities (NeuroTrails, alg. 1).
    return [fxsplit.neurotrailify(seeded(make, seed), example=example, vote="prob", seed=seed, **surgery)]


def treenet(split: Split, heads: int) -> Method:
    """A dense shared trunk with dense heads (Lee et al. 2015)."""
    build = partial(_split_network, split=split, heads=heads, sparsity=0.0)
    return Method("treenet", f"TreeNet (M={heads})", build)


def neurotrails(split: Split, heads: int, sparsity_ratio: float, every: int, fraction: float = 0.5) -> Method:
    """A sparse shared trunk with sparse heads, ERK densities, rewired by RigL (NeuroTrails, arXiv 2505.17909)."""
    build = partial(_split_network, split=split, heads=heads, sparsity=sparsity_ratio, allocation="erk")
    label = f"NeuroTrails (M={heads}, S={sparsity_ratio:g})"
    return Method("neurotrails", label, build, Dynamics(sparsity.rigl, rigl_training_flops, every, fraction))

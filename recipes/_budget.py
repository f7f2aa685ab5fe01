"""How long each system trains: one convention for all, computed from the FLOPs of the masks it really has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, fx, nn

import fxsplit
import sparsity
from recipes.methods import MakeNet, Method
from sparsity import dense_training_flops

CONVENTION = (
    "One budget rule for all. Every dense network trains for E = {epochs} epochs (each network of the full ensemble "
    "too). A sparse network may train longer, as in RigL and NeuroTrails: at most E / (1 - S) epochs, and never for "
    "more training FLOPs than ONE dense single network spends in E epochs. Its FLOPs are those of its actual masks, "
    "by RigL's formula (Evci et al. 2020, app. H): 3 f_D per example for a dense network, "
    "(3 f_S dT + 2 f_S + f_D) / (dT + 1) for RigL."
)


@dataclass(frozen=True)
class Cost:
    """Forward FLOPs (2 x MAC) of convolutions and linear layers for one input.

    Args:
        dense: As if every weight were active.
        uniform: Dense FLOPs times the overall density: the convention of the paper's tables.
        masked: Each layer's dense FLOPs times the density of its mask.
    """

    dense: float
    uniform: float
    masked: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.dense + other.dense, self.uniform + other.uniform, self.masked + other.masked)


def forward_cost(graph: fx.GraphModule, masks: Mapping[str, Tensor]) -> Cost:
    """Count a network's forward FLOPs under both conventions.

    Args:
        graph: A traced network or a split model.
        masks: Bool mask of each sparse weight by path; every other weight is dense.
    """
    layers = fxsplit.layer_flops(graph)
    dense = sum(layers.values())
    masked = sum(flops * _density(masks.get(path)) for path, flops in layers.items())
    return Cost(dense, dense * overall_density(masks), masked)


def overall_density(masks: Mapping[str, Tensor]) -> float:
    """Return the share of all masked weights that is active; 1 without masks."""
    total = sum(mask.numel() for mask in masks.values())
    return sum(int(mask.sum()) for mask in masks.values()) / total if total else 1.0


def _density(mask: Tensor | None) -> float:
    return 1.0 if mask is None else int(mask.sum()) / mask.numel()


def sparse_epochs(epochs: int, density: float, per_epoch: float, budget: float) -> int:
    """Return how many epochs a sparse network trains: at most `epochs / density`, and within the budget.

    Args:
        epochs: Epochs of a dense network.
        density: Share of the weights that is active, 1 - S.
        per_epoch: Training FLOPs of one epoch of the sparse network.
        budget: Training FLOPs it may use.

    Returns:
        At least 1, even if that is more than the budget.

    Example:
        >>> sparse_epochs(100, density=0.2, per_epoch=0.5, budget=90.0)
        180
    """
    # Half a millionth: 100 / 0.2 must not come out as 499.
    return max(1, math.floor(min(epochs / density, budget / per_epoch) + 5e-7))


@dataclass(frozen=True)
class Plan:
    """What one system will cost. It is the same for every seed, since densities are exact.

    Args:
        networks: Networks trained independently.
        heads: Heads that vote, of all networks together.
        epochs: Epochs of each network.
        steps: Optimizer steps of each network.
        cost: Forward FLOPs of one input, all networks together.
        training_flops: Of the whole training, all networks together.
        reference_flops: Training FLOPs of one dense single network, the unit of the budget.
        parameters: Parameters, all networks together.
        kept: Those that no mask switches off.
        density: Share of the masked weights that is active; 1 without masks.
    """

    networks: int
    heads: int
    epochs: int
    steps: int
    cost: Cost
    training_flops: float
    reference_flops: float
    parameters: int
    kept: int
    density: float

    @property
    def ratio(self) -> float:
        """Training FLOPs relative to the single dense network."""
        return self.training_flops / self.reference_flops


def plan(method: Method, make: MakeNet, example: Tensor, epochs: int, steps_per_epoch: int, batch_size: int) -> Plan:
    """Work out epochs and FLOPs of a system from the networks it really trains.

    Args:
        method: The system.
        make: Factory of the dense network.
        example: Inputs to trace with.
        epochs: Epochs of a dense network.
        steps_per_epoch: Steps in one pass over the training data.
        batch_size: Examples in a step.
    """
    examples = steps_per_epoch * batch_size
    reference = epochs * examples * dense_training_flops(_cost(make(), example).dense)
    networks = method.build(make, example, 0)
    masks = [dict(sparsity.masks_of(net)) for net in networks]
    costs = [_cost(net, example) for net in networks]
    per_epoch = sum(examples * method.training_flops(cost.masked, cost.dense) for cost in costs)
    density = min(overall_density(mask) for mask in masks)
    trained = sparse_epochs(epochs, density, per_epoch, reference) if density < 1 else epochs
    parameters = sum(parameter.numel() for net in networks for parameter in net.parameters())
    switched_off = sum(int((~mask).sum()) for network_masks in masks for mask in network_masks.values())
    return Plan(
        networks=len(networks),
        heads=sum(net.num_heads if isinstance(net, fxsplit.SplitModel) else 1 for net in networks),
        epochs=trained,
        steps=trained * steps_per_epoch,
        cost=sum(costs[1:], costs[0]),
        training_flops=trained * per_epoch,
        reference_flops=reference,
        parameters=parameters,
        kept=parameters - switched_off,
        density=density,
    )


def _cost(net: nn.Module, example: Tensor) -> Cost:
    graph = net if isinstance(net, fxsplit.SplitModel) else fxsplit.trace(net, example)
    return forward_cost(graph, dict(sparsity.masks_of(net)))

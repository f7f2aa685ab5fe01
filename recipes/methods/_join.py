"""Make one module of networks that were trained one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

import fxsplit
import sparsity
from recipes.methods._method import MakeNet
from recipes.methods._rewiring import SELECTORS, Sparse


def joined(
    make: MakeNet, example: Any, networks: Sequence[nn.Module], sparse: Sparse, vote: str = "prob"
) -> fxsplit.SplitModel:
    """Return an ensemble whose m-th head is the m-th network: weights, buffers and masks.

    Args:
        make: Factory of dense models of the same architecture.
        example: Inputs to trace with.
        networks: What to join, with masks or without.
        sparse: Which weights of the networks have masks.
        vote: As of `fxsplit.ensemble`.

    Example:
        >>> make = lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> members = [make(), make()]
        >>> net = joined(make, torch.zeros(2, 4), members, Sparse(0.0))
        >>> torch.equal(net.head_outputs(torch.ones(2, 4))[1], members[1](torch.ones(2, 4)))
        True
    """
    net = fxsplit.ensemble(make(), len(networks), "copy", vote, example=example)
    masks: dict[str, torch.Tensor] = {}
    for number, network in enumerate(networks):
        masks |= {f"heads.{number}.{path}": mask for path, mask in sparsity.masks_of(network).items()}
    if masks:
        _within_heads(sparse, len(networks)).apply(net, seed=0, dense=True)
        ours = sparsity.masks_of(net)
        for path, mask in masks.items():
            ours[path].copy_(mask)
    device = next(networks[0].parameters()).device
    net.to(device)
    for number, network in enumerate(networks):
        _copy(network, net.heads[number])
    return net.train(networks[0].training)


def _within_heads(sparse: Sparse, heads: int) -> Sparse:
    """Let paths of a network name the same places in every head."""

    def places(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(
            place
            for name in names
            for place in ([name] if name in SELECTORS else [f"heads.{number}.{name}" for number in range(heads)])
        )

    return replace(sparse, skip=places(sparse.skip), include=places(sparse.include))


@torch.no_grad()
def _copy(source: nn.Module, target: nn.Module) -> None:
    tensors = dict(source.state_dict(keep_vars=True))
    for name, value in target.state_dict(keep_vars=True).items():
        if name in tensors:
            value.copy_(tensors[name])

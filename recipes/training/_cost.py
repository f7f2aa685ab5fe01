"""FLOPs and parameters of a network, under the conventions that papers mix up."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

import fxsplit
import sparsity


@dataclass(frozen=True)
class ForwardFlops:
    """Dense forward FLOPs (2 x MAC) of one example.

    Args:
        layers: Of each weight, by path.
        rest: What belongs to no weight, such as products of attention.
    """

    layers: Mapping[str, float]
    rest: float

    @property
    def total(self) -> float:
        """Of the whole network."""
        return sum(self.layers.values()) + self.rest


def graph_of(net: nn.Module, example: Any) -> fx.GraphModule:
    """Return the network as a graph with shapes: itself, or the trace of a copy without masks."""
    if isinstance(net, fxsplit.SplitModel):
        return net
    return fxsplit.trace(sparsity.fold(copy.deepcopy(net)) if sparsity.masks_of(net) else net, example)


def forward_flops(net: nn.Module, example: Any) -> ForwardFlops:
    """Count the dense forward FLOPs of a network; masked weights that are not multiplied with (embeddings) cost none.

    Example:
        >>> import torch
        >>> forward_flops(nn.Sequential(nn.Linear(3, 5)), torch.zeros(2, 3)).total
        30
    """
    graph = graph_of(net, example)
    layers = dict.fromkeys(sparsity.masks_of(net), 0) | fxsplit.layer_flops(graph)
    return ForwardFlops(layers, fxsplit.other_flops(graph))


def costs(net: nn.Module, example: Any) -> dict[str, float]:
    """Count parameters and inference FLOPs of one example under each convention.

    Returns:
        ``parameters``, ``nonzeros``, ``density`` (of the weights that a mask could be made for), and
        ``inference_flops_dense``, ``_uniform`` (dense times density, as in the paper's tables) and ``_masks`` (each
        layer by its own mask), with attention's products in all of them.
    """
    summary = fxsplit.summary(graph_of(net, example), dict(sparsity.masks_of(net)))
    total = summary.total
    return {
        "parameters": total.params,
        "nonzeros": total.nonzeros,
        "density": total.maskable_density,
        "inference_flops_dense": total.flops + total.other,
        "inference_flops_uniform": summary.flops_uniform + total.other,
        "inference_flops_masks": total.flops_masked + total.other,
    }

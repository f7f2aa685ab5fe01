"""Masks of models that are built without values, on the meta device, and get them part by part later."""

from __future__ import annotations

import torch
from torch import nn

from sparsity._errors import MaskError, listed
from sparsity._masks import Masks, masked_sites, unwrap
from sparsity._seed import seeded
from sparsity._sharded import aligned, local
from sparsity._sharding import shard_masks
from sparsity._structure import Unstructured, geometry


@torch.no_grad()
def draw_masks(model: nn.Module, seed: int = 0) -> Masks:
    """Draw the masks of a model that was on the meta device when it got them, and zero the masked weights, in place.

    They are those that `sparsify` with this seed draws for a model with values. So a model that no process can hold
    gets masks too: sparsify it on the meta device, ``fully_shard``, `shard_masks`, ``to_empty``, initialise its
    weights, then call this in all processes. One layer's mask at a time is whole.

    Args:
        model: A model with masks, whose weights have values now.
        seed: As of `sparsify`.

    Returns:
        The masks, a live view.

    Raises:
        MaskError: The model is still on the meta device.

    Example:
        >>> import sparsity
        >>> with torch.device("meta"):
        ...     net = nn.Linear(8, 4)
        >>> masks = sparsity.sparsify(net, 0.5)
        >>> net = net.to_empty(device="cpu")
        >>> _ = nn.init.xavier_normal_(net.parametrizations.weight.original)
        >>> sparsity.draw_masks(net).nonzeros
        16
    """
    masks = shard_masks(model)
    modules = {path: module for path, module, _ in masked_sites(unwrap(model))}
    empty = [path for path, weight in masks.weights.items() if weight.parameter.is_meta or masks[path].is_meta]
    if empty:
        raise MaskError(f"{listed(empty)} are on the meta device. Call model.to_empty(device=...) first.")
    for path, weight in masks.weights.items():
        holder = weight.holder
        structure = Unstructured() if holder.structure is None else holder.structure
        # As sparsify does: on the CPU, whatever the device.
        drawn = structure.draw(geometry(modules[path], holder.mask.shape), holder._planned, seeded("cpu", seed, path))
        local(holder.mask).copy_(local(aligned(drawn.view(holder.mask.shape), holder.mask)))
        holder.zero(weight.parameter)
    return masks

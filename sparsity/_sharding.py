"""Make masks follow weights that FSDP2 (``fully_shard``) has sharded."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from sparsity._distributed import check_same, size_of
from sparsity._errors import EngineError, MaskError, listed
from sparsity._masks import Mask, Masks, masks_of, unwrap
from sparsity._sharded import aligned, check_rows, is_sharded
from sparsity._sharded_gradient import GradientMask


def shard_masks(model: nn.Module, group: Any = None) -> Masks:
    """Shard the masks of a model whose weights ``fully_shard`` has sharded, in place: each process keeps its rows.

    Engines do so by themselves when they attach. Before, each process holds the whole masks, so call it where no engine
    follows soon. The order is `sparsify`, ``fully_shard``, optimizer, engine. From then on masks are DTensors placed as
    the weights, the counts of `Masks` are those of all processes together, which therefore have to ask for them
    together, and gradients are masked after FSDP2 has averaged them, each process its rows. To be called in all
    processes; a model that is not sharded stays as it is.

    Args:
        model: A model with masks.
        group: The torch.distributed process group that trains this model together; None for all processes.

    Returns:
        The masks, a live view.

    Raises:
        EngineError: The processes have different masks; or weights are sharded in another way than by rows, as by
            tensor parallelism, or by the older FullyShardedDataParallel.
    """
    _refuse_flat(model)
    _reshard(model)
    masks = masks_of(model)
    whole = {
        path: weight
        for path, weight in masks.weights.items()
        if is_sharded(weight.parameter) and weight.holder.sharded is None
    }
    if not whole:
        return masks
    for path, weight in whole.items():
        check_rows(path, weight.parameter)
    # Later no process sees whole masks.
    plain = {path: weight.holder.mask for path, weight in whole.items() if not weight.holder.mask.is_meta}
    if plain and size_of(group) > 1:
        check_same(plain, group)
    for path in whole:
        _follow(masks.weights[path].holder, masks.weights[path].parameter)
    return masks


def check_unsharded(model: nn.Module, call: str) -> None:
    """Check that ``model`` is not sharded, for what changes its parametrizations, of which FSDP2 would not know.

    Raises:
        MaskError: It is.
    """
    _reshard(model)
    sharded = [path for path, parameter in unwrap(model).named_parameters() if is_sharded(parameter)]
    if sharded:
        raise MaskError(
            f"{call} changes which parameters a module has, but they are sharded already: {listed(sharded)}. Call it "
            "before fully_shard, or on an unsharded model with the full state dict loaded."
        )


def _follow(holder: Mask, parameter: nn.Parameter) -> None:
    holder.mask = aligned(holder.mask, parameter.detach())
    holder.sharded = GradientMask(parameter, holder)


def _reshard(model: nn.Module) -> None:
    """Have the modules show their sharded weights, also after a forward pass that has left them whole."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(fsdp, "FSDPModule", None)
    if kind is not None:
        for module in model.modules():
            if isinstance(module, kind):
                module.reshard()  # pyright: ignore


def _refuse_flat(model: nn.Module) -> None:
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(fsdp, "FullyShardedDataParallel", None)
    if kind is not None and any(isinstance(module, kind) for module in model.modules()):
        raise EngineError(
            "FullyShardedDataParallel (FSDP1) flattens many weights into one parameter, where masks can't follow. "
            "Shard with torch.distributed.fsdp.fully_shard (FSDP2): sparsify, fully_shard, optimizer, engine."
        )

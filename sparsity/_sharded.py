"""Sharded tensors, as FSDP2 (``fully_shard``) makes them: their local part, their processes, numbers over all parts.

A process holds some rows of each weight, one run of them, in the order of ranks. A tensor that is not sharded is its
own local part, and the functions here pass it through.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from sparsity._errors import EngineError


def is_sharded(tensor: Any) -> bool:
    """Tell whether ``tensor`` is a DTensor."""
    # Importing DTensor takes a second; without it there are none.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return what this process holds of ``tensor``, sharing its memory."""
    sharded: Any = tensor
    return sharded._local_tensor if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return all of ``tensor`` as a plain one, gathered if it is sharded or a sum still to be made."""
    sharded: Any = tensor
    return sharded.full_tensor() if is_sharded(tensor) else tensor


def check_rows(path: str, tensor: Tensor) -> None:
    """Check that a DTensor is sharded by rows, over one dimension of its mesh, and else at most replicated.

    Raises:
        EngineError: It is not.
    """
    sharded: Any = tensor
    kinds = [str(type(each).__name__) for each in sharded.placements]
    rows = [each.is_shard(0) for each in sharded.placements]
    if rows.count(True) != 1 or kinds.count("Shard") != 1 or kinds.count("Replicate") != len(kinds) - 1:
        raise EngineError(
            f"{path!r} is a DTensor placed as {tuple(sharded.placements)}. Masks follow weights that fully_shard has "
            "sharded by rows (Shard(0)), also with replicas (HSDP: a mesh of two dimensions). Tensor parallelism and "
            "a shard_placement_fn for other dimensions are not supported."
        )


def group_of(tensor: Tensor) -> Any:
    """Return the process group that holds the parts of ``tensor``; None if it is not sharded."""
    sharded: Any = tensor
    return sharded.device_mesh.get_group(_dimension(tensor)) if is_sharded(tensor) else None


def place_of(tensor: Tensor) -> int:
    """Return which part of a sharded ``tensor`` this process holds, counted from 0."""
    sharded: Any = tensor
    return sharded.device_mesh.get_local_rank(_dimension(tensor))


def joined(part: Tensor, like: Tensor) -> Tensor:
    """Make a tensor sharded as ``like`` of the local parts ``part``; return ``part`` if ``like`` is not sharded."""
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    sharded: Any = like
    mesh, placements = sharded.device_mesh, sharded.placements
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())


def aligned(tensor: Tensor, like: Tensor) -> Tensor:
    """Return ``tensor`` as ``like`` is placed: sharded in the same way and on its device, or plain.

    Args:
        tensor: Of the shape of ``like``; if it is plain, the same in all processes.
        like: Tells where to.

    Raises:
        EngineError: The shapes differ.
    """
    if tensor.shape != like.shape:
        raise EngineError(f"Expected a tensor of the weight's shape {tuple(like.shape)}, got {tuple(tensor.shape)}.")
    here: Any = tensor
    target: Any = like
    if not is_sharded(like):
        return whole(tensor).to(like.device)
    if is_sharded(tensor):
        same = here.placements == target.placements and here.device_mesh == target.device_mesh
        return tensor if same else here.redistribute(target.device_mesh, target.placements)
    # A copy, so that the whole tensor can be freed.
    return joined(rows_of(tensor, like).to(like.device, copy=True, memory_format=torch.contiguous_format), like)


def rows_of(tensor: Tensor, like: Tensor) -> Tensor:
    """Return the view of the rows of a plain tensor that this process holds of the sharded ``like``."""
    height = -(-len(tensor) // distributed.get_world_size(group_of(like)))
    start = min(height * place_of(like), len(tensor))
    return tensor[start : start + len(local(like))]


def total(numbers: Tensor, groups: Sequence[Any]) -> Tensor:
    """Add up, in place, over the processes of ``groups[i]`` what each counted as ``numbers[..., i]``.

    Args:
        numbers: Ints, a column for each group.
        groups: Process groups, None for numbers that are the same everywhere already.
    """
    for group in _distinct(groups):
        columns = [i for i, each in enumerate(groups) if each is group]
        part = numbers[..., columns].contiguous()
        distributed.all_reduce(part, group=group)
        numbers[..., columns] = part
    return numbers


def running(numbers: Tensor, groups: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Return, for each ``numbers[i]``, the sums over the processes of ``groups[i]`` before this one, and over all."""
    before, everywhere = torch.zeros_like(numbers), numbers.clone()
    for group in _distinct(groups):
        columns = [i for i, each in enumerate(groups) if each is group]
        own = numbers[columns].contiguous()
        parts = [torch.empty_like(own) for _ in range(distributed.get_world_size(group))]
        distributed.all_gather(parts, own, group=group)
        sums = torch.stack([torch.zeros_like(own), *parts]).cumsum(0)
        before[columns], everywhere[columns] = sums[distributed.get_rank(group)], sums[-1]
    return before, everywhere


def host(numbers: Sequence[Tensor], groups: Sequence[Any]) -> list[int]:
    """Return single numbers as ints after `total`, in one transfer."""
    if not numbers:
        return []
    device = numbers[0].device
    return total(torch.stack([number.to(device, torch.int64) for number in numbers]), groups).tolist()


def _dimension(tensor: Tensor) -> int:
    sharded: Any = tensor
    return next(i for i, each in enumerate(sharded.placements) if each.is_shard())


def _distinct(groups: Sequence[Any]) -> list[Any]:
    """Return the groups other than None, each once, in the order in which they come, the same in all processes."""
    found: list[Any] = []
    for group in groups:
        if group is not None and not any(group is each for each in found):
            found.append(group)
    return found

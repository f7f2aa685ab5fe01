"""Several processes that train one model: gradients of all of them, and proof that their masks agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from sparsity._errors import EngineError, listed
from sparsity._sharded import group_of, is_sharded, local, place_of, total

_ODD = -7046029254386353131  # 2^64 divided by the golden ratio, as of Fibonacci hashing


def size_of(group: Any) -> int:
    """Return the number of processes in ``group``; of all for None, 1 where nothing is distributed."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1
    return distributed.get_world_size(group)


def check_agreed(facts: Mapping[str, bool], group: Any, device: torch.device) -> None:
    """Check that all processes hold the same ``facts`` true.

    Raises:
        EngineError: Some fact is true in some processes only.
    """
    size = size_of(group)
    split = [name for name, number in _votes(facts, group, device).items() if 0 < number < size]
    if split:
        raise EngineError(
            f"{listed(split)} got a gradient in some of the {size} processes only. Synchronise gradients before the "
            "step, as DistributedDataParallel does."
        )


def in_any(facts: Mapping[str, bool], group: Any, device: torch.device) -> dict[str, bool]:
    """Return which ``facts`` are true in at least one process."""
    return {name: number > 0 for name, number in _votes(facts, group, device).items()}


def _votes(facts: Mapping[str, bool], group: Any, device: torch.device) -> dict[str, int]:
    votes = torch.tensor(list(facts.values()), dtype=torch.int32, device=device)
    distributed.all_reduce(votes, group=group)
    return dict(zip(facts, votes.tolist(), strict=True))


def average(tensors: Sequence[Tensor], group: Any) -> None:
    """Set tensors to their means over all processes, in place."""
    size = size_of(group)
    for tensor in tensors:
        distributed.all_reduce(tensor.div_(size), group=group)


def digests(masks: Mapping[str, Tensor]) -> Tensor:
    """Return a 64-bit digest of each mask, ``[len(masks)]``, computed where the first of them lies.

    Masks that differ have different digests but for a chance of about 2^-64. That of a sharded mask is made of the
    digests of its parts in all processes, and so depends on their number too.
    """
    device = next(iter(masks.values())).device
    own = torch.stack([_digest(local(mask)).to(device) for mask in masks.values()])
    places = torch.tensor([place_of(mask) if is_sharded(mask) else 0 for mask in masks.values()], device=device)
    # A process knows its part only; parts count differently by their place, so that none can stand for another.
    return total(own * (2 * places + 1), [group_of(mask) for mask in masks.values()])


def check_same(masks: Mapping[str, Tensor], group: Any) -> None:
    """Check that the masks of all processes are the same; of sharded ones, that each process sees the same whole.

    Raises:
        EngineError: They are not, in every process, naming the weights.
    """
    same = _same(digests(masks), group).tolist()
    differ = [path for path, equal in zip(masks, same, strict=True) if not equal]
    if differ:
        raise EngineError(
            f"The {size_of(group)} processes have different masks, of {listed(differ)}. They have to start from the "
            "same masks and weights, with the same seed, and to use the same gradients."
        )


def check_same_seed(seed: int, group: Any, device: torch.device) -> None:
    """Check that all processes have the same seed, which masks that no process holds whole would not show.

    Raises:
        EngineError: They have not, in every process.
    """
    bits = torch.tensor([seed >> shift & 0x7FFFFFFF for shift in (0, 31, 62)], device=device)
    if not bool(_same(bits, group).all()):
        raise EngineError(f"The {size_of(group)} processes have different seeds, here {seed}. Give all the same one.")


def _same(numbers: Tensor, group: Any) -> Tensor:
    """Tell, for each number, whether all processes have the same."""
    low, high = numbers.clone(), numbers.clone()
    distributed.all_reduce(low, distributed.ReduceOp.MIN, group=group)
    distributed.all_reduce(high, distributed.ReduceOp.MAX, group=group)
    return low == high


def _digest(mask: Tensor) -> Tensor:
    flat = mask.reshape(-1)
    flat = torch.cat([flat, flat.new_zeros(-len(flat) % 8)])
    words = flat.view(torch.int64)
    # The sum of hashes of each word with its place: odd factors spread bits upwards, shifts bring them down again.
    places = torch.arange(1, len(words) + 1, device=mask.device).mul_(_ODD)
    mixed = (words * _ODD).bitwise_xor_(places.bitwise_xor_(places >> 32))
    mixed.bitwise_xor_(mixed >> 29).mul_(_ODD)
    return mixed.bitwise_xor_(mixed >> 32).mul_(_ODD).sum()

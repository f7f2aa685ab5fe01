"""The processes of a run: one, or those that torchrun started."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from recipes.training._errors import TrainingError

# While the first process measures a finished network on all of the test part, decoding every image, the others wait in
# a barrier. NCCL would end them after ten minutes, and with them a training that is done.
PATIENCE = datetime.timedelta(hours=6)


@dataclass(frozen=True)
class Processes:
    """This process and its place among the others.

    Args:
        rank: Its number.
        world: How many there are.
        device: Where it computes.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this one writes the files."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Add a tensor up over all processes."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Return what every process has."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Wait for the others."""
        if self.world > 1:
            dist.barrier()

    def tell(self, number: int) -> int:
        """Return the number that the first process has."""
        if self.world == 1:
            return number
        told = torch.tensor(number, device=self.device)
        dist.broadcast(told, src=0)
        return int(told.item())

    def agree(self, decision: bool) -> bool:
        """Return what the first process decided."""
        return bool(self.tell(int(decision)))


@contextlib.contextmanager
def processes(device: str | None = None) -> Iterator[Processes]:
    """Join the processes that torchrun started, or be the only one.

    Args:
        device: Where to compute; None for this process's GPU if there is one, else the CPU.

    Raises:
        TrainingError: There is no such device.
    """
    world, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    if device is None:
        device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise TrainingError(f"There is no device {device!r}: {str(error).splitlines()[0]}") from error
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if world == 1:
        yield Processes(0, 1, place)
        return
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Processes(dist.get_rank(), world, place)
    finally:
        dist.destroy_process_group()

"""Trains a small NeuroTrails network in the processes that torchrun started; see test_training.py."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from recipes.methods import Rigl, Sparse, Tree
from recipes.training import Job, Processes, Runtime, Sgd, Training, processes, train


def make() -> nn.Module:
    """A network whose examples do not depend on each other."""
    return nn.Sequential(nn.Sequential(nn.Linear(6, 16), nn.Tanh()), nn.Sequential(nn.Linear(16, 16), nn.Tanh()), nn.Linear(16, 4))  # fmt: skip  # noqa: E501


class Feed:
    """Batches of 16, of which each process gets its share."""

    steps = 4

    def __init__(self, together: Processes) -> None:
        self.together = together

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(start, self.steps):
            x = torch.randn(16, 6, generator=torch.Generator().manual_seed(100 * epoch + number))
            y = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
            yield x[self.together.rank :: self.together.world], y[self.together.rank :: self.together.world]


def main(folder: Path) -> None:
    """Train, with accumulation, and leave the last state in a folder."""
    method = Tree(1, 3, Sparse(0.5), Rigl(every=3))
    example = torch.zeros(2, 6)
    with processes("cpu") as together:
        feed = Feed(together)
        training = Training(Sgd(0.1), epochs=4, batch_size=16, accumulate=2)
        runtime = Runtime(progress=False, checkpoint_minutes=0)
        net = method.network(make, example, seed=0)
        train(net, Job(method, training, runtime, feed, lambda: feed.epoch(9), folder, 0, example), together)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

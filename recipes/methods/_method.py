"""What a system is: networks built from a dense model, how each is trained, and the ensemble they make in the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import fxsplit
import sparsity
from sparsity import Engine

MakeNet = Callable[[], nn.Module]
Criterion = Callable[[Any, Any], Tensor]
Callbacks = Sequence[Callable[[Any], None]]
State = Mapping[str, Tensor]


def seeded(make: MakeNet, seed: int) -> nn.Module:
    """Build a network whose initial weights follow from the seed alone.

    Example:
        >>> make = lambda: nn.Linear(4, 2)
        >>> torch.equal(seeded(make, 7).weight, seeded(make, 7).weight)
        True
    """
    torch.manual_seed(seed)
    return make()


@dataclass(frozen=True)
class Method(ABC):
    """Settings of a system that the paper compares, and all that training has to know about it.

    Its `networks` are trained one by one, independently. Of each, the states at `snapshots` are kept; `join` makes one
    module of all that is kept, with the protocol of `fxsplit.SplitModel`: ``net(x)`` is the vote, and
    ``net.head_outputs(x)`` what each of the `heads` says.
    """

    key: ClassVar[str]

    @property
    @abstractmethod
    def label(self) -> str:
        """Its name in tables."""

    @property
    def heads(self) -> int:
        """Number of predictions that are averaged, of all networks together."""
        return 1

    @property
    def networks(self) -> int:
        """Number of networks that are trained independently."""
        return 1

    @abstractmethod
    def network(self, make: MakeNet, example: Any, seed: int, number: int = 0) -> nn.Module:
        """Build one network to train.

        Args:
            make: Factory of dense models.
            example: Inputs to trace with, as of `fxsplit.trace`.
            seed: Of the initial weights and masks of all networks.
            number: Which of the `networks`.
        """

    def build(self, make: MakeNet, example: Any, seed: int) -> list[nn.Module]:
        """Build all networks."""
        return [self.network(make, example, seed, number) for number in range(self.networks)]

    def batch(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Turn a batch of the data into one of the network; most take it as it is."""
        return x, y

    @property
    def repetitions(self) -> int:
        """How many examples the network sees for one of a batch."""
        return 1

    def loss(self, net: nn.Module, criterion: Criterion, x: Any, y: Tensor) -> Tensor:
        """Return the training loss: the mean over heads of the criterion (NeuroTrails, sec. 3)."""
        if isinstance(net, fxsplit.SplitModel):
            return fxsplit.head_loss(net, criterion, x, y)
        return criterion(net(x), y)

    def groups(self, net: nn.Module) -> list[dict[str, Any]]:
        """Return parameter groups for the optimizer; ``lr_factor`` scales its learning rate."""
        return [{"params": list(net.parameters())}]

    def attach(
        self, net: nn.Module, optimizer: Optimizer, steps: int, callbacks: Callbacks, seed: int
    ) -> Engine | None:
        """Attach the engine that moves or keeps the masks in a training of ``steps`` steps; None without masks."""
        return None

    def training_flops(self, masked: float, dense: float) -> float:
        """Return the mean training FLOPs of an example, from the forward FLOPs of a network with and without masks."""
        return sparsity.sparse_training_flops(masked)

    def snapshots(self, steps: int) -> tuple[int, ...]:
        """Return after how many steps of each network its state is kept; the last one is ``steps``."""
        return (steps,)

    def join(self, make: MakeNet, example: Any, networks: Sequence[nn.Module]) -> nn.Module:
        """Make one module of what was kept: of all networks in order, and of each its snapshots in order.

        A method whose only network has heads already takes that.
        """
        (net,) = networks
        return net

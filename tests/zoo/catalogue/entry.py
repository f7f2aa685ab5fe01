"""One model of a zoo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

Inputs = Callable[[int], Any]


@dataclass(frozen=True)
class Entry:
    """A model that is built on demand, with random weights and in eval mode.

    Attributes:
        zoo: The package that it comes from.
        name: Its name there.
        family: What it shares with similar models: a module of timm or torchvision, a kind of transformers model.
        build: Builds it, on the device that ``torch.device`` has as context.
        inputs: Given the model, returns a function from a batch size to an example as `fxsplit.trace` takes it.
    """

    zoo: str
    name: str
    family: str
    build: Callable[[], nn.Module]
    inputs: Callable[[nn.Module], Inputs]

    def __str__(self) -> str:
        return f"{self.zoo}/{self.name}"

"""Watches a masked model through the steps of any training loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import sparsity


class Watch:
    """Checks after each optimizer step what has to hold then, and records in which steps masks moved.

    Made after the engine, so that its hooks run after the engine's.

    Attributes:
        steps: Number of optimizer steps.
        moved: Those, counted from 0, in which a mask changed.
        path: The masks after each step.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, but: tuple[str, ...] = ()) -> None:
        self.masks = sparsity.masks_of(model)
        self.steps = 0
        self.moved: list[int] = []
        self.path: list[dict[str, Tensor]] = []
        self._but = but
        self._counts = {layer.path: layer.nonzeros for layer in self.masks.layers}
        self._last = self._copy()
        self._handle = optimizer.register_step_post_hook(self._check)

    def _copy(self) -> dict[str, Tensor]:
        return {path: mask.clone() for path, mask in self.masks.items()}

    def _check(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        assert {layer.path: layer.nonzeros for layer in self.masks.layers} == self._counts
        for path, weight in self.masks.weights.items():
            zeros = ~self.masks[path]
            assert not weight.parameter[zeros].any()
            assert weight.parameter.grad is None or not weight.parameter.grad[zeros].any()
            for name, value in optimizer.state.get(weight.parameter, {}).items():
                if isinstance(value, torch.Tensor) and value.shape == weight.parameter.shape and name not in self._but:
                    assert not value[zeros].any(), (path, name)
        now = self._copy()
        if any(not torch.equal(self._last[path], now[path]) for path in now):
            self.moved.append(self.steps)
        self._last = now
        self.path.append(now)
        self.steps += 1

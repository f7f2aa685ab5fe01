"""The cost of tracing is linear in the number of operations."""

from __future__ import annotations

import cProfile
import pstats

import torch
from torch import Tensor, nn

import fxsplit
from benchmarks.trace_scale import exponent


class Block(nn.Module):
    """Attention by hand: sizes become arithmetic, dropout and its rate follow the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.norm = nn.Linear(8, 24), nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
        weights = nn.functional.dropout((q @ k.transpose(-1, -2)).softmax(-1), 0.1, self.training)
        return x + self.out((weights @ v).transpose(1, 2).reshape(batch, length, width))


def calls(layers: int) -> int:
    """How many functions are called to trace a model of so many blocks: unlike seconds, the same on any machine."""
    model = nn.Sequential(*(Block() for _ in range(layers)))
    profile = cProfile.Profile()
    profile.runcall(fxsplit.trace, model, torch.randn(2, 5, 8))
    return pstats.Stats(profile).total_calls  # type: ignore[attr-defined]


def test_calls_grow_in_proportion_to_the_layers() -> None:
    calls(1)  # what is loaded lazily
    few, more, many = calls(4), calls(8), calls(16)
    assert (many - more) / (more - few) < 2.15


def test_the_exponent_of_the_benchmark() -> None:
    assert abs(exponent([1, 2, 4], [3.0, 12.0, 48.0]) - 2) < 1e-12

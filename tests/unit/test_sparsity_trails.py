# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
"""The schedules of NeuroTrails, against the numbers of its paper and of its scripts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import sparsity
from sparsity import PRESETS, EngineError, Preset, drop, grow


def attached(steps: Any, **options: Any) -> sparsity.Engine:
    net = nn.Linear(20, 20)
    sparsity.sparsify(net, 0.8)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    attached.keep = net, optimizer  # type: ignore[attr-defined]
    return sparsity.trails(net, optimizer, steps, **options)


@pytest.mark.parametrize(
    ("preset", "every", "last", "grows"),
    [
        ("paper-cifar", 100, 0.0, grow.gradient),
        ("paper-imagenet", 1000, 0.0, grow.gradient),
        ("paper-language", 50, 0.0, grow.gradient),
        ("released-cifar", 1000, 0.005, grow.gradient),
        ("released-imagenet", 1000, 0.005, grow.uniform),
    ],
)
def test_presets(preset: str, every: int, last: float, grows: Any) -> None:
    rule = attached(10_000, preset=preset).rule
    assert [step for step in range(20_001) if rule.due(step)] == list(range(every, 10_000, every))
    assert rule.grow is grows
    assert rule.dense == (grows is grow.gradient)
    assert rule.share(0) == 0.5
    assert math.isclose(rule.share(5_000), (0.5 + last) / 2)
    assert math.isclose(rule.share(10_000), last, abs_tol=1e-12)
    assert (rule.drop is drop.magnitude) == (preset != "paper-language")


def test_all_presets_are_tested() -> None:
    assert len(PRESETS) == 5


def test_settings_of_ones_own() -> None:
    rule = attached(1000, preset=Preset(10, drop.taylor, grow.uniform, dense=False, fraction=0.2), every=7).rule
    assert (rule.every, rule.until, rule.share(0), rule.drop) == (7, 1000, 0.2, drop.taylor)


def test_wrong_settings() -> None:
    with pytest.raises(EngineError, match=r"Unknown preset 'paper-cfar'.*Did you mean 'paper-cifar'"):
        attached(1000, preset="paper-cfar")
    for options in ({"steps": 0}, {"steps": 100}, {"steps": 1000, "every": 0}, {"steps": 10.5}):
        with pytest.raises(EngineError):
            attached(**options)


def test_every_component_replaces_its_share() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Sequential(nn.Linear(10, 20))
            self.heads = nn.ModuleList(nn.Sequential(nn.Linear(20, 10)) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.trunk(x)
            return torch.stack([head(x) for head in self.heads]).mean(0)

    net = Split()
    masks = sparsity.sparsify(net, 0.5)
    before = {path: mask.clone() for path, mask in masks.items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    engine = sparsity.trails(net, optimizer, 10, every=2)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(4, 10)).square().sum().backward()
        optimizer.step()
    share = 0.25 * (1 + math.cos(math.pi * 0.2))
    for layer in masks.layers:
        assert engine.last.grown[layer.path] == math.floor(share * layer.nonzeros)
        assert int((before[layer.path] & ~masks[layer.path]).sum()) == engine.last.dropped[layer.path]

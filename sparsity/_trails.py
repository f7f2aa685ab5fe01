"""The schedule of NeuroTrails, as its paper describes it and as its released code runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn
from torch.optim import Optimizer
from typing_extensions import Unpack

from sparsity import _drop, _grow
from sparsity._engine import Engine
from sparsity._errors import EngineError, described, listed, near_matches
from sparsity._layer import Score
from sparsity._methods import Options, engine_of
from sparsity._rule import Rule
from sparsity._schedule import cosine


@dataclass(frozen=True)
class Preset:
    """Settings of dynamic sparse training.

    Attributes:
        every: Optimizer steps between updates.
        drop: Score of the weights; the smallest are dropped.
        grow: Score of the weights; the largest are grown.
        dense: Whether growing needs the gradients of zeros.
        fraction: Share of active weights that an update replaces at the start.
        floor: The share at the end, to which it decays by a cosine.
    """

    every: int
    drop: Score
    grow: Score
    dense: bool
    fraction: float = 0.5
    floor: float = 0.0


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "paper-cifar": Preset(100, _drop.magnitude, _grow.gradient, dense=True),
        "paper-imagenet": Preset(1000, _drop.magnitude, _grow.gradient, dense=True),
        "paper-language": Preset(50, _drop.soft_magnitude(3.0), _grow.gradient, dense=True),
        "released-cifar": Preset(1000, _drop.magnitude, _grow.gradient, dense=True, floor=0.005),
        "released-imagenet": Preset(1000, _drop.magnitude, _grow.uniform, dense=False, floor=0.005),
    }
)


def trails(
    model: nn.Module,
    optimizer: Optimizer,
    steps: int,
    preset: str | Preset = "paper-cifar",
    *,
    every: int | None = None,
    **options: Unpack[Options],
) -> Engine:
    """Rewire trunk and heads of a split model as NeuroTrails does (Grooten et al. 2025, sec. 3, tables 9 and 10).

    Every ``every`` steps each component drops and grows the same share of its active weights, layer by layer, which
    decays from 0.5 to zero at the end of training. Presets ``paper-cifar``, ``paper-imagenet`` and ``paper-language``
    are the settings of the paper: RigL's growth, and for language models soft magnitude to drop. ``released-cifar`` and
    ``released-imagenet`` are those that the authors' scripts run: an update each 1000 steps, a share that decays to
    0.005, and on ImageNet random growth. What that code does otherwise, such as updating after the optimizer's step,
    is not repeated.

    Args:
        model: A model with masks.
        optimizer: The optimizer of its weights.
        steps: Optimizer steps of the whole training.
        preset: A name of the above, or settings of one's own.
        every: Optimizer steps between updates, instead of the preset's.
        **options: ``seed``, ``callback``, ``group`` and ``compact_state`` as of `Engine`.

    Raises:
        EngineError: The preset is unknown, or see `Engine` and `Rule`.

    Example:
        >>> import torch, sparsity
        >>> net = nn.Linear(8, 4)
        >>> masks = sparsity.sparsify(net, 0.5)
        >>> engine = sparsity.trails(net, torch.optim.SGD(net.parameters(), lr=0.1), steps=97_500)
    """
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise EngineError(f"Unknown preset {preset!r}; known are {listed(PRESETS)}.{near_matches(preset, PRESETS)}")
        preset = PRESETS[preset]
    if not isinstance(preset, Preset):
        raise EngineError(f"preset is one of {listed(PRESETS)} or a sparsity.Preset, got {described(preset)}.")
    fraction = cosine(preset.fraction, steps, preset.floor)
    interval = preset.every if every is None else every
    rule = Rule(interval, steps, fraction, preset.drop, preset.grow, dense=preset.dense)
    return engine_of(model, optimizer, rule, options)

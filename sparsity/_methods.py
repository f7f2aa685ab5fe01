"""Methods of sparse training, each a composition of a drop score, a grow score and a schedule."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.optim import Optimizer

from sparsity import _drop, _grow
from sparsity._engine import Engine
from sparsity._report import Rewiring
from sparsity._rule import Rule
from sparsity._schedule import Schedule, schedule

Callback = Callable[[Rewiring], None]


def rigl(
    model: nn.Module,
    optimizer: Optimizer,
    every: int = 100,
    until: int | None = None,
    fraction: float | Schedule = 0.3,
    *,
    seed: int = 0,
    callback: Callback | None = None,
) -> Engine:
    """Drop the smallest weights and grow those of largest gradient (RigL, Evci et al. 2020, alg. 1).

    Args:
        model: A model with masks (see `sparsify`).
        optimizer: The optimizer of its weights; attaching is done by this call.
        every: Optimizer steps between updates.
        until: Step at which updates end (the paper: 3/4 of training), or None for never.
        fraction: Share of each layer's active weights that an update replaces: a number, which decays to zero at
            ``until`` by a cosine (and stays as it is without ``until``), or a function of the step.
        seed: Not used by RigL's own choices, which are not random.
        callback: Called with each update's `Rewiring`.

    Raises:
        EngineError: See `Engine` and `Rule`.

    Example:
        >>> import torch, sparsity
        >>> net = nn.Linear(8, 4)
        >>> masks = sparsity.sparsify(net, 0.5)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> engine = sparsity.rigl(net, optimizer, every=2, until=10)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     net(torch.randn(5, 8)).square().mean().backward()
        ...     optimizer.step()
        >>> engine.last.dropped
        {'weight': 4}
    """
    rule = Rule(every, until, schedule(fraction, until), _drop.magnitude, _grow.gradient, dense=True)
    return Engine(model, optimizer, rule, seed=seed, callback=callback)


def set_(
    model: nn.Module,
    optimizer: Optimizer,
    every: int = 100,
    until: int | None = None,
    fraction: float | Schedule = 0.3,
    *,
    seed: int = 0,
    callback: Callback | None = None,
) -> Engine:
    """Drop the smallest weights and grow others at random (SET, Mocanu et al. 2018).

    As in Evci et al. (2020) the smallest are those of smallest magnitude. Arguments as of `rigl`; ``seed`` is that of
    the random growth.

    Raises:
        EngineError: See `Engine` and `Rule`.

    Example:
        >>> import torch, sparsity
        >>> net = nn.Linear(8, 4)
        >>> masks = sparsity.sparsify(net, 0.5)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> engine = sparsity.set_(net, optimizer, every=100, until=75_000, fraction=0.5)
    """
    rule = Rule(every, until, schedule(fraction, until), _drop.magnitude, _grow.uniform)
    return Engine(model, optimizer, rule, seed=seed, callback=callback)


def static(model: nn.Module, optimizer: Optimizer) -> Engine:
    """Train with fixed masks: masked weights stay exactly zero under any optimizer.

    Raises:
        EngineError: See `Engine`.

    Example:
        >>> import torch, sparsity
        >>> net = nn.Linear(8, 4)
        >>> masks = sparsity.sparsify(net, 0.5)
        >>> engine = sparsity.static(net, torch.optim.AdamW(net.parameters()))
    """
    return Engine(model, optimizer, rule=None)

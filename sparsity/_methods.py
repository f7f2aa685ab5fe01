"""Methods of dynamic sparse training, each a composition of a drop score, a grow score and a schedule."""

from __future__ import annotations

import dataclasses
from typing import Any, TypedDict

import torch
from torch import nn
from torch.optim import Optimizer
from typing_extensions import Unpack

from sparsity import _drop, _grow
from sparsity._engine import Callbacks, Engine
from sparsity._errors import EngineError, listed, near_matches
from sparsity._initial import Initial
from sparsity._layer import Score
from sparsity._rewire import Scope
from sparsity._rule import Rule
from sparsity._schedule import Schedule, constant, schedule


class Options(TypedDict, total=False):
    """Arguments that every method hands on to `Engine`."""

    seed: int
    callback: Callbacks
    group: Any
    compact_state: bool


class RuleOptions(Options, total=False):
    """Arguments of `Options`, and parts of the method's `Rule` to be replaced."""

    drop: Score
    grow: Score
    scope: Scope
    initial: Initial | None


def rigl(
    model: nn.Module,
    optimizer: Optimizer,
    every: int = 100,
    until: int | None = None,
    fraction: float | Schedule = 0.3,
    *,
    regrow: bool = False,
    **options: Unpack[RuleOptions],
) -> Engine:
    """Drop the smallest weights and grow those of largest gradient (RigL, Evci et al. 2020, alg. 1).

    Args:
        model: A model with masks (see `sparsify`).
        optimizer: The optimizer of its weights; attaching is done by this call.
        every: Optimizer steps between updates.
        until: Step at which updates end (the paper: 3/4 of training), or None for never.
        fraction: Share of each layer's active weights that an update replaces: a number, which decays to zero at
            ``until`` by a cosine (and stays as it is without ``until``), or a function of the step.
        regrow: Whether weights that an update drops may be grown again by it, as in the authors' TensorFlow code.
        **options: ``seed`` (not used by RigL's own choices, which are not random), ``callback``, ``group`` and
            ``compact_state`` as of `Engine`; ``drop``, ``grow``, ``scope`` and ``initial`` as of `Rule`, in place of
            the method's own: ``scope=sparsity.over_layers`` compares scores in all layers together.

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
    rule = Rule(every, until, schedule(fraction, until), _drop.magnitude, _grow.gradient, dense=True, regrow=regrow)
    return engine_of(model, optimizer, rule, options, RuleOptions)


def set_(
    model: nn.Module,
    optimizer: Optimizer,
    every: int = 100,
    until: int | None = None,
    fraction: float | Schedule = 0.3,
    **options: Unpack[RuleOptions],
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
    return engine_of(model, optimizer, rule, options, RuleOptions)


def snfs(
    model: nn.Module,
    optimizer: Optimizer,
    every: int = 100,
    until: int | None = None,
    fraction: float | Schedule = 0.3,
    *,
    decay: float = 0.9,
    **options: Unpack[RuleOptions],
) -> Engine:
    """Drop the smallest weights and grow those of largest gradient, smoothed over steps.

    The growth of sparse networks from scratch (Dettmers and Zettlemoyer 2019), each layer keeping its density as in the
    comparison of Evci et al. (2020). In every step the gradients of all weights are computed and smoothed,
    m <- decay m + (1 - decay) g, which takes memory of the weights' size. Arguments as of `rigl`.

    Raises:
        EngineError: See `Engine` and `Rule`; or ``decay`` is not in [0, 1).

    Example:
        >>> import torch, sparsity
        >>> net = nn.Linear(8, 4)
        >>> masks = sparsity.sparsify(net, 0.5)
        >>> engine = sparsity.snfs(net, torch.optim.SGD(net.parameters(), lr=0.1), every=100, until=75_000)
    """
    rule = Rule(
        every,
        until,
        schedule(fraction, until),
        _drop.magnitude,
        _grow.momentum,
        dense=True,
        observe=_grow.Smoothed(decay),
        memory={_grow.Smoothed.name: None},
    )
    return engine_of(model, optimizer, rule, options, RuleOptions)


def mest(
    model: nn.Module,
    optimizer: Optimizer,
    every: int = 100,
    until: int | None = None,
    fraction: float | Schedule = 0.3,
    *,
    share: float = 0.01,
    **options: Unpack[RuleOptions],
) -> Engine:
    """Drop the weights of smallest |w| + share |g| and grow others at random (MEST, Yuan et al. 2021).

    Needs no gradient of zeros. Arguments as of `rigl`.

    Raises:
        EngineError: See `Engine` and `Rule`; or ``share`` is negative or not finite.

    Example:
        >>> import torch, sparsity
        >>> net = nn.Linear(8, 4)
        >>> masks = sparsity.sparsify(net, 0.5)
        >>> engine = sparsity.mest(net, torch.optim.SGD(net.parameters(), lr=0.1), every=100, until=75_000)
    """
    drop = _drop.magnitude_and_gradient(share)
    rule = Rule(every, until, schedule(fraction, until), drop, _grow.uniform)
    return engine_of(model, optimizer, rule, options, RuleOptions)


def deep_r(
    model: nn.Module, optimizer: Optimizer, every: int = 1, until: int | None = None, **options: Unpack[Options]
) -> Engine:
    """Drop the weights whose sign has flipped and grow as many others at random (deep rewiring, Bellec et al. 2018).

    A weight has the sign that it takes first; one that crosses zero is replaced at the next update. The noise and the
    L1 penalty of the paper are the optimizer's and the loss's part. Keeps one byte per weight. Arguments as of `rigl`.

    Raises:
        EngineError: See `Engine` and `Rule`.

    Example:
        >>> import torch, sparsity
        >>> net = nn.Linear(8, 4)
        >>> masks = sparsity.sparsify(net, 0.5)
        >>> engine = sparsity.deep_r(net, torch.optim.SGD(net.parameters(), lr=0.1))
    """
    rule = Rule(
        every, until, constant(0.0), _drop.magnitude, _grow.uniform, ripe=_drop.flipped, memory={_drop.SIGN: torch.int8}
    )
    return engine_of(model, optimizer, rule, options)


def static(model: nn.Module, optimizer: Optimizer, **options: Unpack[Options]) -> Engine:
    """Train with fixed masks: masked weights stay exactly zero under any optimizer.

    Raises:
        EngineError: See `Engine`.

    Example:
        >>> import torch, sparsity
        >>> net = nn.Linear(8, 4)
        >>> masks = sparsity.sparsify(net, 0.5)
        >>> engine = sparsity.static(net, torch.optim.AdamW(net.parameters()))
    """
    return engine_of(model, optimizer, None, options)


def engine_of(
    model: nn.Module, optimizer: Optimizer, rule: Rule | None, options: Options, known: type[Options] = Options
) -> Engine:
    """Make an engine with the options of a method.

    Raises:
        EngineError: An option is not one that is ``known``; or see `Engine` and `Rule`.
    """
    unknown = next((name for name in options if name not in known.__annotations__), None)
    if unknown is not None:
        arguments = ["every", "until", "fraction", *known.__annotations__]
        raise EngineError(
            f"There is no option {unknown!r}. Besides its own arguments this method takes "
            f"{listed(known.__annotations__, 10)}.{near_matches(unknown, arguments)}"
        )
    others: dict[str, Any] = {name: value for name, value in options.items() if name in Options.__annotations__}
    changes: dict[str, Any] = {name: value for name, value in options.items() if name not in others}
    chosen = dataclasses.replace(rule, **changes) if rule is not None and changes else rule
    return Engine(model, optimizer, chosen, **others)

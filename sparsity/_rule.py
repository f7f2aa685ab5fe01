"""What happens at an update and when: the part of an engine that tells the methods apart."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparsity._errors import EngineError, NoEffectWarning, described
from sparsity._initial import Initial
from sparsity._layer import Layer, Score
from sparsity._pointwise import checked
from sparsity._rewire import Amount, Scope, per_layer
from sparsity._schedule import Schedule, check_steps, is_due
from sparsity._sharded import aligned

Target = Callable[[int, str], int]
_OPTIONAL = ("initial", "ripe", "target", "observe")
_FUNCTIONS = ("fraction", "drop", "grow", "scope", *_OPTIONAL)


@dataclass(frozen=True)
class Rule:
    """A method of dynamic sparse training, composed of plain functions.

    At an update the active weights of smallest ``drop`` score are dropped and the inactive ones of largest ``grow``
    score grown. Scores are functions of a `Layer`.

    Attributes:
        every: Optimizer steps between updates.
        until: Step at which updates end, or None for never.
        fraction: Share of active weights to replace, a function of the step.
        drop: Score of the weights; the smallest are dropped.
        grow: Score of the weights; the largest are grown.
        dense: Whether a function needs the gradients of inactive weights.
        scope: `per_layer`, or `over_layers` to compare scores in all layers together.
        initial: Values that grown weights start with; None for zero.
        regrow: Whether weights dropped in an update may be grown in the same one, as in RigL's TensorFlow code.
        ripe: Instead of ``fraction``, a function that tells which active weights have to be replaced, as a bool tensor.
        target: Number of weights to be active after the update at a step in the layer of a path; None to keep it.
        begin: First step that may make an update, besides the very first, which never does.
        observe: Called in every step with every layer that has a gradient, to keep something in ``layer.memory``.
        memory: Names of what functions of the rule keep in ``layer.memory`` with their dtypes, None for the weight's.
            Only needed to resume with torch.distributed.checkpoint; zeros have to mean that nothing is known yet.
        start: Numbers by path that ``target`` starts from, such as those of active weights at first. They are saved
            with the engine, and this dict is filled with what is loaded.

    Raises:
        EngineError: ``every`` or ``until`` is not a positive int, or there would be no update before ``until``; or
            something that is to be called can't be.

    Example:
        >>> import torch, sparsity
        >>> def weighted(layer):
        ...     return layer.weight.abs() * layer.weight.abs().mean(0)
        >>> rule = Rule(100, until=None, fraction=sparsity.constant(0.3), drop=weighted, grow=sparsity.grow.uniform)
        >>> net = torch.nn.Linear(8, 4)
        >>> masks = sparsity.sparsify(net, 0.5)
        >>> engine = sparsity.Engine(net, torch.optim.SGD(net.parameters(), lr=0.1), rule)
    """

    every: int
    until: int | None
    fraction: Schedule
    drop: Score
    grow: Score
    dense: bool = False
    scope: Scope = per_layer
    initial: Initial | None = None
    regrow: bool = False
    ripe: Score | None = None
    target: Target | None = None
    begin: int = 0
    observe: Callable[[Layer], None] | None = None
    memory: Mapping[str, torch.dtype | None] = field(default_factory=dict)
    start: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _FUNCTIONS:
            value = getattr(self, name)
            if not callable(value) and (value is not None or name not in _OPTIONAL):
                hint = f" A constant share is sparsity.constant({value!r})." if name == "fraction" else ""
                raise EngineError(
                    f"{name} is a function{' or None' if name in _OPTIONAL else ''}, got {described(value)}.{hint}"
                )
        kinds = self.memory.values() if isinstance(self.memory, Mapping) else [self.memory]
        if not all(kind is None or isinstance(kind, torch.dtype) for kind in kinds):
            raise EngineError(f"memory tells the dtype, or None, of each name, got {described(self.memory)}.")
        check_steps("every", self.every, 1)
        check_steps("begin", self.begin, 0)
        if self.until is not None:
            check_steps("until", self.until, 1)
        first = self.begin or self.every
        if self.until is not None and self.until <= first:
            raise EngineError(
                f"The first update comes at step {first} (every={self.every}, begin={self.begin}), but updates end at "
                f"until={self.until}, so there would be none. Lower every, raise until, or use sparsity.static."
            )
        self._warn_of_an_early_end(first)

    def _warn_of_an_early_end(self, first: int) -> None:
        if self.until is None or self.ripe is not None or self.target is not None:
            return
        last = first + (self.until - 1 - first) // self.every * self.every
        if self.fraction(last) == 0:
            warnings.warn(
                NoEffectWarning(
                    f"The schedule gives 0 at step {last}, the last update before until={self.until}, so that it will "
                    "change nothing. Let the schedule and the updates end at the same step."
                ),
                stacklevel=4,
            )

    def due(self, step: int) -> bool:
        """Tell whether optimizer step ``step``, counted from 0, makes an update; the very first step never does."""
        return is_due(step, self.every, self.until, self.begin)

    def share(self, step: int) -> float:
        """Return the fraction to replace at ``step``.

        Raises:
            EngineError: The schedule returned something else than a number in [0, 1].
        """
        fraction = self.fraction(step)
        if isinstance(fraction, bool) or not isinstance(fraction, numbers.Real) or not 0 <= fraction <= 1:
            raise EngineError(
                f"The fraction to replace is in [0, 1], but the schedule gave {fraction!r} at step {step}."
            )
        return float(fraction)

    def ripe_of(self, layer: Layer) -> Tensor:
        """Return which active weights of a layer have to be replaced, as a bool tensor; none if the rule doesn't tell.

        Raises:
            EngineError: ``ripe`` returned something else than a bool tensor of the weight's shape.
        """
        if self.ripe is None:
            return torch.zeros_like(layer.mask)
        told = checked(self.ripe(layer), layer)
        if told.dtype != torch.bool:
            raise EngineError(f"ripe tells by a bool tensor what to replace, got {told.dtype} for {layer.path!r}.")
        return aligned(told, layer.mask) & layer.mask

    def amount(self, step: int, path: str, active: int, total: int, ripe: int | None = None) -> Amount:
        """Return how many weights of a layer to replace, and to drop or grow besides, at ``step``.

        Args:
            step: The optimizer step.
            path: Name of the weight.
            active: Number of active weights.
            total: Number of all weights.
            ripe: Number of those that have to be replaced, if the rule tells which.

        Raises:
            EngineError: The target is not an int between 0 and ``total``.
        """
        # The small number keeps 0.29 * 100 from becoming 28.
        replaced = math.floor(self.share(step) * active + 1e-9) if ripe is None else ripe
        wanted = active if self.target is None else self.target(step, path)
        if isinstance(wanted, bool) or not isinstance(wanted, numbers.Integral) or not 0 <= wanted <= total:
            raise EngineError(f"The target of {path!r} at step {step} is an int from 0 to {total}, got {wanted!r}.")
        change = int(wanted) - active
        # Only what is active now can be dropped, only what is inactive now can be grown.
        room = min(active - max(-change, 0), total - active - max(change, 0))
        return Amount(min(replaced, room), change)

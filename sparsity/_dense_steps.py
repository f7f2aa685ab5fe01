"""In which optimizer steps the gradients of all weights are computed: plain functions of the step.

That is what tells the training FLOPs of methods with the same masks apart (Evci et al. 2020, app. H).
"""

from __future__ import annotations

from collections.abc import Callable

from sparsity._engine import Engine
from sparsity._schedule import check_steps, is_due

DenseSteps = Callable[[int], bool]


def never(step: int) -> bool:
    """In no step: fixed masks, SET, MEST, DeepR, pruning by magnitude."""
    return False


def always(step: int) -> bool:
    """In every step: SNFS."""
    return True


def updates(every: int = 100, until: int | None = None, begin: int = 0) -> DenseSteps:
    """In the steps that make an update: RigL. Arguments as of the method.

    Raises:
        EngineError: A number of steps is not a positive int (``begin``: at least 0).

    Example:
        >>> [step for step in range(100) if updates(every=20, until=80)(step)]
        [20, 40, 60]
    """
    check_steps("every", every, 1)
    check_steps("begin", begin, 0)
    if until is not None:
        check_steps("until", until, 1)
    return lambda step: is_due(step, every, until, begin)


def of(engine: Engine) -> DenseSteps:
    """In the steps in which ``engine`` computes them."""
    rule = engine.rule

    def dense(step: int) -> bool:
        return rule is not None and rule.dense and (rule.observe is not None or rule.due(step))

    return dense

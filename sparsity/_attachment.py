"""May an engine be attached here: one engine for each mask, on an optimizer that holds the weights."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from torch.optim import Optimizer

from sparsity._errors import EngineError, listed
from sparsity._masks import Mask, MaskedWeight


class Attached(Protocol):
    """What is remembered of an engine."""

    @property
    def step(self) -> int:
        """Number of optimizer steps made."""
        ...

    @property
    def attached(self) -> bool:
        """Whether it still runs."""
        ...


# Beside the masks and not in them, so that a deep copy of a model has no engine.
_owners: weakref.WeakKeyDictionary[Mask, weakref.ref[Attached]] = weakref.WeakKeyDictionary()


def claim(engine: Attached, weights: Mapping[str, MaskedWeight]) -> None:
    """Remember that ``engine`` keeps the masks of ``weights``."""
    for weight in weights.values():
        _owners[weight.holder] = weakref.ref(engine)


def release(weights: Mapping[str, MaskedWeight]) -> None:
    """Forget who keeps the masks of ``weights``."""
    for weight in weights.values():
        _owners.pop(weight.holder, None)


# Where wrappers keep the optimizer that makes the step: those of accelerate and Lightning; of SAM; Lookahead of timm.
_INSIDE = ("optimizer", "base_optimizer", "_base_optimizer")


def innermost(optimizer: Any) -> Optimizer:
    """Return the optimizer inside wrappers, some of which do not run hooks of their own or hold no state.

    Raises:
        EngineError: It is not an optimizer.
    """
    inside = optimizer
    while inside is not None:
        optimizer = inside
        found = (getattr(optimizer, name, None) for name in _INSIDE)
        inside = next((each for each in found if isinstance(each, Optimizer) and each is not optimizer), None)
        if inside is None and not hasattr(optimizer, "_optimizer_step_pre_hooks"):
            held = getattr(optimizer, "optim", None)  # of PostLocalSGDOptimizer, which runs no hooks of its own
            inside = held if isinstance(held, Optimizer) else None
    if not isinstance(optimizer, Optimizer):
        hint = (
            " With several optimizers make an engine for each, on the part of the model that it trains."
            if isinstance(optimizer, Iterable)
            else ""
        )
        raise EngineError(f"Expected a torch.optim.Optimizer, got {type(optimizer).__name__}.{hint}")
    return optimizer


def check(weights: Mapping[str, MaskedWeight], optimizer: Optimizer) -> None:
    """Check that there are masks, that ``optimizer`` holds their weights, and that no engine keeps them already.

    Raises:
        EngineError: One of these is not so.
    """
    if not weights:
        raise EngineError("The model has no masks. Call sparsity.sparsify(model, sparsity) first.")
    check_held(weights, optimizer)
    check_unattached(weights)


def check_held(weights: Mapping[str, MaskedWeight], optimizer: Optimizer) -> None:
    """Check that ``optimizer`` holds all weights that are trained.

    Raises:
        EngineError: It does not.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [
        path for path, each in weights.items() if each.parameter.requires_grad and id(each.parameter) not in held
    ]
    if missing:
        raise EngineError(
            f"The optimizer does not hold {listed(missing)}. Make it from the parameters of this model, or attach the "
            "engine to the part of the model that it trains; a parameter that was replaced since is another one."
        )


def check_unattached(weights: Mapping[str, MaskedWeight]) -> None:
    """Check that no engine keeps these masks.

    Raises:
        EngineError: One does.
    """
    if _running(weights):
        gc.collect()  # its optimizer may be gone, but lie in a reference cycle with a scheduler
    running = _running(weights)
    if running:
        raise EngineError(f"Another engine keeps these masks, at step {running[0].step}. Call its detach() first.")


def _running(weights: Mapping[str, MaskedWeight]) -> list[Attached]:
    owners = [_owners[each.holder]() for each in weights.values() if each.holder in _owners]
    return [owner for owner in owners if owner is not None and owner.attached]

"""Steps inside of steps: the hooks of an optimizer run twice if its class calls the step of its base class."""

from __future__ import annotations

import sys

from torch.optim import Optimizer

# torch wraps the step of every class that an optimizer was made of in a function of its own, all of the same code.
_HOOKED = Optimizer.profile_hook_step(lambda: None).__code__  # pyright: ignore


def is_nested(optimizer: Optimizer) -> bool:
    """Tell, inside a step hook, whether this step was called by another one of the same optimizer."""
    # Looked up and not counted: a step that fails runs no hook at its end.
    frame, running = sys._getframe(1), 0
    while frame is not None:
        if frame.f_code is _HOOKED and frame.f_locals.get("self") is optimizer:
            running += 1
        frame = frame.f_back
    return running > 1

"""The conditions under which models are recorded and cut: one thread at a time, outside of inference mode."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_LOCK = threading.RLock()


@contextmanager
def exclusive() -> Iterator[None]:
    """Keep other threads out of the body, and switch inference mode off in it; gradients stay on or off.

    Recording patches torch and seeds generators that all threads share. Tensors made in inference mode could never be
    trained.
    """
    grad = torch.is_grad_enabled()
    with _LOCK, torch.inference_mode(False), torch.set_grad_enabled(grad):
        yield

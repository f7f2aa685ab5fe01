"""Random number generators: run a piece of code on its own seeds and leave the global state as it was."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*parts: int) -> int:
    """Return a 63-bit seed that depends on every part, so that no two (seed, head) pairs share a stream."""
    return int(np.random.SeedSequence([part % 2**64 for part in parts]).generate_state(1, np.uint64)[0]) >> 1


def seed_everything(seed: int = 0) -> None:
    """Start torch, numpy and random from one seed, so that every run draws the same numbers."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - models draw from the global one
    random.seed(seed)


@contextmanager
def random_state_kept(devices: Iterable[torch.device] | None = None) -> Iterator[None]:
    """Give torch, numpy and random their generator states back on exit, also after an exception.

    Args:
        devices: Whose generators to keep besides the CPU's; None for all CUDA devices in use.
    """
    kept: list[torch.device] | list[int]
    if devices is None:
        kept = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
        kind = "cuda"
    else:
        kept = _accelerators(devices)
        kind = kept[0].type if kept else "cuda"
    python, array = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(kept, device_type=kind):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)  # noqa: NPY002


@contextmanager
def seeded_rng(seed: int, devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Seed torch, numpy and ``random`` for the body and restore all three afterwards, also when the body raises."""
    accelerators = _accelerators(devices)
    with random_state_kept(accelerators):
        torch.default_generator.manual_seed(seed)
        for device in accelerators:
            accelerator = torch.get_device_module(device)
            with accelerator.device(device):
                accelerator.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        yield


def _accelerators(devices: Iterable[torch.device]) -> list[torch.device]:
    return sorted({device for device in devices if device.type not in ("cpu", "meta")}, key=str)

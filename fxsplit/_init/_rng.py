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


@contextmanager
def seeded_rng(seed: int, devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Seed torch, numpy and ``random`` for the body and restore all three afterwards, also when the body raises."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 - models draw from it
    accelerators = sorted({device for device in devices if device.type not in ("cpu", "meta")}, key=str)
    kind = accelerators[0].type if accelerators else "cuda"
    with torch.random.fork_rng(accelerators, device_type=kind):
        try:
            torch.default_generator.manual_seed(seed)
            for device in accelerators:
                accelerator = torch.get_device_module(device)
                with accelerator.device(device):
                    accelerator.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            random.seed(seed)
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)

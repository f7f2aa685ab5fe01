"""Random generators that depend on a seed and names only: not on global state, layer order, device or process."""

from __future__ import annotations

import hashlib

import torch


def seeded(device: torch.device | str, seed: int, *names: str | int) -> torch.Generator:
    """Return a generator on ``device`` for ``seed`` and ``names`` (a path, a step), the same in every process."""
    text = "\0".join(map(str, (seed, *names)))
    # Python's hash() differs between processes; 63 bits because seeds are signed in torch.
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)

"""State dicts in which no two entries share memory, as safetensors and tools that write it ask for."""

from __future__ import annotations

import itertools
from typing import Any

from torch import nn


def give_own_memory(module: nn.Module, state: dict[str, Any], prefix: str) -> None:
    """Copy the entries of ``state`` under the second and further names of tied parameters and buffers, in place."""
    seen: set[int] = set()
    tensors = itertools.chain(
        module.named_parameters(prefix.rstrip("."), remove_duplicate=False),
        module.named_buffers(prefix.rstrip("."), remove_duplicate=False),
    )
    for name, tensor in tensors:
        if id(tensor) in seen and name in state:
            state[name] = state[name].clone()
        seen.add(id(tensor))

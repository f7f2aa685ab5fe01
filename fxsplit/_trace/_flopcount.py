"""Counts the FLOPs of the operators that run, by the formulas of torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count


class FlopCounter(TorchDispatchMode):
    """Adds up FLOPs (2 x multiply-accumulate) until they are taken."""

    def __init__(self) -> None:
        super().__init__()
        self._pending = 0

    def take(self) -> int:
        """Return the FLOPs since the last call and start again at zero."""
        pending, self._pending = self._pending, 0
        return pending

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self._pending += _flops(func, args, kwargs, out)
        return out


def _flops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    packet = getattr(func, "_overloadpacket", func)
    # torch has no formula for the kernel that attention uses on a CPU.
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        return int(sdpa_flop_count(args[0].shape, args[1].shape, args[2].shape))
    formula: Callable[..., int] | None = flop_registry.get(packet)
    return int(formula(*args, **kwargs, out_val=out)) if formula is not None else 0

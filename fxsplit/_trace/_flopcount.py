"""Counts the FLOPs of the operators that run, by the formulas of torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

_FUSED_ATTENTION = frozenset(
    {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,  # for which torch has no formula
        torch.ops.aten._scaled_dot_product_flash_attention,
        torch.ops.aten._scaled_dot_product_efficient_attention,
        torch.ops.aten._scaled_dot_product_cudnn_attention,
    }
)


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
    if packet in _FUSED_ATTENTION:
        return _attention_flops(*(tensor.shape for tensor in args[:3]))
    formula: Callable[..., int] | None = flop_registry.get(packet)
    return int(formula(*args, **kwargs, out_val=out)) if formula is not None else 0


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size) -> int:
    # Every head of the queries is multiplied with one of the keys, also where several share it, which the formula of
    # older versions of torch refuses.
    batch, heads = query[:2]
    return int(sdpa_flop_count(query, (batch, heads, *key[2:]), (batch, heads, *value[2:])))

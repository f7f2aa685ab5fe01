"""Sparse inference on the CPU: compiled networks, the plans they run, and the kernels of those."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparsity.runtime._compile import compile

if TYPE_CHECKING:
    from sparsity.runtime._net import SparseNet

__all__ = ["SparseNet", "compile"]


def __getattr__(name: str) -> Any:
    # Everything behind the class is loaded when it is first asked for, so that importing sparsity stays cheap.
    if name == "SparseNet":
        from sparsity.runtime._net import SparseNet

        return SparseNet
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Sparse masks for any PyTorch module, and dynamic sparse training from any training loop."""

from __future__ import annotations

from sparsity._allocation import allocate, er, erk, uniform
from sparsity._errors import AllocationError, EngineError, MaskError, NoEffectWarning, SparsityError, SparsityWarning
from sparsity._masks import Masks, masks_of
from sparsity._sparsify import fold, sparsify

__all__ = [
    "AllocationError",
    "EngineError",
    "MaskError",
    "Masks",
    "NoEffectWarning",
    "SparsityError",
    "SparsityWarning",
    "allocate",
    "er",
    "erk",
    "fold",
    "masks_of",
    "sparsify",
    "uniform",
]

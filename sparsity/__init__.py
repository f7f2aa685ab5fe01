"""Sparse masks for any PyTorch module, and dynamic sparse training from any training loop."""

from __future__ import annotations

from sparsity._allocation import allocate, er, erk, uniform
from sparsity._engine import Engine
from sparsity._errors import AllocationError, EngineError, MaskError, NoEffectWarning, SparsityError, SparsityWarning
from sparsity._flops import dense_training_flops, rigl_training_flops, sparse_training_flops
from sparsity._masks import Masks, masks_of
from sparsity._methods import rigl, set_, static
from sparsity._report import LayerDensity, Rewiring
from sparsity._rewire import Layer
from sparsity._rule import Rule
from sparsity._schedule import constant, cosine
from sparsity._sparsify import fold, sparsify

__all__ = [
    "AllocationError",
    "Engine",
    "EngineError",
    "Layer",
    "LayerDensity",
    "MaskError",
    "Masks",
    "NoEffectWarning",
    "Rewiring",
    "Rule",
    "SparsityError",
    "SparsityWarning",
    "allocate",
    "constant",
    "cosine",
    "dense_training_flops",
    "er",
    "erk",
    "fold",
    "masks_of",
    "rigl",
    "rigl_training_flops",
    "set_",
    "sparse_training_flops",
    "sparsify",
    "static",
    "uniform",
]

"""Sparse masks for any PyTorch module, and dynamic sparse training from any training loop."""

from __future__ import annotations

from sparsity import _drop as drop
from sparsity import _grow as grow
from sparsity._allocation import allocate, er, erk, uniform
from sparsity._engine import Engine
from sparsity._errors import AllocationError, EngineError, MaskError, NoEffectWarning, SparsityError, SparsityWarning
from sparsity._flops import dense_training_flops, rigl_training_flops, sparse_training_flops
from sparsity._initial import descent, initial_values, original
from sparsity._layer import Layer
from sparsity._masks import Masks, masks_of
from sparsity._methods import deep_r, mest, rigl, set_, snfs, static
from sparsity._pruning import cubic, gradual, prune, snip
from sparsity._report import LayerDensity, Rewiring
from sparsity._rewire import over_layers, per_layer
from sparsity._rule import Rule
from sparsity._schedule import constant, cosine
from sparsity._sparsify import fold, sparsify
from sparsity._trails import PRESETS, Preset, trails

__all__ = [
    "PRESETS",
    "AllocationError",
    "Engine",
    "EngineError",
    "Layer",
    "LayerDensity",
    "MaskError",
    "Masks",
    "NoEffectWarning",
    "Preset",
    "Rewiring",
    "Rule",
    "SparsityError",
    "SparsityWarning",
    "allocate",
    "constant",
    "cosine",
    "cubic",
    "deep_r",
    "dense_training_flops",
    "descent",
    "drop",
    "er",
    "erk",
    "fold",
    "gradual",
    "grow",
    "initial_values",
    "masks_of",
    "mest",
    "original",
    "over_layers",
    "per_layer",
    "prune",
    "rigl",
    "rigl_training_flops",
    "set_",
    "snfs",
    "snip",
    "sparse_training_flops",
    "sparsify",
    "static",
    "trails",
    "uniform",
]

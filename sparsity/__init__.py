"""Sparse masks for any PyTorch module, and dynamic sparse training from any training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparsity import _dense_steps as dense_steps
from sparsity import _drop as drop
from sparsity import _grow as grow
from sparsity._allocation import allocate, er, erk, uniform
from sparsity._averaging import equal_average, follow
from sparsity._blocks import Blocks
from sparsity._components import by_component
from sparsity._csv_log import CsvLog
from sparsity._deferred import draw_masks
from sparsity._engine import Engine
from sparsity._errors import (
    AllocationError,
    BuildError,
    CompileError,
    EngineError,
    MaskError,
    NoEffectWarning,
    PlanError,
    RecordError,
    SparsityError,
    SparsityWarning,
)
from sparsity._flops import (
    Phase,
    dense_training_flops,
    rigl_training_flops,
    sparse_training_flops,
    training_flops,
)
from sparsity._history import History
from sparsity._initial import descent, initial_values, original
from sparsity._layer import Layer
from sparsity._masks import Masks, masks_of
from sparsity._methods import deep_r, mest, rigl, set_, snfs, static
from sparsity._nm import NM
from sparsity._optimizer_checkpoint import save_with_optimizer
from sparsity._overlap import LayerOverlap, Overlap, overlap, overlap_of
from sparsity._per_component import per_component
from sparsity._pruning import cubic, gradual, prune, snip
from sparsity._report import LayerDensity, Rewiring
from sparsity._rewire import Amount, over_layers, per_layer
from sparsity._rule import Rule
from sparsity._scalar_log import ScalarLog
from sparsity._schedule import constant, cosine
from sparsity._selectors import Kind
from sparsity._sharding import shard_masks
from sparsity._skip import attention, classifier, depthwise, embeddings, first_layer
from sparsity._sparsify import fold, sparsify
from sparsity._structure import Geometry, Structure
from sparsity._structure_spec import structure_from_spec, structure_to_spec
from sparsity._trails import PRESETS, Preset, trails
from sparsity._training_flops import TrainingFlops
from sparsity._training_plan import training_plan
from sparsity.runtime import compile

if TYPE_CHECKING:
    from sparsity.runtime import SparseNet

__all__ = [
    "NM",
    "PRESETS",
    "AllocationError",
    "Amount",
    "Blocks",
    "BuildError",
    "CompileError",
    "CsvLog",
    "Engine",
    "EngineError",
    "Geometry",
    "History",
    "Kind",
    "Layer",
    "LayerDensity",
    "LayerOverlap",
    "MaskError",
    "Masks",
    "NoEffectWarning",
    "Overlap",
    "Phase",
    "PlanError",
    "Preset",
    "RecordError",
    "Rewiring",
    "Rule",
    "ScalarLog",
    "SparseNet",
    "SparsityError",
    "SparsityWarning",
    "Structure",
    "TrainingFlops",
    "allocate",
    "attention",
    "by_component",
    "classifier",
    "compile",
    "constant",
    "cosine",
    "cubic",
    "deep_r",
    "dense_steps",
    "dense_training_flops",
    "depthwise",
    "descent",
    "draw_masks",
    "drop",
    "embeddings",
    "equal_average",
    "er",
    "erk",
    "first_layer",
    "fold",
    "follow",
    "gradual",
    "grow",
    "initial_values",
    "masks_of",
    "mest",
    "original",
    "over_layers",
    "overlap",
    "overlap_of",
    "per_component",
    "per_layer",
    "prune",
    "rigl",
    "rigl_training_flops",
    "save_with_optimizer",
    "set_",
    "shard_masks",
    "snfs",
    "snip",
    "sparse_training_flops",
    "sparsify",
    "static",
    "structure_from_spec",
    "structure_to_spec",
    "trails",
    "training_flops",
    "training_plan",
    "uniform",
]


def __getattr__(name: str) -> Any:
    if name == "SparseNet":
        from sparsity.runtime import SparseNet

        return SparseNet
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

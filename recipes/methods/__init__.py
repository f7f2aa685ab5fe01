"""The systems that the paper compares, each for any model that can be traced: settings, and the networks they make."""

from __future__ import annotations

from recipes.methods._batch_ensemble import BatchEnsemble, batch_ensemble
from recipes.methods._edst import Edst, edst_ensemble
from recipes.methods._fission import Fission, network_fission
from recipes.methods._independent import (
    Ensemble,
    Single,
    dst_ensemble,
    full_ensemble,
    pruned,
    rigl_sparse,
    set_sparse,
    single_dense,
    static_sparse,
)
from recipes.methods._join import joined
from recipes.methods._method import Criterion, MakeNet, Method, seeded
from recipes.methods._mimo import Mimo, mimo
from recipes.methods._rewiring import OneShot, Rewiring, Rigl, Set, Sparse, Static
from recipes.methods._tree import Split, Tree, neurotrails, treenet

__all__ = [
    "BatchEnsemble",
    "Criterion",
    "Edst",
    "Ensemble",
    "Fission",
    "MakeNet",
    "Method",
    "Mimo",
    "OneShot",
    "Rewiring",
    "Rigl",
    "Set",
    "Single",
    "Sparse",
    "Split",
    "Static",
    "Tree",
    "batch_ensemble",
    "dst_ensemble",
    "edst_ensemble",
    "full_ensemble",
    "joined",
    "mimo",
    "network_fission",
    "neurotrails",
    "pruned",
    "rigl_sparse",
    "seeded",
    "set_sparse",
    "single_dense",
    "static_sparse",
    "treenet",
]

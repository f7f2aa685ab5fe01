"""Split any PyTorch model into a shared trunk and M heads whose predictions are averaged.

`neurotrailify` does it in one call; `trace`, `find_cuts`, `split` and `sparsity.sparsify` are its parts.
"""

from __future__ import annotations

from fxsplit._batch_ensemble._model import BatchEnsembleModel
from fxsplit._batch_ensemble._surgery import batch_ensemble
from fxsplit._cuts._find import Crossing, Cut, Cuts, find_cuts
from fxsplit._draw._drawing import Drawing, draw
from fxsplit._ensemble._full import ensemble
from fxsplit._errors import (
    CutError,
    ExportError,
    FxSplitError,
    FxSplitWarning,
    InputError,
    NoEffectWarning,
    SpecError,
    SplitError,
    TraceError,
)
from fxsplit._fission._loss import ensemble_distillation
from fxsplit._fission._surgery import fission
from fxsplit._flops import layer_flops, other_flops
from fxsplit._generate import as_generator, generate
from fxsplit._head_loss import head_loss
from fxsplit._hooks import hook_block
from fxsplit._io._file import load, save
from fxsplit._mimo._batch import mimo_batch
from fxsplit._mimo._model import MimoModel
from fxsplit._mimo._surgery import mimo
from fxsplit._networkx import to_networkx
from fxsplit._neurotrailify import neurotrailify
from fxsplit._onnx._export import OnnxReport, export_onnx
from fxsplit._pretrained import LoadReport, head_state_dict, load_pretrained
from fxsplit._split._model import SplitModel
from fxsplit._split._report import SplitReport
from fxsplit._split._surgery import split
from fxsplit._summary._totals import Summary, summary
from fxsplit._trace import TracedModel, TraceReport, trace
from fxsplit._vote import CallableVote, MeanVote, ProbVote

__version__ = "0.1.0"

__all__ = [
    "BatchEnsembleModel",
    "CallableVote",
    "Crossing",
    "Cut",
    "CutError",
    "Cuts",
    "Drawing",
    "ExportError",
    "FxSplitError",
    "FxSplitWarning",
    "InputError",
    "LoadReport",
    "MeanVote",
    "MimoModel",
    "NoEffectWarning",
    "OnnxReport",
    "ProbVote",
    "SpecError",
    "SplitError",
    "SplitModel",
    "SplitReport",
    "Summary",
    "TraceError",
    "TraceReport",
    "TracedModel",
    "__version__",
    "as_generator",
    "batch_ensemble",
    "draw",
    "ensemble",
    "ensemble_distillation",
    "export_onnx",
    "find_cuts",
    "fission",
    "generate",
    "head_loss",
    "head_state_dict",
    "hook_block",
    "layer_flops",
    "load",
    "load_pretrained",
    "mimo",
    "mimo_batch",
    "neurotrailify",
    "other_flops",
    "save",
    "split",
    "summary",
    "to_networkx",
    "trace",
]

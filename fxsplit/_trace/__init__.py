"""Records any model as a flat torch.fx graph from real runs."""

from __future__ import annotations

from fxsplit._trace._model import TracedModel
from fxsplit._trace._report import TraceReport
from fxsplit._trace._trace import trace

__all__ = ["TraceReport", "TracedModel", "trace"]

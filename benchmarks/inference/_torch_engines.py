"""Torch itself, op by op and compiled."""

from __future__ import annotations

import torch

from benchmarks.inference._case import Case
from benchmarks.inference._engine import InProcess, Runner, ready
from benchmarks.inference._errors import EngineError


class Eager(InProcess):
    """Torch, op by op, with masks folded into the weights."""

    key, label, licence = "torch", "torch eager", "BSD-3-Clause"

    def version(self) -> str:
        """Return torch's version."""
        return torch.__version__

    def prepare(self, case: Case, threads: int) -> Runner:
        """Call the network as it is."""
        return ready(lambda: lambda: case.plain(case.inputs), threads)


class Compiled(InProcess):
    """torch.compile with weights frozen, so that it packs them and folds BatchNorm, for this one batch size."""

    key, label, licence = "torch.compile", "torch.compile", "BSD-3-Clause"

    def version(self) -> str:
        """Return torch's version."""
        return torch.__version__

    def prepare(self, case: Case, threads: int) -> Runner:
        """Compile."""
        torch.compiler.reset()

        def make():  # noqa: ANN202 (a callable without arguments)
            compiled = torch.compile(case.plain, dynamic=False, options={"freezing": True})
            return lambda: compiled(case.inputs)

        try:
            return ready(make, threads)
        except Exception as error:  # a compiler may fail in any way
            raise EngineError(f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}") from error

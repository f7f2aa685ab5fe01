"""The sparse runtime of this project."""

from __future__ import annotations

import warnings

import torch

import fxsplit
import sparsity
from benchmarks.inference._case import Case
from benchmarks.inference._engine import InProcess, Runner, ready
from benchmarks.inference._errors import EngineError


class Ours(InProcess):
    """`sparsity.compile`."""

    key, label, licence = "sparsity", "sparsity.compile", "Apache-2.0"

    def version(self) -> str:
        """Return the version of the distribution."""
        return fxsplit.__version__

    def prepare(self, case: Case, threads: int) -> Runner:
        """Compile.

        Raises:
            EngineError: It refuses the network.
        """

        def make():  # noqa: ANN202 (a callable without arguments)
            with warnings.catch_warnings():
                # That a dense network gains nothing is what its row is for.
                warnings.simplefilter("ignore", sparsity.SparsityWarning)
                compiled = sparsity.compile(case.model, case.inputs)
            return lambda: compiled(case.inputs)

        try:
            with torch.no_grad():
                return ready(make, threads)
        except sparsity.SparsityError as error:
            raise EngineError(f"{type(error).__name__}: {error}") from error

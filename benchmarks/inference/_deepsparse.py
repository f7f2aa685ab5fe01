"""DeepSparse, the engine of the paper: proprietary, end of life, in an environment and a process of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.inference._case import Case
from benchmarks.inference._downgrade import downgrade
from benchmarks.inference._engine import Runner
from benchmarks.inference._errors import EngineError
from benchmarks.inference._remote import Remote

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-deepsparse" / "bin" / "python"
WORKER = "benchmarks.inference._deepsparse_worker"
LICENCE = (
    "proprietary (Neural Magic DeepSparse Community License: evaluation in development and testing environments only, "
    "no production use); end of life, its last release with an engine is 1.8.0"
)


class DeepSparse:
    """DeepSparse 1.8 in a worker process, with as many cores as the others have threads.

    Args:
        python: Interpreter of its environment, which `make deepsparse` creates.
        module: The package to load there.
        limit: Seconds that one network may take to compile.
    """

    key, label, licence = "deepsparse", "DeepSparse", LICENCE

    def __init__(self, python: Path = PYTHON, module: str = "deepsparse", limit: float = 900.0) -> None:
        self._python, self._module, self._limit = python, module, limit
        self._worker: Remote | None = None

    def version(self) -> str:
        """Return its version.

        Raises:
            EngineError: It can't run here.
        """
        answer, _ = self.worker().ask({"do": "hello"})
        return answer["version"]

    def worker(self) -> Remote:
        """Return the process, started if it isn't running.

        Raises:
            EngineError: There is no environment for it.
        """
        if self._worker is not None and not self._worker.alive:
            self.close()
        if self._worker is None:
            if not self._python.exists():
                raise EngineError(f"not installed: there is no {self._python}; `make deepsparse` creates it")
            self._worker = Remote(
                [str(self._python), "-m", WORKER, self._module],
                {"NM_DISABLE_ANALYTICS": "True", "PYTHONPATH": _search_path()},
                str(ROOT),
            )
        return self._worker

    def prepare(self, case: Case, threads: int) -> Runner:
        """Compile, which takes minutes for a large sparse network.

        Raises:
            EngineError: It fails, takes too long, or leaves operations to the onnxruntime that it carries.
        """
        start = time.perf_counter()
        path = downgrade(case.onnx(), tuple(case.inputs.shape))

        def waiting(seconds: float) -> None:
            print(f"  DeepSparse compiles {case.net.key} with {threads} threads: {seconds:.0f} s", flush=True)

        message = {"do": "compile", "path": str(path), "batch": case.batch, "threads": threads}
        worker = self.worker()
        answer, _ = worker.ask(message, [case.inputs.numpy()], limit=self._limit, waiting=waiting)
        runner = _Distant(worker, answer["id"], time.perf_counter() - start, answer["coverage"])
        if runner.coverage != 1:
            runner.close()
            raise EngineError(
                f"it runs only {runner.coverage:.1%} of the operations itself and leaves the rest to onnxruntime"
            )
        return runner

    def pids(self) -> Sequence[int]:
        """Return the worker's number."""
        return () if self._worker is None else (self._worker.pid,)

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None


@dataclass
class _Distant:
    """A network in the worker."""

    worker: Remote
    id: int
    prepared: float
    coverage: float

    def output(self) -> np.ndarray:
        _, (first, *_) = self.worker.ask({"do": "run", "id": self.id})
        return first

    def time(self, runs: int) -> list[float]:
        answer, _ = self.worker.ask({"do": "time", "id": self.id, "runs": runs}, limit=600.0)
        return answer["seconds"]

    def close(self) -> None:
        if self.worker.alive:
            self.worker.ask({"do": "drop", "id": self.id})


def _search_path() -> str:
    """Where the worker finds this package; nothing of this environment's packages."""
    known = os.environ.get("PYTHONPATH", "")
    return f"{ROOT}{os.pathsep}{known}" if known else str(ROOT)

"""A process that holds engines of DeepSparse and does as it is told over stdin and stdout; see `_deepsparse`.

Run by the interpreter of DeepSparse's own environment: this imports the standard library, numpy and the engine only.
Requests: ``hello``, ``compile`` (path, shapes, batch, threads), ``run`` and ``time`` (id, runs) with arrays, ``drop``.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from benchmarks.inference import _wire
from benchmarks.inference._clock import seconds_of


class Worker:
    """Compiled networks by number.

    Args:
        module: The engine's package, with ``Engine`` as DeepSparse has it.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self._engines: dict[int, Any] = {}
        self._inputs: dict[int, list[np.ndarray]] = {}
        self._count = 0

    def answer(self, message: _wire.Message, arrays: list[np.ndarray]) -> tuple[_wire.Message, Sequence[np.ndarray]]:
        """Do what a message asks for and return the answer."""
        return getattr(self, f"do_{message.pop('do')}")(arrays, **message)

    def do_hello(self, arrays: list[np.ndarray]) -> tuple[_wire.Message, Sequence[np.ndarray]]:
        """Say which version this is."""
        return {"version": self._module.__version__}, ()

    def do_compile(
        self, arrays: list[np.ndarray], path: str, batch: int, threads: int
    ) -> tuple[_wire.Message, Sequence[np.ndarray]]:
        """Compile an ONNX file for inputs like ``arrays``, which are kept to be timed."""
        start = time.perf_counter()
        shapes = [list(array.shape) for array in arrays]
        engine = self._module.Engine(path, batch_size=batch, num_cores=threads, input_shapes=shapes)
        seconds = time.perf_counter() - start
        self._count += 1
        self._engines[self._count], self._inputs[self._count] = engine, arrays
        return {"id": self._count, "seconds": seconds, "coverage": float(engine.fraction_of_supported_ops)}, ()

    def do_run(self, arrays: list[np.ndarray], id: int) -> tuple[_wire.Message, Sequence[np.ndarray]]:
        """Run once and return the outputs."""
        return {}, self._engines[id].run(self._inputs[id])

    def do_time(self, arrays: list[np.ndarray], id: int, runs: int) -> tuple[_wire.Message, Sequence[np.ndarray]]:
        """Time calls, here, so that no message is part of them."""
        engine, inputs = self._engines[id], self._inputs[id]
        return {"seconds": seconds_of(lambda: engine.run(inputs), runs)}, ()

    def do_drop(self, arrays: list[np.ndarray], id: int) -> tuple[_wire.Message, Sequence[np.ndarray]]:
        """Forget a network."""
        del self._engines[id], self._inputs[id]
        return {}, ()


def serve(worker: Worker, source: BinaryIO, target: BinaryIO) -> None:
    """Answer messages until the other side closes its end; what goes wrong is answered as ``error``."""
    while True:
        try:
            message, arrays = _wire.receive(source.read)
        except EOFError:
            return
        try:
            answer, results = worker.answer(message, arrays)
        except Exception as error:
            answer, results = {"error": f"{type(error).__name__}: {error}"}, ()
        _wire.send(target, answer, results)


def main() -> None:
    """Serve on the streams this process was started with, and keep what the engine prints out of them."""
    target = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(Worker(importlib.import_module(sys.argv[1])), sys.stdin.buffer, target)


if __name__ == "__main__":
    main()

"""A worker process of another interpreter, spoken to in turns, with patience and a limit to it."""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.inference import _wire
from benchmarks.inference._errors import EngineError

_TICK = 10.0  # seconds between two signs of life


class Remote:
    """A process that answers messages.

    Args:
        command: Starts it.
        environment: Variables besides this process's own.
        folder: Its working directory.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], folder: str) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (open for as long as the process writes to it)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **environment},
            cwd=folder,
            bufsize=0,
        )

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs and its last answer was read to the end."""
        return self._process.poll() is None

    def ask(
        self,
        message: _wire.Message,
        arrays: Sequence[np.ndarray] = (),
        *,
        limit: float = 120.0,
        waiting: Callable[[float], object] = lambda _: None,
    ) -> tuple[_wire.Message, list[np.ndarray]]:
        """Send a message and wait for the answer.

        Args:
            message: What to do.
            arrays: Its arrays.
            limit: Seconds after which the process is ended.
            waiting: Called now and then with the seconds that have passed.

        Raises:
            EngineError: The other side failed, died, or took too long.
        """
        start = time.monotonic()
        try:
            _wire.send(_Raw(self._process.stdin), message, arrays)  # pyright: ignore[reportArgumentType]
            answer, results = _wire.receive(lambda count: self._read(count, start, limit, waiting))
        except (EOFError, BrokenPipeError) as error:
            raise EngineError(f"its process ended: {self._last_words()}") from error
        if "error" in answer:
            raise EngineError(answer["error"])
        return answer, results

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def _read(self, count: int, start: float, limit: float, waiting: Callable[[float], object]) -> bytes:
        stream: Any = self._process.stdout
        data = bytearray()
        while len(data) < count:
            passed = time.monotonic() - start
            if passed > limit:
                self._process.kill()
                raise EngineError(f"no answer after {limit:.0f} s")
            ready, _, _ = select.select([stream], [], [], max(0.0, min(_TICK, limit - passed)))
            if not ready:
                waiting(time.monotonic() - start)
                continue
            block = os.read(stream.fileno(), min(count - len(data), 1 << 20))
            if not block:
                break
            data += block
        return bytes(data)

    def _last_words(self) -> str:
        code = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        return f"{how}; {lines[-1][:300] if lines else 'it said nothing'}"


class _Raw:
    """An unbuffered pipe, written to the end."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._pipe.write(rest) :]

    def flush(self) -> None:
        self._pipe.flush()

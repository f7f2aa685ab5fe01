"""Measured times of layers, remembered in memory and in a file of the cache directory."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from sparsity.runtime._build import cache_directory, library_key
from sparsity.runtime._model import Work

_FORMAT = 2
_memory: dict[str, dict[str, tuple[float, float]]] = {}


class Tuned:
    """Times in the sparse and the dense kernel by layer; densities within a few percent count as one."""

    def __init__(self, times: dict[str, tuple[float, float]]) -> None:
        self.times = times
        self.changed = False

    def lookup(self, work: Work) -> tuple[float, float] | None:
        """Sparse and dense seconds of such a layer, if they were measured."""
        return self.times.get(_key(work))

    def store(self, work: Work, times: tuple[float, float]) -> None:
        """Remember what was measured."""
        self.times[_key(work)] = times
        self.changed = True


@contextlib.contextmanager
def tuned_times(isa: str) -> Iterator[Tuned]:
    """The known times for this processor, torch and kernels; what is added is written to the cache directory.

    A file that can't be read or written costs new measurements and nothing else.
    """
    name = _file_name(isa)
    if name not in _memory:
        _memory[name] = {}
        with contextlib.suppress(OSError):
            _memory[name] = _read(cache_directory() / name)
    known = Tuned(_memory[name])
    yield known
    if known.changed:
        with contextlib.suppress(OSError):
            _write(cache_directory() / name, known.times)


def forget() -> None:
    """Forget what is in memory."""
    _memory.clear()


def _key(work: Work) -> str:
    # Steps of an eighth of a power of two in the number of nonzeros.
    rounded = dataclasses.replace(work, nonzeros=round(8 * math.log2(work.nonzeros + 1)))
    return "|".join(map(str, dataclasses.astuple(rounded)))


def _file_name(isa: str) -> str:
    parts = (str(_FORMAT), isa, torch.__version__, _processor(), library_key(isa))
    return f"tuned-{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:16]}.json"


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line
    return platform.machine()


def _read(path: Path) -> dict[str, tuple[float, float]]:
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        found = json.loads(path.read_text())
        return {str(key): (float(sparse), float(dense)) for key, (sparse, dense) in found.items()}
    return {}


def _write(path: Path, times: dict[str, tuple[float, float]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "w") as file:
            # Another process may have measured other layers in the meantime.
            json.dump({**_read(path), **times}, file)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise

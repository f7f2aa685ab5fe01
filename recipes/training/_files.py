"""Files that are there whole or not at all, and the lock of a run's folder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from recipes.training._errors import TrainingError


def write_tensors(file: Path, content: Any) -> None:
    """Save with ``torch.save``, so that a kill at any time leaves the old file or the new one."""
    with _beside(file) as beside, beside.open("wb") as out:
        torch.save(content, out)
        out.flush()
        os.fsync(out.fileno())


def read_tensors(file: Path, device: torch.device | str = "cpu") -> Any:
    """Load what `write_tensors` saved; no code in the file is run.

    Raises:
        TrainingError: It is no such file.
    """
    try:
        return torch.load(file, map_location=device, weights_only=True)
    except Exception as error:
        raise TrainingError(f"{file} cannot be read as a checkpoint ({error}). Delete it to start over.") from error


def write_json(file: Path, content: Any) -> None:
    """Write JSON in one piece."""
    with _beside(file) as beside:
        beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_json(file: Path) -> Any:
    """Read JSON.

    Raises:
        TrainingError: It is none.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{file} cannot be read ({error}). Delete it to start over.") from error


@contextlib.contextmanager
def _beside(file: Path) -> Iterator[Path]:
    beside = file.with_name(f"{file.name}.new")
    yield beside
    os.replace(beside, file)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder within the block.

    The operating system gives the lock back when the process ends, however that happens; the file says who has it.

    Raises:
        TrainingError: Another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise TrainingError(f"{folder} is in use by {owner}. Wait for it, or choose another --out.") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
        file.truncate(0)

"""Runs one function of a test module in several gloo processes, and returns what each of them returned."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch._C._distributed_c10d import FileStore


def run(function: Any, ranks: int, folder: Path, *arguments: Any) -> list[Any]:
    """Call ``function(rank, *arguments)`` in each process; a test fails if one of them does."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(arguments, folder / "arguments.pt")
    name = f"{function.__module__}:{function.__qualname__}"
    command = [sys.executable, "-m", "tests.unit._ranks", name, str(ranks), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([*command, str(rank)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(ranks)
    ]
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * ranks, "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(ranks)]


def _main(name: str, ranks: str, folder: str, rank: str) -> None:
    module, function = name.split(":")
    called = getattr(importlib.import_module(module), function)
    arguments = torch.load(Path(folder) / "arguments.pt", weights_only=False)
    store = FileStore(str(Path(folder) / "store"), int(ranks))
    distributed.init_process_group("gloo", rank=int(rank), world_size=int(ranks), store=store)
    try:
        torch.save(called(int(rank), *arguments), Path(folder) / f"{rank}.pt")
    finally:
        distributed.destroy_process_group()


if __name__ == "__main__":
    _main(*sys.argv[1:])

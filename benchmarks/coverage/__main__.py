"""Coverage of whole zoos: ``python -m benchmarks.coverage [--zoo timm ...] [--sample N --seed S]``.

Every model is traced and split after blocks of it with three copied heads. timm, with its large models, runs on the
meta device, where structure and shapes are compared; the smallest model of every family of timm, torchvision up to
``--largest`` parameters, and all others run with real weights, where outputs, gradients and buffers are compared bit
for bit. Results are kept in a file of JSON lines; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import warnings
from collections.abc import Sequence
from datetime import date
from importlib import metadata
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.coverage._measure import Plan
from benchmarks.coverage._rivals import RIVALS
from benchmarks.coverage._run import Job, Row, run
from benchmarks.coverage._table import failures, table
from benchmarks.coverage._zoos import ZOOS, entries
from tests.zoo.catalogue.entry import Entry

_ON_META = ("timm", "torchvision")
_PACKAGES = ("torch", "torchvision", "timm", "transformers")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, print what failed and the table, and write both to files."""
    options = _parse(arguments)
    path = options.out / "rows.jsonl"
    rows: list[Row] = []
    for zoo in options.zoo:
        chosen = _sample(entries(zoo), options)
        if zoo not in _ON_META or "meta" in options.weights:
            rows = run(_jobs(chosen, zoo not in _ON_META, options), path, options.workers, options.limit)
        if zoo in _ON_META and "real" in options.weights:
            rows = run(_jobs(_small(chosen, zoo, options), True, options), path, options.workers, options.limit)
    rows = [row for row in rows if row["zoo"] in options.zoo]
    print("\n".join(failures(rows)))
    print(table(rows))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES)
    header = f"{date.today()}, Python {platform.python_version()}, {versions}"
    print(f"\n{header}")
    (options.out / "table.md").write_text(f"{table(rows)}\n\n{header}\n")
    (options.out / "result.json").write_text(json.dumps({"versions": header, "rows": rows}, indent=1))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--zoo", nargs="+", choices=list(ZOOS), default=list(ZOOS), help="which zoos")
    parser.add_argument("--sample", type=int, help="only so many models of each zoo, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--cuts", type=int, default=3, help="block cuts to split at per model; 0: all")
    parser.add_argument(
        "--weights", nargs="+", choices=["meta", "real"], default=["meta", "real"], help="for timm and torchvision"
    )
    parser.add_argument("--rivals", nargs="*", choices=list(RIVALS), default=[], help="other tracers to run as well")
    parser.add_argument("--largest", type=float, default=30e6, help="parameters of the largest real torchvision model")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--limit", type=int, default=900, help="seconds for one model")
    parser.add_argument("--out", type=Path, default=Path("runs/coverage"), help="folder of the results")
    return parser.parse_args(arguments)


def _sample(chosen: list[Entry], options: argparse.Namespace) -> list[Entry]:
    if options.sample is None or options.sample >= len(chosen):
        return chosen
    return sorted(random.Random(options.seed).sample(chosen, options.sample), key=lambda entry: entry.name)


def _jobs(chosen: list[Entry], real: bool, options: argparse.Namespace) -> list[Job]:
    plan = Plan(real=real, cuts=options.cuts or None, rivals=tuple(options.rivals))
    return [(entry.zoo, entry.name, plan) for entry in chosen]


def _small(chosen: list[Entry], zoo: str, options: argparse.Namespace) -> list[Entry]:
    """The model of fewest parameters of every family; of torchvision also all others that are not too large."""
    sizes = {entry.name: _parameters(entry) for entry in tqdm(chosen, desc="sizes", unit="model")}
    smallest: dict[str, Entry] = {}
    for entry in sorted(chosen, key=lambda entry: (sizes[entry.name], entry.name)):
        smallest.setdefault(entry.family, entry)
    limit = options.largest if zoo == "torchvision" else 0
    return [entry for entry in chosen if entry in smallest.values() or sizes[entry.name] <= limit]


def _parameters(entry: Entry) -> int:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sum(parameter.numel() for parameter in entry.build().parameters())


if __name__ == "__main__":
    main()

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
from collections.abc import Sequence
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.coverage._measure import Plan
from benchmarks.coverage._rivals import RIVALS
from benchmarks.coverage._run import Job, Row, run
from benchmarks.coverage._table import failures, table
from benchmarks.coverage._zoos import ZOOS, entries

_ON_META = ("timm", "torchvision")
_PACKAGES = ("torch", "torchvision", "timm", "transformers")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, print what failed and the table, and write both to files."""
    options = _parse(arguments)
    path = options.out / "rows.jsonl"
    rows: list[Row] = []
    for zoo in options.zoo:
        names = _sample([entry.name for entry in entries(zoo)], options)
        rivals = tuple(options.rivals)
        first = Plan(real=zoo not in _ON_META, cuts=options.cuts or None, rivals=rivals)
        rows = run([(zoo, name, first) for name in names], path, options.workers, options.limit)
        if zoo in _ON_META:
            real = _for_real([row for row in rows if row["zoo"] == zoo and row["name"] in names], zoo, options)
            rows = run(real, path, options.workers, options.limit)
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
    parser.add_argument("--rivals", nargs="*", choices=list(RIVALS), default=[], help="other tracers to run as well")
    parser.add_argument("--largest", type=float, default=30e6, help="parameters of the largest real torchvision model")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--limit", type=int, default=900, help="seconds for one model")
    parser.add_argument("--out", type=Path, default=Path("runs/coverage"), help="folder of the results")
    return parser.parse_args(arguments)


def _sample(names: list[str], options: argparse.Namespace) -> list[str]:
    if options.sample is None or options.sample >= len(names):
        return names
    return sorted(random.Random(options.seed).sample(names, options.sample))


def _for_real(rows: list[Row], zoo: str, options: argparse.Namespace) -> list[Job]:
    """The smallest model of every family of timm; of torchvision also all others that are not too large."""
    cheapest: dict[str, Any] = {}
    for row in sorted(rows, key=lambda row: (row["flops"] or 1e18, row["name"])):
        cheapest.setdefault(row["family"], row)
    chosen = [row["name"] for row in cheapest.values()]
    if zoo == "torchvision":
        chosen += [row["name"] for row in rows if row["parameters"] <= options.largest and row["name"] not in chosen]
    return [(zoo, name, Plan(real=True, cuts=options.cuts or None, rivals=tuple(options.rivals))) for name in chosen]


if __name__ == "__main__":
    main()

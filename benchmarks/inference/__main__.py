"""Engines side by side on sparse networks: ``python -m benchmarks.inference [--nets wrn ...] [--engines ...]``.

Builds the networks of the NeuroTrails paper's Table 7 and Figure 8, ResNet-50, LLaMA-130M and the trained network of
the demo, and runs each in every engine, in turns, on the same inputs and the same number of threads. Outputs are
compared with torch in double precision; an engine that disagrees is not timed, and the run fails. Results are added to
``results.csv`` in ``--out``, one row per engine, network, batch size and number of threads; plots lie beside it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.inference import _rows, _table
from benchmarks.inference._compare import Plan, compare
from benchmarks.inference._engine import Engine
from benchmarks.inference._errors import BenchmarkError, EngineError
from benchmarks.inference._floors import verdicts
from benchmarks.inference._machine import describe
from benchmarks.inference._nets import catalogue, choose
from benchmarks.inference._plot import plot

ENGINES = ("sparsity", "onnxruntime", "torch", "torch.compile", "deepsparse")


def main(arguments: Sequence[str] | None = None, engines: Sequence[Engine] | None = None) -> int:
    """Run the comparison and return the exit status: 1 if any engine disagreed, 2 if nothing could be run.

    Args:
        arguments: Of the command line; those of this process if None.
        engines: In place of those that the command line names.
    """
    options = _parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / "results.csv"
    if options.markdown:
        rows = _rows.read(results)
        print(f"{_table.markdown(rows)}\n\n{describe(rows)}")
        return 0
    try:
        return measure(options, results, make_engines(options.engines) if engines is None else engines)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def measure(options: argparse.Namespace, results: Path, engines: Sequence[Engine]) -> int:
    """Run what was asked for, and print and keep the results."""
    nets = catalogue(options.out, options.quick)
    usable = _usable(engines)
    measured: list[_rows.Row] = []
    with tempfile.TemporaryDirectory(prefix="onnx-") as folder:
        plan = Plan(nets, choose(nets, options.nets), usable, options.repeat, Path(folder), options.lock)
        for threads in options.threads:
            for batch in options.batch:
                for rows in compare(plan, batch, threads):
                    _rows.merge(results, rows)
                    measured += rows
                    print(_table.text(rows), flush=True)
    everything = _rows.read(results)
    print("\n".join(["", *verdicts(everything), "", describe(everything), *_plots(everything, options.out)]))
    wrong = [row for row in measured if row["status"].startswith("disagrees")]
    for row in wrong:
        print(f"{row['engine']} on {row['label']}, batch {row['batch']}: {row['status']}", file=sys.stderr)
    return 1 if wrong else 0


def make_engines(keys: Sequence[str]) -> list[Engine]:
    """Make engines by name."""
    from benchmarks.inference._deepsparse import DeepSparse
    from benchmarks.inference._onnxruntime import OnnxRuntime
    from benchmarks.inference._ours import Ours
    from benchmarks.inference._torch_engines import Compiled, Eager

    made: tuple[Engine, ...] = (Ours(), OnnxRuntime(), Eager(), Compiled(), DeepSparse())
    return [engine for engine in made if engine.key in keys]


def _usable(engines: Sequence[Engine]) -> dict[Engine, str]:
    """Return the engines that can run here, with their versions; of the others say why not."""
    versions = {engine: _version(engine) for engine in engines}
    usable = {engine: version for engine, version in versions.items() if version is not None}
    if not usable:
        raise BenchmarkError("none of the engines can run here.")
    return usable


def _version(engine: Engine) -> str | None:
    try:
        version = engine.version()
    except EngineError as error:
        print(f"{engine.label} is left out: {error}", flush=True)
        return None
    print(f"{engine.label} {version}; licence: {engine.licence}", flush=True)
    return version


def _plots(rows: Sequence[_rows.Row], folder: Path) -> list[str]:
    drawn = []
    for family, batch, threads in dict.fromkeys((r["family"], int(r["batch"]), int(r["threads"])) for r in rows):
        path = folder / f"{family}-batch{batch}-threads{threads}.png"
        if plot(rows, family, batch, threads, path):
            drawn.append(f"drawn: {path}")
    return drawn


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.inference",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--nets",
        nargs="+",
        default=["wrn"],
        help="families (wrn resnet llama-decode llama-prefill digits), names, or '*'",
    )
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--batch", nargs="+", type=_positive, default=[1], help="batch sizes: 1 for latency, 16 or 64")
    parser.add_argument("--threads", nargs="+", type=_positive, default=[2], help="numbers of threads, of all engines")
    parser.add_argument("--repeat", type=_positive, default=11, help="turns of each engine")
    parser.add_argument("--out", type=Path, help="folder of the results; by default runs/inference")
    parser.add_argument("--quick", action="store_true", help="small networks, to see whether it all runs")
    parser.add_argument("--markdown", action="store_true", help="print the README's table of the results; run nothing")
    parser.add_argument("--lock", type=Path, help="file to lock while times are taken")
    options = parser.parse_args(arguments)
    options.out = options.out or Path("runs", "inference-quick" if options.quick else "inference")
    return options


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())

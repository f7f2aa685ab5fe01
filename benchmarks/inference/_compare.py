"""The comparison: networks made ready in every engine, their outputs checked, then timed in turns."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import sparsity
from benchmarks.inference._case import Case, build, relative_error
from benchmarks.inference._engine import Engine, Runner
from benchmarks.inference._errors import EngineError
from benchmarks.inference._nets import Net, single_of
from benchmarks.inference._rows import OK, Row
from benchmarks.inference._timing import Samples, interleave
from recipes._budget import forward_cost

TOLERANCE = 1e-4  # of float32 with Winograd convolutions, which lose a digit or two; bfloat16 is off by 1e-3 and more
DENSE_ENGINE = "onnxruntime"  # whose single dense network all others are compared with
_Name = tuple[str, str]  # network, engine


@dataclass
class Result:
    """What came of one network in one engine.

    Args:
        case: Network and inputs.
        engine: Which engine.
        version: Of the engine.
        runner: Ready to be timed; None if it can't be, or must not.
        status: ``'ok'``, or why there is nothing to time.
        error: Of its output, against double precision.
        prepared: Seconds it took to make it ready.
        coverage: Share of the operations that the engine runs itself.
    """

    case: Case
    engine: Engine
    version: str
    runner: Runner | None = None
    status: str = OK
    error: float | None = None
    prepared: float | None = None
    coverage: float | None = None


@dataclass(frozen=True)
class Plan:
    """What to run.

    Args:
        nets: The whole catalogue.
        chosen: Of it, what to measure.
        engines: Engines that can run here, with their versions.
        rounds: Turns of each engine.
        folder: For ONNX files.
        lock: A file that is locked while times are taken, if several processes measure on one machine.
    """

    nets: Sequence[Net]
    chosen: Sequence[Net]
    engines: Mapping[Engine, str]
    rounds: int
    folder: Path
    lock: Path | None = None


def compare(plan: Plan, batch: int, threads: int) -> Iterator[list[Row]]:
    """Yield the rows of one network after the other, all of one batch size and number of threads.

    The single dense network of a family stays in memory, and takes its turns in every round of the others.
    """
    for family in dict.fromkeys(net.family for net in plan.chosen):
        nets = [net for net in plan.chosen if net.family == family]
        singles = _prepare(single_of(plan.nets, nets[0]), plan, batch, threads)
        for net in nets:
            results = singles if net.role == "single" else _prepare(net, plan, batch, threads)
            rivals = {**_runners(singles), **_runners(results)}
            with _locked(plan.lock):
                samples = interleave(rivals, plan.rounds, lambda: [p for e in plan.engines for p in e.pids()])
            size = _size(results[0].case)
            yield [_row(result, threads, samples, size) for result in results]
            if net.role != "single":
                _close(results)
        _close(singles)
        for engine in plan.engines:
            engine.close()


def _prepare(net: Net, plan: Plan, batch: int, threads: int) -> list[Result]:
    print(f"{net.label}: batch {batch}, {threads} threads", flush=True)
    case = build(net, batch, plan.folder)
    return [_ready(Result(case, engine, version), threads) for engine, version in plan.engines.items()]


def _ready(result: Result, threads: int) -> Result:
    """Make a network ready and check its output; what disagrees will not be timed."""
    try:
        runner = result.engine.prepare(result.case, threads)
        result.prepared, result.coverage = runner.prepared, runner.coverage
        result.error = relative_error(runner.output(), result.case.expected)
    except EngineError as error:
        result.status = f"failed: {error}"
        print(f"  {result.engine.label} {result.status}", flush=True)
        return result
    if not result.error < TOLERANCE:
        result.status = f"disagrees: relative error {result.error:.1e}, allowed is {TOLERANCE:.0e}"
        runner.close()
        print(f"  {result.engine.label} {result.status}", flush=True)
        return result
    print(f"  {result.engine.label} ready in {result.prepared:.1f} s, relative error {result.error:.1e}", flush=True)
    result.runner = runner
    return result


def _runners(results: Sequence[Result]) -> dict[_Name, Runner]:
    return {_name(result): result.runner for result in results if result.runner is not None}


def _name(result: Result) -> _Name:
    return result.case.net.key, result.engine.key


def _close(results: Sequence[Result]) -> None:
    for result in results:
        if result.runner is not None:
            result.runner.close()


@contextlib.contextmanager
def _locked(path: Path | None) -> Iterator[None]:
    if path is None:
        yield
        return
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _size(case: Case) -> Row:
    masks = sparsity.masks_of(case.model)
    parameters = sum(parameter.numel() for parameter in case.plain.parameters())
    nonzeros = sum(int(parameter.count_nonzero()) for parameter in case.plain.parameters())
    cost = forward_cost(case.model, masks)  # pyright: ignore[reportArgumentType] (every network here is a graph)
    return {
        "parameters": parameters,
        "nonzeros": nonzeros,
        "flops_dense": round(cost.dense),
        "flops_masked": round(cost.masked),
    }


def _row(result: Result, threads: int, samples: Mapping[_Name, Samples], size: Row) -> Row:
    net, case = result.case.net, result.case
    row: Row = {
        "engine": result.engine.key,
        "version": result.version,
        **{name: getattr(net, name) for name in ("label", "family", "role", "allocation", "sparsity")},
        "net": net.key,
        "batch": case.batch,
        "threads": threads,
        "status": result.status,
        "error": result.error,
        "reference": case.reference,
        "coverage": result.coverage,
        "prepare_s": result.prepared,
        **size,
    }
    if net.paper is not None:
        row |= {
            "paper_throughput": net.paper.throughput,
            "paper_ms": net.paper.latency,
            "paper_spread_ms": net.paper.spread,
            "paper_against_single": net.paper.against_single,
        }
    timed = samples.get(_name(result))
    if timed is not None:
        row |= _times(timed, case.batch)
        singles = {engine: found for (key, engine), found in samples.items() if key == f"{net.family}-single"}
        for column, engine in (("own", result.engine.key), ("onnxruntime", DENSE_ENGINE)):
            if engine in singles:
                row[f"against_{column}_single"] = timed.faster_than(singles[engine])
                row[f"{column}_single_ms"] = 1e3 * singles[engine].quantile(0.5)
    return row


def _times(samples: Samples, batch: int) -> Row:
    median = samples.quantile(0.5)
    return {
        "median_ms": 1e3 * median,
        "p25_ms": 1e3 * samples.quantile(0.25),
        "p75_ms": 1e3 * samples.quantile(0.75),
        "fastest_ms": 1e3 * samples.quantile(0.0),
        "calls": len(samples.seconds),
        "rounds": len(samples.rounds),
        "throughput": batch / median,
        "others": samples.others,
    }

"""The speeds that the sparse runtime is held to, and whether the rows show them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.inference._rows import Row, find
from benchmarks.inference._table import OURS, against

Measure = Callable[[Sequence[Row]], float | None]


@dataclass(frozen=True)
class Floor:
    """A ratio that has to be reached.

    Args:
        title: What is compared.
        measure: Finds the ratio in rows; None if they don't have it.
        least: The least that will do.
        aim: What would be good.
    """

    title: str
    measure: Measure
    least: float
    aim: float | None = None


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Say of every floor that the rows can answer whether it is reached, one line each."""
    lines = []
    for floor in FLOORS:
        value = floor.measure(rows)
        if value is not None:
            aim = f", aim {floor.aim:g}x" if floor.aim else ""
            mark = "reached" if value >= floor.least else "MISSED"
            lines.append(f"{mark}: {floor.title}: {value:.2f}x (floor {floor.least:g}x{aim})")
    return lines


def _alike(rows: Sequence[Row], batch: int, threads: int) -> list[Row]:
    return [row for row in rows if row["batch"] == batch and row["threads"] == threads]


def _single(net: str, column: str = "against_onnxruntime_single") -> Measure:
    def measure(rows: Sequence[Row]) -> float | None:
        row = find(_alike(rows, 1, 2), net=net, engine=OURS)
        return None if row is None else row.get(column)

    return measure


def _ensemble(net: str) -> Measure:
    return lambda rows: against(_alike(rows, 1, 2), net)[0]


def _deepsparse(net: str) -> Measure:
    return lambda rows: against(_alike(rows, 1, 2), net)[1]


def _scaling(net: str) -> Measure:
    def measure(rows: Sequence[Row]) -> float | None:
        one, two = (find(rows, net=net, engine=OURS, batch=1, threads=threads) for threads in (1, 2))
        return None if one is None or two is None else one["median_ms"] / two["median_ms"]

    return measure


def _batched(net: str) -> Measure:
    def measure(rows: Sequence[Row]) -> float | None:
        one, many = (find(rows, net=net, engine=OURS, batch=batch, threads=2) for batch in (1, 16))
        return None if one is None or many is None else many["throughput"] / one["throughput"]

    return measure


def _torch(net: str, engines: Sequence[str] = ("torch", "torch.compile")) -> Measure:
    """Ours against the best of the engines that it could have fallen back to, on the same network."""

    def measure(rows: Sequence[Row]) -> float | None:
        alike = _alike(rows, 1, 2)
        found = {engine: find(alike, net=net, engine=engine) for engine in (OURS, *engines)}
        ours = found.pop(OURS)
        dense = [row["median_ms"] for row in found.values() if row is not None]
        return None if ours is None or not dense else min(dense) / ours["median_ms"]

    return measure


_WRN = (".8", ".95", ".99")
FLOORS = (
    *(
        Floor(
            f"WRN28-10 M=3 ERK S={s} against the dense single model on onnxruntime", _single(f"wrn-erk-{s}"), least, aim
        )
        for s, least, aim in zip(_WRN, (0.75, 2.3, 6.0), (1.0, 3.0, 8.0), strict=True)
    ),
    *(
        Floor(f"WRN28-10 M=3 ERK S={s} against DeepSparse on the same network", _deepsparse(f"wrn-erk-{s}"), least)
        for s, least in zip(_WRN, (3.5, 5.0, 10.0), strict=True)
    ),
    *(
        Floor(f"WRN28-10 M=3 ERK S={s} against the dense ensemble on onnxruntime", _ensemble(f"wrn-erk-{s}"), least)
        for s, least in zip(_WRN, (2.2, 7.0, 18.0), strict=True)
    ),
    *(Floor(f"WRN28-10 M=3 ERK S={s}, two threads against one", _scaling(f"wrn-erk-{s}"), 1.6) for s in _WRN),
    *(
        Floor(f"WRN28-10 M=3 ERK S={s}, images/s at batch 16 against batch 1", _batched(f"wrn-erk-{s}"), 1.0)
        for s in _WRN
    ),
    Floor("ResNet-50 M=3 S=.9 against the dense single model on onnxruntime", _single("resnet-erk-.9"), 1.0),
    Floor("LLaMA-130M, one token, M=3 S=.9 against torch eager", _torch("llama-decode-.9", ("torch",)), 3.5),
    *(
        Floor(f"{net} against the best of torch eager and torch.compile", _torch(net), 0.95)
        for net in (
            "wrn-single",
            "wrn-ensemble",
            "resnet-single",
            "llama-decode-.1",
            "llama-prefill-.1",
            "digits-trained",
        )
    ),
)

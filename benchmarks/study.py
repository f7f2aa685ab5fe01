"""The study of the README: ``python -m benchmarks.study run images --data-root DIR``, then ``table images``.

images: CIFAR-100's first 20 classes, all 10,000 training images of them, WRN10-2, the nine methods of Table 2 with the
paper's schedules at a seventeenth of their length; then the four main rows with a rate that drops at 1/2 and 3/4 of the
training instead ("late drops"); seeds 0, 1, 2 of the four main rows, one of the others.
text: WikiText-2, a Llama of 6 layers and 128 hidden states, the four systems of Table 4 (of the ensemble two networks,
which cost about as much as the others), 2000 steps of 32 x 128 tokens; one seed.
Runs go one after the other and are skipped where they are finished; several such commands may run side by side.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes._tables import mean_std
from recipes.cli import main as recipe
from recipes.cli._folder import RESULT, Choice
from recipes.training import TrainingError, locked, read_json

TREE = ("split=1", "total=True")
SCALE = ("images=None", "validation=0", "depth=10", "precision=bf16", "channels_last=True")
HALF, LONG, LATE = "epochs=*.5", "epochs=*.9", "drops=(.5,.75)"


@dataclass(frozen=True)
class Entry:
    """A row of the study.

    Args:
        label: Its name in the table.
        row: Of the paper.
        changes: Settings that differ from the preset ``small``.
        seeds: Number of seeds.
    """

    label: str
    row: str
    changes: tuple[str, ...]
    seeds: int = 1

    def results(self, out: Path) -> list[dict[str, Any]]:
        """Return what finished runs found."""
        choice = Choice.of(self.row, "small", self.changes)
        files = [choice.folder(out, seed) / RESULT for seed in range(self.seeds)]
        return [read_json(file) for file in files if file.exists()]


def _images(label: str, row: str, *changes: str, seeds: int = 1, length: str = HALF) -> Entry:
    return Entry(label, f"table2/{row}", (*SCALE, length, *changes), seeds)


def _text(label: str, row: str, *changes: str) -> Entry:
    return Entry(label, f"table4/130m-{row}", ("steps=*2", *changes))


STUDIES: dict[str, tuple[Entry, ...]] = {
    "images": (
        _images("single dense", "single-dense", seeds=3),
        _images("full ensemble (M=3)", "full-ensemble-m3", seeds=3),
        _images("TreeNet (M=3)", "treenet-m3", *TREE, seeds=3),
        _images("NeuroTrails (M=3, S=.8)", "neurotrails-m3-s0.8", *TREE, seeds=3),
        _images("DST ensemble (M=3, S=.8)", "dst-ensemble-m3-s0.8"),
        _images("EDST ensemble (M=7, S=.9)", "edst-ensemble-m7-s0.9"),
        _images("MIMO (M=3)", "mimo-m3"),
        _images("BatchEnsemble (M=4)", "batch-ensemble-m4"),
        _images("NFE (M=3)", "nfe-m3", "at=('stages.0.0','stages.1.0')"),
        _images("TreeNet, mean of the losses", "treenet-m3", "split=1"),
        _images("single dense, 27 epochs", "single-dense", length=LONG),
        _images("single dense, late drops", "single-dense", LATE, seeds=3),
        _images("full ensemble (M=3), late drops", "full-ensemble-m3", LATE, seeds=3),
        _images("TreeNet (M=3), late drops", "treenet-m3", *TREE, LATE, seeds=3),
        _images("NeuroTrails (M=3, S=.8), late drops", "neurotrails-m3-s0.8", *TREE, LATE, seeds=3),
        _images("single dense, 27 epochs, late drops", "single-dense", LATE, length=LONG),
        _images("full ensemble, 27 epochs, late drops", "full-ensemble-m3", LATE, length=LONG),
        _images("NeuroTrails, 15 epochs, late drops", "neurotrails-m3-s0.8", *TREE, LATE, length="epochs=15"),
    ),
    "text": (
        _text("single dense", "single-dense"),
        _text("full ensemble (M=2)", "full-ensemble-m3", "members=2"),
        _text("TreeNet (M=3)", "treenet-m3"),
        _text("NeuroTrails (M=3, S=.1)", "neurotrails-m3-s0.1"),
    ),
}
METRICS = {
    "images": {"accuracy %": ("accuracy_prob", 100, 1), "NLL": ("nll_prob", 1, 3), "ECE %": ("ece_prob", 100, 1)},
    "text": {"perplexity": ("perplexity_prob", 1, 2), "perplexity of a head": ("perplexity_head", 1, 2)},
}
PAPER = {"images": "accuracy", "text": "perplexity"}


def run(study: str, out: Path, data_root: Path) -> None:
    """Train and measure what is not finished and not running."""
    for entry in STUDIES[study]:
        choice = Choice.of(entry.row, "small", entry.changes)
        for seed in range(entry.seeds):
            folder = choice.folder(out, seed)
            try:
                with locked(folder):
                    pass
            except TrainingError:
                continue  # another command is at it
            settings = [part for change in entry.changes for part in ("--set", change)]
            places = ["--out", str(out), "--data-root", str(data_root), "--first-seed", str(seed)]
            if recipe(["run", entry.row, "--preset", "small", *places, *settings, "--resume", "--quiet"]):
                raise SystemExit(1)


def table(study: str, out: Path) -> str:
    """Return the table in Markdown; FLOPs relative to the single dense network, by the actual masks."""
    metrics = METRICS[study]
    headers = ["", "seeds", *metrics, "disagreement %", "training FLOPs", "inference FLOPs", "paper"]
    lines = ["| " + " | ".join(headers) + " |", "|" + "---|" * len(headers)]
    base = STUDIES[study][0].results(out)
    for entry in STUDIES[study]:
        found = entry.results(out)
        if not found:
            lines.append("| " + " | ".join([entry.label, "0", *["-"] * (len(headers) - 2)]) + " |")
            continue
        cells = [entry.label, str(len(found))]
        cells += [_spread(found, name, scale, digits) for name, scale, digits in metrics.values()]
        cells.append(_spread(found, "disagreement", 100, 1))
        for part, kind in (("training_flops", "masks"), ("costs", "inference_flops_masks")):
            cells.append(f"{found[0][part][kind] / base[0][part][kind]:.2f}x" if base else "-")
        paper = getattr(Choice.of(entry.row, "small").row.paper, PAPER[study])
        lines.append("| " + " | ".join([*cells, f"{paper:g}"]) + " |")
    every = [result for entry in STUDIES[study] for result in entry.results(out)]
    hours = sum(result["seconds"] for result in every) / 3600
    return "\n".join([*lines, "", f"{len(every)} runs, {hours:.1f} hours of training."])


def _spread(found: Sequence[dict[str, Any]], name: str, scale: float, digits: int) -> str:
    values = [result["metrics"]["last"][name] for result in found]
    if any(value is None for value in values):
        return "-"
    mean, deviation = mean_std([scale * value for value in values])
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if len(values) > 1 else "")


def main() -> None:
    """Run the command line."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("study", choices=tuple(STUDIES))
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="folder of the runs")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="folder of the data sets")
    options = parser.parse_args()
    if options.command == "run":
        run(options.study, options.out, options.data_root)
    print(table(options.study, options.out))


if __name__ == "__main__":
    main()

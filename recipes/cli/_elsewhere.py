"""Finished runs of rows that were run with other settings than those asked for, and the options that show them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from recipes._errors import RecipeError
from recipes.cli._folder import RESULT, Choice
from recipes.rows import Row, home
from recipes.training import read_json

MOST = 8
"""Lines that are printed at most."""


def elsewhere(rows: Sequence[Row], out: Path) -> str:
    """Say which finished runs of rows there are, with the options that choose them; an empty text if there are none.

    Args:
        rows: Those that have no run as it was asked for.
        out: Folder of all runs.
    """
    found: dict[str, list[str]] = {}
    for row in rows:
        for options, seeds in Counter(choice.options for choice in _finished(row, out)).items():
            found.setdefault(options, []).append(f"{row.name}, {seeds} {'seeds' if seeds > 1 else 'seed'}")
    if not found:
        return ""
    # The options that show most rows come first.
    lines = [
        f"  {options}  ({_first(runs)})" for options, runs in sorted(found.items(), key=lambda item: -len(item[1]))
    ]
    if len(lines) > MOST:
        lines = [*lines[:MOST], f"  and {len(lines) - MOST} more in {out}"]
    return "\n".join([f"Rows without a number were run with other settings, which these options show ({out}):", *lines])


def _first(runs: Sequence[str]) -> str:
    return runs[0] if len(runs) == 1 else f"{runs[0]}, and {len(runs) - 1} more"


def _finished(row: Row, out: Path) -> Iterator[Choice]:
    for preset in row.presets:
        for file in sorted((out / home(row, preset).name).glob(f"*/seed*/{RESULT}")):
            try:
                result = read_json(file)
                choice = Choice.of(row.name, result["preset"], result["changes"])
            except (RecipeError, KeyError, TypeError):
                continue  # nothing that options could show
            if choice.preset == preset and choice.folder(out, result["seed"]) == file.parent:
                yield choice

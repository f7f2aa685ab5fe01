"""A callback that writes every update down in a CSV file."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from sparsity._components import component_of
from sparsity._errors import RecordError
from sparsity._report import Rewiring

Row = Sequence[int | float | str]


class CsvLog:
    """Appends each update to a CSV file, a row for each component or for each layer.

    To be an engine's ``callback``; in several processes of one of them only. Each update is written in one piece and
    the file closed, so that it can be read while training goes on.

    Going on from a checkpoint, the updates made after it are made again. So with ``resume`` the first update takes
    its own step and all later ones out of the file before it is appended, and a last line that was cut off.

    Args:
        file: Where to; its folder has to exist.
        by_layer: A row for each layer, with its ``path``, instead of each component.
        resume: Whether to go on with a file that is there. Without it that is an error.

    Raises:
        RecordError: The file is there, and ``resume`` is not set; or it has other columns.

    Example:
        >>> import tempfile, sparsity
        >>> from pathlib import Path
        >>> file = Path(tempfile.mkdtemp()) / "updates.csv"
        >>> log = sparsity.CsvLog(file)
        >>> log(sparsity.Rewiring(100, 0.3, {"trunk.fc.weight": 5}, {"trunk.fc.weight": 5}))
        >>> print(file.read_text(), end="")
        step,fraction,component,dropped,grown
        100,0.3,trunk,5,5
    """

    def __init__(self, file: str | Path, *, by_layer: bool = False, resume: bool = False) -> None:
        self._file = Path(file)
        self._by_layer = by_layer
        self._columns = ["step", "fraction", "component", *(["path"] if by_layer else []), "dropped", "grown"]
        # The step from which on what the file says is not known to be of this training; None if it all is.
        self._last: int | None = None
        if self._file.exists() and self._file.stat().st_size:
            if not resume:
                raise RecordError(
                    f"{self._file} is there already. Pass resume=True to go on with it, or name another file."
                )
            self._kept(step=0)
        else:
            self._file.write_text(_lines([self._columns]), encoding="utf-8", newline="")
            self._last = -1

    def __call__(self, update: Rewiring) -> None:
        """Write an update down; the engine calls this."""
        if self._last is None or update.step <= self._last:
            self._replace(_lines([self._columns, *self._kept(update.step)]))
        with self._file.open("a", encoding="utf-8", newline="") as out:
            out.write(_lines(self._rows(update)))
        self._last = update.step

    def _rows(self, update: Rewiring) -> Iterable[Row]:
        start = (update.step, update.fraction)
        if self._by_layer:
            for path, grown in update.grown.items():
                yield *start, component_of(path), path, update.dropped[path], grown
            return
        dropped = update.components_dropped
        for component, grown in update.components.items():
            yield *start, component, dropped[component], grown

    def _kept(self, step: int) -> list[list[str]]:
        """Read the rows of updates before ``step``."""
        text = self._file.read_text(encoding="utf-8")
        complete = text[: text.rfind("\n") + 1]
        header, *rows = [*csv.reader(io.StringIO(complete))] or [[]]
        if header != self._columns:
            raise RecordError(
                f"{self._file} can't be gone on with: it has the columns {','.join(header)}, expected "
                f"{','.join(self._columns)}. Name another file."
            )
        for number, row in enumerate(rows, start=2):
            if len(row) != len(header) or not row[0].isdecimal():
                raise RecordError(f"Line {number} of {self._file} is no row of this log: {','.join(row)!r}. Remove it.")
        return [row for row in rows if int(row[0]) < step]

    def _replace(self, text: str) -> None:
        # Through another file, so that a crash in between loses nothing.
        beside = self._file.with_name(self._file.name + ".new")
        beside.write_text(text, encoding="utf-8", newline="")
        os.replace(beside, self._file)


def _lines(rows: Iterable[Row]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()

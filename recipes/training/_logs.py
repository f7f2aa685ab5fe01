"""Where the numbers of a training go: a CSV file always, TensorBoard and Weights & Biases on request."""

from __future__ import annotations

import csv
import io
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from recipes.training._errors import TrainingError
from recipes.training._files import read_json, write_json

Row = Mapping[str, float]


class Log(Protocol):
    """What hears of each evaluation."""

    def write(self, row: Row) -> None:
        """Take the numbers of one step, with the step as ``step``."""
        ...

    def close(self) -> None:
        """Finish."""
        ...


class CsvFile:
    """Rows of a CSV file. Going on from a checkpoint takes later rows out again.

    Args:
        file: Where to.
        step: Step of the checkpoint that training goes on from; rows of later ones are removed.
    """

    def __init__(self, file: Path, step: int) -> None:
        self._file = file
        kept = [row for row in read_rows(file) if int(row["step"]) <= step] if file.exists() else []
        beside = file.with_name(f"{file.name}.new")
        text = io.StringIO()
        if kept:
            writer = csv.DictWriter(text, list(kept[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)
        beside.write_text(text.getvalue(), encoding="utf-8")
        os.replace(beside, file)

    def write(self, row: Row) -> None:
        """Append a row, and the header before the first."""
        with self._file.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            if not file.tell():
                writer.writeheader()
            writer.writerow(row)

    def close(self) -> None:
        """Nothing is open."""


def read_rows(file: Path) -> list[dict[str, str]]:
    """Read the complete rows of a CSV file; a last line that was cut off is left out."""
    text = file.read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))


class TensorBoard:
    """Scalars in TensorBoard's event files.

    Args:
        folder: Where to.
        step: Step that training goes on from.

    Raises:
        TrainingError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise TrainingError("TensorBoard is not installed: pip install 'fxsplit[tensorboard]'") from error
        self.writer = SummaryWriter(str(folder), purge_step=step or None)

    def write(self, row: Row) -> None:
        """Write each number under its name."""
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(name, value, int(row["step"]))

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases; going on from a checkpoint goes on with the same run, starting over with a new one.

    Args:
        project: Name of the project.
        name: Name of the run.
        config: Settings to show.
        folder: Keeps the identity of the run, in ``wandb.json``.
        step: Step of the checkpoint that training goes on from; 0 if there is none.

    Raises:
        TrainingError: wandb is not installed.
    """

    def __init__(self, project: str, name: str, config: Mapping[str, Any], folder: Path, step: int) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise TrainingError("Weights & Biases is not installed: pip install 'fxsplit[wandb]'") from error
        file = folder / "wandb.json"
        if not (step and file.exists()):
            # The name does not tell runs in two folders apart: the second would go on with the first.
            folder.mkdir(parents=True, exist_ok=True)
            write_json(file, {"id": uuid.uuid4().hex})
        identity = read_json(file)["id"]
        self._run = wandb.init(project=project, name=name, id=identity, resume="allow", config=dict(config))

    def write(self, row: Row) -> None:
        """Log a row."""
        self._run.log({key: value for key, value in row.items() if key != "step"}, step=int(row["step"]))

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()

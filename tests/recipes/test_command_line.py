from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from recipes.__main__ import main
from recipes._errors import RecipeError
from recipes._settings import Settings, prepare_folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--seeds", "0"], "seeds must be at least 1, got 0"),
        (["demo", "--epochs", "-3"], "epochs must be at least 1, got -3"),
        (["demo", "--heads", "1"], "heads must be at least 2, got 1"),
        (["demo", "--workers", "0"], "workers must be at least 1, got 0"),
        (["demo", "--sparsity", "1.0"], "sparsity must lie between 0 and 1, got 1.0"),
        (["demo", "--sparsity", "nan"], "sparsity must lie between 0 and 1, got nan"),
        (["dmeo"], "unknown command 'dmeo'. Did you mean 'demo'?"),
        (["xyz"], "unknown command 'xyz'. Commands: demo, list, show, run, evaluate, table, plot."),
    ],
)
def test_bad_values_say_what_is_wrong(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert main(["demo", "--out", str(tmp_path / "file" / "out")]) == 2
    message = capsys.readouterr().err
    assert f"cannot write to {tmp_path / 'file' / 'out'}" in message
    assert "--out" in message


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RecipeError, match="cannot write to"):
        prepare_folder(tmp_path / "file")


def test_a_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    assert list(prepare_folder(tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("split", [0, 6])
def test_split_must_leave_blocks_on_both_sides(split: int) -> None:
    with pytest.raises(RecipeError, match=f"1 to 5, got {split}"):
        Settings(blocks=2, split=split)


def test_no_command_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--help"])
    assert stopped.value.code == 0
    assert "--seeds" in capsys.readouterr().out


def test_output_into_a_pipe_that_is_closed_early() -> None:
    command = f"{sys.executable} -m recipes list | true"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")

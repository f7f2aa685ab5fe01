"""Tables and figures of runs: which runs they show, and what they say of those that they don't."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from recipes.cli import main
from recipes.cli._elsewhere import MOST
from tests.recipes._finished import finish

README = Path(__file__).parents[2] / "README.md"
TRAILS = "table2/neurotrails-m3-s0.8"
Captured = pytest.CaptureFixture[str]


def call(out: Path, *arguments: str, status: int = 0) -> None:
    assert main([*arguments, "--out", str(out)]) == status


def accuracies(out: Path, captured: Captured, *arguments: str) -> dict[str, str]:
    """Names and accuracies of the rows of a table that have some."""
    call(out, *arguments, "--format", "markdown")
    lines = [line.split(" | ") for line in captured.readouterr().out.splitlines()[2:]]
    return {line[0].removeprefix("| "): line[2] for line in lines if line[1] != "-"}


class TestSettingsThatNotAllRowsHave:
    def test_each_row_takes_those_it_has(self, tmp_path: Path, capsys: Captured) -> None:
        finish(tmp_path, TRAILS, [0.5], ["every=2", "split=1", "epochs=3"])
        finish(tmp_path, "table2/mimo-m3", [0.4], ["epochs=3"])
        finish(tmp_path, "table2/single-dense", [0.3], ["epochs=3"])
        changes = [f"--set={each}" for each in ("every=2", "split=1", "epochs=3")]
        assert accuracies(tmp_path, capsys, "table", "2", *changes) == {
            "Single dense": "30.00",
            "MIMO (M=3)": "40.00",
            "NeuroTrails (M=3, S=0.8)": "50.00",
        }
        call(tmp_path, "table", "2", *changes, "--format", "markdown")
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "NeuroTrails (M=3" in line]
        assert line.count("1.00x") == 4  # relative to the single network, which has fewer of the settings

    def test_plots_too(self, tmp_path: Path, capsys: Captured) -> None:
        finish(tmp_path, "figure6/full-ensemble-m2", [0.4], ["epochs=3"])
        finish(tmp_path, "figure6/neurotrails-m5", [0.5], ["epochs=3", "every=2"])
        finish(tmp_path, "table2/single-dense", [0.3], ["epochs=3"])
        call(tmp_path, "plot", "6", "--set=epochs=3", "--set=every=2")
        assert capsys.readouterr().err == ""

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("evry=2", "No row of table2 has a setting 'evry'. Did you mean 'every'"),
            ("epochs", "--set takes name=value, got 'epochs'"),
            ("epochs=0", "epochs must be at least 1"),
        ],
    )
    def test_what_no_row_takes(self, change: str, message: str, tmp_path: Path, capsys: Captured) -> None:
        call(tmp_path, "table", "2", "--set", change, "--set", "split=1", status=2)
        assert message in capsys.readouterr().err


class TestRunsWithOtherSettings:
    def test_options_that_show_them_are_said(self, tmp_path: Path, capsys: Captured) -> None:
        finish(tmp_path, TRAILS, [0.5, 0.6], ["epochs=*.25", "lr=.2"])
        for arguments in (["table", "2"], ["table", "2", "--format", "json"], ["table", "2", "--set", "epochs=*.5"]):
            call(tmp_path, *arguments)
            said = capsys.readouterr().err
            assert f"--preset small --set 'epochs=*.25' --set lr=.2  ({TRAILS}, 2 seeds)" in said, arguments
        options = shlex.split(re.findall(r"^  (--.*?)  \(", said, re.MULTILINE)[0])
        assert accuracies(tmp_path, capsys, "table", "2", *options) == {"NeuroTrails (M=3, S=0.8)": "55.00 ± 7.07"}
        assert capsys.readouterr().err == ""

    def test_of_figures(self, tmp_path: Path, capsys: Captured) -> None:
        finish(tmp_path, "figure3/set-h8", [0.5], ["epochs=3"])
        call(tmp_path, "plot", "figure3", "--set", "epochs=4", status=2)
        said = capsys.readouterr().err
        assert "No run of figure3 is finished" in said
        assert "with the preset 'small' and epochs=4" in said
        assert "--preset small --set epochs=3  (figure3/set-h8, 1 seed)" in said
        finish(tmp_path, "figure3/rigl-h8", [0.5], ["epochs=4"])
        call(tmp_path, "plot", "3", "--set", "epochs=4")
        assert "--preset small --set epochs=3  (figure3/set-h8, 1 seed)" in capsys.readouterr().err
        finish(tmp_path, "figure6/full-ensemble-m2", [0.5])
        finish(tmp_path, "table2/single-dense", [0.5], ["epochs=3"])
        call(tmp_path, "plot", "figure6", status=2)
        assert "epochs=3  (table2/single-dense, 1 seed)" in capsys.readouterr().err

    def test_the_options_of_most_rows_come_first(self, tmp_path: Path, capsys: Captured) -> None:
        for epochs in range(1, MOST + 3):
            finish(tmp_path, TRAILS, [0.5], [f"epochs={epochs}"])
        finish(tmp_path, "table2/treenet-m3", [0.5], ["epochs=7"])
        call(tmp_path, "table", "2")
        lines = capsys.readouterr().err.splitlines()
        assert "--set epochs=7  (table2/treenet-m3, 1 seed, and 1 more)" in lines[1]
        assert lines[-1] == f"  and 2 more in {tmp_path}"

    def test_what_is_no_result_is_passed_over(self, tmp_path: Path, capsys: Captured) -> None:
        finish(tmp_path, TRAILS, [0.5, 0.5, 0.5], ["epochs=3"])
        files = sorted(tmp_path.rglob("result.json"))
        files[0].write_text("{")
        files[1].write_text(json.dumps({"preset": "small", "changes": ["nothing=1"], "seed": 1}))
        call(tmp_path, "table", "2")
        assert "1 seed)" in capsys.readouterr().err

    def test_nothing_is_said_of_an_empty_folder(self, tmp_path: Path, capsys: Captured) -> None:
        call(tmp_path, "table", "2")
        assert capsys.readouterr().err == ""


def test_table_15_compares_numbers_of_parameters(tmp_path: Path, capsys: Captured) -> None:
    finish(tmp_path, "table15/single-dense-250m", [0.5])
    call(tmp_path, "table", "15", "--format", "markdown")
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in rows]
    column = lines[0].index("parameters")
    assert lines[0][column : column + 3] == ["parameters", "paper", "nonzero"]
    assert lines[2][column : column + 3] == ["1.23M", "247.37M", "1.00M"]
    assert lines[3][column : column + 3] == ["-", "245.66M", "-"]
    assert len({len(line) for line in lines}) == 1
    call(tmp_path, "table", "2", "--format", "markdown")
    assert "| parameters | nonzero |" in capsys.readouterr().out


def test_the_commands_of_the_readme_are_about_the_same_run(tmp_path: Path, capsys: Captured) -> None:
    part = README.read_text().partition("### The paper's experiments")[2].partition("### ")[0]
    commands = [shlex.split(line, comments=True) for line in re.findall(r"^\$ python -m recipes (.*)$", part, re.M)]
    (run,) = [each for each in commands if each[:2] == ["run", TRAILS]]
    changes = [run[place + 1] for place, each in enumerate(run) if each == "--set"]
    finish(tmp_path, TRAILS, [0.5] * int(run[run.index("--seeds") + 1]), changes)
    finish(tmp_path, "table4/130m-treenet-m3", [0.5])
    seen = {"run"}
    for command in commands:
        if command[0] in ("table", "plot"):
            call(tmp_path, *command)
            said = capsys.readouterr()
            assert said.err == "", command
            assert command[0] == "plot" or "50.00 ± 0.00" in said.out
        elif command[0] == "evaluate":
            # These are no real runs: each is found, and lacks its network.
            assert main([*command, "--out", str(tmp_path)]) == 2
            assert "holds no 'last' state" in capsys.readouterr().err, command
        elif command[0] == "show":
            assert main(command) == 0
            capsys.readouterr()
        seen.add(command[0])
    assert seen == {"show", "run", "table", "plot", "evaluate"}

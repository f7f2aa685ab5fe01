"""The folder of a run: one for each recipe, however its settings were written."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes._errors import RecipeError
from recipes.cli import main
from recipes.cli._folder import LONGEST, Choice
from recipes.rows import find, spelled

ROW = "table2/neurotrails-m3-s0.8"
SMALL = find(ROW).recipe("small")


def name(*changes: str, row: str = ROW) -> str:
    return Choice.of(row, "small", changes).folder(Path(), 0).parent.name


def lr(*changes: str) -> float:
    return Choice.of(ROW, "small", changes).recipe.training.optimizer.lr


def test_the_last_of_several_changes_counts() -> None:
    assert lr("lr=.2", "lr=.1") == 0.1
    assert lr("lr=.1", "lr=.2") == 0.2
    assert lr("lr=.1", "training.optimizer.lr=.2") == 0.2
    assert name("lr=.2", "epochs=3", "optimizer.lr=.1") == "small+epochs=3+lr=.1"


@pytest.mark.parametrize(
    ("folder", "spellings"),
    [
        ("lr=.1", ("lr=.1", "lr=0.1", "lr=0.10", "lr = 1e-1", "training.optimizer.lr=.1", "optimizer.lr=.1")),
        ("clip=1", ("clip=1", "clip=1.0", "training.clip=1.")),
        ("label_smoothing=0", ("label_smoothing=0", "label_smoothing=-0.", "label_smoothing=0.0")),
        ("lr=1e-05", ("lr=.00001", "lr=1e-5")),
        ("epochs=x.5", ("epochs=*.5", "epochs=*0.5", "training.epochs= *5e-1")),
        ("lr=x2", ("lr=*2", "lr=*2.0")),
        ("drops=(.5,.75)", ("drops=(.5,.75)", "drops=[0.5, 0.75]", "schedule.drops=(.5, .75,)")),
        ("drops=(.5,)", ("drops=(.5,)", "drops=[.5]")),
        ("images=None", ("images=None", "images=none", "data.images=NONE")),
        ("total=True", ("total=True", "total=true", "method.total=True")),
        ("precision=bf16", ("precision=bf16", "precision='bf16'")),
        ("split=1", ("split=1", "split=0x1")),
        ("split='1'", ("split='1'", 'split="1"')),
        ("split='*2'", ("split='*2'",)),
        ("name=a b", ("name=a b", "name='a b'", "data.name = a b")),
        ("name=' a'", ("name=' a'",)),
    ],
)
def test_all_spellings_of_a_setting_have_one_folder(folder: str, spellings: tuple[str, ...]) -> None:
    assert {name(each) for each in spellings} == {f"small+{folder.replace('*', 'x')}"}
    assert len({Choice.of(ROW, "small", [each]).recipe for each in spellings}) == 1


def test_the_folders_of_earlier_runs_are_found() -> None:
    at = "at=('stages.0.0','stages.1.0')"
    assert name("validation=0", "epochs=*.5", at, row="table2/nfe-m3") == f"small+{at}+epochs=x.5+validation=0"


def test_spaces_within_quotes_are_kept() -> None:
    choice = Choice.of(ROW, "small", ["split='a  b'"])
    assert choice.recipe.method.split == "a  b"  # pyright: ignore
    assert choice.options == "--preset small --set 'split=a  b'"


def test_a_spelling_means_what_it_spells() -> None:
    changes = ["drops=(0.25, 5e-1)", "lr=1e300", "clip=none", "batch_size=1_000", "split='None'", "epochs=*.3"]
    again = spelled(SMALL, changes)
    assert spelled(SMALL, again) == again
    assert Choice.of(ROW, "small", changes).recipe == Choice.of(ROW, "small", again).recipe


def test_long_names_are_shortened(tmp_path: Path) -> None:
    changes = [f"drops=({','.join(f'.{share}' for share in range(101, 191))})"]
    short, other = name(*changes), name(*changes, "lr=.2")
    assert short != other
    assert short.startswith("small+drops=(.101,.102,")
    for each in (short, other, name(f"name={'é' * 150}")):
        assert LONGEST - 1 <= len(each.encode()) <= LONGEST
        (tmp_path / each).mkdir()


def test_a_long_name_is_no_error_of_the_system(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "table3/treenet-m3", "--out", str(tmp_path), "--set", f"data.name={'x' * 300}", "--quiet"]
    assert main(arguments) == 2
    assert "unknown data set" in capsys.readouterr().err


def test_a_bad_preset_is_said_before_bad_settings() -> None:
    with pytest.raises(RecipeError, match="Unknown preset 'smal'"):
        Choice.of(ROW, "smal", ["nothing=1"])

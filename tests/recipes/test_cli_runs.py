from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import fxsplit
import recipes.cli._plot
from recipes.cli import COMMANDS, main
from recipes.cli._folder import Choice
from recipes.cli._interrupted import resuming
from recipes.data import in_order
from recipes.training import locked
from tests.recipes._finished import finish

ROOT = Path(__file__).parents[2]
QUICK = ["--quiet", "--preset", "small"]
DIGITS = ["--set", "images=120", "--set", "batch_size=32", "--set", "epochs=2"]
WRN_ON_DIGITS = [
    *DIGITS,
    *("--set", "data.name=digits", "--set", "classes=none", "--set", "depth=10", "--set", "width=1"),
]


def run(out: Path, row: str, *arguments: str) -> int:
    return main(["run", row, *QUICK, "--out", str(out), *arguments])


def result_of(out: Path, row: str, seed: int = 0) -> dict:
    (file,) = (out / row).glob(f"*/seed{seed}/result.json")
    return json.loads(file.read_text())


# One row for each method, on digits, for six steps.
SMOKE = {
    "table3/single-dense": DIGITS,
    "table3/mimo-m2-rho0.6": DIGITS,
    "table3/edst-ensemble-m4-s0.8": [*DIGITS, "--set", "every=2"],
    "table3/dst-ensemble-m2-s0.8": [*DIGITS, "--set", "every=2"],
    "table3/batch-ensemble-m4": [*DIGITS, "--set", "members=2"],
    "table3/treenet-m3": DIGITS,
    "table3/full-ensemble-m4": [*DIGITS, "--set", "members=2"],
    "table3/neurotrails-m3-s0.7": [*DIGITS, "--set", "every=2"],
    "table2/nfe-m3": [*WRN_ON_DIGITS, "--set", "at=('stages.0.0','stages.1.0')"],
    "figure3/set-h8": [*WRN_ON_DIGITS, "--set", "split=1", "--set", "every=2"],
    "figure3/static-h8": [*WRN_ON_DIGITS, "--set", "split=1"],
    "figure3/pruned-h8": [*WRN_ON_DIGITS, "--set", "split=1"],
}


@pytest.mark.parametrize("row", SMOKE)
def test_every_method_runs_end_to_end(row: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, row, *SMOKE[row]) == 0, capsys.readouterr().err
    assert re.search(r"seed 0: accuracy_prob 0\.\d+, nll_prob", capsys.readouterr().out)
    result = result_of(tmp_path, row)
    metrics, flops = result["metrics"], result["training_flops"]
    assert set(metrics) == {"last", "best"}
    assert 0 < metrics["last"]["accuracy_prob"] < 1
    assert (metrics["last"]["disagreement"] is None) == (result["heads"] == 1)
    assert 0 < flops["masks"] <= flops["dense"]
    assert (flops["masks"] == flops["dense"]) == (result["costs"]["density"] == 1)
    folder = next((tmp_path / row).glob("*/seed0"))
    assert "<html" in (folder / "report.html").read_text()
    for state in metrics:
        assert (folder / f"{state}.safetensors").exists()
        assert not (folder / f"{state}.pt").exists()
    assert not list(folder.glob("network-*/*.pt"))
    with (folder / "network-0" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert int(rows[-1]["step"]) == result["steps"][0]
    assert {"loss", "lr", "training_flops", "validation_accuracy", "validation_disagreement"} <= set(rows[0])


@pytest.mark.parametrize("row", ["table4/130m-single-dense", "table4/130m-neurotrails-m3-s0.1"])
def test_language_models_run_end_to_end(row: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"all work and no play makes jack {number} a dull boy.\n" for number in range(200)))
    settings = [
        "data.name=text",
        "tokenizer=bpe:300",
        "length=16",
        "layers=3",
        "hidden=16",
        "intermediate=24",
        "heads=2",
    ]
    settings += ["positions=16", "steps=4", "batch_size=8", "evaluate_every=2", "schedule.warmup=.25"]
    settings += ["split=1", "every=2"] if "neurotrails" in row else []
    changes = [part for setting in settings for part in ("--set", setting)]
    assert run(tmp_path, row, "--data-root", str(text), *changes) == 0
    metrics = result_of(tmp_path, row)["metrics"]["last"]
    assert 1 < metrics["perplexity_prob"] < 600
    assert metrics["perplexity_prob"] <= metrics["perplexity_head"] + 1e-6
    (page,) = (tmp_path / row).rglob("report.html")
    assert re.search(r"perplexity is per token of</td><td[^>]*>bpe:300", page.read_text())
    note = "Perplexities are per token of bpe:300; they do not compare with those of another tokenizer."
    capsys.readouterr()
    assert main(["table", "4", "--out", str(tmp_path), *changes]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == note
    assert main(["table", "2", "--out", str(tmp_path)]) == 0
    assert "Perplexities" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("once")
    assert run(out, TestFinished.row, *DIGITS) == 0
    return out


@pytest.fixture
def out(once: Path, tmp_path: Path) -> Path:
    """A copy of it, which a test may spoil."""
    return Path(shutil.copytree(once, tmp_path / "out"))


class TestFinished:
    row = "table3/treenet-m3"

    def test_finished_seeds_are_kept(self, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = next((out / self.row).glob("*/seed0/result.json"))
        before = file.stat().st_mtime_ns
        assert run(out, self.row, *DIGITS, "--seeds", "2") == 0
        assert file.stat().st_mtime_ns == before
        assert result_of(out, self.row, 1)["metrics"] != result_of(out, self.row, 0)["metrics"]
        capsys.readouterr()

        changes = DIGITS
        assert main(["table", "3", "--out", str(out), *changes, "--format", "markdown"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("| system | seeds | accuracy % | paper | NLL | paper | ECE | paper |")
        (line,) = [line for line in lines if "TreeNet" in line]
        cells = [cell.strip() for cell in line.split("|")][1:-1]
        accuracies = [100 * result_of(out, self.row, seed)["metrics"]["last"]["accuracy_prob"] for seed in (0, 1)]
        mean = sum(accuracies) / 2
        std = (sum((accuracy - mean) ** 2 for accuracy in accuracies)) ** 0.5
        assert cells[:4] == ["TreeNet (M=3)", "2", f"{mean:.2f} ± {std:.2f}", "78.1"]
        assert main(["table", "3", "--out", str(out), *changes, "--format", "json"]) == 0
        assert len(json.loads(capsys.readouterr().out)[self.row]) == 2
        for vote in ("--state", "best"), ("--vote", "logit"):
            assert main(["table", "3", "--out", str(out), *changes, *vote]) == 0

    def test_ratios_are_to_the_single_network(self, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(out, "table3/single-dense", *DIGITS) == 0
        assert main(["table", "3", "--out", str(out), *DIGITS, "--format", "markdown"]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "| TreeNet" in line]
        ratios = re.findall(r"\d\.\d\dx", line)
        one, tree = (result_of(out, row) for row in ("table3/single-dense", self.row))
        inference = tree["costs"]["inference_flops_masks"] / one["costs"]["inference_flops_dense"]
        training = tree["training_flops"]["masks"] / one["training_flops"]["dense"]
        assert ratios == [f"{inference:.2f}x"] * 2 + ["2.91x"] + [f"{training:.2f}x"] * 2 + ["2.91x"]

    def test_a_setting_that_not_all_rows_have(self, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
        # Single networks have no heads, so their row is that without the setting. It was not run: FLOPs stay absolute.
        assert run(out, self.row, *DIGITS, "--set", "members=2") == 0
        capsys.readouterr()
        assert main(["table", "3", "--out", str(out), *DIGITS, "--set", "members=2", "--format", "markdown"]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "| TreeNet" in line]
        assert "e+" in line

    def test_the_saved_network_gives_the_numbers(self, out: Path) -> None:
        from recipes.evaluation import evaluate, predict
        from recipes.rows import find, overridden
        from recipes.training import Processes

        folder = next((out / self.row).glob("*/seed0"))
        recipe = overridden(find(self.row).recipe("small"), DIGITS[1::2])
        material = recipe.data.load(None)
        model = recipe.model.make(material.outputs, material.channels)
        net = fxsplit.load(folder / "last.safetensors", model, example=material.example)
        measured = evaluate(*predict(net, material.read("test", Processes(0, 1, torch.device("cpu")))))
        assert measured["nll_prob"] == pytest.approx(result_of(out, self.row)["metrics"]["last"]["nll_prob"], rel=1e-6)

    @pytest.mark.filterwarnings("ignore:The NLL on .* has no lowest point")
    def test_workers_fetch_images_for_evaluation_too(
        self, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Validation part after both epochs; test part of both states, and the validation part, in the end."""
        asked: list[int] = []

        def spy(*arguments: Any, workers: int = 0, **options: Any) -> Any:
            asked.append(workers)
            return in_order(*arguments, workers=workers, **options)

        monkeypatch.setattr("recipes.rows._data.in_order", spy)
        monkeypatch.setattr("recipes.cli._evaluate.in_order", spy)
        assert run(tmp_path / "fetched", self.row, *DIGITS, "--workers", "1") == 0
        assert asked == [1] * 5
        one, other = (result_of(place, self.row) for place in (out, tmp_path / "fetched"))
        assert one["metrics"] == other["metrics"]
        asked.clear()
        assert main(["evaluate", self.row, "--out", str(tmp_path / "fetched"), *DIGITS, "--workers", "1"]) == 0
        assert asked == [1] * 2

    def test_a_folder_of_another_recipe(self, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = next((out / self.row).glob("*/seed0/recipe.json"))
        file.write_text(file.read_text().replace('"members": 3', '"members": 4'))
        assert run(out, self.row, *DIGITS) == 2
        assert "is of another recipe: method.members was 4, now 3. Choose another --out" in capsys.readouterr().err

    def test_a_folder_in_use(self, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with locked(next((out / self.row).glob("*/seed0"))):
            assert run(out, self.row, *DIGITS) == 2
        assert f"is in use by process {os.getpid()}" in capsys.readouterr().err


class Unfinished:
    """A real run in a process of its own, in the middle of its training."""

    row = "table3/neurotrails-m3-s0.7"
    settings = ("--set", "images=120", "--set", "batch_size=16", "--set", "epochs=12", "--set", "every=3")

    def __init__(self, out: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "recipes", "run", self.row, *QUICK, "--out", str(out), *self.settings]
        self.process = subprocess.Popen(
            [*command, *arguments],
            cwd=ROOT,
            env=self.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        log = None
        deadline = time.monotonic() + 300
        while log is None or len(log.read_text().splitlines()) < 4:
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
            log = next(out.glob(f"{self.row}/*/seed0/network-0/log.csv"), None)
        self.folder = log.parent

    @staticmethod
    def environment() -> dict[str, str]:
        return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """Send a signal to all its processes, as a terminal does; return its exit status and what it said."""
        os.killpg(self.process.pid, number)
        _, said = self.process.communicate(timeout=300)
        assert (self.folder / "checkpoint.pt").exists()
        assert not (self.folder / "done.json").exists()
        return self.process.returncode, said


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, left alone."""
    out = tmp_path_factory.mktemp("whole")
    assert run(out, Unfinished.row, *Unfinished.settings) == 0
    return out


def assert_same_bits(whole: Path, resumed: Path) -> None:
    whole, resumed = (next(out.glob(f"{Unfinished.row}/*/seed0")) for out in (whole, resumed))
    for name in ("last.safetensors", "best.safetensors", "network-0/log.csv", "network-0/topology.csv"):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes(), name
    one, other = (json.loads((folder / "result.json").read_text()) for folder in (whole, resumed))
    assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_a_run_that_is_killed_goes_on_to_the_same_bits(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """kill -9 in the middle of a real run, then --resume, against a run that was left alone."""
    Unfinished(tmp_path, "--checkpoint-minutes", "0").end(signal.SIGKILL)

    assert run(tmp_path, Unfinished.row, *Unfinished.settings) == 2
    assert "has an unfinished run. Go on with it by --resume" in capsys.readouterr().err
    assert run(tmp_path, Unfinished.row, *Unfinished.settings, "--resume") == 0
    assert_same_bits(whole, tmp_path)


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, "1"), (signal.SIGTERM, "0")])
def test_a_run_that_is_asked_to_end_says_how_to_go_on(
    number: signal.Signals, workers: str, whole: Path, tmp_path: Path
) -> None:
    """Ctrl-C or SIGTERM in the middle of a real run, then the command that it printed."""
    status, said = Unfinished(tmp_path, "--workers", workers).end(number)
    assert status == 128 + number
    (line,) = said.splitlines()
    start, _, command = line.partition(" Go on with: python ")
    assert start == f"python -m recipes: ended by {number.name}."
    assert command.endswith("--resume")
    subprocess.run([sys.executable, *shlex.split(command)], cwd=ROOT, env=Unfinished.environment(), check=True)
    assert_same_bits(whole, tmp_path)


def test_the_command_that_goes_on_is_said_for_runs_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(options: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "list", interrupt)  # pyright: ignore[reportArgumentType]
    assert main(["list"]) == 130
    assert capsys.readouterr().err == "python -m recipes: ended by SIGINT.\n"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert resuming(["run", "--resume"]) == "torchrun --nproc-per-node 2 -m recipes run --resume"
    monkeypatch.setenv("RANK", "1")
    assert main(["list"]) == 130
    assert not capsys.readouterr().err


def test_a_resumed_run_goes_on_in_the_same_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted at its second evaluation: each number is there once, and Weights & Biases has a run for each out."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    started: list[str] = []
    heard: list[int] = []
    interruptions = [4]

    class Run:
        def log(self, row: Any, step: int) -> None:
            if step in interruptions:
                interruptions.remove(step)
                raise KeyboardInterrupt
            heard.append(step)

        def finish(self) -> None:
            pass

    class Wandb:
        @staticmethod
        def init(id: str, **options: Any) -> Run:
            started.append(id)
            return Run()

    monkeypatch.setitem(sys.modules, "wandb", Wandb)
    row = "table3/treenet-m3"
    settings = ["--set", "images=160", "--set", "batch_size=32", "--set", "epochs=2", "--set", "evaluate_every=2"]
    logs = ["--wandb", "project", "--tensorboard", "--checkpoint-minutes", "0"]
    assert run(tmp_path / "one", row, *settings, *logs) == 130
    assert run(tmp_path / "one", row, *settings, *logs, "--resume") == 0
    assert run(tmp_path / "two", row, *settings, *logs) == 0
    assert started[0] == started[1] != started[2]
    assert heard == [2, 4, 6, 8] * 2

    folder = next((tmp_path / "one" / row).glob("*/seed0/network-0"))
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    with (folder / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert set(events.Tags()["scalars"]) == set(rows[0]) - {"step"}
    for name in events.Tags()["scalars"]:
        written = {event.step: event.value for event in events.Scalars(name)}
        assert len(written) == len(events.Scalars(name))
        assert written == pytest.approx({int(row["step"]): float(row[name]) for row in rows}, rel=1e-6), name


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["run", "table2/treenet"], "Unknown row 'table2/treenet'. Did you mean 'table2/treenet-m3'"),
            (["run", "table2/treenet-m3", "--preset", "papre"], "Unknown preset 'papre'"),
            (["run", "table2/treenet-m3", "--set", "momentom=1"], "Did you mean 'momentum'"),
            (["run", "table2/treenet-m3", "--seeds", "0"], "seeds must be at least 1, got 0"),
            (["run", "table2/treenet-m3", "--first-seed", "-1"], "first-seed must be at least 0, got -1"),
            (["evaluate", "table2/treenet-m3", "--first-seed", "-1"], "first-seed must be at least 0, got -1"),
            (["run", "table2/treenet-m3", "--workers", "-1"], "workers must be at least 0, got -1"),
            (["run", "table2/treenet-m3", "--checkpoint-minutes", "-1"], "checkpoint_minutes must be at least 0"),
            (["run", "table2/treenet-m3", "--device", "cuda:99"], "There is no device 'cuda:99'"),
            (["run", "table2/treenet-m3", "--data-root", "nowhere"], "cifar100 is not in nowhere"),
            (["run", "table3/treenet-m3", "--set", "split=layer2.7"], "layer2.7"),
            (["run", "table3/treenet-m3", "--set", "validation=.0001"], "empty validation split"),
            (["run", "table3/mimo-m2-rho0.6", "--set", "batch_size=1"], "batch_size"),
            (["show", "table2/tree"], "Unknown row"),
            (["list", "tabel"], "No row matches"),
            (["run", "table2/treenet-m3", "--set", "learning_rate=1"], "Did you mean 'lr'?"),
            (["run", "--prest", "small", "table2/treenet-m3"], "run has no option '--prest'. Did you mean '--preset'?"),
            (["show", "table2/treenet-m3", "--prest=small"], "show has no option '--prest'. Did you mean '--preset'?"),
            (["show", "table2/treenet-m3", "--xyzzy"], "'--xyzzy'. All that it takes: python -m recipes show --help"),
            (["show", "table2/treenet-m3", "small"], "show takes no 'small'."),
            (["table", "9"], "There is no 'table9'"),
            (["table", "5"], "Table 5 is of runs of table4: python -m recipes evaluate ROW --tasks."),
            (["list", "table5"], "Table 5 is of runs of table4: python -m recipes evaluate ROW --tasks."),
            (["table", "2", "--set", "momentom=1"], "Did you mean 'momentum'"),
            (["plot", "figure3", "--preset", "smal"], "Unknown preset 'smal'"),
            (["tabel"], "unknown command 'tabel'. Did you mean 'table'?"),
        ],
    )
    def test_bad_input_says_what_is_wrong(
        self, arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        extra = ["--quiet", "--out", str(tmp_path)] if arguments[0] == "run" else []
        assert main([*arguments, *extra]) == 2
        assert message in capsys.readouterr().err
        assert not list(tmp_path.rglob("result.json"))

    def test_a_failed_start_can_be_repeated_without_resume(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for _ in range(2):
            assert run(tmp_path, "table3/treenet-m3", *DIGITS, "--set", "lr=1e30") == 2
            assert "Lower lr" in capsys.readouterr().err


def test_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "table15"]) == 0
    assert "table15/neurotrails-m3-s0.13" in capsys.readouterr().out
    assert main(["show", "table2/neurotrails-m3-s0.8", "--set", "lr=.05"]) == 0
    shown = capsys.readouterr().out
    assert "training.optimizer.lr = 0.05" in shown
    assert "paper: accuracy 83.8, nll 0.681, ece 0.044, train 0.85, inference 0.47" in shown
    assert "table2/neurotrails-m3-s0.8 (small, lr=.05): NeuroTrails" in shown
    assert "preset small; --preset paper or --preset released shows the others" in shown
    assert "training.epochs = 54" in shown
    assert main(["show", "table2/neurotrails-m3-s0.8", "--preset", "paper"]) == 0
    assert "training.epochs = 450" in capsys.readouterr().out
    assert main(["show", "table2/mimo-m3", "--preset", "paper"]) == 0
    assert "preset paper; --preset small shows the other\n" in capsys.readouterr().out
    assert main(["show", "table2/single-dense"]) == 0
    assert "3.6e17 FLOPs" in capsys.readouterr().out
    assert main(["table", "2", "--out", "nowhere"]) == 0
    assert "83.8" in capsys.readouterr().out


class TestPlots:
    def test_each_figure_is_drawn_of_what_is_finished(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name in ("figure3/rigl-h4", "figure3/set-h8", "figure6/full-ensemble-m2", "figure7/neurotrails-m3-s0.9"):
            finish(tmp_path, name, [0.3, 0.32])
        for name in ("table2/single-dense", "table2/neurotrails-m3-s0.8", "figure5/neurotrails-m3-s0.8"):
            if not Choice.of(name, "small").folder(tmp_path, 0).exists():
                finish(tmp_path, name, [0.31])
        for place in ("3", "figure5", "figure6", "7"):
            assert main(["plot", place, "--out", str(tmp_path)]) == 0
            assert Path(capsys.readouterr().out.strip()).read_bytes()[1:4] == b"PNG"

    def test_what_is_varied_is_read_from_the_recipe(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = {}
        monkeypatch.setattr(recipes.cli._plot, "blocks_plot", lambda accuracies, look: seen.update(accuracies))
        for name, accuracy in (("figure3/rigl-h4", 0.3), ("figure3/rigl-h8", 0.4), ("figure3/set-h12", 0.5)):
            finish(tmp_path, name, [accuracy])
        recipes.cli._plot.plot("figure3", "small", tmp_path)
        # Blocks of the small network, which has 6 for the paper's 12.
        assert seen == {"RigL": {2: [0.3], 4: [0.4]}, "SET": {6: [0.5]}}

    def test_a_split_that_is_no_number_of_blocks(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        finish(tmp_path, "figure3/rigl-h4", [0.3], changes=["split=auto"])
        assert main(["plot", "figure3", "--out", str(tmp_path), "--set", "split=auto"]) == 2
        assert "split must be a number of blocks, got 'auto'" in capsys.readouterr().err

    def test_a_file_that_cannot_be_written(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        finish(tmp_path, "figure7/neurotrails-m3-s0.9", [0.3])
        (tmp_path / "file").touch()
        place = tmp_path / "file" / "plot.png"
        assert main(["plot", "7", "--out", str(tmp_path), "--file", str(place)]) == 2
        message = capsys.readouterr().err
        assert f"cannot write to {place}: " in message
        assert "Choose another file with --file." in message

    def test_nothing_to_draw(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["plot", "figure3", "--out", str(tmp_path)]) == 2
        assert "No run of figure3 is finished" in capsys.readouterr().err
        assert main(["plot", "figure9", "--out", str(tmp_path)]) == 2
        assert "There is no plot of 'figure9'" in capsys.readouterr().err
        finish(tmp_path, "figure6/full-ensemble-m2", [0.3])
        assert main(["plot", "figure6", "--out", str(tmp_path)]) == 2
        assert (
            "relative to table2/single-dense, which is not finished with the preset 'small'" in capsys.readouterr().err
        )

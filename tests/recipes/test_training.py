from __future__ import annotations

import copy
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

import fxsplit
import sparsity
from recipes._errors import RecipeError
from recipes.evaluation import evaluate, predict
from recipes.methods import Edst, Method, Rigl, Single, Sparse, Tree, single_dense
from recipes.training import (
    CHECKPOINT,
    DONE,
    Adam,
    Constant,
    Cosine,
    CsvFile,
    FlatLinear,
    Interrupted,
    Job,
    Piecewise,
    Processes,
    Runtime,
    Sgd,
    Steps,
    TensorBoard,
    Training,
    TrainingError,
    WarmSteps,
    WeightsAndBiases,
    costs,
    deterministic,
    locked,
    measure,
    processes,
    raised,
    read_rows,
    read_tensors,
    train,
    write_tensors,
)
from recipes.training._clock import CheckpointClock
from recipes.training._signals import deferred

EXAMPLE = torch.zeros(2, 6)
ALONE = Processes(0, 1, torch.device("cpu"))
QUIET = Runtime(progress=False)


def make() -> nn.Module:
    """A small network with dropout and BatchNorm, so that random state and buffers matter."""
    return nn.Sequential(
        nn.Sequential(nn.Linear(6, 16), nn.ReLU()),
        nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.ReLU()),
        nn.Linear(16, 4),
    )


class Feed:
    """Batches that follow from epoch and number; four an epoch."""

    steps = 4

    def __init__(self, stop: int | None = None) -> None:
        self.stop, self.given = stop, 0

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(start, self.steps):
            if self.given == self.stop:
                raise KeyboardInterrupt
            self.given += 1
            yield batch(100 * epoch + number)


def batch(key: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(key)
    x = torch.randn(16, 6, generator=generator)
    return x, (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()


def job(method: Method, folder: Path, training: Training, feed: Any = None, runtime: Runtime = QUIET) -> Job:
    def validation() -> Iterator[tuple[Tensor, Tensor]]:
        return iter([batch(-1), batch(-2)])

    return Job(method, training, runtime, feed or Feed(), validation, folder, 0, EXAMPLE)


TRAILS = Tree(1, 3, Sparse(0.5), Rigl(every=3, temperature=2.0))
EVERYTHING = Training(
    Adam(lr=0.01), Cosine(warmup=0.2), epochs=5, batch_size=16, accumulate=2, clip=1.0, ema=0.9, label_smoothing=0.1
)


class TestSchedules:
    def test_steps_drop_after_shares_of_the_training(self) -> None:
        factors = [Steps().factor(step, 8) for step in range(8)]
        assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])

    def test_steps_after_a_linear_rise(self) -> None:
        schedule = WarmSteps((0.5, 0.75), by=0.2, warmup=0.25)
        by_hand = [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 0.2, 0.2, 0.2, 0.2, 0.04, 0.04, 0.04, 0.04]
        assert [schedule.factor(step, 16) for step in range(16)] == pytest.approx(by_hand)
        assert [WarmSteps().factor(step, 8) for step in range(8)] == [Steps().factor(step, 8) for step in range(8)]

    def test_cosine_with_warmup_and_floor(self) -> None:
        schedule = Cosine(floor=0.1, warmup=0.2)
        by_hand = [0.5, 1.0] + [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
        assert [schedule.factor(step, 10) for step in range(10)] == pytest.approx(by_hand)

    def test_cosine_is_that_of_torch(self) -> None:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7)
        for step in range(7):
            assert Cosine().factor(step, 7) == pytest.approx(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()

    def test_flat_then_linear(self) -> None:
        assert [FlatLinear().factor(step, 10) for step in (0, 5, 7, 9)] == pytest.approx([1, 1, 0.505, 0.01])

    def test_pieces(self) -> None:
        schedule = Piecewise(((0.5, 1.0), (0.75, 0.1), (1.0, 0.01)))
        assert [schedule.factor(step, 8) for step in (0, 3, 4, 5, 6, 7)] == [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
        assert Constant().factor(3, 8) == 1
        with pytest.raises(RecipeError, match="the last one at 1"):
            Piecewise(((0.5, 1.0),))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "Set either epochs or steps"),
        ({"epochs": 1, "steps": 1}, "Set either epochs or steps"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"epochs": 1, "precision": "bf61"}, "Did you mean 'bf16'"),
        ({"epochs": 1, "label_smoothing": 1.0}, "label_smoothing"),
        ({"epochs": 1, "ema": 1.0}, "ema must lie between"),
        ({"epochs": 1, "accumulate": 0}, "accumulate must be at least 1"),
        ({"epochs": 1, "accumulate": 3}, "accumulate must divide batch_size=128 .*, got 3. Change either"),
        ({"epochs": 1, "batch_size": 4, "accumulate": 8}, "accumulate must divide batch_size=4 .*, got 8"),
        ({"epochs": 1, "clip": -1.0}, "clip must be positive, or None for no clipping, got -1.0"),
        ({"epochs": 1, "clip": math.nan}, "clip must be positive"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Training(**settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sgd(momentum=5.0), "momentum must be at least 0 and below 1, got 5.0"),
        (lambda: Sgd(momentum=0.0, nesterov=True), "momentum must be above 0 with nesterov, got 0. Set nesterov=false"),
        (lambda: Sgd(weight_decay=-1.0), "weight_decay must be at least 0, got -1.0"),
        (lambda: Sgd(lr=math.inf), "lr must be positive, got inf"),
        (lambda: Adam(weight_decay=-1.0), "weight_decay must be at least 0, got -1.0"),
        (lambda: Adam(betas=(0.9, 1.0)), "betas must be two numbers, at least 0 and below 1"),
        (lambda: Steps((0.5, 3)), r"drops must be rising shares of the training, between 0 and 1, got \(0.5, 3\)"),
        (lambda: Steps((0.75, 0.5)), "drops must be rising"),
        (lambda: Steps((0.5, 0.5)), "drops must be rising"),
        (lambda: Piecewise(((0.5, "a"), (1.0, 1.0))), "pieces must be pairs"),  # pyright: ignore
        (lambda: Steps(by=-0.1), "by must be positive, got -0.1"),
        (lambda: Cosine(floor=-1.0), "floor must be at least 0"),
        (lambda: Cosine(warmup=2.0), r"warmup must lie in \[0, 1\], got 2.0"),
        (lambda: FlatLinear(begin=0.9, end=0.9), "begin must be at least 0 and below end=0.9, got 0.9"),
        (lambda: FlatLinear(floor=math.nan), "floor must be at least 0"),
        (lambda: Runtime(workers=-1), "workers must be at least 0, got -1"),
        (lambda: Runtime(checkpoint_minutes=math.nan), "checkpoint_minutes must be at least 0"),
        (lambda: Rigl(fraction=1.5), "fraction must be above 0 and at most 1, got 1.5"),
        (lambda: Rigl(fraction=0.1, floor=0.2), r"floor must lie in \[0, fraction=0.1\], got 0.2"),
        (lambda: Rigl(temperature=0.0), "temperature must be positive"),
    ],
)
def test_parts_of_settings_that_cannot_work(make: Callable[[], object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()


def test_plain_training_is_the_loop_that_one_would_write(tmp_path: Path) -> None:
    net = single_dense().network(make, EXAMPLE, seed=3)
    twin = copy.deepcopy(net)
    record = train(net, job(single_dense(), tmp_path, Training(Sgd(0.1), epochs=2, batch_size=16)), ALONE)

    torch.manual_seed(0)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    losses = []
    for step in range(8):
        x, y = batch(100 * (step // 4) + step % 4)
        optimizer.param_groups[0]["lr"] = 0.1 * 0.1 ** (step // 2)
        loss = nn.functional.cross_entropy(twin(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    rows = read_rows(tmp_path / "log.csv")
    assert [float(row["loss"]) for row in rows] == pytest.approx([sum(losses[:4]) / 4, sum(losses[4:]) / 4], rel=1e-6)
    assert record["steps"] == 8
    # 3 x 2 x MAC, 16 examples, 8 steps.
    assert record["training_flops"] == 3 * 2 * (6 * 16 + 16 * 16 + 16 * 4) * 16 * 8


def test_accumulation_of_micro_batches_is_the_batch(tmp_path: Path) -> None:
    def plain() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))

    nets = []
    for accumulate in (1, 4):
        net = single_dense().network(plain, EXAMPLE, seed=3)
        training = Training(Sgd(0.1), epochs=2, batch_size=16, accumulate=accumulate)
        train(net, job(single_dense(), tmp_path / str(accumulate), training), ALONE)
        nets.append(net)
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("stop", [1, 6, 13, 19])
def test_resuming_is_exact_to_the_bit(tmp_path: Path, stop: int) -> None:
    """Stopped anywhere, with dropout, BatchNorm, Adam, EMA, clipping, accumulation and soft magnitude."""
    whole = TRAILS.network(make, EXAMPLE, seed=3)
    record = train(whole, job(TRAILS, tmp_path / "whole", EVERYTHING), ALONE)

    parted = TRAILS.network(make, EXAMPLE, seed=3)
    runtime = replace(QUIET, checkpoint_minutes=0)
    with pytest.raises(KeyboardInterrupt):
        train(parted, job(TRAILS, tmp_path / "parted", EVERYTHING, Feed(stop), runtime), ALONE)
    torch.manual_seed(99)
    resumed = TRAILS.network(make, EXAMPLE, seed=3)
    again = train(resumed, job(TRAILS, tmp_path / "parted", EVERYTHING, runtime=runtime), ALONE)

    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in record.items() if k != "seconds"}
    for name in ("log.csv", "topology.csv"):
        assert (tmp_path / "parted" / name).read_text() == (tmp_path / "whole" / name).read_text()
    for name in ("last-0.pt", "best-0.pt"):
        ours, theirs = (read_tensors(tmp_path / folder / name) for folder in ("parted", "whole"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))
    assert not (tmp_path / "parted" / CHECKPOINT).exists()


def test_training_flops_follow_the_masks(tmp_path: Path) -> None:
    net = TRAILS.network(make, EXAMPLE, seed=0)
    dense = fxsplit.layer_flops(net)  # pyright: ignore
    densities = {layer.path: layer.density for layer in sparsity.masks_of(net).layers}
    record = train(net, job(TRAILS, tmp_path, Training(Sgd(0.1), epochs=5, batch_size=16)), ALONE)
    masked = sum(flops * densities[path] for path, flops in dense.items())
    # 20 steps; the six updates of steps 3, 6, ... 18 need the gradient of all weights.
    assert record["training_flops"] == pytest.approx(16 * (3 * masked * 14 + (2 * masked + sum(dense.values())) * 6))
    assert record["training_flops_dense"] == 16 * 20 * 3 * sum(dense.values())


def test_the_average_is_what_is_kept_and_as_sparse(tmp_path: Path) -> None:
    net = TRAILS.network(make, EXAMPLE, seed=0)
    train(net, job(TRAILS, tmp_path, replace(EVERYTHING, ema=0.5)), ALONE)
    kept, last = read_tensors(tmp_path / "last-0.pt"), net.state_dict()
    assert any(not torch.equal(kept[key], last[key]) for key in kept if key.endswith("original"))
    for key in kept:
        if key.endswith(".mask"):
            assert torch.equal(kept[key], last[key])
            assert not kept[key.replace("0.mask", "original")][~kept[key]].any()


def test_snapshots_are_kept_and_each_has_its_own_best(tmp_path: Path) -> None:
    method = Edst(3, explore=0.25, sparse=Sparse(0.5), every=2)
    net = method.network(make, EXAMPLE, seed=0)
    record = train(net, job(method, tmp_path, Training(Sgd(0.1), epochs=8, batch_size=16)), ALONE)
    assert record["snapshots"] == [16, 24, 32]
    assert {file.name for file in tmp_path.glob("*.pt")} == {f"{s}-{k}.pt" for s in ("last", "best") for k in range(3)}
    first, second, third = record["best_steps"]
    assert first <= 16 < second <= 24 < third <= 32
    assert all(torch.equal(read_tensors(tmp_path / "last-2.pt")[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_precision_and_memory_format(tmp_path: Path, precision: str) -> None:
    def images() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 4))

    class Pictures(Feed):
        def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
            return ((x.repeat(1, 6).reshape(16, 1, 6, 6), y) for x, y in super().epoch(epoch, start))

    net = images()
    training = Training(epochs=1, batch_size=16, precision=precision, channels_last=True)
    plan = Job(single_dense(), training, QUIET, Pictures(), None, tmp_path, 0, torch.zeros(2, 1, 6, 6))
    record = train(net, plan, ALONE)
    assert record["best_steps"] == [None]
    assert not (tmp_path / "best-0.pt").exists()
    assert net.get_parameter("0.weight").dtype == torch.float32


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"The loss was nan up to step 4\. Lower lr"):
        train(make(), job(single_dense(), tmp_path, Training(Sgd(1e30), epochs=2, batch_size=16)), ALONE)


def test_a_checkpoint_of_another_network(tmp_path: Path) -> None:
    runtime = replace(QUIET, checkpoint_minutes=0)
    training = Training(epochs=2, batch_size=16)
    with pytest.raises(KeyboardInterrupt):
        train(make(), job(single_dense(), tmp_path, training, Feed(3), runtime), ALONE)
    with pytest.raises(TrainingError, match="of another network"):
        train(nn.Sequential(nn.Linear(6, 4)), job(single_dense(), tmp_path, training), ALONE)
    (tmp_path / CHECKPOINT).write_bytes(b"nothing")
    with pytest.raises(TrainingError, match="cannot be read as a checkpoint"):
        train(make(), job(single_dense(), tmp_path, training), ALONE)


class TestMeasure:
    def test_agrees_with_the_evaluation(self) -> None:
        net = TRAILS.network(make, EXAMPLE, seed=0)
        measured = measure(net, [batch(1), batch(2)], ALONE)
        expected = evaluate(*predict(net, [batch(1), batch(2)]))
        assert measured["accuracy"] == pytest.approx(expected["accuracy_prob"])
        assert measured["nll"] == pytest.approx(expected["nll_prob"], rel=1e-5)
        assert measured["disagreement"] == pytest.approx(expected["disagreement"])
        assert net.training

    def test_a_single_head_has_no_disagreement(self) -> None:
        assert math.isnan(measure(make(), [batch(1)], ALONE)["disagreement"])

    def test_an_empty_part(self) -> None:
        with pytest.raises(TrainingError, match="validation part is empty"):
            measure(make(), [], ALONE)


def test_costs_under_each_convention() -> None:
    method = Single(Sparse(0.5))
    net = method.network(make, EXAMPLE, seed=0)
    found = costs(net, EXAMPLE)
    weights = 6 * 16 + 16 * 16 + 16 * 4
    assert found["parameters"] == weights + 16 + 16 + 32 + 4
    assert found["nonzeros"] == found["parameters"] - weights // 2
    assert found["density"] == 0.5
    # Each weight is multiplied with once: both conventions agree.
    assert found["inference_flops_uniform"] == found["inference_flops_masks"] == weights
    assert found["inference_flops_dense"] == 2 * weights


class TestFiles:
    def test_a_folder_in_use(self, tmp_path: Path) -> None:
        code = (
            "import fcntl, sys, time\n"
            "with open(sys.argv[1], 'a+') as file:\n"
            "    fcntl.flock(file, fcntl.LOCK_EX); print('process 7 on mars', file=file, flush=True)\n"
            "    print('locked', flush=True); time.sleep(60)"
        )
        command = [sys.executable, "-c", code, str(tmp_path / "lock")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "locked\n"
            with pytest.raises(TrainingError, match="in use by process 7 on mars"), locked(tmp_path):
                pass
            other.kill()
        with locked(tmp_path):  # a killed process has given it back
            assert str(os.getpid()) in (tmp_path / "lock").read_text()

    def test_a_write_leaves_the_old_file_or_the_new(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_tensors(tmp_path / "a.pt", {"x": torch.ones(2)})

        def dies(*args: Any) -> None:
            raise OSError("disk full")

        monkeypatch.setattr(torch, "save", dies)
        with pytest.raises(OSError, match="disk full"):
            write_tensors(tmp_path / "a.pt", {"x": torch.zeros(2)})
        assert read_tensors(tmp_path / "a.pt")["x"].tolist() == [1, 1]


class TestLogs:
    def test_rows_after_the_checkpoint_are_taken_out(self, tmp_path: Path) -> None:
        log = CsvFile(tmp_path / "log.csv", 0)
        for step in (1, 2, 3):
            log.write({"step": step, "loss": step / 10})
        with (tmp_path / "log.csv").open("a") as file:
            file.write("4,0.")  # cut off
        CsvFile(tmp_path / "log.csv", 2).write({"step": 3, "loss": 0.5})
        assert [row["loss"] for row in read_rows(tmp_path / "log.csv")] == ["0.1", "0.2", "0.5"]

    def test_missing_extras_say_how_to_get_them(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        monkeypatch.setitem(sys.modules, "wandb", None)
        with pytest.raises(TrainingError, match=r"fxsplit\[tensorboard\]"):
            TensorBoard(tmp_path, 0)
        with pytest.raises(TrainingError, match=r"fxsplit\[wandb\]"):
            WeightsAndBiases("project", "name", {}, tmp_path, 0)

    def test_wandb_goes_on_with_the_same_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[Any] = []

        class Run:
            def log(self, row: Any, step: int) -> None:
                calls.append((row, step))

            def finish(self) -> None:
                calls.append("finish")

        class Wandb:
            @staticmethod
            def init(**kwargs: Any) -> Run:
                calls.append(kwargs)
                return Run()

        monkeypatch.setitem(sys.modules, "wandb", Wandb)

        def started(folder: str, step: int) -> str:
            calls.clear()
            log = WeightsAndBiases("project", "table2/treenet seed 0", {"a": 1}, tmp_path / folder, step)
            log.write({"step": 4, "loss": 0.5})
            log.close()
            assert calls[1:] == [({"loss": 0.5}, 4), "finish"]
            identity = calls[0].pop("id")
            expected = {"project": "project", "name": "table2/treenet seed 0", "resume": "allow", "config": {"a": 1}}
            assert calls[0] == expected
            return identity

        first = started("here", 0)
        assert first.isalnum()
        assert started("here", 3) == first
        assert started("there", 0) != first
        assert started("here", 0) != first  # it starts over, so the old numbers are not its own


def test_processes_and_devices() -> None:
    with processes("cpu") as alone:
        assert alone.first
        assert alone.gather("x") == ["x"]
        assert alone.agree(True)
        assert alone.tell(7) == 7
        assert alone.sum(torch.tensor(3)).item() == 3
    with pytest.raises(TrainingError, match="no device 'nowhere'"), processes("nowhere"):
        pass


def test_processes_wait_for_a_long_evaluation_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test part of ImageNet takes longer than the ten minutes after which NCCL ends the others."""
    asked: list[Any] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "init_process_group", lambda *args, **options: asked.append((args, options)))
    monkeypatch.setattr(distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: None)
    with processes("cpu") as together:
        assert (together.rank, together.world) == (0, 2)
    ((backend, options),) = asked
    assert backend == ("gloo",)
    assert options["timeout"] >= timedelta(hours=2)


class TestCheckpointClock:
    """A clock whose steps take as long as the test says, in a run of two processes."""

    @pytest.fixture(autouse=True)
    def _clock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.told = 0.0, 0
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        monkeypatch.setattr(Processes, "tell", self._tell)

    def _tell(self, number: int) -> int:
        self.told += 1
        return number

    def checkpoints(self, minutes: float, seconds: float, steps: int) -> list[int]:
        """Steps after which there is a checkpoint."""
        clock, found = CheckpointClock(minutes, Processes(0, 2, torch.device("cpu")), 0), []
        for step in range(1, steps + 1):
            self.now += seconds
            if clock.due(step):
                found.append(step)
                clock.saved(step)
        return found

    def test_without_minutes_every_step(self) -> None:
        assert self.checkpoints(0, 1.0, 4) == [1, 2, 3, 4]

    def test_short_steps_are_asked_about_rarely(self) -> None:
        assert self.checkpoints(10, 0.5, 3000) == [1200, 2400]
        # Every ten seconds, and some more as the time comes near.
        assert self.told <= 180

    def test_very_short_steps_are_asked_about_every_hundred(self) -> None:
        assert self.checkpoints(10, 0.05, 13_000) == [12_000]
        assert self.told <= 150

    def test_a_signal_to_the_only_process_is_noticed_at_once(self) -> None:
        clock = CheckpointClock(10, Processes(0, 1, torch.device("cpu")), 0)
        self.now += 1
        assert not clock.due(1)
        self.now += 1
        assert not clock.due(2)
        assert clock.due(2, urgent=True)

    def test_long_steps_are_asked_about_when_due(self) -> None:
        assert self.checkpoints(10, 100.0, 13) == [6, 12]
        assert self.checkpoints(10, 700.0, 3) == [1, 2, 3]

    def test_the_others_follow_the_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        told = iter([3, 0, 2])
        monkeypatch.setattr(Processes, "tell", lambda self, number: next(told))
        clock = CheckpointClock(10, Processes(1, 2, torch.device("cpu")), 5)
        assert [clock.due(step) for step in range(6, 10)] == [False, False, False, True]
        clock.saved(9)
        assert not clock.due(10)
        assert next(told, None) is None


def test_deterministic_mode_is_left_again() -> None:
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    """With the whole batch shared out and no BatchNorm or dropout, the masks are the same and weights nearly so."""
    results = []
    for world in (1, 2):
        folder = tmp_path / str(world)
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={world}", "--master-port=29611"]
        script = Path(__file__).parent / "_two_processes.py"
        subprocess.run([*command, str(script), str(folder)], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        results.append(read_tensors(folder / "last-0.pt"))
    one, two = results
    for key in one:
        if key.endswith(".mask"):
            assert torch.equal(one[key], two[key])
        else:
            assert torch.allclose(one[key].float(), two[key].float(), atol=1e-5)


class TestSignals:
    def test_the_first_is_noted_and_the_second_ends_at_once(self) -> None:
        before = signal.getsignal(signal.SIGTERM)
        with deferred() as request:
            assert request.number is None
            os.kill(os.getpid(), signal.SIGTERM)
            assert request.number == signal.SIGTERM
            with pytest.raises(Interrupted, match="interrupted by SIGINT") as ended:
                os.kill(os.getpid(), signal.SIGINT)
        assert ended.value.number == signal.SIGINT
        assert signal.getsignal(signal.SIGTERM) is before

    def test_raised_where_nothing_can_be_saved(self) -> None:
        with raised(), pytest.raises(Interrupted, match="SIGTERM"):
            os.kill(os.getpid(), signal.SIGTERM)

    def test_other_threads_leave_signals_alone(self) -> None:
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(lambda: deferred().__enter__().number).result() is None

    def test_in_the_last_step_the_training_is_finished(self, tmp_path: Path) -> None:
        class Last:
            def write(self, row: Mapping[str, float]) -> None:
                if row["step"] == 4:
                    os.kill(os.getpid(), signal.SIGINT)

            def close(self) -> None: ...

        with pytest.raises(Interrupted):
            train(make(), job(single_dense(), tmp_path, Training(steps=4, batch_size=16)), ALONE, [Last()])
        assert (tmp_path / DONE).exists()
        assert not (tmp_path / CHECKPOINT).exists()

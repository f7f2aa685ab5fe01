"""Models that change themselves, draw numbers outside of torch, or take some batches only: never a wrong graph."""

from __future__ import annotations

import random
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxsplit
from fxsplit._random import seed_everything
from fxsplit._trace import trace
from tests.checks import assert_same, assert_unchanged, snapshot

X = torch.randn(3, 4)


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.counter, self.log = 0, [0]
        self.cache: Tensor | None = None


class Counts(Layers):
    """Changes itself, but computes the same every time."""

    def forward(self, x: Tensor) -> Tensor:
        self.counter += 1
        self.latest = x = self.a(x)
        self.log.append(len(x))
        return self.b(x)


class UsesCounter(Layers):
    def forward(self, x: Tensor) -> Tensor:
        self.counter += 1
        return self.b(self.a(x)) * self.counter


class FollowsCounter(Layers):
    def forward(self, x: Tensor) -> Tensor:
        self.counter += 1
        return self.b(self.a(x)) if self.counter % 2 else self.a(self.b(x))


class UsesCache(Layers):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.cache is not None and len(self.cache) == len(x):
            x = x + self.cache
        self.cache = x.detach()
        return self.b(x)


class UsesLog(Layers):
    def forward(self, x: Tensor) -> Tensor:
        self.log.append(1)
        return self.b(self.a(x)) * len(self.log)


class FillsCache(Layers):
    """Computes a table once for every size."""

    def forward(self, x: Tensor) -> Tensor:
        if self.cache is None or len(self.cache) != len(x):
            self.cache = torch.ones(len(x), 1) / len(x)
        return self.b(self.a(x) * self.cache)


class AlternatesOutput(Layers):
    def forward(self, x: Tensor) -> Any:
        self.counter += 1
        x = self.b(self.a(x))
        return x if self.counter % 2 else (x, x)


class Inside(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.stem, self.inner, self.out = nn.Linear(4, 4), inner, nn.Linear(4, 90)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inner(self.stem(x)))


def refused(model: nn.Module, match: str, example: Any = X) -> None:
    before = snapshot(model)
    with pytest.raises(fxsplit.TraceError, match=match):
        trace(model, example)
    assert_unchanged(before, model)


@pytest.mark.parametrize("kind", [Counts, FillsCache])
def test_changes_that_do_not_matter(kind: type[Layers]) -> None:
    model = kind().eval()
    before = snapshot(model)
    log = list(model.log)
    traced = trace(model, X)
    assert_unchanged(before, model)
    assert model.log == log
    assert traced.report.coarse_leaves == []
    for batch in (1, 3, 3, 7):
        x = torch.randn(batch, 4)
        assert_same(traced(x), model(x))


STATEFUL = {
    UsesCounter: r"when it is called again it uses \d where it used \d",
    FollowsCounter: "when it is called again it runs . .in .. where it ran .",
    UsesCache: "when it is called again it runs",
    UsesLog: r"when it is called again it uses \d where it used \d",
    AlternatesOutput: "when it is called again it returns something else",
}


@pytest.mark.parametrize("kind", STATEFUL)
def test_changes_that_matter_are_refused_in_the_model_s_own_forward(kind: type[nn.Module]) -> None:
    refused(kind(), f"{kind.__name__} cannot be recorded: {STATEFUL[kind]}.*module of its own")


@pytest.mark.parametrize("kind", [kind for kind in STATEFUL if kind is not AlternatesOutput])
def test_modules_whose_changes_matter_are_kept_whole(kind: type[nn.Module]) -> None:
    model, same = Inside(kind()).eval(), Inside(kind()).eval()
    same.load_state_dict(model.state_dict())
    traced = trace(model, X)
    assert [path for path, _ in traced.report.coarse_leaves] == ["inner"]
    for _ in range(3):
        assert_same(traced(X), same(X))


# Random numbers that are not torch's.


class ByPython(Layers):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x * 2 if random.random() < 0.5 else x)


class ByNumpy(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) * float(numpy.random.rand()))  # noqa: NPY002 - the global generator is the point


class InTraining(Layers):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.training and random.random() < 0.5:
            x = F.relu(x)
        return self.b(x)


@pytest.mark.parametrize("kind", [ByPython, ByNumpy])
def test_numbers_of_other_generators(kind: type[nn.Module]) -> None:
    refused(kind(), f"{kind.__name__} cannot be recorded: it draws random numbers of Python or numpy.*of its own")
    model = Inside(kind()).eval()
    traced = trace(model, X)
    assert [path for path, _ in traced.report.coarse_leaves] == ["inner"]
    for seed in range(4):
        seed_everything(seed)
        expected = model(X)
        seed_everything(seed)
        assert_same(traced(X), expected)


def test_numbers_of_other_generators_in_train_mode() -> None:
    with pytest.warns(fxsplit.FxSplitWarning, match="train mode is not eval mode.*random numbers of Python"):
        traced = trace(model := InTraining().eval(), X)
    assert_same(traced(X), model(X))
    model = Inside(InTraining())
    traced = trace(model, X)
    assert [path for path, _ in traced.report.coarse_leaves] == ["inner"]
    for seed in range(4):
        seed_everything(seed)
        expected = model(X)
        seed_everything(seed)
        assert_same(traced(X), expected)


# Batches.


class Refuses(Layers):
    def __init__(self, *refused: int) -> None:
        super().__init__()
        self.refused = refused

    def forward(self, x: Tensor) -> Tensor:
        if len(x) in self.refused:
            raise ValueError(f"not {len(x)}")
        return self.b(self.a(x))


@pytest.mark.parametrize("inside", [False, True])
def test_a_batch_that_the_model_refuses(inside: bool) -> None:
    model = Inside(Refuses(2)) if inside else Refuses(2)
    model.eval()
    with pytest.warns(fxsplit.FxSplitWarning, match="example's batch size only: at batch = 2 the model raises.*not 2"):
        traced = trace(model, X)
    assert traced.report.coarse_leaves == []
    assert_same(traced(X), model(X))
    with pytest.raises(fxsplit.FxSplitError, match="size 4 of dimension 0 instead of 3"):
        traced(torch.randn(4, 4))


def test_a_batch_of_one_that_the_model_refuses_is_not_asked_for() -> None:
    model = Refuses(1).eval()
    traced = trace(model, X)
    assert traced.report.warnings == []
    assert_same(traced(torch.ones(6, 4)), model(torch.ones(6, 4)))


def test_a_fixed_batch() -> None:
    model = Refuses(1, 2, 4, 5, 6).eval()
    with pytest.warns(fxsplit.FxSplitWarning, match="example's batch size only: the model rejects others .not 5"):
        traced = trace(model, X)
    assert_same(traced(X), model(X))
    refused(model, r"Refuses rejects the example .*its forward with ValueError: not 2. Pass inputs", torch.ones(2, 4))


class Pools(nn.Module):
    """BatchNorm on maps of one pixel: impossible in train mode at a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.norm(F.adaptive_avg_pool2d(self.conv(x), 1))).flatten(1))


@pytest.mark.parametrize("batch", [1, 2])
def test_statistics_over_a_batch_of_one(batch: int) -> None:
    model = Pools()
    traced = trace(model, torch.randn(batch, 3, 8, 8))
    assert str(traced.report).count("warning") == 0
    x = torch.randn(1, 3, 8, 8)
    assert_same(traced.eval()(x), model.eval()(x))


class OnlyOne(Pools):
    def forward(self, x: Tensor) -> Tensor:
        if len(x) != 1:
            raise ValueError("one image at a time")
        return super().forward(x)


def test_train_mode_that_cannot_run() -> None:
    with pytest.raises(fxsplit.TraceError, match=r"'norm'|in train mode it raises ValueError: Expected more than 1"):
        trace(OnlyOne(), torch.randn(1, 3, 8, 8))


# Nothing to record.


class MakesInput(Layers):
    def forward(self, rows: int = 3) -> Tensor:
        return self.b(self.a(torch.ones(rows, 4)))


class ReturnsNothing(Layers):
    def forward(self, x: Tensor) -> None:
        self.latest = self.b(self.a(x))


def test_no_tensor_goes_in_or_comes_out() -> None:
    refused(MakesInput(), "holds no tensor, so there is nothing to record", (3,))
    refused(MakesInput(), "holds no tensor, so there is nothing to record", ())
    refused(ReturnsNothing(), "ReturnsNothing returns no tensor.*Let its forward return")

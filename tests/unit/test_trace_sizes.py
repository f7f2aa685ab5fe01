"""What follows the sizes of the inputs, and what is baked in."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxsplit._errors import FxSplitWarning
from fxsplit._trace import trace
from fxsplit._trace._fit import SizeExpr, fit_size
from tests.checks import assert_same

SIZES = [{"batch": 2, "length": 8}, {"batch": 3, "length": 8}, {"batch": 5, "length": 8}, {"batch": 2, "length": 7}]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda b, n: 4 * b, SizeExpr(("batch",), Fraction(4), 0)),
        (lambda b, n: 3 * b - 2, SizeExpr(("batch",), Fraction(3), -2)),
        (lambda b, n: 1 - b, SizeExpr(("batch",), Fraction(-1), 1)),
        (lambda b, n: n + 1, SizeExpr(("length",), Fraction(1), 1)),
        (lambda b, n: 2 * b * n, SizeExpr(("batch", "length"), Fraction(2), 0)),
        (lambda b, n: b * b, None),
        (lambda b, n: b + n, None),
        (lambda b, n: b / 2, None),
        (lambda b, n: b > 2, None),
    ],
)
def test_integers_are_fitted_by_one_product_of_sizes(function: Any, expected: SizeExpr | None) -> None:
    assert fit_size([function(s["batch"], s["length"]) for s in SIZES], SIZES) == expected


class Sizes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        batch, width = x.shape
        twice = torch.cat([x, x, x[:1]]).reshape(2 * batch + 1, width)
        folded = twice[: batch * 2].view(-1, 2 * width).view(batch, 2, width)
        return folded.sum() / batch + twice[batch - 1] + torch.arange(len(x)).sum()


def test_sizes_become_arithmetic_on_the_batch() -> None:
    traced = trace(Sizes(), torch.randn(4, 3))
    assert traced.report.warnings == []
    for batch in (1, 2, 6, 11):
        x = torch.randn(batch, 3)
        assert_same(traced(x), Sizes()(x))


@pytest.mark.parametrize("batch", [1, 2, 3, 9])
def test_an_example_of_any_batch_size_will_do(batch: int) -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 2)).eval()
    traced = trace(net, torch.randn(batch, 2, 6, 6))
    for other in (1, 4):
        x = torch.randn(other, 2, 6, 6)
        assert_same(traced(x), net(x))


class Positions(nn.Module):
    """Adds a vector [T] without batch dimension."""

    def forward(self, x: Tensor, bias: Tensor, weight: Tensor) -> Tensor:
        return (x + bias) * weight[:, None]


@pytest.mark.parametrize("length", [4, 3])
def test_a_vector_without_batch_dimension_stays_as_it_is(length: int) -> None:
    x, bias, weight = torch.randn(4, length), torch.randn(length), torch.randn(4)
    if length == 4:
        weight = weight[:, None].expand(4, 1)[:, 0]
    traced = trace(Bias(), (x, bias)) if length == 4 else trace(Positions(), (x, bias, weight))
    batch = 6
    x = torch.randn(batch, length)
    if length == 4:
        # [T] with T equal to the batch: only leaving it alone lets the batch vary.
        assert_same(traced(x, bias), Bias()(x, bias))
    else:
        weight = torch.randn(batch)
        assert_same(traced(x, bias, weight), Positions()(x, bias, weight))
    assert traced.report.warnings == []


class Bias(nn.Module):
    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return x.view(x.shape[0], -1) + bias


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def test_a_model_that_rejects_other_batch_sizes_is_recorded_at_the_example_s() -> None:
    with pytest.warns(FxSplitWarning, match="batch size only"):
        traced = trace(FixedBatch(), torch.randn(4, 3))
    assert traced.meta["batch"] == 4
    assert any("batch size only" in warning for warning in traced.report.warnings)
    x = torch.randn(4, 3)
    assert_same(traced(x), FixedBatch()(x))


class PerSample(nn.Module):
    """A loop over the batch: another number of operations for every batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.lin(row) for row in x])


def test_a_loop_over_the_batch_at_the_root_fixes_the_batch() -> None:
    net = PerSample()
    with pytest.warns(FxSplitWarning, match="batch size only"):
        traced = trace(net, torch.randn(4, 3))
    x = torch.randn(4, 3)
    assert_same(traced(x), net(x))


def test_a_loop_over_the_batch_in_a_module_keeps_that_module_whole() -> None:
    net = nn.Sequential(nn.Linear(3, 3), PerSample(), nn.Linear(3, 9))
    traced = trace(net, torch.randn(4, 3))
    assert [path for path, _ in traced.report.coarse_leaves] == ["1"]
    x = torch.randn(7, 3)
    assert_same(traced(x), net(x))


class Squared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x) * len(x) ** 2


def test_an_integer_that_follows_the_batch_in_no_simple_way() -> None:
    """At the root there is no module to keep whole: the graph is checked at another size, and the batch fixed."""
    with pytest.warns(FxSplitWarning, match="batch size only"):
        traced = trace(Squared(), torch.randn(7, 3))
    assert traced.report.specialised
    inside = nn.Sequential(nn.Linear(3, 9), nn.Linear(9, 3), Squared())
    traced = trace(inside, torch.randn(4, 3))
    assert [path for path, _ in traced.report.coarse_leaves] == ["2"]
    for batch in (1, 4, 9):
        x = torch.randn(batch, 3)
        assert_same(traced(x), inside(x))


class Tokens(nn.Module):
    def __init__(self, longest: int = 64) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 6), nn.Embedding(longest, 6)
        self.head = nn.Linear(6, 20)

    def forward(self, ids: Tensor, labels: Tensor | None = None) -> Any:
        batch, length = ids.shape
        x = self.words(ids) + self.places(torch.arange(length))
        causal = torch.ones(length, length).tril()
        x = (causal @ x.view(batch * length, 6).view(batch, length, 6)).view(batch, length, 2, -1).flatten(2)
        logits = self.head(x)
        loss = None if labels is None else nn.functional.cross_entropy(logits.view(-1, 20), labels.view(-1))
        return {"loss": loss, "logits": logits}


@pytest.mark.parametrize("length", [5, 12])
def test_the_length_of_token_sequences_is_free(length: int) -> None:
    net = Tokens()
    ids = torch.randint(20, (2, length))
    traced = trace(net, {"ids": ids, "labels": ids})
    assert traced.report.warnings == []
    for batch, other in ((2, length), (1, 3), (4, 31)):
        ids = torch.randint(20, (batch, other))
        assert_same(traced(ids, labels=ids), net(ids, ids))


class Columns(nn.Module):
    """Integer features [B, F], not a sequence: every column has its own table."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(5, 3) for _ in range(6))
        self.head = nn.Linear(18, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([table(x[:, n]) for n, table in enumerate(self.tables)], 1))


def test_integers_that_are_no_sequence_keep_their_number_of_columns() -> None:
    net = Columns()
    traced = trace(net, torch.randint(5, (2, 6)))
    assert traced.report.specialised[0].startswith("length = 6")
    assert traced.report.warnings == []
    x = torch.randint(5, (7, 6))
    assert_same(traced(x), net(x))


def test_reading_image_sizes_is_reported_where_they_are_baked_in() -> None:
    class Pooled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.avg_pool2d(x, x.shape[2] // 2)

    (line,) = trace(Pooled(), torch.randn(2, 3, 8, 8)).report.specialised
    assert line == "x.shape[2] = 8, x.shape[3] = 8 (sizes are read in the model itself; free are: batch, x.shape[1])"
    assert trace(nn.Conv2d(3, 3, 3), torch.randn(2, 3, 8, 8)).report.specialised == []

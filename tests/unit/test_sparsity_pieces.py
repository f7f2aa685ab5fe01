"""Operations on large tensors piece by piece: the same as on whole ones, in every layout."""

from __future__ import annotations

import ctypes
import dataclasses

import pytest
import torch
from torch import Tensor, nn

from sparsity import Amount, Layer, _bits, _kernel, drop, grow, over_layers, per_layer
from sparsity._bits import PIECE, count, fill, keep, kept
from sparsity.runtime import _cpu

SIZES = [1, 7, 8 * 128 - 1, 8 * 128, PIECE - 1, PIECE, PIECE + 3, 2 * PIECE + 1000]


@pytest.fixture(params=[True, False], ids=["with kernels", "without kernels"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        monkeypatch.setattr(_bits, "kernel", lambda source: None)
    return request.param


def drawn(size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.usefixtures("kernels")
def test_zeros_where_masked(size: int, dtype: torch.dtype) -> None:
    tensor, mask = drawn(size).to(dtype), drawn(size, 1) > 0
    tensor[::5] = torch.inf
    tensor[1::5] = torch.nan
    expected = tensor.clone()
    expected[~mask] = 0
    before = tensor.clone()
    assert torch.equal(kept(tensor, mask).nan_to_num(7), expected.nan_to_num(7))
    assert torch.equal(tensor.nan_to_num(7), before.nan_to_num(7))
    version = tensor._version
    for _ in range(2):  # the second time nothing is left to do
        keep(tensor, mask)
        assert torch.equal(tensor.nan_to_num(7), expected.nan_to_num(7))
        assert not tensor[~mask].signbit().any()
        assert tensor._version > version  # autograd has to know


@pytest.mark.parametrize("value", [0.0, 0.25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.usefixtures("kernels")
def test_filled_at_places(size: int, dtype: torch.dtype, value: float) -> None:
    tensor, places = drawn(size).to(dtype), drawn(size, 1) > 0
    tensor[::5] = torch.inf
    tensor[1::5] = torch.nan
    expected = tensor.clone()
    expected[places] = value
    version = tensor._version
    fill(tensor, places, value)
    assert torch.equal(tensor.nan_to_num(7), expected.nan_to_num(7))
    assert not tensor[places].signbit().any()
    assert tensor._version > version  # autograd has to know


def test_masking_by_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all large plain tensors, in every instruction set; other tensors are left to torch."""
    used: list[str] = []

    def noted(source: str) -> ctypes.CDLL | None:
        used.append(source)
        return _kernel.kernel.__wrapped__(source)

    monkeypatch.setattr(_bits, "kernel", noted)
    size = PIECE + 3
    for number, isa in enumerate(_cpu.supported_isas()):
        monkeypatch.setenv("SPARSITY_ISA", isa)
        tensor, mask = nn.Parameter(drawn(size)), drawn(size, 1) > 0
        expected = torch.where(mask, tensor, 0)
        keep(tensor, mask)
        assert torch.equal(tensor, expected)
        assert len(used) == number + 1
    for tensor in (drawn(100), drawn(size).char(), drawn(2 * size)[::2]):
        keep(tensor, mask[: len(tensor)])
        assert not tensor[~mask[: len(tensor)]].any()
    with pytest.raises(ValueError, match="zip"):  # a mask of another shape, which the kernel would read beyond
        keep(torch.ones(size, 2), torch.tensor([True, False]))
    assert len(used) == number + 1


def test_zeros_in_other_layouts() -> None:
    rows = PIECE // 100
    tensor, mask = drawn(rows * 200).view(200, rows), (drawn(rows * 200, 1) > 0).view(200, rows)
    for one, other in (
        (tensor.t(), mask.t()),
        (tensor, mask.t().contiguous().t()),
        (tensor.t().contiguous().t(), mask),
    ):
        expected = torch.where(other, one, 0)
        assert torch.equal(kept(one, other), expected)
        mended = one.clone()
        keep(mended, other)
        assert torch.equal(mended, expected)
        filled = one.clone()
        fill(filled, ~other)
        assert torch.equal(filled, expected)


@pytest.mark.parametrize("size", SIZES)
def test_count(size: int) -> None:
    mask = drawn(size) > 0.3
    assert count(mask).item() == sum(mask.tolist())
    assert count(torch.ones(size, dtype=torch.bool)).item() == size
    assert count(mask.view(1, -1).expand(3, -1)).item() == 3 * sum(mask.tolist())


def layer(path: str, rows: int, seed: int) -> Layer:
    mask = drawn(rows * 1000, seed).view(rows, 1000) > 0.5
    weight, gradient = (drawn(rows * 1000, seed + more).view(rows, 1000) for more in (1, 2))
    # Few values, so that many are equal.
    return Layer(
        path,
        torch.where(mask, weight, 0).mul(4).round(),
        mask,
        gradient.mul(4).round(),
        torch.Generator(),
        torch.where(mask, gradient, 0),
    )


@pytest.mark.parametrize("scope", [per_layer, over_layers])
@pytest.mark.parametrize("score", [drop.magnitude, drop.taylor, drop.magnitude_and_gradient(0.3)])
def test_scores_piece_by_piece_choose_what_whole_ones_do(scope, score) -> None:
    layers = [layer("first", 300, 0), layer("second", 3, 10), layer("third", 700, 20)]
    amounts = [Amount(20_000), Amount(100, 50), Amount(70_000, -1000)]
    chosen = scope(layers, amounts, score, grow.gradient)
    # A plain function is computed for the whole layer.
    expected = scope(layers, amounts, lambda one: score(one), lambda one: grow.gradient(one))
    for before, one, other in zip(layers, chosen, expected, strict=True):
        assert torch.equal(one, other)
        assert (one & before.mask).any()


def test_layers_of_another_layout_are_scored_whole() -> None:
    one = layer("weight", 300, 0)
    turned = dataclasses.replace(one, gradient=one.dense_gradient().t().contiguous().t())
    amounts = [Amount(20_000)]
    [expected] = per_layer([one], amounts, drop.magnitude, grow.gradient)
    [chosen] = per_layer([turned], amounts, drop.magnitude, grow.gradient)
    assert torch.equal(chosen, expected)

"""Layers that a compiled network leaves dense: laid out for what they are given, and priced with the way there."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import sparsity
from sparsity.runtime import _cost, _tuned
from sparsity.runtime._modules import DenseConv
from sparsity.runtime._torch_form import bytes_of

Layout = tuple[int, list[int]]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def layouts(monkeypatch: pytest.MonkeyPatch) -> list[Layout]:
    """The number of threads and the input's shape of every time that a weight is laid out."""
    seen: list[Layout] = []
    pack = DenseConv._pack

    def spy(self: DenseConv, weight: Tensor, shape: Sequence[int]) -> Any:
        seen.append((torch.get_num_threads(), list(shape)))
        return pack(self, weight, shape)

    monkeypatch.setattr(DenseConv, "_pack", spy)
    return seen


def dense_net() -> tuple[fx.GraphModule, Any]:
    net = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()).eval())
    with pytest.warns(sparsity.NoEffectWarning, match="no weight is zero"):
        return net, sparsity.compile(net, torch.randn(1, 3, 16, 16), tune=False)


def test_weights_are_laid_out_for_the_shape_and_the_threads(
    layouts: list[Layout], threads: Callable[[int], None]
) -> None:
    """In oneDNN a layout for one thread made some convolutions of ResNet-50 twenty times slower on two."""
    net, fast = dense_net()
    layouts.clear()
    for count, batch in ((1, 1), (2, 1), (2, 3), (1, 3)):
        threads(count)
        x = torch.randn(batch, 3, 16, 16)
        for _ in range(2):
            torch.testing.assert_close(fast(x), net(x).detach())
    expected = [(1, [1, 3, 16, 16]), (2, [1, 3, 16, 16]), (2, [3, 3, 16, 16]), (1, [3, 3, 16, 16])]
    assert layouts == expected


def test_a_copy_has_the_weight_of_any_layout(layouts: list[Layout]) -> None:
    net, fast = dense_net()
    x = torch.randn(3, 3, 16, 16)
    expected = fast(x)
    again = pickle.loads(pickle.dumps(fast))
    layouts.clear()
    assert torch.equal(again(x), expected)
    assert len(layouts) == 1
    (layer,) = (module for module in again.modules() if isinstance(module, DenseConv))
    assert bytes_of(layer) >= 4 * (8 * 3 * 3 * 3 + 8)
    torch.testing.assert_close(expected, net(x).detach())


def test_a_dense_layer_is_priced_with_the_way_back_to_plans(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan takes channels first, so what a dense convolution returns, channels last, has to be turned around."""
    timed: list[Tensor] = []

    def seconds(calls: list[Callable[[], Any]], budget: float, *, cold: bool) -> list[float]:
        timed.append(calls[1]())
        return [2.0, 1.0]

    monkeypatch.setattr(_tuned, "cache_directory", lambda: tmp_path)
    monkeypatch.setattr(_cost, "seconds", seconds)
    _tuned.forget()
    net = fx.symbolic_trace(nn.Sequential(nn.Conv2d(64, 64, 1), nn.ReLU(), nn.Conv2d(64, 64, 3)).eval())
    sparsity.sparsify(net, 0.5)
    sparsity.compile(net, torch.randn(1, 64, 8, 8))
    _tuned.forget()
    assert timed
    assert all(y.is_contiguous() for y in timed)

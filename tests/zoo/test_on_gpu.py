"""On a GPU: models of the zoos are traced, split and trained there as exactly as on the CPU."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

import fxsplit
from tests.checks import assert_same
from tests.zoo.catalogue.entry import Entry, Inputs
from tests.zoo.measure import EXACT, build, call, measure
from tests.zoo.test_zoo import (
    QUICK_TIMM,
    QUICK_TORCHVISION,
    QUICK_TRANSFORMERS,
    TIMM,
    TORCHVISION,
    TRANSFORMERS,
    assert_right,
)

pytestmark = pytest.mark.gpu

ENTRIES = [
    *(TRANSFORMERS[name] for name in QUICK_TRANSFORMERS),
    *(TIMM[name] for name in QUICK_TIMM),
    *(TORCHVISION[name] for name in QUICK_TORCHVISION),
]


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    """The same kernels in every run, where there are such; gradients summed in any order differ in their last bits.

    Attention's own kernels add up gradients in any order unless torch refuses whatever varies, and TorchScript fuses
    functions after it has watched them, so that even a model's own second call rounds otherwise.
    """
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    torch.use_deterministic_algorithms(True, warn_only=True)
    with sdpa_kernel(SDPBackend.MATH), torch.jit.optimized_execution(False):  # pyright: ignore[reportPrivateImportUsage]
        yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_traced_on_the_gpu(entry: Entry) -> None:
    assert_right(measure(_on_gpu(entry), real=True, cuts=1))


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_traced_on_the_cpu_and_moved(entry: Entry) -> None:
    model, inputs = build(entry, real=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = fxsplit.trace(model, inputs(2))
        found = fxsplit.find_cuts(traced)
        net = fxsplit.split(traced, found[len(found) // 2], heads=2, init="copy")
    model, traced, net = model.cuda(), traced.cuda(), net.cuda()
    example = _moved(inputs(3))
    with torch.no_grad():
        expected = call(model, example)
        assert_same(call(traced, example), expected)
        for output in call(net.head_outputs, example):
            assert_same(output, expected)


def _on_gpu(entry: Entry) -> Entry:
    def inputs(model: torch.nn.Module) -> Inputs:
        made = entry.inputs(model)
        return lambda batch: _moved(made(batch))

    return replace(entry, build=lambda: entry.build().cuda(), inputs=inputs)


def _moved(example: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.cuda(), example)


def test_exact_means_bit_for_bit() -> None:
    outcome = measure(_on_gpu(TIMM["test_resnet"]), real=True, cuts=None)
    assert outcome.eval == {"1": EXACT, "4": EXACT, "7": EXACT}
    assert outcome.train == EXACT

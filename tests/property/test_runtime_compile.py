"""What holds for every compiled network: the outputs of the original, at any batch, whatever runs sparse."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import reject
from hypothesis import strategies as st
from torch import Tensor, nn

import fxsplit
import sparsity
from sparsity.runtime import _cost
from tests.checks import assert_unchanged, snapshot, tensors
from tests.strategies import KINDS, Case, all_cases, call, holds_for, split_cases


@contextmanager
def prefer(kernel: str) -> Iterator[None]:
    """Let the model of costs find one kernel faster for every layer, so that small nets run in it."""
    seconds = {"sparse": 1e-9, "dense": 1.0}.get(kernel)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sparsity.NoEffectWarning)
        if seconds is None:
            yield
        else:
            with mock.patch.object(_cost, "sparse_seconds", return_value=seconds):
                yield


def assert_close(got: Any, expected: Any) -> None:
    """Equal within 1e-5 of the largest value, structure and shapes included."""
    got, expected = tensors(got), tensors(expected)
    assert len(got) == len(expected) > 0
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.shape == theirs.shape
        if not theirs.is_floating_point():
            assert torch.equal(mine, theirs)
        elif theirs.numel():
            error = (mine.double() - theirs.double()).abs().max()
            assert error <= 1e-5 * max(1.0, float(theirs.abs().max())), error


def sparsified(net: Any, share: float) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sparsity.SparsityWarning)
        try:
            sparsity.sparsify(net, share, allocation="uniform")
        except sparsity.AllocationError:
            # The network is so small that some layer would be left without a weight.
            reject()
    return net.eval()


def sparse_trace(case: Case, share: float) -> Any:
    return sparsified(fxsplit.trace(case.build(), case.example()), share)


def check(net: Any, case: Case, kernel: str) -> sparsity.SparseNet:
    before = snapshot(net)
    with prefer(kernel):
        fast = sparsity.compile(net, case.example(), tune=False)
    assert_unchanged(before, net)
    for batch in (1, 2, 3, 5):
        example = case.example(batch, seed=batch)
        with torch.no_grad():
            expected = call(net, copy.deepcopy(example))
            assert_close(call(fast, example), expected)
    return fast


kernels = st.sampled_from(["sparse", "sparse", "chosen", "dense"])
shares = st.sampled_from([0.5, 0.8, 0.95])


@holds_for(case=all_cases(), share=shares, kernel=kernels)
def test_outputs_are_those_of_the_network(case: Case, share: float, kernel: str) -> None:
    check(sparse_trace(case, share), case, kernel)


@holds_for(draw=split_cases(), share=shares, kernel=kernels)
def test_a_split_network_keeps_its_heads(draw: tuple[Case, str], share: float, kernel: str) -> None:
    case, path = draw
    net = sparsified(fxsplit.split(fxsplit.trace(case.build(), case.example()), path, heads=3), share)
    fast = check(net, case, kernel)
    example = case.example(3)
    with torch.no_grad():
        heads = call(fast.head_outputs, example)
        expected = call(net.head_outputs, example)
    assert len(heads) == 3
    for mine, theirs in zip(heads, expected, strict=True):
        assert_close(mine, theirs)


@pytest.mark.parametrize("case", KINDS, ids=repr)
def test_every_kind_of_block(case: Case) -> None:
    check(sparse_trace(case, 0.5), case, "sparse")


@holds_for(
    channels=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    share=shares,
    norm_first=st.booleans(),
)
def test_stacks_of_convolutions(
    channels: list[int], kernel: int, stride: int, size: tuple[int, int], share: float, norm_first: bool
) -> None:
    layers: list[nn.Module] = []
    for given, made in itertools.pairwise(channels):
        conv, norm = nn.Conv2d(given, made, kernel, stride, padding=kernel // 2), nn.BatchNorm2d
        layers += [norm(given), nn.ReLU(), conv] if norm_first else [conv, norm(made), nn.ReLU()]
    net = torch.fx.symbolic_trace(nn.Sequential(*layers).eval())
    randomise(net)
    for parameter in net.parameters():
        if parameter.ndim == 4:
            parameter.data *= torch.rand_like(parameter) > share
    x = torch.randn(2, channels[0], *size)
    with prefer("sparse"):
        fast = sparsity.compile(net, x, tune=False)
    with torch.no_grad():
        expected = copy.deepcopy(net).double()(x.double())
        assert_close(fast(x), expected)


def randomise(net: nn.Module) -> None:
    """Give every BatchNorm statistics and weights of its own."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low, high in (
                (module.running_mean, -1, 1),
                (module.running_var, 0.5, 2),
                (module.weight, -1.5, 1.5),
                (module.bias, -1, 1),
            ):
                assert isinstance(value, Tensor)
                nn.init.uniform_(value, low, high)

"""What holds for the masks of any split model, and for every step of the engines that move them."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import fxsplit
import sparsity
from tests.checks import assert_same, assert_unchanged, bits, snapshot, tensors
from tests.strategies import Case, ConvCase, TokenCase, call, holds_for, split_cases

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, weight_decay=1e-2),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1, amsgrad=True),
}
levels = st.sampled_from([0.5, 0.8, 0.0, 0.9, 0.37])


def sparse_net(draw: tuple[Case, str], level: float, heads: int = 2) -> tuple[fxsplit.SplitModel, sparsity.Masks]:
    case, path = draw
    net = fxsplit.split(fxsplit.trace(case.build(), case.example()), path, heads=heads, init="copy")
    return net, sparsity.sparsify(net, level)


def squares(outputs: Any) -> Tensor:
    """A loss that is bounded from below, so that training can't diverge at a small rate."""
    return torch.stack([leaf.square().mean() for leaf in tensors(outputs) if leaf.requires_grad]).sum()


def weights(net: nn.Module, masks: Any) -> dict[str, Tensor]:
    """What the forward pass uses under each name that has a mask."""
    return {name: getattr(net.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in masks}


def state_tensors(net: nn.Module, optimizer: torch.optim.Optimizer, name: str) -> list[Tensor]:
    """Optimizer state as large as the weight called ``name``."""
    owner, _, leaf = name.rpartition(".")
    original = net.get_parameter(f"{owner}.parametrizations.{leaf}.original")
    state = optimizer.state[original]
    return [value for value in state.values() if isinstance(value, Tensor) and value.shape == original.shape]


@holds_for(draw=split_cases(), level=levels)
def test_density_is_exact_and_the_rest_is_zero(draw: tuple[Case, str], level: float) -> None:
    net, masks = sparse_net(draw, level)
    total = sum(mask.numel() for mask in masks.values())
    assert masks.total == total
    assert masks.nonzeros == sum(int(mask.sum()) for mask in masks.values())
    assert abs(masks.nonzeros - (1 - level) * total) <= 0.5 + 1e-9 * total
    for name, weight in weights(net, masks).items():
        assert masks[name].dtype == torch.bool
        assert masks[name].shape == weight.shape
        assert not weight[~masks[name]].any()


@holds_for(draw=split_cases(max_blocks=2))
def test_at_density_one_nothing_changes(draw: tuple[Case, str]) -> None:
    case, path = draw
    net, masks = sparse_net(draw, 0.0)
    assert masks.density == 1.0
    plain = fxsplit.split(fxsplit.trace(case.build(), case.example()), path, heads=2, init="copy")
    assert_same(call(net, case.example(3)), call(plain, case.example(3)))


@holds_for(
    draw=split_cases(max_blocks=2),
    level=st.sampled_from([0.5, 0.8]),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    method=st.sampled_from(["rigl", "set_", "static"]),
)
def test_every_step_keeps_the_counts_and_the_zeros(
    draw: tuple[Case, str], level: float, optimizer: str, method: str
) -> None:
    case, _ = draw
    net, masks = sparse_net(draw, level)
    opt = OPTIMIZERS[optimizer](net.parameters())
    options = {} if method == "static" else {"every": 2, "until": 5, "fraction": 0.5}
    getattr(sparsity, method)(net, opt, **options)
    counts = {name: int(mask.sum()) for name, mask in masks.items()}
    start = {name: mask.clone() for name, mask in masks.items()}
    net.train()
    for step in range(7):
        before = {name: mask.clone() for name, mask in sparsity.masks_of(net).items()}
        squares(call(net, case.example(3, seed=step))).backward()
        opt.step()
        opt.zero_grad()
        now = sparsity.masks_of(net)
        assert {name: int(mask.sum()) for name, mask in now.items()} == counts
        for name, weight in weights(net, now).items():
            outside = ~now[name]
            owner, _, leaf = name.rpartition(".")
            assert not net.get_parameter(f"{owner}.parametrizations.{leaf}.original")[outside].any(), name
            assert not weight[outside].any()
            assert all(not state[outside].any() for state in state_tensors(net, opt, name)), name
            grown = now[name] & ~before[name]
            assert not weight[grown].any(), "grown weights start at zero"
            assert torch.isfinite(weight).all()
    moved = any(not torch.equal(start[name], mask) for name, mask in sparsity.masks_of(net).items())
    room = any(0 < count < start[name].numel() - 1 for name, count in counts.items())
    assert moved is (method != "static" and room) or method != "static"


@holds_for(draw=split_cases(max_blocks=2), level=levels, seed=st.integers(0, 3))
def test_neurotrailify_is_its_parts(draw: tuple[Case, str], level: float, seed: int) -> None:
    case, path = draw
    model = case.build()
    before = snapshot(model)
    net = fxsplit.neurotrailify(model, split=path, heads=2, sparsity=level, example=case.example(), seed=seed)
    assert_unchanged(before, model)
    parts = fxsplit.split(fxsplit.trace(model, case.example()), path, heads=2, seed=seed)
    if level:  # 0 leaves the network dense
        sparsity.sparsify(parts, level, seed=seed)
    assert net.state_dict().keys() == parts.state_dict().keys()
    assert_same(dict(net.state_dict()), dict(parts.state_dict()))
    assert_same(call(net, case.example(3)), call(parts, case.example(3)))


@holds_for(draw=split_cases(max_blocks=2), level=levels)
def test_a_copy_of_a_sparse_net_has_masks_of_its_own(draw: tuple[Case, str], level: float) -> None:
    case, _ = draw
    net, masks = sparse_net(draw, level)
    twin = copy.deepcopy(net)
    twins = sparsity.masks_of(twin)
    assert {name: bits(mask) for name, mask in twins.items()} == {name: bits(mask) for name, mask in masks.items()}
    assert_same(call(twin, case.example(3)), call(net, case.example(3)))
    assert_same(call(sparsity.fold(twin), case.example(3)), call(net, case.example(3)))
    assert sparsity.masks_of(net).nonzeros == masks.nonzeros


@holds_for(draw=split_cases(max_blocks=2), level=levels)
def test_saving_and_loading_is_bitwise(draw: tuple[Case, str], level: float) -> None:
    case, _ = draw
    net, masks = sparse_net(draw, level)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        fxsplit.save(net, path)
        again = fxsplit.load(path, case.build(seed=1), example=case.example())
    assert_same(dict(again.state_dict()), dict(net.state_dict()))
    assert_same(call(again, case.example(3)), call(net, case.example(3)))
    assert {name: bits(mask) for name, mask in sparsity.masks_of(again).items()} == {
        name: bits(mask) for name, mask in masks.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        ConvCase(blocks=("plain", "concat"), output="dict", second="late"),
        TokenCase(blocks=("softmax", "fused"), mask=True, rotary=True),
    ],
    ids=["conv", "token"],
)
def test_onnx_computes_the_same(case: Case, tmp_path: Path) -> None:
    """By onnxruntime, at a batch size that the export never saw; the net keeps its masks."""
    import onnxruntime

    net, masks = sparse_net((case, "blocks.0"), 0.8)
    before = snapshot(net)
    fxsplit.export_onnx(net, tmp_path / "net.onnx", case.example())
    assert_unchanged(before, net)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    actual = session.run(None, {name: value.numpy() for name, value in case.data(5).items()})
    expected = tensors(call(net, case.example(5)))
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(one), other, rtol=1e-5, atol=1e-6)
    assert masks.sparsity == sparsity.masks_of(net).sparsity


@pytest.mark.parametrize("interrupted", [1, 3])
@pytest.mark.parametrize("method", ["rigl", "set_"])
def test_an_interrupted_run_equals_an_uninterrupted_one(method: str, interrupted: int) -> None:
    case = ConvCase(blocks=("residual", "dropped"))

    def start() -> tuple[fxsplit.SplitModel, torch.optim.Optimizer, Any]:
        net, _ = sparse_net((case, "blocks.0"), 0.8)
        opt = torch.optim.AdamW(net.parameters(), lr=0.01)
        return net.train(), opt, getattr(sparsity, method)(net, opt, every=2, until=8, fraction=0.5)

    def steps(net: nn.Module, opt: torch.optim.Optimizer, numbers: range) -> None:
        for number in numbers:
            torch.manual_seed(number)
            squares(call(net, case.example(4, seed=number))).backward()
            opt.step()
            opt.zero_grad()

    net, opt, engine = start()
    steps(net, opt, range(interrupted))
    saved = copy.deepcopy((net.state_dict(), opt.state_dict(), engine.state_dict()))
    steps(net, opt, range(interrupted, 7))
    resumed, resumed_opt, resumed_engine = start()
    resumed.load_state_dict(saved[0])
    resumed_opt.load_state_dict(saved[1])
    resumed_engine.load_state_dict(saved[2])
    steps(resumed, resumed_opt, range(interrupted, 7))
    assert_same(dict(resumed.state_dict()), dict(net.state_dict()))
    assert_same(resumed_opt.state_dict()["state"], opt.state_dict()["state"])

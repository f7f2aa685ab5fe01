"""The engine on a GPU: masks as on the CPU, invariants under every way to take a step there."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsity
from sparsity import Engine

pytestmark = pytest.mark.gpu


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(576, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def _batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(16, 3, 8, 8, generator=generator)
    return images.cuda(), torch.randint(10, (16,), generator=generator).cuda()


def _assert_kept(net: nn.Module, optimizer: torch.optim.Optimizer, nonzeros: dict[str, int]) -> None:
    masks = sparsity.masks_of(net)
    assert {layer.path: layer.nonzeros for layer in masks.layers} == nonzeros
    for path, weight in masks.weights.items():
        off = ~masks[path]
        assert not weight.parameter[off].any()
        for state in optimizer.state[weight.parameter].values():
            if isinstance(state, Tensor) and state.shape == weight.parameter.shape:
                assert not state[off].any()


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "adam capturable": lambda p: torch.optim.Adam(p, lr=1e-3, capturable=True),
}


@pytest.mark.parametrize("method", [sparsity.rigl, sparsity.set_])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizers(kind: str, method: Any) -> None:
    net = _net().cuda()
    masks = sparsity.sparsify(net, 0.8)
    nonzeros = {layer.path: layer.nonzeros for layer in masks.layers}
    optimizer = OPTIMIZERS[kind](net.parameters())
    engine: Engine = method(net, optimizer, every=2, until=20, fraction=0.3)
    before = {path: mask.clone() for path, mask in masks.items()}
    for step in range(7):
        images, labels = _batch(step)
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        _assert_kept(net, optimizer, nonzeros)
    assert engine.last is not None
    assert engine.last.step == 6
    assert any(not torch.equal(before[path], mask) for path, mask in masks.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_scaler_that_skips_steps(dtype: torch.dtype) -> None:
    net = _net().cuda()
    masks = sparsity.sparsify(net, 0.8)
    nonzeros = {layer.path: layer.nonzeros for layer in masks.layers}
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
    engine = sparsity.rigl(net, optimizer, every=2, until=40, fraction=0.3)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    for step in range(9):
        images, labels = _batch(step)
        with torch.autocast("cuda", dtype):
            loss = nn.functional.cross_entropy(net(images), labels)
        if step == 3:
            loss = loss * float("inf")
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        _assert_kept(net, optimizer, nonzeros)
    assert engine.step == 8
    assert engine.last is not None
    assert engine.last.step == 6


def test_the_same_masks_as_on_the_cpu() -> None:
    """RigL's choices depend on weights and gradients only; in double precision those agree far below any tie."""
    here, there = _net().double(), _net().double().cuda()
    for net in (here, there):
        sparsity.sparsify(net, 0.7)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        sparsity.rigl(net, optimizer, every=2, until=20, fraction=0.3)
        device = next(net.parameters()).device
        for step in range(7):
            images, labels = _batch(step)
            nn.functional.cross_entropy(net(images.to(device).double()), labels.to(device)).backward()
            optimizer.step()
            optimizer.zero_grad()
    other = sparsity.masks_of(there)
    for path, mask in sparsity.masks_of(here).items():
        assert torch.equal(mask, other[path].cpu())


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled(mode: str) -> None:
    """Neither an update nor the steps around it compile the model again; the steps are those of eager code."""
    torch._dynamo.reset()
    nets = [_net().cuda(), _net().cuda()]
    results = []
    for net, compiled in zip(nets, (False, True), strict=True):
        masks = sparsity.sparsify(net, 0.8)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        engine = sparsity.rigl(net, optimizer, every=3, until=20, fraction=0.3)
        model = torch.compile(net, mode=mode, fullgraph=True) if compiled else net
        for step in range(8):
            images, labels = _batch(step)
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            if step == 1:
                torch._dynamo.utils.counters.clear()
        assert engine.last is not None
        assert engine.last.step == 6
        results.append((copy.deepcopy(dict(masks)), [p.detach().clone() for p in net.parameters()]))
    assert not torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for expected, actual in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-3)


def test_a_network_on_the_gpu() -> None:
    net = nn.Linear(64, 64, device="cuda")
    masks = sparsity.sparsify(net, 0.9, seed=3)
    here = nn.Linear(64, 64)
    assert torch.equal(masks["weight"].cpu(), sparsity.sparsify(here, 0.9, seed=3)["weight"])

"""An engine under any interleaving of what training loops do, against a plain account of what has to hold."""

from __future__ import annotations

import copy
import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor, nn

import sparsity

OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "rmsprop foreach": lambda p: torch.optim.RMSprop(p, lr=0.001, foreach=True),
}
METHODS: dict[str, Any] = {
    "rigl": lambda net, optimizer, every, **more: sparsity.rigl(net, optimizer, every, fraction=0.4, **more),
    "rigl with regrowth": lambda net, optimizer, every, **more: sparsity.rigl(
        net, optimizer, every, fraction=0.4, regrow=True, **more
    ),
    "set": lambda net, optimizer, every, **more: sparsity.set_(net, optimizer, every, fraction=0.4, **more),
    "snfs": lambda net, optimizer, every, **more: sparsity.snfs(net, optimizer, every, fraction=0.4, **more),
    "mest": lambda net, optimizer, every, **more: sparsity.mest(net, optimizer, every, fraction=0.4, **more),
    "deep_r": lambda net, optimizer, every, **more: sparsity.deep_r(net, optimizer, every, **more),
    "static": lambda net, optimizer, every, **more: sparsity.static(net, optimizer, **more),
}


def build(
    optimizer: str, method: str, every: int, compact: bool = False
) -> tuple[nn.Module, torch.optim.Optimizer, sparsity.Engine]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 6), nn.Linear(6, 3)
    )
    sparsity.sparsify(net, 0.6, allocation="uniform")
    made = OPTIMIZERS[optimizer](net.parameters())
    return net, made, METHODS[method](net, made, every, compact_state=compact)


class Training(RuleBasedStateMachine):
    """A loop that does anything, in any order; ``twin`` is trained with what counted, without any interruption.

    The optimizer's state may be compact, that of the twin is not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seed = 0

    @initialize(
        optimizer=st.sampled_from(list(OPTIMIZERS)),
        method=st.sampled_from(list(METHODS)),
        every=st.integers(1, 3),
        compact=st.booleans(),
    )
    def start(self, optimizer: str, method: str, every: int, compact: bool) -> None:
        self.settings = optimizer, method, every
        self.compact = compact and optimizer != "adamw fused"  # refused on the CPU
        self.net, self.optimizer, self.engine = build(*self.settings, compact=self.compact)
        self.twin, self.twin_optimizer, self.twin_engine = build(*self.settings)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
        self.counts = {layer.path: layer.nonzeros for layer in self.engine.masks.layers}
        self.made = 0
        self.seeds: list[int] = []
        self.saved: tuple[int, list[Any], Any] | None = None

    def backward(self, net: nn.Module, seed: int, scale: Any = None) -> None:
        images = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
        loss = net(images).square().mean()
        (loss if scale is None else scale(loss)).backward()

    @rule()
    def one_more_part(self) -> None:
        self.accumulate(1)

    def accumulate(self, parts: int) -> None:
        for _ in range(parts):
            self.seed += 1
            self.seeds.append(self.seed)
            self.backward(self.net, self.seed, self.scaler.scale)

    @rule()
    def discard(self) -> None:
        self.optimizer.zero_grad()
        self.seeds.clear()

    @rule(parts=st.integers(1, 3), clip=st.booleans())
    def step(self, parts: int, clip: bool) -> None:
        self.accumulate(parts)
        before = {path: mask.clone() for path, mask in self.engine.masks.items()}
        if clip:
            self.scaler.unscale_(self.optimizer)
            for path, weight in self.engine.masks.weights.items():
                assert weight.parameter.grad is not None
                assert not weight.parameter.grad[~before[path]].any()
            nn.utils.clip_grad_norm_(self.net.parameters(), 0.1)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        for seed in self.seeds:
            self.backward(self.twin, seed)
        if clip:
            nn.utils.clip_grad_norm_(self.twin.parameters(), 0.1)
        self.twin_optimizer.step()
        self.twin_optimizer.zero_grad()
        self.seeds.clear()
        self.check_update(before)
        self.made += 1

    def check_update(self, before: dict[str, Tensor]) -> None:
        _, method, every = self.settings
        due = method != "static" and self.made > 0 and self.made % every == 0
        last = self.engine.last
        changed = {path for path, mask in self.engine.masks.items() if not torch.equal(mask, before[path])}
        if not due:
            assert not changed
            return
        assert last is not None
        assert last.step == self.made
        for path, mask in self.engine.masks.items():
            dropped, grown = int((before[path] & ~mask).sum()), int((mask & ~before[path]).sum())
            assert (dropped, grown) == (last.dropped[path], last.grown[path])
            assert dropped == grown
            if method in ("rigl", "set", "snfs", "mest"):
                assert dropped == min(math.floor(0.4 * self.counts[path] + 1e-9), mask.numel() - self.counts[path])

    @rule(inside=st.booleans())
    def infinite_gradients(self, inside: bool) -> None:
        """A step that the scaler leaves out, however much was accumulated before."""
        state = copy.deepcopy(self.net.state_dict())
        self.seed += 1
        self.backward(self.net, self.seed, lambda loss: self.scaler.scale(loss) * math.inf)
        if inside:
            self.scaler.unscale_(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.seeds.clear()
        for name, value in self.net.state_dict().items():
            if "running" not in name and "batches" not in name:
                assert torch.equal(value, state[name])
        self.net.load_state_dict(state)

    @precondition(lambda self: not self.seeds)
    @rule()
    def save(self) -> None:
        self.saved = self.made, copy.deepcopy([each.state_dict() for each in self.loop()]), copy.deepcopy(self.twins())

    @precondition(lambda self: self.saved is not None)
    @rule()
    def crash_and_resume(self) -> None:
        assert self.saved is not None
        self.made, states, twins = self.saved
        self.net, self.optimizer, self.engine = build(*self.settings, compact=self.compact)
        self.twin, self.twin_optimizer, self.twin_engine = build(*self.settings)
        for each, state in zip(self.loop(), states, strict=True):
            each.load_state_dict(copy.deepcopy(state))
        for each, state in zip((self.twin, self.twin_optimizer, self.twin_engine), twins, strict=True):
            each.load_state_dict(copy.deepcopy(state))
        self.seeds.clear()

    def loop(self) -> tuple[Any, ...]:
        return self.net, self.optimizer, self.engine, self.scaler

    def twins(self) -> list[Any]:
        return [each.state_dict() for each in (self.twin, self.twin_optimizer, self.twin_engine)]

    @rule()
    def copy_the_model(self) -> None:
        other = copy.deepcopy(self.net)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1)
            for mask in sparsity.masks_of(other).values():
                mask.logical_not_()

    @rule()
    def evaluate(self) -> None:
        with torch.no_grad():
            self.net.eval()(torch.ones(2, 1, 4, 4))
        self.net.train()

    @invariant()
    def kept(self) -> None:
        if not hasattr(self, "engine"):
            return
        assert self.engine.step == self.made
        assert {layer.path: layer.nonzeros for layer in self.engine.masks.layers} == self.counts
        for path, weight in self.engine.masks.weights.items():
            off = ~self.engine.masks[path]
            shapes = [s.shape for s in self.optimizer.state[weight.parameter].values() if s.ndim]
            assert shapes == [((~off).sum(),) if self.compact else off.shape] * len(shapes)
            states = [s for s in self.optimizer.state[weight.parameter].values() if s.shape == off.shape]
            for tensor in (weight.parameter, *states):
                assert not tensor[off].any()

    @invariant()
    def like_the_twin(self) -> None:
        if not hasattr(self, "engine"):
            return
        for one, other in zip(self.net.parameters(), self.twin.parameters(), strict=True):
            torch.testing.assert_close(one, other)
        for path, mask in self.engine.masks.items():
            assert torch.equal(mask, self.twin_engine.masks[path])
            state, other = (
                optimizer.state[engine.masks.weights[path].parameter]
                for optimizer, engine in ((self.optimizer, self.engine), (self.twin_optimizer, self.twin_engine))
            )
            if self.settings[0] == "adamw fused" and not other:  # makes its state in a step that is left out, too
                assert not any(value.any() for value in state.values())
                continue
            assert state.keys() == other.keys()
            for name, value in state.items():
                torch.testing.assert_close(value, other[name][mask] if self.compact and value.ndim else other[name])


@pytest.mark.parametrize(
    "examples", [pytest.param(40, id="quick"), pytest.param(600, id="thorough", marks=pytest.mark.slow)]
)
def test_any_training_loop(examples: int) -> None:
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    quick = settings(
        max_examples=examples,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=checks,
        derandomize=examples < 100,
    )
    run_state_machine_as_test(Training, settings=settings(quick, phases=[Phase.generate, Phase.shrink], database=None))

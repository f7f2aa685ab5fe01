"""What goes wrong in an update changes nothing, ends nothing, and is told; what others do in between doesn't count."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, vmap
from torch.utils._python_dispatch import TorchDispatchMode

import sparsity
from sparsity import EngineError, Layer, Rule, _bits


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    sparsity.sparsify(net, 0.5, "uniform")
    return net


def backward(net: nn.Module, step: int = 0) -> Tensor:
    loss = net(torch.randn(5, 8, generator=torch.Generator().manual_seed(step))).square().mean()
    loss.backward()
    return loss


def momentum(net: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        optimizer.zero_grad()
        backward(net, step)
        optimizer.step()


def plain(drop: Any = sparsity.drop.magnitude, grow: Any = sparsity.grow.gradient, **others: Any) -> Rule:
    return Rule(2, None, sparsity.constant(0.3), drop, grow, **{"dense": True, **others})


def contents(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def nan_where(active: bool) -> Callable[[Layer], Tensor]:
    return lambda layer: torch.where(layer.mask == active, torch.nan, layer.weight.abs())


def choose_all(layers: Any, amounts: Any, drop: Any, grow: Any, regrow: bool) -> list[Tensor]:
    return [layer.mask for layer in layers]


def no_schedule() -> Rule:
    return Rule(2, None, lambda step: None, sparsity.drop.magnitude, sparsity.grow.uniform)  # pyright: ignore


FLAT = torch.ones(128, dtype=torch.bool)
ROWS = r"expected \(16, 8\) for '0.weight', got one of shape \(16,\)"
BAD_RULES: dict[str, tuple[Callable[[], Rule], str]] = {
    "drop is NaN": (lambda: plain(nan_where(True)), "would drop 0 and grow 28 weights instead of 28 and 28"),
    "grow is NaN": (lambda: plain(grow=nan_where(False)), "would drop 28 and grow 0 weights instead of 28 and 28"),
    "transposed": (lambda: plain(lambda layer: layer.weight.t()), r"'0.weight', got one of shape \(8, 16\)"),
    "rows": (lambda: plain(grow=lambda layer: layer.weight.mean(1)), ROWS),
    "a number": (lambda: plain(lambda layer: 1.0), "for '0.weight', got float"),
    "complex": (lambda: plain(lambda layer: layer.weight.cfloat()), "complex64"),
    "ripe is a number": (lambda: plain(ripe=lambda layer: layer.weight), "got torch.float32 for '0.weight'"),
    "ripe of rows": (lambda: plain(ripe=lambda layer: layer.mask.any(1)), ROWS),
    "no schedule": (no_schedule, "gave None"),
    "initial of rows": (lambda: plain(initial=lambda layer: layer.weight.mean(1)), ROWS),
    "initial is NaN": (
        lambda: plain(initial=lambda layer: layer.weight * torch.nan),
        "not finite where weights are grown, in '0.weight'",
    ),
    "initial of one layer": (
        lambda: plain(initial=sparsity.original({"0.weight": torch.ones(16, 8)})),
        "for the weight '2.weight', got none",
    ),
    "scope": (lambda: plain(scope=choose_all), "would drop 96 and grow 0"),
    "scope of one layer": (
        lambda: plain(scope=lambda *_: [FLAT]),
        r"\(16, 8\)', 'torch.bool.*got 'torch.bool \(128,\)'",
    ),
    "scope of floats": (lambda: plain(scope=lambda layers, *_: [one.weight for one in layers]), r"got 'torch.float32"),
    "scope of nothing": (lambda: plain(scope=lambda *_: None), "a bool tensor for each layer.*got 'NoneType'"),
}


@pytest.mark.parametrize("name", BAD_RULES)
def test_a_bad_rule_is_told_before_anything_changes(name: str) -> None:
    rule, message = BAD_RULES[name]
    net = network()
    optimizer = momentum(net)
    engine = sparsity.Engine(net, optimizer, rule())
    train(net, optimizer, 2)
    before, states = contents(net), copy.deepcopy(optimizer.state_dict())
    for _ in range(2):  # and so at each try
        optimizer.zero_grad()
        backward(net)
        with pytest.raises(EngineError, match=message):
            optimizer.step()
        assert_same(before, contents(net))
        for number, state in optimizer.state_dict()["state"].items():
            assert torch.equal(state["momentum_buffer"], states["state"][number]["momentum_buffer"])
    assert engine.step == 2
    assert engine.last is None


@pytest.mark.parametrize("move", [lambda net: net.to(memory_format=torch.channels_last), nn.Module.share_memory])
@pytest.mark.parametrize("micro", [0, 1])
def test_a_model_that_is_moved_before_an_update(move: Any, micro: int) -> None:
    """Its tensors, masks too, lie elsewhere then, before the backward pass or in the middle of an accumulation."""

    def trained(moved: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Tanh(), nn.Conv2d(6, 4, 3))
        masks = sparsity.sparsify(net, 0.5)
        optimizer = torch.optim.SGD(net.double().parameters(), lr=0.1)
        engine = sparsity.rigl(net, optimizer, every=2)
        for step in range(4):
            for number in range(2):
                if moved and (step, number) == (2, micro):
                    move(net)
                x = torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(2 * step + number)).double()
                net(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert engine.last is not None
        assert engine.last.step == 2
        return {path: mask.clone() for path, mask in masks.items()}

    assert_same(trained(True), trained(False))


def test_a_step_that_repeats_gradients() -> None:
    """What it adds to the gradients of the zeros is unknown, so an update waits for the next time that it is due."""
    net = network()
    optimizer = momentum(net)
    engine = sparsity.rigl(net, optimizer, every=2)
    train(net, optimizer, 2)
    before = {path: mask.clone() for path, mask in engine.masks.items()}
    with pytest.warns(sparsity.NoEffectWarning, match="No new gradient in the step of an update.*'0.weight'"):
        optimizer.step()
    assert all(torch.equal(before[path], mask) for path, mask in engine.masks.items())
    train(net, optimizer, 2, first=3)
    assert engine.last is not None
    assert engine.last.step == 4
    assert not any(torch.equal(before[path], mask) for path, mask in engine.masks.items())
    # Gradients that somebody else has made are told of.
    train(net, optimizer, 1, first=5)
    for parameter in net.parameters():
        assert parameter.grad is not None
        parameter.grad.add_(1.0)
    with pytest.raises(EngineError, match=r"'0\.weight' has a gradient at step 6, but not from a backward pass"):
        optimizer.step()


@pytest.mark.parametrize("dense", [True, False])
def test_a_callback_that_fails_once(dense: bool) -> None:
    """The update is made, once, and training goes on as if nothing had been."""
    net, other = network(), network()
    fails = [True]

    def callback(rewiring: sparsity.Rewiring) -> None:
        if fails and fails.pop():
            raise OSError("no space left on device")

    method = sparsity.rigl if dense else sparsity.set_
    optimizer, expected = momentum(net), momentum(other)
    engine = method(net, optimizer, every=2, callback=callback)
    method(other, expected, every=2)
    train(net, optimizer, 2)
    backward(net, 2)
    with pytest.raises(OSError, match="no space"):
        optimizer.step()
    assert engine.last is not None
    masks = {path: mask.clone() for path, mask in engine.masks.items()}
    optimizer.zero_grad()
    train(net, optimizer, 1, first=2)  # the same step again
    assert all(torch.equal(masks[path], mask) for path, mask in engine.masks.items())
    train(net, optimizer, 4, first=3)
    assert engine.step == 7
    assert engine.last.step == 6
    train(other, expected, 7)
    assert [mask.sum() for mask in engine.masks.values()] == [mask.sum() for mask in sparsity.masks_of(other).values()]


def test_a_failure_before_the_choice_leaves_the_update_to_the_next_try() -> None:
    net, other = network(), network()
    fails = [True]

    def drop(layer: Layer) -> Tensor:
        if fails and fails.pop():
            raise MemoryError
        return layer.weight.abs()

    optimizer, expected = momentum(net), momentum(other)
    sparsity.Engine(net, optimizer, plain(drop))
    sparsity.Engine(other, expected, plain())
    train(net, optimizer, 2)
    optimizer.zero_grad()
    backward(net, 2)
    with pytest.raises(MemoryError):
        optimizer.step()
    train(net, optimizer, 5, first=2)
    train(other, expected, 7)
    assert_same(contents(net), contents(other))


def test_an_optimizer_that_fails_after_the_update() -> None:
    net = network()
    fails = [True]

    class Fragile(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            if engine.last is not None and fails and fails.pop():
                raise RuntimeError("out of memory")
            return super().step(closure)

    optimizer = Fragile(net.parameters(), lr=0.1)
    engine = sparsity.rigl(net, optimizer, every=2)
    train(net, optimizer, 2)
    optimizer.zero_grad()
    backward(net, 2)
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step()
    train(net, optimizer, 3, first=2)
    assert engine.step == 5
    assert engine.last is not None
    assert engine.last.step == 4


@pytest.mark.parametrize("method", [sparsity.rigl, sparsity.mest, sparsity.snfs, "descent", "taylor"])
def test_a_fused_optimizer_under_a_scaler_shows_gradients_without_the_scale(method: Any) -> None:
    """It gets scaled gradients, and the scale to divide them by; others get them divided already."""

    def masks(fused: bool) -> dict[str, Tensor]:
        net = network()
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=fused)
        if method == "descent":
            sparsity.Engine(net, optimizer, plain(initial=sparsity.descent(0.1)))
        elif method == "taylor":
            sparsity.Engine(net, optimizer, plain(sparsity.drop.magnitude_and_gradient(2.0)))
        else:
            method(net, optimizer, every=2)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1, growth_factor=8.0)
        for step in range(6):
            optimizer.zero_grad()
            loss: Any = net(torch.randn(64, 8, generator=torch.Generator().manual_seed(step))).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return contents(net)

    one, other = masks(False), masks(True)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6)


def test_gradients_that_someone_else_asks_for_do_not_count() -> None:
    """As for logging: `autograd.grad` changes no ``.grad``, torch.func nothing at all."""
    net, other = network(), network()
    optimizer, expected = momentum(net), momentum(other)
    sparsity.rigl(net, optimizer, every=2)
    sparsity.rigl(other, expected, every=2)
    for step in range(7):
        optimizer.zero_grad()
        x = torch.randn(5, 8)
        probe(net, x)
        backward(net, step)
        probe(net, x)
        optimizer.step()
    train(other, expected, 7)
    assert_same(contents(net), contents(other))


def probe(net: nn.Module, x: Tensor) -> None:
    weights = dict(net.named_parameters())
    found = torch.autograd.grad(net(x).exp().sum(), list(weights.values()))
    values = {name: weight.detach() for name, weight in weights.items()}

    def loss(values: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(net, values, (x,)).exp().sum()

    whole = grad(loss)(values, x)
    single = vmap(grad(loss), (None, 0))(values, x)
    for (name, mine), reference in zip(whole.items(), found, strict=True):
        torch.testing.assert_close(mine, reference)
        torch.testing.assert_close(single[name].sum(0), reference)
    for path, mask in sparsity.masks_of(net).items():
        layer, name = path.split(".")
        assert not whole[f"{layer}.parametrizations.{name}.original"][~mask].any()


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # how torch makes these
def test_second_derivatives_of_weights() -> None:
    net = network()
    sparsity.rigl(net, momentum(net), every=1)
    name = "2.parametrizations.weight.original"
    mask = sparsity.masks_of(net)["2.weight"].flatten()
    x = torch.randn(5, 8)

    def loss(weight: Tensor) -> Tensor:
        return functional_call(net, {name: weight}, (x,)).square().sum()

    found = hessian(loss)(dict(net.named_parameters())[name].detach()).reshape(64, 64)  # pyright: ignore
    hidden = net[:2](x)
    # Of the sum of squares of W h + b over samples: 2 h h^T in each row of W.
    expected = torch.block_diag(*[2 * hidden.t() @ hidden] * 4) * mask * mask[:, None]
    torch.testing.assert_close(found, expected)


def test_state_in_lists_is_told_and_left_alone() -> None:
    """It may be of single weights, or a preconditioner of a square weight's shape, which zeros would break."""

    class Lists(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for weight in group["params"]:
                    self.state[weight].setdefault("history", [torch.ones_like(weight), (1, "text")])
            return super().step(closure)

    net = network()
    optimizer = Lists(net.parameters(), lr=0.1)
    engine = sparsity.rigl(net, optimizer, every=2)
    train(net, optimizer, 2)
    with pytest.warns(
        sparsity.SparsityWarning, match=r"keeps 'history' of shape \(16, 8\), torch.float32, for '0.weight'"
    ):
        train(net, optimizer, 1, first=2)
    assert engine.last is not None
    for weight in engine.masks.weights.values():
        assert optimizer.state[weight.parameter]["history"][0].all()
    train(net, optimizer, 2, first=3)  # told once


@pytest.mark.parametrize("method", [sparsity.static, sparsity.rigl])
def test_a_replaced_parameter_is_noticed_in_the_next_step(method: Any) -> None:
    net = network()
    optimizer = momentum(net)
    method(net, optimizer)
    train(net, optimizer, 1)
    net[0].parametrizations["weight"].original = nn.Parameter(torch.randn(16, 8))  # pyright: ignore
    optimizer.zero_grad()
    backward(net)
    with pytest.raises(EngineError, match=r"does not hold '0.weight'"):
        optimizer.step()


def test_the_state_of_another_model_is_refused() -> None:
    net = network()
    engine = sparsity.set_(net, momentum(net))
    larger = nn.Sequential(nn.Linear(8, 17), nn.Tanh(), nn.Linear(17, 4))
    sparsity.sparsify(larger, 0.5)
    state = sparsity.set_(larger, momentum(larger)).state_dict()
    with pytest.raises(EngineError, match=r"'0.weight' has the shape \(17, 8\) there and \(16, 8\) here"):
        engine.load_state_dict(state)
    shorter = nn.Sequential(nn.Linear(8, 16))
    sparsity.sparsify(shorter, 0.5)
    with pytest.raises(EngineError, match=r"'2.weight' has the shape None there and \(4, 16\) here"):
        engine.load_state_dict(sparsity.set_(shorter, momentum(shorter)).state_dict())


def test_several_optimizers_at_once_are_told_what_to_do() -> None:
    net = network()
    with pytest.raises(EngineError, match=r"got list. With several optimizers make an engine for each"):
        sparsity.rigl(net, [momentum(net), momentum(net)])  # pyright: ignore


def test_a_weight_that_is_unfrozen_before_the_backward_pass_of_an_update() -> None:
    net = network()
    net[2].requires_grad_(False)
    optimizer = momentum(net)
    engine = sparsity.rigl(net, optimizer, every=2)
    train(net, optimizer, 2)
    assert not any(parameter.requires_grad for parameter in net[2].parameters())
    net[2].requires_grad_(True)
    train(net, optimizer, 1, first=2)
    assert engine.last is not None
    assert set(engine.last.dropped) == {"0.weight", "2.weight"}


@pytest.mark.parametrize("where", ["last", "one before"])
def test_gradual_pruning_makes_up_for_an_update_that_was_left_out(where: str) -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    masks = sparsity.sparsify(net, 0.0)
    optimizer = momentum(net)
    engine = sparsity.gradual(net, optimizer, 0.8, begin=1, until=5, every=2)
    bad = 5 if where == "last" else 3
    train(net, optimizer, bad)
    optimizer.zero_grad()
    backward(net, bad)
    net[0].parametrizations.weight.original.grad.fill_(torch.inf)  # pyright: ignore
    before, weights = masks.nonzeros, contents(net)
    with pytest.warns(sparsity.SparsityWarning, match=r"not finite, in '0\.weight'. It is made up for"):
        optimizer.step()
    assert masks.nonzeros == before
    state = engine.state_dict()
    assert state["missed"]
    net.load_state_dict(weights)
    optimizer = momentum(net)
    engine = sparsity.gradual(net, optimizer, 0.8, begin=1, until=5, every=2)
    engine.load_state_dict(state)
    train(net, optimizer, 1, first=bad + 1)
    assert engine.skipped == 1
    assert not engine.state_dict()["missed"]
    assert engine.last is not None
    assert engine.last.step == bad + 1
    train(net, optimizer, 3, first=bad + 2)
    assert masks.nonzeros == round(0.2 * masks.total)


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("method", [sparsity.rigl, sparsity.snfs])
@pytest.mark.parametrize("cut", [7, 8, 9, 10, 11])
def test_resume_in_the_middle_of_an_accumulation(cut: int, method: Any, compact: bool) -> None:
    """Three micro-batches a step; saved after some of them, with what has come together in ``.grad``."""

    def made() -> tuple[Any, Any, Any]:
        net = network()
        optimizer = momentum(net)
        return net, optimizer, method(net, optimizer, every=2, compact_state=compact)

    def run(loop: tuple[Any, Any, Any], first: int, last: int) -> None:
        net, optimizer, _ = loop
        for number in range(first, last):
            backward(net, number)
            if number % 3 == 2:
                optimizer.step()
                optimizer.zero_grad()

    whole, half, later = made(), made(), made()
    run(whole, 0, 24)
    run(half, 0, cut)
    states = [copy.deepcopy(each.state_dict()) for each in half]
    gradients = [None if each.grad is None else each.grad.clone() for each in half[0].parameters()]
    for each, state in zip(later, states, strict=True):
        each.load_state_dict(state)
    for parameter, gradient in zip(later[0].parameters(), gradients, strict=True):
        parameter.grad = gradient
    run(later, cut, 24)
    assert_same(contents(later[0]), contents(whole[0]))


def test_parts_of_a_method_can_be_replaced() -> None:
    seen = []

    def random_of_active(layer: Layer) -> Tensor:
        seen.append(layer.path)
        return layer.draw(Tensor.uniform_)

    net, other = network(), network()
    optimizer, expected = momentum(net), momentum(other)
    engine = sparsity.rigl(net, optimizer, every=2, scope=sparsity.over_layers, drop=random_of_active, seed=3)
    sparsity.Engine(other, expected, plain(random_of_active, scope=sparsity.over_layers), seed=3)
    train(net, optimizer, 5)
    train(other, expected, 5)
    assert seen
    assert_same(contents(net), contents(other))
    assert repr(engine) == "<Engine of 2 masks at step 5: updates every 2 steps>"
    engine.detach()
    assert repr(engine).endswith("steps, detached>")


def test_counts_of_masks_that_start_in_the_middle_of_a_word() -> None:
    masks = torch.rand(3, 4097, generator=torch.Generator().manual_seed(0)) < 0.3
    for start in range(9):
        assert _bits.count(masks.view(-1)[start : start + 8192]) == masks.view(-1)[start : start + 8192].sum()


def test_following_something_else_than_a_module() -> None:
    with pytest.raises(sparsity.MaskError, match="Average and model are modules, got dict"):
        sparsity.follow({}, network())  # pyright: ignore


class Waits(TorchDispatchMode):
    """Counts the operations that would wait for a device, by looking at values on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        waiting = (aten._local_scalar_dense, aten.nonzero, aten.index, aten.index_put_, aten.masked_select)
        self.number += func.overloadpacket in waiting
        return func(*args, **(kwargs or {}))


def test_initial_values_do_not_wait_for_the_device_in_each_layer() -> None:
    numbers = []
    for layers in (1, 6):
        net = nn.Sequential(*(nn.Linear(8, 8) for _ in range(layers)))
        sparsity.sparsify(net, 0.5)
        optimizer = momentum(net)
        engine = sparsity.rigl(net, optimizer, every=2, initial=sparsity.descent(0.1))
        train(net, optimizer, 2)
        optimizer.zero_grad()
        backward(net)
        with Waits() as waits:
            optimizer.step()
        assert engine.last is not None
        numbers.append(waits.number)
    assert numbers[0] == numbers[1]

"""Engines with compact_state=True against plain ones: the same bits, of fewer states."""

# Tests read weights of layers, which pyright cannot know to be there.
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import copy
import io
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.optim import create_optimizer_v2  # pyright: ignore
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.optim.swa_utils import AveragedModel

import sparsity
from sparsity import Engine, EngineError, NoEffectWarning, Rule
from sparsity._attachment import innermost
from tests.unit._ranks import run

Make = Callable[[nn.Module], Any]
Attach = Callable[..., Engine]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 5)
    )


def linear() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(48, 40), nn.Linear(40, 5))


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 3, 4, 4, generator=generator), torch.randint(5, (8,), generator=generator)


def loss_of(net: nn.Module, step: int) -> Tensor:
    images, labels = batch(step)
    return nn.functional.cross_entropy(net(images), labels)


def rigl(net: nn.Module, optimizer: Any, compact: bool) -> Engine:
    return sparsity.rigl(net, optimizer, every=3, fraction=sparsity.constant(0.3), compact_state=compact)


class One:
    """A network in training."""

    def __init__(self, make: Make, attach: Attach, compact: bool, build: Callable[[], nn.Module] = network) -> None:
        self.net = build()
        self.masks = sparsity.sparsify(self.net, 0.7)
        self.optimizer = make(self.net)
        self.engine = attach(self.net, self.optimizer, compact)

    def train(self, steps: Iterable[int]) -> None:
        for step in steps:
            self.optimizer.zero_grad()
            loss_of(self.net, step).backward()
            self.optimizer.step()

    def states(self) -> dict[str, dict[str, Any]]:
        """Of all parameters, those of masked weights at the active places only, whichever form they have."""
        holders = {id(weight.parameter): path for path, weight in self.masks.weights.items()}
        found = {}
        for name, parameter in self.net.named_parameters():
            state = dict(innermost(self.optimizer).state.get(parameter, {}))
            if id(parameter) in holders:
                mask = self.masks[holders[id(parameter)]]
                whole = [k for k, v in state.items() if isinstance(v, Tensor) and v.shape == mask.shape]
                state.update({key: state[key][mask] for key in whole})
            found[name] = state
        return found

    def options(self) -> list[dict[str, Any]]:
        groups = innermost(self.optimizer).param_groups
        return [{k: v for k, v in group.items() if k not in ("params", "compact_state")} for group in groups]


def both(make: Make, attach: Attach = rigl, build: Callable[[], nn.Module] = network) -> tuple[One, One]:
    return One(make, attach, False, build), One(make, attach, True, build)


def bits(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(
            *(each.detach().contiguous().flatten().view(torch.uint8) for each in (one, other))
        )
    return type(one) is type(other) and one == other


def check_same(plain: One, compact: One) -> None:
    for name, value in plain.net.state_dict().items():
        assert bits(value, compact.net.state_dict()[name]), name
    states = plain.states(), compact.states()
    assert [(name, sorted(state)) for name, state in states[0].items()] == [
        (name, sorted(state)) for name, state in states[1].items()
    ]
    for name, state in states[0].items():
        for key, value in state.items():
            assert bits(value, states[1][name][key]), (name, key)
    assert plain.options() == compact.options()


def check_compact(one: One, names: tuple[str, ...]) -> None:
    for path, weight in one.masks.weights.items():
        state = innermost(one.optimizer).state[weight.parameter]
        assert [state[name].shape for name in names] == [(int(one.masks[path].sum()),)] * len(names)
        assert all(value.numel() == 1 for name, value in state.items() if name not in names)


# Every optimizer of torch that treats each weight by itself.

DECAY = {"lr": 0.02, "weight_decay": 0.01}
OPTIMIZERS: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "SGD": (
        torch.optim.SGD,
        [
            {"lr": 0.1},
            {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
            {"lr": 0.05, "momentum": 0.9, "nesterov": True},
        ],
    ),
    "Adam": (torch.optim.Adam, [{}, DECAY, {"amsgrad": True}, {"maximize": True, "lr": torch.tensor(0.01)}]),
    "AdamW": (torch.optim.AdamW, [DECAY, {"amsgrad": True}]),
    "NAdam": (torch.optim.NAdam, [DECAY, {"decoupled_weight_decay": True}]),
    "RAdam": (torch.optim.RAdam, [DECAY, {"decoupled_weight_decay": True}]),
    "RMSprop": (torch.optim.RMSprop, [{"lr": 0.001}, {"lr": 0.001, "momentum": 0.9, "centered": True}]),
    "Adagrad": (torch.optim.Adagrad, [DECAY, {"initial_accumulator_value": 0.1, "lr_decay": 0.01}]),
    "Adadelta": (torch.optim.Adadelta, [DECAY]),
    "Adamax": (torch.optim.Adamax, [DECAY]),
    "Rprop": (torch.optim.Rprop, [{"lr": 0.001}]),
    "ASGD": (torch.optim.ASGD, [DECAY]),
}
CASES = [
    pytest.param(kind, {**options, "foreach": foreach}, id=f"{name} {number} {'foreach' if foreach else 'loop'}")
    for name, (kind, several) in OPTIMIZERS.items()
    for number, options in enumerate(several)
    for foreach in (False, True)
    if not (foreach and isinstance(options.get("lr"), Tensor))
]


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_same_bits_as_the_plain_engine(kind: Any, options: dict[str, Any]) -> None:
    plain, compact = both(lambda net: kind(net.parameters(), **options))
    for step in range(22):
        before = {path: mask.clone() for path, mask in plain.masks.items()}
        for one in (plain, compact):
            one.train([step])
        moved = any(not torch.equal(mask, before[path]) for path, mask in plain.masks.items())
        assert moved == (step > 0 and step % 3 == 0)
        check_same(plain, compact)
    names = {name for name, value in compact.states()["0.parametrizations.weight.original"].items() if value.ndim}
    check_compact(compact, tuple(names))
    compact.engine.detach()
    for weight in compact.masks.weights.values():
        shapes = [value.shape for value in compact.optimizer.state[weight.parameter].values() if value.ndim]
        assert shapes == [weight.parameter.shape] * len(names)


@pytest.mark.parametrize(
    ("make", "name", "first"),
    [
        (lambda net: torch.optim.Rprop(net.parameters(), lr=0.004), "step_size", 0.004),
        (lambda net: torch.optim.Adagrad(net.parameters(), initial_accumulator_value=0.5), "sum", 0.5),
        (lambda net: create_optimizer_v2(net, opt="rmsproptf", lr=0.01), "square_avg", 1.0),
        (lambda net: AdamW(net.parameters()), "exp_avg_sq", 0.0),
    ],
    ids=["Rprop", "Adagrad", "RMSpropTF", "AdamW"],
)
def test_grown_weights_start_with_first_states_and_others_keep_theirs(make: Make, name: str, first: float) -> None:
    _, one = both(make)
    one.train(range(3))
    mask, weight = one.masks["4.weight"], one.masks.weights["4.weight"].parameter
    known = torch.full(mask.shape, first)
    known[mask] = one.optimizer.state[weight][name]
    dropped, grown = mask.nonzero()[:4].unbind(1), (~mask).nonzero()[:4].unbind(1)
    mask[dropped], mask[grown] = False, True
    one.optimizer.state_dict()  # no step, which would change all
    assert torch.equal(one.optimizer.state[weight][name], known[mask])
    one.engine.detach()
    known[~mask] = first
    assert torch.equal(one.optimizer.state[weight][name], known)


METHODS: dict[str, Any] = {
    "rigl with regrowth": lambda net, o, compact: sparsity.rigl(net, o, 2, regrow=True, compact_state=compact),
    "set": lambda net, o, compact: sparsity.set_(net, o, 2, compact_state=compact),
    "snfs": lambda net, o, compact: sparsity.snfs(net, o, 2, compact_state=compact),
    "mest": lambda net, o, compact: sparsity.mest(net, o, 2, compact_state=compact),
    "deep_r": lambda net, o, compact: sparsity.deep_r(net, o, compact_state=compact),
    "static": lambda net, o, compact: sparsity.static(net, o, compact_state=compact),
    "trails": lambda net, o, compact: sparsity.trails(net, o, 40, every=2, compact_state=compact),
    "gradual": lambda net, o, compact: sparsity.gradual(net, o, 0.95, 1, 19, 2, compact_state=compact),
    "over layers": lambda net, o, compact: Engine(net, o, OVER_LAYERS, compact_state=compact),
    "by the optimizer's state": lambda net, o, compact: Engine(net, o, BY_STATE, compact_state=compact),
    "observing the optimizer's state": lambda net, o, compact: Engine(net, o, OBSERVING, compact_state=compact),
}
FRACTION = sparsity.constant(0.4)
OVER_LAYERS = Rule(2, None, FRACTION, sparsity.drop.magnitude, sparsity.grow.uniform, scope=sparsity.over_layers)


def by_momentum(layer: sparsity.Layer) -> Tensor:
    return layer.state["exp_avg"].abs() + layer.weight.abs()


def observe(layer: sparsity.Layer) -> None:
    if "exp_avg_sq" in layer.state:
        layer.memory["seen"] = layer.memory.get("seen", 0) + layer.state["exp_avg_sq"].sqrt()


BY_STATE = Rule(2, None, FRACTION, by_momentum, sparsity.grow.uniform)
OBSERVING = Rule(
    2, None, FRACTION, lambda layer: layer.memory["seen"], sparsity.grow.uniform, observe=observe, memory={"seen": None}
)


@pytest.mark.parametrize("attach", METHODS.values(), ids=METHODS)
def test_methods(attach: Attach) -> None:
    plain, compact = both(lambda net: AdamW(net.parameters(), lr=0.02), attach)
    for step in range(20):
        for one in (plain, compact):
            one.train([step])
        check_same(plain, compact)
    check_compact(compact, ("exp_avg", "exp_avg_sq"))


def test_layers_that_lose_all_weights_and_get_some_again() -> None:
    """Steps of a layer without active weights count, as they do in the plain engine."""
    kept = {"here": "0.weight"}

    def elsewhere(layer: sparsity.Layer) -> Tensor:
        return torch.full_like(layer.weight, float(layer.path == kept["here"]))

    rule = Rule(1, None, lambda step: 1.0 if step in (2, 6) else 0.0, elsewhere, elsewhere, scope=sparsity.over_layers)
    plain, compact = both(
        lambda net: torch.optim.NAdam(net.parameters()),
        lambda net, optimizer, compact: Engine(net, optimizer, rule, compact_state=compact),
        linear,
    )
    for each in (plain, compact):
        each.net.insert(0, nn.Flatten())
    counts = []
    for step in range(9):
        kept["here"] = "0.weight" if step < 4 else "1.weight"
        for one in (plain, compact):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("warnings.warn", lambda *args, **kwargs: None)  # of layers without weights
                one.train([step])
        check_same(plain, compact)
        counts.append([layer.nonzeros for layer in compact.masks.layers])
    assert 0 in [count for row in counts for count in row]
    assert counts[-1] != counts[3]


# What training loops do.


def test_scaler_clipping_accumulation_and_schedules() -> None:
    plain, compact = both(lambda net: AdamW(net.parameters(), lr=0.02))
    for one in (plain, compact):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
        schedules = OneCycleLR(one.optimizer, 0.05, 40), CosineAnnealingLR(one.optimizer, 40)
        for step in range(24):
            for part in range(1 + step % 3):
                loss = loss_of(one.net, 10 * step + part)
                scaler.scale(loss * torch.inf if step in (5, 11) and part == 0 else loss).backward()
            if step % 2:
                scaler.unscale_(one.optimizer)
                nn.utils.clip_grad_norm_(one.net.parameters(), 0.5)
            scaler.step(one.optimizer)
            scaler.update()
            one.optimizer.zero_grad(set_to_none=step % 4 < 2)
            for each in schedules:
                each.step()
        assert one.engine.step == 22
    check_same(plain, compact)
    check_compact(compact, ("exp_avg", "exp_avg_sq"))


def test_learning_rate_that_begins_at_zero() -> None:
    plain, compact = both(lambda net: AdamW(net.parameters(), lr=0.0))
    for step in range(8):
        for one in (plain, compact):
            one.optimizer.param_groups[0]["lr"] = step / 100
            one.train([step])
    check_same(plain, compact)


@pytest.mark.parametrize("keyword", [False, True])
def test_closures(keyword: bool) -> None:
    plain, compact = both(lambda net: SGD(net.parameters(), lr=0.1, momentum=0.9))
    losses = []
    for one, step in itertools.product((plain, compact), range(13)):

        def closure(one: One = one, step: int = step) -> Tensor:
            one.optimizer.zero_grad()
            loss = loss_of(one.net, step)
            loss.backward()
            return loss

        losses.append(one.optimizer.step(closure=closure) if keyword else one.optimizer.step(closure))
    check_same(plain, compact)
    assert [loss.item() for loss in losses[:13]] == [loss.item() for loss in losses[13:]]


class Plainly(Optimizer):
    """Momentum with what optimizers of one's own may do: counters, gradients changed in place, closures at any time."""

    def __init__(self, parameters: Any, lr: float = 0.1, closures: int = 1) -> None:
        super().__init__(parameters, {"lr": lr, "count": 0})
        self.closures, self.fail, self.calls = closures, "", 0

    def step(self, closure: Any = None) -> Any:
        loss = None
        self.calls += 1
        for group in self.param_groups:
            for _ in range(self.closures):
                loss = loss if closure is None else closure()
            if self.fail == "early":
                raise RuntimeError("out of memory")
            group["count"] += 1
            with torch.no_grad():
                for each in group["params"]:
                    if each.grad is not None:
                        state = self.state[each]
                        state["mean"] = each.grad.mul_(0.5) + 0.9 * state.get("mean", 0)
                        each.sub_(group["lr"] * state["mean"])
        if self.fail == "late":
            raise RuntimeError("out of memory")
        return loss


def test_optimizers_of_ones_own() -> None:
    plain, compact = both(lambda net: Plainly(net.parameters()))
    for one in (plain, compact):
        one.train(range(13))
    check_same(plain, compact)
    assert compact.optimizer.calls == 13
    assert compact.optimizer.param_groups[0]["count"] == 13
    for one, other in zip(plain.net.parameters(), compact.net.parameters(), strict=True):
        assert bits(one.grad, other.grad)


class Extended(AdamW):
    """Makes the step of its base class, which runs hooks of its own."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def test_steps_of_a_base_class_count_once() -> None:
    plain, _ = both(lambda net: AdamW(net.parameters()))
    _, compact = both(lambda net: Extended(net.parameters()))
    for one in (plain, compact):
        one.train(range(7))
    assert compact.engine.step == 7
    check_same(plain, compact)


def test_closures_called_in_the_middle_of_a_step() -> None:
    def groups(net: nn.Module) -> Optimizer:
        first, *rest = net.parameters()
        return Plainly([{"params": [first]}, {"params": rest, "lr": 0.05}], closures=2)

    plain, compact = both(groups)
    for one, step in itertools.product((plain, compact), range(8)):

        def closure(one: One = one, step: int = step) -> Tensor:
            one.optimizer.zero_grad()
            loss = loss_of(one.net, step)
            loss.backward()
            return loss

        one.optimizer.step(closure)
    check_same(plain, compact)
    check_compact(compact, ("mean",))


@pytest.mark.parametrize("inside", ["step", "closure"])
def test_steps_that_fail(inside: str) -> None:
    """Groups hold the model's parameters then, and training goes on as if the step had not been."""

    def failing() -> None:
        raise RuntimeError("out of memory")

    plain, compact = both(lambda net: Plainly(net.parameters()))
    for one in (plain, compact):
        one.train(range(4))
        loss_of(one.net, 4).backward()
        one.optimizer.fail = "early" if inside == "step" else ""
        with pytest.raises(RuntimeError, match="out of memory"):
            one.optimizer.step(failing if inside == "closure" else None)
        one.optimizer.fail = ""
        held = {id(each) for group in one.optimizer.param_groups for each in group["params"]}
        assert held == {id(each) for each in one.net.parameters()}
        one.optimizer.zero_grad()
        assert all(each.grad is None for each in one.net.parameters())
    check_same(plain, compact)
    for one in (plain, compact):
        one.train(range(5, 12))
    check_same(plain, compact)


def test_what_a_step_computed_before_it_failed_does_not_come_later() -> None:
    _, one = both(lambda net: Plainly(net.parameters()))
    one.train(range(2))
    loss_of(one.net, 2).backward()
    before = {path: weight.parameter.detach().clone() for path, weight in one.masks.weights.items()}
    one.optimizer.fail = "late"
    with pytest.raises(RuntimeError, match="out of memory"):
        one.optimizer.step()
    one.optimizer.fail = ""
    one.optimizer.zero_grad()
    one.net[6].bias.grad = torch.ones(5)
    one.optimizer.step()
    assert all(torch.equal(weight.parameter, before[path]) for path, weight in one.masks.weights.items())


def test_hooks_of_others_see_gradients_before_and_weights_after() -> None:
    plain, compact = both(lambda net: AdamW(net.parameters()), lambda *_: None)
    seen: list[list[Tensor]] = []
    for one, compacts in ((plain, False), (compact, True)):

        def look(*_: Any, one: One = one) -> None:
            seen[-1].extend(each.detach().clone() for each in one.net.parameters())

        def clip(*_: Any, one: One = one) -> None:
            nn.utils.clip_grad_norm_(one.net.parameters(), 0.1)

        seen.append([])
        one.optimizer.register_step_post_hook(look)
        rigl(one.net, one.optimizer, compacts)
        one.optimizer.register_step_pre_hook(clip)
        one.train(range(7))
    check_same(plain, compact)
    assert all(bits(a, b) for a, b in zip(*seen, strict=True))


def test_frozen_weights_groups_added_and_weights_without_gradients() -> None:
    def part(net: nn.Module) -> Optimizer:
        net[0].requires_grad_(False)
        decayed = [each for each in net[4:].parameters() if each.ndim > 1]
        rest = [each for each in net[4:].parameters() if each.ndim == 1]
        return AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=0.02)

    plain, compact = both(part)
    for one in (plain, compact):
        one.train(range(3))
        with pytest.warns(NoEffectWarning, match=r"'0\.weight'"):
            one.train([3])
        one.net[0].requires_grad_(True)
        one.optimizer.add_param_group({"params": list(one.net[0].parameters()), "amsgrad": True})
        one.train(range(4, 10))
        one.net[6].requires_grad_(False)
        with pytest.warns(NoEffectWarning, match=r"'6\.weight'"):
            one.train(range(10, 13))
        one.net[6].requires_grad_(True)
        one.train(range(13, 17))
    check_same(plain, compact)
    state = compact.optimizer.state[compact.masks.weights["0.weight"].parameter]
    assert state["max_exp_avg_sq"].shape == (int(compact.masks["0.weight"].sum()),)


def test_tied_weights() -> None:
    def tied() -> nn.Sequential:
        torch.manual_seed(0)
        first, second = nn.Linear(48, 48), nn.Linear(48, 48)
        second.weight = first.weight
        return nn.Sequential(nn.Flatten(), first, nn.Tanh(), second, nn.Linear(48, 5))

    plain, compact = both(lambda net: AdamW(net.parameters()), build=tied)
    for one in (plain, compact):
        one.train(range(8))
    assert plain.masks.tied
    check_same(plain, compact)
    check_compact(compact, ("exp_avg", "exp_avg_sq"))


def test_any_layout_of_weights() -> None:
    def channels_last() -> nn.Module:
        return network().to(memory_format=torch.channels_last)

    plain, compact = both(lambda net: AdamW(net.parameters()), build=channels_last)
    assert not compact.masks.weights["0.weight"].parameter.is_contiguous()
    for one in (plain, compact):
        one.train(range(8))
    check_same(plain, compact)


@pytest.mark.parametrize("kinds", [(True, True), (True, False), (False, True)])
def test_several_engines_on_one_optimizer(kinds: tuple[bool, bool]) -> None:
    def attach(net: nn.Module, optimizer: Optimizer, compact: bool) -> Any:
        first, second = (each and compact for each in kinds)
        engines = [
            sparsity.snfs(net[:3], optimizer, every=3, compact_state=first),
            sparsity.set_(net[4:], optimizer, every=2, compact_state=second),
        ]
        return engines

    plain, compact = both(lambda net: AdamW(net.parameters(), lr=0.02), attach)
    for one, step in itertools.product((plain, compact), range(14)):

        def closure(one: One = one, step: int = step) -> Tensor:
            one.optimizer.zero_grad()
            loss = loss_of(one.net, step)
            loss.backward()
            return loss

        if step % 2:
            one.optimizer.step(closure)
        else:
            closure()
            one.optimizer.step()
        if step == 9:
            one.engine[0].detach()
    check_same(plain, compact)
    for path, (index, whole) in {"0.weight": (0, True), "4.weight": (1, not kinds[1])}.items():
        parameter = compact.masks.weights[path].parameter
        assert (compact.optimizer.state[parameter]["exp_avg"].shape == parameter.shape) == whole, index
    compact.engine[1].detach()
    assert "compact_state" not in compact.optimizer.param_groups[0]
    plain.engine[1].detach()
    for one in (plain, compact):
        one.train([20])
    check_same(plain, compact)


@pytest.mark.parametrize("before", [0, 7])
def test_inside_of_lookahead(before: int) -> None:
    """What Lookahead keeps among the states of the optimizer inside stays as it is."""
    plain, compact = both(
        lambda net: create_optimizer_v2(net, opt="lookahead_adamw", lr=0.01, weight_decay=0.05), lambda *_: None
    )
    for one, compacts in ((plain, False), (compact, True)):
        one.train(range(before))
        rigl(one.net, one.optimizer, compacts)
        one.train(range(before, 16))
    check_same(plain, compact)
    state = innermost(compact.optimizer).state[compact.masks.weights["4.weight"].parameter]
    assert (state["exp_avg"].ndim, state["lookahead_slow_buff"].ndim) == (1, 2)


def test_averages_follow() -> None:
    plain, compact = both(lambda net: AdamW(net.parameters(), lr=0.02))
    averages = []
    for one in (plain, compact):
        average = AveragedModel(one.net)
        sparsity.follow(average, one.net)
        for step in range(7):
            one.train([step])
            average.update_parameters(one.net)
        averages.append(average.state_dict())
    assert all(bits(value, averages[1][name]) for name, value in averages[0].items())


def test_compiled_steps() -> None:
    """Compiled kernels compute in an order of their own, for the plain engine too."""
    plain, compact = both(lambda net: AdamW(net.parameters(), lr=0.02), lambda *_: None, linear)
    for one, compacts in ((plain, False), (compact, True)):
        engine = sparsity.static(one.net, one.optimizer, compact_state=compacts)
        torch._dynamo.reset()
        step = torch.compile(one.optimizer.step, backend="eager")
        for number in range(5):
            one.optimizer.zero_grad()
            loss_of(nn.Sequential(nn.Flatten(), one.net), number).backward()
            step()
        assert engine.step == 5
    for a, b in zip(plain.net.parameters(), compact.net.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    check_compact(compact, ("exp_avg", "exp_avg_sq"))


# Saving, resuming, attaching and detaching.


def stored(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


@pytest.mark.parametrize("at", range(1, 8))
def test_resuming_at_any_step(at: int) -> None:
    """Model, optimizer and engine in any order, in a new process or over what was trained on."""
    orders = list(itertools.permutations(("net", "optimizer", "engine")))
    plain, compact = both(lambda net: torch.optim.Adagrad(net.parameters(), lr=0.05))
    for one in (plain, compact):
        one.train(range(at))
    states = {name: stored(getattr(compact, name).state_dict()) for name in orders[0]}
    for one in (plain, compact):
        one.train(range(at, at + 6))
    check_same(plain, compact)
    _, resumed = both(lambda net: torch.optim.Adagrad(net.parameters(), lr=0.05))
    for again, order in ((resumed, orders[at % 6]), (compact, orders[(at + 1) % 6])):
        for name in order:
            getattr(again, name).load_state_dict(copy.deepcopy(states[name]))
        again.train(range(at, at + 6))
        check_same(plain, again)
        check_compact(again, ("sum",))


def test_saved_with_the_optimizer() -> None:
    def saving(net: nn.Module, optimizer: Optimizer, compact: bool) -> Engine:
        return sparsity.save_with_optimizer(rigl(net, optimizer, compact))

    plain, compact = both(lambda net: AdamW(net.parameters()), saving)
    compact.train(range(5))
    state = stored([compact.net.state_dict(), compact.optimizer.state_dict()])
    _, resumed = both(lambda net: AdamW(net.parameters()), saving)
    resumed.optimizer.load_state_dict(state[1])
    resumed.net.load_state_dict(state[0])
    assert resumed.engine.step == 5
    plain.train(range(9))
    resumed.train(range(5, 9))
    check_same(plain, resumed)


def test_an_optimizer_that_was_loaded_before_the_engine_was_attached() -> None:
    plain, compact = both(lambda net: AdamW(net.parameters()))
    compact.train(range(5))
    again = One(lambda net: AdamW(net.parameters()), lambda *_: None, True)
    again.net.load_state_dict(compact.net.state_dict())
    again.optimizer.load_state_dict(copy.deepcopy(compact.optimizer.state_dict()))
    again.engine = rigl(again.net, again.optimizer, True)
    again.engine.load_state_dict(compact.engine.state_dict())
    plain.train(range(9))
    again.train(range(5, 9))
    check_same(plain, again)


def test_states_of_the_plain_engine_are_loaded_as_they_are() -> None:
    plain, compact = both(lambda net: AdamW(net.parameters()))
    plain.train(range(5))
    for name in ("optimizer", "net", "engine"):
        getattr(compact, name).load_state_dict(copy.deepcopy(getattr(plain, name).state_dict()))
    for one in (plain, compact):
        one.train(range(5, 9))
    check_same(plain, compact)
    check_compact(compact, ("exp_avg", "exp_avg_sq"))


def test_the_plain_engine_refuses_compact_states_and_says_how_to_get_all() -> None:
    plain, compact = both(lambda net: AdamW(net.parameters()))
    compact.train(range(5))
    states = copy.deepcopy([getattr(compact, name).state_dict() for name in ("net", "optimizer", "engine")])
    for each, state in zip((plain.net, plain.optimizer, plain.engine), states, strict=True):
        each.load_state_dict(state)
    weights = copy.deepcopy(plain.net.state_dict())
    with pytest.raises(EngineError, match="saved under an engine with compact_state=True"):
        plain.train([5])
    for name, value in plain.net.state_dict().items():
        assert "running" in name or "batches" in name or bits(value, weights[name])
    plain.engine.detach()
    plain.net.load_state_dict(weights)
    with pytest.raises(EngineError, match="saved under an engine with compact_state=True"):
        rigl(plain.net, plain.optimizer, False)
    rigl(plain.net, plain.optimizer, True).detach()
    plain.engine = rigl(plain.net, plain.optimizer, False)
    plain.engine.load_state_dict(states[2])
    for one in (plain, compact):
        one.train(range(5, 9))
    check_same(plain, compact)


def test_attached_and_detached_midway() -> None:
    def dense(net: nn.Module, optimizer: Optimizer, compact: bool) -> Any:
        return None

    plain, compact = both(lambda net: AdamW(net.parameters()), dense)
    for one, compacts in ((plain, False), (compact, True)):
        one.train(range(3))
        one.engine = rigl(one.net, one.optimizer, compacts)
    check_compact(compact, ("exp_avg", "exp_avg_sq"))
    for one in (plain, compact):
        one.train(range(3, 9))
    check_same(plain, compact)
    for one in (plain, compact):
        one.engine.detach()
        one.train(range(9, 12))
    check_same(plain, compact)
    assert "compact_state" not in compact.optimizer.param_groups[0]


def test_states_and_masks_that_do_not_belong_together() -> None:
    _, compact = both(lambda net: AdamW(net.parameters()))
    compact.train(range(4))
    state = copy.deepcopy(compact.optimizer.state_dict())
    compact.masks["4.weight"].logical_not_()
    compact.optimizer.load_state_dict(state)
    with pytest.raises(EngineError, match=r"state 'exp_avg' of '4\.weight' has the shape .* active entries. Load the"):
        compact.train([4])


def test_masks_edited_by_hand_or_loaded_alone_take_states_along() -> None:
    _, compact = both(lambda net: SGD(net.parameters(), lr=0.1, momentum=0.9))
    compact.train(range(2))
    mask, weight = compact.masks["6.weight"], compact.masks.weights["6.weight"].parameter
    before = torch.zeros_like(weight)
    before[mask] = compact.optimizer.state[weight]["momentum_buffer"]
    on, off = mask.nonzero()[0], (~mask).nonzero()[0]
    mask[tuple(on)], mask[tuple(off)] = False, True
    compact.masks.apply()
    state = compact.optimizer.state_dict()["state"]
    values = next(
        each["momentum_buffer"] for each in state.values() if each["momentum_buffer"].shape == (int(mask.sum()),)
    )
    before[tuple(on)] = 0
    assert torch.equal(compact.optimizer.state[weight]["momentum_buffer"], before[mask])
    assert values.ndim == 1


def test_distributed_checkpoints() -> None:
    plain, compact = both(lambda net: AdamW(net.parameters()))
    for one in (plain, compact):
        one.train(range(4))
        one.optimizer.zero_grad()
    weights, state = copy.deepcopy(get_state_dict(compact.net, compact.optimizer))
    _, again = both(lambda net: AdamW(net.parameters()))
    set_state_dict(again.net, again.optimizer, model_state_dict=weights, optim_state_dict=state)
    again.engine.load_state_dict(compact.engine.state_dict())
    for one in (plain, again):
        one.train(range(4, 9))
    check_same(plain, again)


# Several processes.


def in_processes(rank: int) -> Any:
    found = []
    for compact in (False, True):
        net = network()
        masks = sparsity.sparsify(net, 0.7)
        model = DistributedDataParallel(net)
        optimizer = AdamW(net.parameters(), lr=0.02)
        engine = rigl(model, optimizer, compact)
        for step in range(8):
            optimizer.zero_grad()
            loss_of(model, 2 * step + rank).backward()
            optimizer.step()
        engine.check_processes()
        assert all((optimizer.state[each.parameter]["exp_avg"].ndim == 1) == compact for each in masks.weights.values())
        found.append({name: value for name, value in net.state_dict().items() if "running" not in name})
    return found


def test_in_several_processes(tmp_path: Path) -> None:
    (plain, compact), (_, other) = run(in_processes, 2, tmp_path)
    for name, value in plain.items():
        assert bits(value, compact[name])
        assert bits(value, other[name])


# What can't be compact.


def refused(make: Make, match: str, build: Callable[[], nn.Module] = network) -> None:
    net = build()
    sparsity.sparsify(net, 0.7)
    optimizer = make(net)
    weights, state = copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict())
    random = torch.get_rng_state()
    with pytest.raises(EngineError, match=match):
        rigl(net, optimizer, True)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(bits(value, weights[name]) for name, value in net.state_dict().items())
    assert str(optimizer.state_dict()) == str(state)
    rigl(net, optimizer, False)


@pytest.mark.parametrize(
    "make",
    [
        lambda net: torch.optim.Adafactor(net.parameters()),
        lambda net: torch.optim.Muon([each for each in net[4:].parameters() if each.ndim == 2]),
        *[
            lambda net, name=name: create_optimizer_v2(net, opt=name, lr=0.01, weight_decay=0.05)
            for name in ("lamb", "lars", "adamp", "sgdp", "adafactorbv", "cadamw", "novograd")
        ],
        lambda net: create_optimizer_v2(net, opt="adamp", lr=0.01, weight_decay=0.0, delta=1e-6),  # acts seldom
    ],
    ids=["Adafactor", "Muon", "lamb", "lars", "adamp", "sgdp", "adafactorbv", "cadamw", "novograd", "seldom"],
)
def test_optimizers_that_do_not_treat_each_weight_by_itself(make: Make, request: pytest.FixtureRequest) -> None:
    def dense() -> nn.Module:
        return network()[4:] if "Muon" in request.node.name else network()

    if "Muon" in request.node.name:
        refused(lambda net: torch.optim.Muon([p for p in net.parameters() if p.ndim == 2]), "by itself|small", dense)
    else:
        refused(make, "does not treat each weight by itself")


def test_optimizers_whose_trial_fails() -> None:
    refused(lambda net: torch.optim.LBFGS(net.parameters()), r"a step of LBFGS on small tensors, .*, failed: .*closure")


class Lists(SGD):
    """Steps on parameters that it keeps besides those in its groups."""

    def __init__(self, parameters: Any) -> None:
        self.kept = list(parameters)
        super().__init__(self.kept, lr=0.1)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for each in self.kept:
            if each.grad is not None:
                each.sub_(0.1 * each.grad)


def test_optimizers_that_step_on_other_tensors() -> None:
    refused(lambda net: Lists(net.parameters()), "changes other tensors than those in its groups")


def test_kernels_of_the_cpu_that_round_by_place() -> None:
    refused(lambda net: AdamW(net.parameters(), fused=True), "on the CPU its fused kernels round")
    refused(
        lambda net: SGD(net.parameters(), lr=0.1), "on the CPU kernels for bfloat16 round", lambda: network().bfloat16()
    )


class Coarse(SGD):
    """Keeps states of large tensors in another form, as 8-bit optimizers do."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for each in self.param_groups[0]["params"]:
            if each.grad is not None:
                each.sub_(0.1 * each.grad)
                if each.numel() > 20_000:
                    self.state[each]["blocks"] = torch.zeros(each.numel() // 256)


def test_optimizers_that_treat_large_tensors_otherwise() -> None:
    one = One(
        lambda net: Coarse(net.parameters()), rigl, True, lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 2000))
    )
    for _ in range(2):
        with pytest.raises(EngineError, match=r"Coarse keeps 'blocks' as a Tensor of shape .* for '1\.weight'"):
            one.train([0])


def test_options_that_change_midway_are_tried_again() -> None:
    _, compact = both(lambda net: create_optimizer_v2(net, opt="lars", lr=0.01, weight_decay=0.0))
    compact.train(range(2))
    compact.optimizer.param_groups[0]["weight_decay"] = 0.01
    compact.optimizer.param_groups[0]["params"] = list(compact.net.parameters())
    with pytest.raises(EngineError, match="Lars does not treat each weight by itself"):
        compact.train([2])


def test_trials_leave_no_traces() -> None:
    net = network()
    sparsity.sparsify(net, 0.7)
    optimizer = Plainly(net.parameters())
    called = []
    handle = register_optimizer_step_post_hook(lambda *_: called.append(1))
    random = torch.get_rng_state()
    rigl(net, optimizer, True)
    handle.remove()
    assert torch.equal(torch.get_rng_state(), random)
    assert (optimizer.calls, optimizer.param_groups[0]["count"], dict(optimizer.state), called) == (0, 0, {}, [])


def test_bad_arguments() -> None:
    net = network()
    sparsity.sparsify(net, 0.7)
    with pytest.raises(EngineError, match="compact_state is True or False, got 1"):
        rigl(net, SGD(net.parameters(), lr=0.1), 1)
    with torch.device("meta"):
        absent = nn.Linear(8, 8)
    sparsity.sparsify(absent, 0.5)
    with pytest.raises(EngineError, match=r"needs weights with values, but 'weight' are on the meta device"):
        rigl(absent, SGD(absent.parameters(), lr=0.1), True)


def test_sharded_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    sparsity.sparsify(net, 0.7)
    monkeypatch.setattr("sparsity._compact.is_sharded", lambda tensor: tensor.ndim == 4)
    with pytest.raises(EngineError, match=r"not for sharded weights \(FSDP2\), as '0\.weight' are"):
        rigl(net, SGD(net.parameters(), lr=0.1), True)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"capturable": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_gpu(options: dict[str, Any], dtype: torch.dtype) -> None:
    plain, compact = both(lambda net: AdamW(net.parameters(), **options), build=lambda: network().to("cuda", dtype))
    for one in (plain, compact):
        for step in range(13):
            images, labels = (each.cuda() for each in batch(step))
            one.optimizer.zero_grad()
            nn.functional.cross_entropy(one.net(images.to(dtype)), labels).backward()
            one.optimizer.step()
    check_same(plain, compact)

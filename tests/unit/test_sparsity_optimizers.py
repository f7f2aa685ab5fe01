"""Engines under every optimizer of torch and timm, and under several of them at once."""

# Tests read weights of layers, which pyright cannot know to be there.
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import copy
import inspect
import io
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from timm.optim import create_optimizer_v2, list_optimizers  # pyright: ignore
from timm.optim.lookahead import Lookahead
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR, ReduceLROnPlateau, SequentialLR, StepLR

import sparsity
from sparsity import EngineError, NoEffectWarning, SparsityWarning
from sparsity._attachment import innermost
from tests.unit._watch import Watch

Make = Callable[[nn.Module], torch.optim.Optimizer]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 4, bias=False)
    )


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 3, 4, 4, generator=generator), torch.randint(4, (8,), generator=generator)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterable[int], closure: bool = False) -> None:
    for step in steps:
        x, y = batch(step)

        def loss(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            value = nn.functional.cross_entropy(net(x), y)
            value.backward()
            return value

        if closure:
            optimizer.step(loss)
        else:
            loss()
            optimizer.step()


def matrices(net: nn.Module) -> list[nn.Parameter]:
    return [each for each in net.parameters() if each.ndim == 2]


def classes() -> list[type[torch.optim.Optimizer]]:
    found = [each for each in vars(torch.optim).values() if inspect.isclass(each)]
    return [each for each in found if issubclass(each, torch.optim.Optimizer) and each is not torch.optim.Optimizer]


# Optimizers whose state is not zero where a weight gets zero gradients: they add a small number to it, or start it at
# another one. It is cleared for dropped and grown weights, but is no zero after the next step.
NOT_ZERO = {
    "Adamax": ("exp_inf",),
    "Rprop": ("step_size",),
    "adamax": ("exp_inf",),
    "adabelief": ("exp_avg_var",),
    "radabelief": ("exp_avg_var",),
    "adafactor": ("exp_avg_sq",),
    "cadafactor": ("exp_avg_sq",),
    "adafactorbv": ("exp_avg_sq",),
    "adafactorbvc": ("exp_avg_sq",),
    "cadafactorbv": ("exp_avg_sq",),
    "cadafactorbvc": ("exp_avg_sq",),
    "adamuon": ("exp_avg_sq",),
    "nadamuon": ("exp_avg_sq",),
    "crmsproptf": ("square_avg",),
    "rmsproptf": ("square_avg",),
    "rmsproptfc": ("square_avg",),
    "rmsproptfw": ("square_avg",),
}
OPTIONS = ("foreach", "fused", "maximize", "amsgrad", "centered", "nesterov", "decoupled_weight_decay")
# What other options need with these.
WITH: dict[str, dict[str, Any]] = {"SGD": {"lr": 0.05, "momentum": 0.9}, "RMSprop": {"momentum": 0.9}}
# They take no dense gradients, no plain step, or matrices only.
SPECIAL = ("SparseAdam", "LBFGS", "Muon")


def of_torch() -> dict[str, tuple[str, Make]]:
    cases: dict[str, tuple[str, Make]] = {}
    for each in classes():
        if each.__name__ in SPECIAL:
            continue
        taken = inspect.signature(each).parameters
        for option in ("", *(option for option in OPTIONS if option in taken)):
            options = {**WITH.get(each.__name__, {}), **({option: True} if option else {})}
            name = f"{each.__name__} {option}".strip()
            cases[name] = each.__name__, lambda net, each=each, options=options: each(net.parameters(), **options)
    return cases


TORCH = of_torch()


def check(name: str, make: Make) -> None:
    net = network()
    sparsity.sparsify(net, 0.6)
    optimizer = make(net)
    engine = sparsity.rigl(net, optimizer, every=2, fraction=sparsity.constant(0.3))
    watch = Watch(net, innermost(optimizer), but=NOT_ZERO.get(name, ()))
    train(net, optimizer, range(9))
    assert watch.moved == [2, 4, 6, 8]
    assert engine.step == 9
    assert all(parameter.isfinite().all() for parameter in net.parameters())


@pytest.mark.parametrize(("name", "make"), TORCH.values(), ids=TORCH)
def test_optimizers_of_torch(name: str, make: Make) -> None:
    check(name, make)


def test_all_optimizers_of_torch_are_looked_at() -> None:
    assert {name for name, _ in TORCH.values()} | set(SPECIAL) == {each.__name__ for each in classes()}


def test_muon_beside_adamw() -> None:
    net = network()
    sparsity.sparsify(net, 0.6)
    muon = torch.optim.Muon(matrices(net), lr=0.02)
    adamw = torch.optim.AdamW([each for each in net.parameters() if each.ndim != 2])
    engines = [sparsity.rigl(net[3:], muon, every=2), sparsity.rigl(net[0], adamw, every=3)]
    watches = [Watch(net[3:], muon), Watch(net[0], adamw)]
    for step in range(9):
        x, y = batch(step)
        net.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        muon.step()
        adamw.step()
    assert watches[0].moved == [2, 4, 6, 8]
    assert watches[1].moved == [3, 6]
    assert [engine.step for engine in engines] == [9, 9]


def test_lbfgs() -> None:
    net = network()
    sparsity.sparsify(net, 0.6)
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=3)
    sparsity.rigl(net, optimizer, every=2)
    watch = Watch(net, optimizer)
    train(net, optimizer, range(5), closure=True)
    assert watch.moved == [2, 4]


def test_sparse_adam_refuses_the_dense_gradients_of_masked_weights() -> None:
    net = network()
    sparsity.sparsify(net, 0.6)
    optimizer = torch.optim.SparseAdam(net.parameters())
    sparsity.static(net, optimizer)
    with pytest.raises(RuntimeError, match="SparseAdam does not support dense gradients"):
        train(net, optimizer, range(1))


def of_timm() -> list[Any]:
    """All but those of other packages, one that differentiates twice, and the slow variants of one that compiles."""
    left = ("bnb", "fused", "adahessian", "kron")
    return [name for name in list_optimizers() if not name.startswith(left)]


@pytest.mark.parametrize("name", [*of_timm(), "lookahead_adamw", "lookahead_momentum"])
def test_optimizers_of_timm(name: str) -> None:
    check(name, lambda net: create_optimizer_v2(net, opt=name, lr=1e-2, weight_decay=0.05))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum' installed")
def test_kron() -> None:
    check("kron", lambda net: create_optimizer_v2(net, opt="kron", lr=1e-3))


def test_inside_of_lookahead_all_state_is_cleared() -> None:
    net = network()
    masks = sparsity.sparsify(net, 0.6)
    optimizer = Lookahead(torch.optim.AdamW(net.parameters(), lr=1e-2), k=2)
    seen = []

    def look(update: sparsity.Rewiring) -> None:
        for path, weight in masks.weights.items():
            state = optimizer._base_optimizer.state[weight.parameter]
            assert {"exp_avg", "exp_avg_sq", "lookahead_slow_buff"} <= set(state)
            changed = before[path] ^ masks[path]
            assert all(not state[name][changed].any() for name in ("exp_avg", "exp_avg_sq", "lookahead_slow_buff"))
            seen.append(int(changed.sum()))

    sparsity.rigl(net, optimizer, every=3, callback=look)
    for step in range(7):
        before = {path: mask.clone() for path, mask in masks.items()}
        train(net, optimizer, [step])
    assert sum(seen) > 50
    assert all(not weight.parameter[~masks[path]].any() for path, weight in masks.weights.items())


class SharpnessAware(torch.optim.Optimizer):
    """Sharpness-aware minimisation (Foret et al. 2021), in the usual form: around a base optimizer, by a closure."""

    def __init__(self, parameters: Any, base: Any, radius: float, **options: Any) -> None:
        super().__init__(parameters, {"radius": radius, **options})
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def step(self, closure: Any) -> None:
        parameters = [each for group in self.param_groups for each in group["params"] if each.grad is not None]
        norm = torch.stack([each.grad.norm() for each in parameters]).norm()
        starts = [each.clone() for each in parameters]
        for group in self.param_groups:
            for each in group["params"]:
                each.add_(each.grad, alpha=float(group["radius"] / norm))
        self.zero_grad()
        with torch.enable_grad():
            closure()
        for each, start in zip(parameters, starts, strict=True):
            each.copy_(start)
        self.base_optimizer.step()


def test_sharpness_aware_minimisation_grows_by_the_gradients_it_steps_with() -> None:
    net = network()
    masks = sparsity.sparsify(net, 0.6)
    optimizer = SharpnessAware(net.parameters(), torch.optim.SGD, radius=0.5, lr=0.1)
    engine = sparsity.rigl(net, optimizer, every=2)
    watch = Watch(net, optimizer.base_optimizer)
    found = []
    for step in range(5):
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()

        def second(x: Tensor = x, y: Tensor = y) -> None:
            nn.functional.cross_entropy(net(x), y).backward()
            for path, each in engine._collection._collectors.items():
                found.append(torch.equal(torch.where(masks[path], each.total, 0), masks.weights[path].parameter.grad))

        optimizer.step(second)
    assert watch.moved == [2, 4]
    assert len(found) == 6
    assert all(found)


# Learning rates and groups.


@pytest.mark.parametrize(
    "schedule",
    [
        lambda optimizer: StepLR(optimizer, 3),
        lambda optimizer: OneCycleLR(optimizer, max_lr=0.2, total_steps=12),
        lambda optimizer: SequentialLR(optimizer, [StepLR(optimizer, 2), CosineAnnealingLR(optimizer, 8)], [4]),
        lambda optimizer: ReduceLROnPlateau(optimizer, patience=0),
    ],
    ids=["step", "one cycle", "sequential", "plateau"],
)
def test_schedulers(schedule: Callable[[torch.optim.Optimizer], LRScheduler]) -> None:
    """Schedulers wrap ``step``, which must not take the hooks away."""
    net = network()
    sparsity.sparsify(net, 0.6)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    scheduler = schedule(optimizer)
    engine = sparsity.rigl(net, optimizer, every=3)
    later = schedule(optimizer)
    watch = Watch(net, optimizer)
    for step in range(10):
        train(net, optimizer, [step])
        for each in (scheduler, later):
            each.step(*[1.0] * isinstance(each, ReduceLROnPlateau))
    assert watch.moved == [3, 6, 9]
    assert engine.step == 10


def test_one_optimizer_for_each_part() -> None:
    """As of a trunk and its heads: each part has its own optimizer, engine and rhythm."""
    trunk, heads = nn.Sequential(nn.Linear(6, 16), nn.ReLU()), nn.ModuleList(nn.Linear(16, 8) for _ in range(2))
    net = nn.ModuleDict({"trunk": trunk, "heads": heads})
    sparsity.sparsify(net, 0.6)
    optimizers = [
        torch.optim.SGD(trunk.parameters(), lr=0.1, momentum=0.9),
        torch.optim.AdamW(heads[0].parameters()),
        torch.optim.RMSprop(heads[1].parameters()),
    ]
    parts = (trunk, heads[0], heads[1])
    methods = (sparsity.rigl, sparsity.set_, sparsity.mest)
    watches = []
    for every, (method, part, optimizer) in enumerate(zip(methods, parts, optimizers, strict=True), start=2):
        method(part, optimizer, every=every)
        watches.append(Watch(part, optimizer))
    ema = torch.optim.swa_utils.AveragedModel(net)
    averaged = sparsity.follow(ema, net)
    for step in range(9):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        for optimizer in optimizers:
            optimizer.zero_grad()
        features = trunk(x)
        sum(head(features).square().sum() for head in heads).backward()
        for optimizer in optimizers[: 2 + step % 2]:  # the last one makes every second step
            optimizer.step()
    assert [watch.moved for watch in watches] == [[2, 4, 6, 8], [3, 6], []]
    assert [watch.steps for watch in watches] == [9, 9, 4]
    for path, mask in sparsity.masks_of(net).items():
        assert torch.equal(averaged[f"module.{path}"], mask)


def test_weights_frozen_and_thawed_midway() -> None:
    net = network()
    masks = sparsity.sparsify(net, 0.6)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    sparsity.rigl(net, optimizer, every=2)
    watch = Watch(net, optimizer)
    train(net, optimizer, range(4))
    net[0].requires_grad_(False)
    frozen, mask = net[0].weight.detach().clone(), masks["0.weight"].clone()
    with pytest.warns(NoEffectWarning, match=r"keep their masks: '0\.weight'"):
        train(net, optimizer, range(4, 7))
    assert torch.equal(net[0].weight, frozen)
    assert torch.equal(masks["0.weight"], mask)
    net[0].requires_grad_(True)
    train(net, optimizer, range(7, 9))
    assert watch.moved == [2, 4, 6, 8]
    assert not torch.equal(masks["0.weight"], mask)


def test_groups_added_midway() -> None:
    net = network()
    masks = sparsity.sparsify(net, 0.6)
    net[0].requires_grad_(False)
    optimizer = torch.optim.SGD(net[3:].parameters(), lr=0.1, momentum=0.9)
    sparsity.set_(net, optimizer, every=3)
    watch = Watch(net, optimizer)
    train(net, optimizer, range(2))
    before = masks["0.weight"].clone()
    net[0].requires_grad_(True)
    optimizer.add_param_group({"params": list(net[0].parameters()), "lr": 0.01})
    train(net, optimizer, range(2, 5))
    assert watch.moved == [3]
    assert not torch.equal(masks["0.weight"], before)


# The engine's state in the optimizer's.


def saved(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file)  # nothing but tensors and plain values


def test_engines_saved_with_their_optimizer() -> None:
    def start() -> tuple[nn.Sequential, torch.optim.Optimizer, list[sparsity.Engine]]:
        net = network()
        sparsity.sparsify(net, 0.6)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        engines = [sparsity.snfs(net[:3], optimizer, every=3), sparsity.set_(net[3:], optimizer, every=2, seed=5)]
        assert [sparsity.save_with_optimizer(engine) for engine in engines] == engines
        return net, optimizer, engines

    net, optimizer, _ = start()
    train(net, optimizer, range(4))
    weights, state = {name: value.clone() for name, value in net.state_dict().items()}, saved(optimizer)
    train(net, optimizer, range(4, 8))

    again, resumed, engines = start()
    again.load_state_dict(weights)
    resumed.load_state_dict(state)
    assert [engine.step for engine in engines] == [4, 4]
    train(again, resumed, range(4, 8))
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))

    plain = network()
    torch.optim.AdamW(plain.parameters()).load_state_dict(state)  # an optimizer without engines ignores them


def test_engine_saved_once_and_only_while_attached() -> None:
    net = network()
    sparsity.sparsify(net, 0.6)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    engine = sparsity.save_with_optimizer(sparsity.set_(net, optimizer))
    sparsity.save_with_optimizer(engine)
    assert len(optimizer.state_dict()["sparsity"]) == 1
    state = saved(optimizer)
    engine.detach()
    assert "sparsity" not in optimizer.state_dict()
    optimizer.load_state_dict(state)
    with pytest.raises(EngineError, match="not attached"):
        sparsity.save_with_optimizer(engine)


def test_distributed_checkpoints_leave_the_engine_out_and_say_so() -> None:
    def start() -> tuple[nn.Sequential, torch.optim.Optimizer, sparsity.Engine]:
        net = network()
        sparsity.sparsify(net, 0.6)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        return net, optimizer, sparsity.save_with_optimizer(sparsity.rigl(net, optimizer, every=2))

    net, optimizer, engine = start()
    train(net, optimizer, range(3))
    optimizer.zero_grad()
    weights, state = copy.deepcopy(get_state_dict(net, optimizer))
    again, other, resumed = start()
    with pytest.warns(SparsityWarning, match="saved without the state of an engine"):
        set_state_dict(again, other, model_state_dict=weights, optim_state_dict=state)
    resumed.load_state_dict(engine.state_dict())
    for each in ((net, optimizer), (again, other)):
        train(*each, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))


def test_states_of_other_optimizers() -> None:
    net = network()
    sparsity.sparsify(net, 0.6)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    plain = saved(optimizer)
    engine = sparsity.save_with_optimizer(sparsity.set_(net, optimizer))
    train(net, optimizer, range(2))
    with pytest.warns(SparsityWarning, match="saved without the state of an engine, so the engine goes on at step 2"):
        optimizer.load_state_dict(plain)
    state = saved(optimizer)
    state["sparsity"] *= 2
    with pytest.raises(EngineError, match="holds 2 engines, but 1 are attached"):
        optimizer.load_state_dict(state)
    assert engine.step == 2


def _two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))


def _inputs(seed: int) -> Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))


def test_grown_weights_start_with_the_first_step_size_of_rprop() -> None:
    net = _two_layers()
    masks = sparsity.sparsify(net, 0.6)
    optimizer = torch.optim.Rprop(net.parameters(), lr=0.01)
    before, sizes = {}, []

    def look(_: sparsity.Rewiring) -> None:
        for path, weight in masks.weights.items():
            sizes.extend(optimizer.state[weight.parameter]["step_size"][before[path] ^ masks[path]].tolist())

    sparsity.rigl(net, optimizer, every=3, callback=look)
    for step in range(4):
        before = {path: mask.clone() for path, mask in masks.items()}
        optimizer.zero_grad()
        net(_inputs(step)).square().sum().backward()
        optimizer.step()
    assert {round(size, 6) for size in sizes} == {0.01}


def test_lbfgs_forgets_its_curvature_at_an_update() -> None:
    net = _two_layers()
    sparsity.sparsify(net, 0.6)
    optimizer = torch.optim.LBFGS(net.parameters(), lr=1.0, max_iter=5)
    sparsity.rigl(net, optimizer, every=3)
    x, y = _inputs(0), torch.randint(3, (8,), generator=torch.Generator().manual_seed(0))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure).detach()) for _ in range(10)]  # pyright: ignore[reportArgumentType]
    assert max(losses[3:]) < losses[0]


@pytest.mark.parametrize("how", ["unused", "frozen"])
def test_zeros_that_are_left_of_a_gradient_are_none(how: str) -> None:
    net = nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Linear(6, 6)})
    sparsity.sparsify(net, 0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    engine = sparsity.rigl(net, optimizer, every=2)

    def step(number: int) -> None:
        optimizer.zero_grad(set_to_none=False)
        y = net["a"](_inputs(number))
        if how == "frozen" or number != 2:
            y = net["b"](y)
        y.square().sum().backward()
        optimizer.step()

    step(0)
    step(1)
    if how == "frozen":
        net["b"].requires_grad_(False)
    with pytest.warns(sparsity.NoEffectWarning, match="'b.weight'"):
        step(2)
    assert engine.last is not None
    assert list(engine.last.grown) == ["a.weight"]


def test_compiled_optimizer_step() -> None:
    net = _two_layers()
    sparsity.sparsify(net, 0.6)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    engine = sparsity.rigl(net, optimizer, every=2)
    step = torch.compile(optimizer.step, backend="eager")
    for number in range(5):
        optimizer.zero_grad()
        net(_inputs(number)).square().sum().backward()
        step()
    assert engine.step == 5
    assert engine.last is not None
    assert engine.last.step == 4


class Warmed(torch.optim.SGD):
    """Its step calls that of its base class, which torch runs the hooks in as well."""

    fails = False

    def step(self, closure: Any = None) -> Any:
        if self.fails:
            raise RuntimeError("no step today")
        return super().step(closure)


@pytest.mark.parametrize("closure", [False, True])
def test_a_step_that_calls_the_one_of_its_base_class_counts_once(closure: bool) -> None:
    nets = [network(), network()]
    engines, updates = [], ([], [])
    for net, kind, seen in zip(nets, (torch.optim.SGD, Warmed), updates, strict=True):
        sparsity.sparsify(net, 0.5)
        optimizer = kind(net.parameters(), lr=0.1, momentum=0.9)
        engines.append(sparsity.rigl(net, optimizer, every=2, callback=seen.append))
        train(net, optimizer, range(7), closure)
    assert [engine.step for engine in engines] == [7, 7]
    assert updates[0] == updates[1]
    assert [update.step for update in updates[1]] == [2, 4, 6]
    for one, other in zip(*(net.state_dict().values() for net in nets), strict=True):
        assert torch.equal(one, other)


def test_a_step_counts_after_one_that_failed() -> None:
    net = network()
    sparsity.sparsify(net, 0.5)
    optimizer = Warmed(net.parameters(), lr=0.1)
    engine = sparsity.rigl(net, optimizer, every=2)
    optimizer.fails = True
    with pytest.raises(RuntimeError, match="no step today"):
        train(net, optimizer, range(1))
    optimizer.fails = False
    train(net, optimizer, range(1, 4))
    assert engine.step == 3

"""What holds for masks of any sparsity and allocation on plain modules, and for any sequence of training steps.

Updates are compared with an oracle in plain Python: the unmasked gradients of a dense copy, and sorted().
"""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import sparsity
from sparsity import SparsityError
from sparsity._smallest import smallest
from tests.checks import assert_same, assert_unchanged, generators, snapshot
from tests.strategies import holds_for

SIDE = 5


@dataclasses.dataclass(frozen=True)
class Plan:
    """A small image classifier: what follows the first convolution, and whether two of its weights are tied."""

    width: int
    layers: tuple[str, ...]
    tied: bool
    seed: int

    def build(self) -> nn.Sequential:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            made = [LAYERS[kind](self.width) for kind in self.layers]
            net = nn.Sequential(nn.Conv2d(2, self.width, 3, padding=1), *made, nn.Flatten(), nn.LazyLinear(3))
            net(torch.zeros(2, 2, SIDE, SIDE))
        if self.tied:
            same = [module for module in net if type(module) is nn.Conv2d and module.groups == 1][1:]
            for module in same[1:]:
                module.weight = same[0].weight
        return net


LAYERS: dict[str, Any] = {
    "conv": lambda width: nn.Conv2d(width, width, 3, padding=1),
    "grouped": lambda width: nn.Conv2d(width, width, 3, padding=1, groups=2, bias=False),
    "transposed": lambda width: nn.ConvTranspose2d(width, width, 3, padding=1),
    "norm": nn.BatchNorm2d,
    "relu": lambda width: nn.ReLU(),
    "tanh": lambda width: nn.Tanh(),
    "dropout": lambda width: nn.Dropout(0.2),
}

plans = st.builds(
    Plan,
    width=st.sampled_from([2, 4, 6]),
    layers=st.lists(st.sampled_from(sorted(LAYERS)), max_size=5).map(tuple),
    tied=st.booleans(),
    seed=st.integers(0, 99),
)
levels = st.one_of(st.sampled_from([0.0, 0.5, 0.8, 0.9]), st.floats(0, 0.9))
allocations = st.sampled_from(
    ["erk", "er", "uniform", {"0": 0.7}, lambda shapes, density: dict.fromkeys(shapes, density)]
)
shapes = st.dictionaries(
    st.text("abc", min_size=1, max_size=4),
    st.one_of(
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
        st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 5), st.integers(1, 5)),
    ),
    min_size=1,
    max_size=8,
)


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 2, SIDE, SIDE, generator=generator), torch.randint(3, (4,), generator=generator)


def backward(net: nn.Module, seed: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # dropout
        x, y = batch(seed)
        nn.functional.cross_entropy(net(x), y).backward()


def sparsified(plan: Plan, level: float, allocation: Any) -> tuple[nn.Module, sparsity.Masks]:
    """The net with masks; draws that contradict themselves are thrown away."""
    net = plan.build()
    try:
        return net, sparsity.sparsify(net, level, allocation)
    except sparsity.AllocationError:
        hypothesis.reject()


@holds_for(shapes=shapes, level=st.floats(0, 1, exclude_max=True), allocation=st.sampled_from(["erk", "er", "uniform"]))
def test_counts_are_exact(shapes: dict[str, tuple[int, ...]], level: float, allocation: str) -> None:
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    total = round((1 - level) * sum(sizes.values()))
    if total < len(shapes):
        with pytest.raises(SparsityError, match="needs at least one"):
            sparsity.allocate(shapes, level, allocation)
        return
    counts = sparsity.allocate(shapes, level, allocation)
    assert sum(counts.values()) == total
    assert all(1 <= counts[path] <= size for path, size in sizes.items())
    assert list(counts) == list(shapes)
    if allocation == "erk":
        # Unsaturated layers of more than one weight hold the same multiple of sum(shape), within rounding.
        free = [path for path in counts if 2 < counts[path] < sizes[path] - 2]
        spread = [(counts[path] + end) / sum(shapes[path]) for path in free for end in (-2, 2)]
        assert not free or max(spread[::2]) <= min(spread[1::2])


@holds_for(plan=plans, level=levels, allocation=allocations)
def test_masks_of_any_net(plan: Plan, level: float, allocation: Any) -> None:
    before = generators()
    _, masks = sparsified(plan, level, allocation)
    assert generators() == before
    plain = plan.build()
    sizes = {id(w): w.numel() for w in plain.parameters() if w.ndim >= 2}
    assert masks.total == sum(sizes.values())
    assert masks.nonzeros == round((1 - level) * masks.total)
    values = dict(plain.named_parameters(remove_duplicate=False))
    for path, mask in masks.items():
        assert 1 <= mask.sum() <= mask.numel()
        assert torch.equal(masks.weights[path].parameter, values[path] * mask)
    assert_same(sparsity.sparsify(plan.build(), level, allocation)._counts(), masks._counts())


@holds_for(plan=plans, level=levels)
def test_masked_net_equals_its_folded_copy(plan: Plan, level: float) -> None:
    net, masks = sparsified(plan, level, "erk")
    folded = sparsity.fold(copy.deepcopy(net))
    x, _ = batch(0)
    assert_same(net.eval()(x), folded.eval()(x))
    assert [name for name, _ in folded.named_parameters()] == [name for name, _ in plan.build().named_parameters()]
    backward(net.train(), 1)
    backward(folded.train(), 1)
    for path, weight in masks.weights.items():
        dense = folded.get_parameter(path).grad
        assert weight.parameter.grad is not None
        assert dense is not None
        assert torch.equal(weight.parameter.grad, torch.where(masks[path], dense, 0))
    plain = {name: p for name, p in folded.named_parameters() if name not in masks}
    for name, parameter in net.named_parameters():
        if "parametrizations" not in name:
            assert torch.equal(parameter.grad, plain[name].grad)  # pyright: ignore


@dataclasses.dataclass(frozen=True)
class Step:
    """One optimizer step: how many micro-batches, and whether gradients were thrown away before it."""

    parts: int = 1
    discarded: bool = False


steps = st.lists(st.builds(Step, parts=st.integers(1, 3), discarded=st.booleans()), min_size=3, max_size=8)
optimizers = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.2),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, amsgrad=True),
}


def first_by(score: Tensor, among: Tensor, count: int) -> set[int]:
    """Row-major places of the ``count`` smallest scores, of equals the first ones."""
    values = score.flatten().tolist()
    places = among.flatten().nonzero().flatten().tolist()
    return set(sorted(places, key=lambda place: (values[place], place))[:count])


def expected_mask(weight: Tensor, dense: Tensor, mask: Tensor, count: int) -> Tensor:
    dropped = first_by(weight.abs(), mask, count)
    grown = first_by(-dense.abs(), ~mask, count)
    active = set(mask.flatten().nonzero().flatten().tolist())
    result = torch.zeros(mask.numel(), dtype=torch.bool)
    result[sorted((active - dropped) | grown)] = True
    return result.view(mask.shape)


@holds_for(
    plan=plans,
    level=levels,
    plan_steps=steps,
    optimizer=st.sampled_from(sorted(optimizers)),
    every=st.integers(1, 3),
    fraction=st.sampled_from([0.1, 0.3, 0.8, 1.0]),
    method=st.sampled_from(["rigl", "set_", "static"]),
)
def test_any_sequence_of_steps(
    plan: Plan, level: float, plan_steps: list[Step], optimizer: str, every: int, fraction: float, method: str
) -> None:
    net, masks = sparsified(plan, level, "erk")
    hypothesis.assume(masks.nonzeros < masks.total)
    made = optimizers[optimizer](net.parameters())
    options = {} if method == "static" else {"every": every, "fraction": fraction}
    engine = getattr(sparsity, method)(net, made, **options)
    counts = masks._counts()
    for number, step in enumerate(plan_steps):
        if step.discarded:
            backward(net, 1000 + number)
        made.zero_grad()
        frozen = sparsity.fold(copy.deepcopy(net))
        for part in range(step.parts):
            backward(net, 10 * number + part)
            backward(frozen, 10 * number + part)
        before = {path: mask.clone() for path, mask in masks.items()}
        values = {path: weight.parameter.detach().clone() for path, weight in masks.weights.items()}
        gradients = {path: weight.parameter.grad.clone() for path, weight in masks.weights.items()}  # pyright: ignore
        made.step()

        due = method != "static" and number > 0 and number % every == 0
        last = engine.last
        assert (last is not None and last.step == number) == due
        for path, weight in masks.weights.items():
            mask, zeros = masks[path], ~masks[path]
            dropped, grown = before[path] & zeros, mask & ~before[path]
            count = min(math.floor(fraction * counts[path] + 1e-9), mask.numel() - counts[path]) if due else 0
            assert int(mask.sum()) == counts[path]
            assert dropped.sum() == grown.sum() == count
            if due and last is not None:
                assert last.dropped[path] == last.grown[path] == count
                assert set(dropped.flatten().nonzero().flatten().tolist()) == first_by(
                    values[path].abs(), before[path], count
                )
            if due and method == "rigl":
                dense = frozen.get_parameter(path).grad
                assert dense is not None
                assert torch.equal(mask, expected_mask(values[path], dense, before[path], count))
            assert weight.parameter.grad is not None
            assert torch.equal(weight.parameter.grad, gradients[path].masked_fill(dropped | grown, 0))
            states = [s for s in made.state[weight.parameter].values() if s.shape == mask.shape]
            for tensor in (weight.parameter, *states):
                assert (tensor[zeros | grown] == 0).all()


@holds_for(plan=plans, level=levels, stop=st.integers(1, 5), method=st.sampled_from(["rigl", "set_"]))
def test_resuming_anywhere_changes_nothing(plan: Plan, level: float, stop: int, method: str) -> None:
    def start() -> Any:
        net, masks = sparsified(plan, level, "erk")
        hypothesis.assume(masks.nonzeros < masks.total)
        made = optimizers["sgd"](net.parameters())
        return net, made, getattr(sparsity, method)(net, made, every=2, until=7, fraction=0.5)

    def train(net: nn.Module, made: torch.optim.Optimizer, numbers: range) -> None:
        for number in numbers:
            made.zero_grad()
            backward(net, number)
            made.step()

    net, made, engine = start()
    train(net, made, range(stop))
    saved = copy.deepcopy([each.state_dict() for each in (net, made, engine)])
    train(net, made, range(stop, 8))
    resumed = start()
    for each, state in zip(resumed, saved, strict=True):
        each.load_state_dict(state)
    train(resumed[0], resumed[1], range(stop, 8))
    assert_same(dict(resumed[0].state_dict()), dict(net.state_dict()))
    assert resumed[2].last == engine.last or engine.last.step < stop


@holds_for(
    score=st.lists(st.sampled_from([0.0, -0.0, 1.0, 1.5, 2.0, 1e-30, 3e38]), min_size=1, max_size=40),
    data=st.data(),
)
def test_smallest_equals_sorting(score: list[float], data: st.DataObject) -> None:
    among = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(score), max_size=len(score))))
    count = data.draw(st.integers(0, int(among.sum())))
    chosen = smallest(torch.tensor(score), count, among)
    assert set(chosen.nonzero().flatten().tolist()) == first_by(torch.tensor(score), among, count)


bad = st.sampled_from(
    [
        {"sparsity": 1.0},
        {"sparsity": -0.1},
        {"sparsity": math.nan},
        {"sparsity": True},
        {"sparsity": None},
        {"sparsity": 0.99999},
        {"sparsity": 0.5, "allocation": "erdos"},
        {"sparsity": 0.5, "allocation": {"nowhere": 0.5}},
        {"sparsity": 0.9, "allocation": {"0": 1.5}},
        {"sparsity": 0.5, "allocation": lambda shapes, density: {}},
        {"sparsity": 0.5, "skip": ["nowhere"]},
        {"sparsity": 0.5, "skip": 7},
        {"sparsity": 0.5, "seed": "a"},
    ]
)


@holds_for(plan=plans, arguments=bad)
def test_bad_input_leaves_the_model_untouched(plan: Plan, arguments: dict[str, Any]) -> None:
    net = plan.build()
    before = snapshot(net)
    with pytest.raises(SparsityError):
        sparsity.sparsify(net, **arguments)
    assert_unchanged(before, net)
    assert len(sparsity.masks_of(net)) == 0

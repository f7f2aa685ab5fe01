# Tests read weights of layers and fields that may be None, which pyright cannot know to be there.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportOptionalSubscript=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOptionalOperand=false
"""Scores, amounts, scopes and what grown weights start with, by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn

import sparsity
from sparsity import EngineError, Layer, Rule, drop, grow
from sparsity._rewire import Amount, limited, over_layers, per_layer
from tests.unit._by_hand import DENSE, MASK, WEIGHT, layer_by_hand


def layer(weight=WEIGHT, mask=MASK, dense=DENSE, scale=1.0, path="weight", seed=0, memory=None) -> Layer:
    masked = None if dense is None else torch.where(mask, dense, 0) * scale
    generator = torch.Generator().manual_seed(seed)
    return Layer(path, weight, mask, dense, generator, masked, memory={} if memory is None else memory)


def step(net: nn.Module, optimizer: torch.optim.Optimizer, x=(1.0, 5.0, 3.0), scale: float = 1.0) -> None:
    """One step whose unmasked gradient is ``DENSE`` for the default input."""
    optimizer.zero_grad()
    (scale * net(torch.tensor(x)) * torch.tensor([1.0, -2.0])).sum().backward()
    optimizer.step()


def test_drop_scores() -> None:
    found = drop.magnitude_and_gradient(0.5)(layer())
    assert torch.equal(found, torch.tensor([[3.5, 3.5, 0.0], [0.0, 7.0, 7.0]]))
    assert torch.equal(drop.taylor(layer()), torch.tensor([[3.0, 5.0, 0.0], [0.0, 20.0, 24.0]]))


@pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
def test_soft_magnitude_keeps_in_proportion_to_powers(temperature: float) -> None:
    """Of weights 1, 2, 3 two are kept; the probability of each pair is that of drawing it without replacement."""
    weight, mask = torch.tensor([1.0, -2.0, 3.0]), torch.ones(3, dtype=torch.bool)
    power = weight.abs() ** temperature
    total = float(power.sum())
    kept = dict.fromkeys(itertools.combinations(range(3), 2), 0.0)
    for first, second in itertools.permutations(range(3), 2):
        chance = float(power[first]) / total * float(power[second]) / (total - float(power[first]))
        kept[min(first, second), max(first, second)] += chance
    score, draws, counts = drop.soft_magnitude(temperature), 4000, dict.fromkeys(kept, 0)
    for seed in range(draws):
        lowest = int(score(layer(weight, mask, None, seed=seed)).argmin())
        counts[next(pair for pair in kept if lowest not in pair)] += 1
    for pair, chance in kept.items():
        assert abs(counts[pair] - draws * chance) < 5 * math.sqrt(draws * chance * (1 - chance))


def test_soft_magnitude_of_zeros() -> None:
    weight, mask = torch.tensor([0.0, 1e-30, 0.0, 1e30]), torch.ones(4, dtype=torch.bool)
    for seed in range(20):
        [dropped] = per_layer(
            [layer(weight, mask, None, seed=seed)], [Amount(0, -2)], drop.soft_magnitude(), drop.taylor
        )
        assert dropped.tolist() == [True, False, True, False]
    assert drop.soft_magnitude(0.0)(layer(weight, mask, None)).isfinite().all()


def test_wrong_numbers_are_refused() -> None:
    for make in (drop.soft_magnitude, drop.magnitude_and_gradient, sparsity.descent):
        for wrong in (-1.0, math.nan, math.inf, "3", True):
            with pytest.raises(EngineError, match=r"is a finite number of at least 0, got"):
                make(wrong)
    with pytest.raises(EngineError, match=r"decay is in \[0, 1\)"):
        grow.Smoothed(1.0)
    with pytest.raises(EngineError, match=r"decay is in \[0, 1\)"):
        grow.Smoothed("0.9")  # pyright: ignore
    for wrong in (0, -3, "10"):
        with pytest.raises(EngineError, match="until is a number of optimizer steps of at least 1"):
            sparsity.cosine(0.3, wrong)  # pyright: ignore


def test_flipped_signs() -> None:
    memory: dict[str, torch.Tensor] = {}
    mask = torch.tensor([True, True, True, False, False])

    def ripe(*weight: float, mask: torch.Tensor = mask) -> list[bool]:
        return drop.flipped(layer(torch.tensor(weight), mask, None, memory=memory)).tolist()

    assert ripe(1.0, -1.0, 0.0, 0.0, 0.0) == [False] * 5  # the third has no sign yet
    assert ripe(0.5, 1.0, -2.0, 0.0, 0.0) == [False, True, False, False, False]
    # The second was dropped, the fourth grown.
    mask = torch.tensor([True, False, True, True, False])
    assert ripe(-0.5, 0.0, 2.0, 3.0, 0.0, mask=mask) == [True, False, True, False, False]
    # The first and third were dropped, the second and last grown: they begin anew.
    mask = torch.tensor([False, True, False, True, True])
    assert ripe(0.0, -1.0, 0.0, -3.0, 1.0, mask=mask) == [False, False, False, True, False]
    assert ripe(0.0, -1.0, 0.0, 3.0, -1.0, mask=mask) == [False, False, False, False, True]


def test_deep_r_by_hand() -> None:
    net, masks = layer_by_hand()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3)
    engine = sparsity.deep_r(net, optimizer)
    step(net, optimizer, (0.0, 0.0, 0.0))
    step(net, optimizer)  # signs are known now; then -1 goes to -2.5, 2 to 5, 3 to 2.7, -4 to -2.2
    assert engine.last.dropped == {"weight": 0}
    step(net, optimizer, (20.0, 0.0, 0.0))  # 3 crosses zero
    assert engine.last.dropped == {"weight": 0}
    step(net, optimizer, (0.0, 0.0, 0.0))
    assert engine.last.dropped == engine.last.grown == {"weight": 1}
    assert not masks["weight"][0, 0]
    assert engine.last.step == 3
    assert masks.nonzeros == 4


def test_smoothed_gradients() -> None:
    smoothed, memory = grow.Smoothed(0.75), {}
    smoothed(layer(memory=memory))
    torch.testing.assert_close(memory[smoothed.name], DENSE / 4)
    smoothed(layer(memory=memory, dense=2 * DENSE, scale=0.5))  # loss scaled by two, and the gradient unscaled since
    torch.testing.assert_close(memory[smoothed.name], DENSE * (0.75 / 4 + 1 / 4))
    smoothed(layer(memory=memory, dense=DENSE * math.inf))
    torch.testing.assert_close(memory[smoothed.name], DENSE * (0.75 / 4 + 1 / 4))


def test_snfs_by_hand() -> None:
    net, masks = layer_by_hand()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    engine = sparsity.snfs(net, optimizer, every=2, fraction=0.25, decay=0.5)
    # Gradients of (0, 2) and (1, 0): 8 and 0, then 0 and -2, then 1 and -2; smoothed 4 and 0, 2 and -1, 1.5 and -1.5.
    step(net, optimizer, (0.0, 0.0, 8.0))
    step(net, optimizer, (1.0, 0.0, 0.0))
    step(net, optimizer, (1.0, 0.0, 1.25))
    torch.testing.assert_close(engine._memory["weight"]["smoothed gradient"][0, 2], torch.tensor(1.625))
    torch.testing.assert_close(engine._memory["weight"]["smoothed gradient"][1, 0], torch.tensor(-1.5))
    assert engine.last.step == 2
    assert torch.equal(masks["weight"], torch.tensor([[True, False, True], [False, True, True]]))


def test_memory_is_saved_with_the_engine() -> None:
    def run(resume: bool) -> sparsity.Masks:
        net, masks = layer_by_hand()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        engine = sparsity.snfs(net, optimizer, every=3, fraction=0.25, decay=0.9)
        inputs = torch.randn(7, 3, generator=torch.Generator().manual_seed(1)).tolist()
        for number, x in enumerate(inputs):
            if resume and number == 2:
                states = [each.state_dict() for each in (net, optimizer, engine)]
                net, masks = layer_by_hand()
                optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
                engine = sparsity.snfs(net, optimizer, every=3, fraction=0.25, decay=0.9)
                for each, state in zip((net, optimizer, engine), states, strict=True):
                    each.load_state_dict(state)
            step(net, optimizer, x)
        return masks

    one, other = run(False), run(True)
    assert torch.equal(one["weight"], other["weight"])
    assert torch.equal(one.weights["weight"].parameter, other.weights["weight"].parameter)


def test_state_of_other_masks_is_refused() -> None:
    net, _ = layer_by_hand()
    engine = sparsity.snfs(net, torch.optim.SGD(net.parameters(), lr=0.1))
    state = engine.state_dict()
    for wrong in ({"memory": {"other": {"x": torch.zeros(2, 3)}}}, {"collected": {"weight": torch.zeros(3, 2)}}):
        with pytest.raises(EngineError, match="an engine with other masks"):
            engine.load_state_dict({**state, **wrong})
    assert not engine.state_dict()["memory"]["weight"]["smoothed gradient"].any()


@pytest.mark.parametrize(("regrow", "expected"), [(False, [[1, 0, 1], [0, 1, 1]]), (True, [[1, 1, 0], [0, 1, 1]])])
def test_regrowth_of_what_was_dropped(regrow: bool, expected: list[list[int]]) -> None:
    net, masks = layer_by_hand()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    engine = sparsity.rigl(net, optimizer, every=1, fraction=0.25, regrow=regrow)
    step(net, optimizer)
    step(net, optimizer)
    # -1 is dropped and has the largest gradient of all that could be grown; with regrowth it stays as it is.
    assert masks["weight"].int().tolist() == expected
    assert engine.last.dropped == engine.last.grown == {"weight": 0 if regrow else 1}
    assert masks.weights["weight"].parameter[0, 1] == (-1 if regrow else 0)


def test_what_grown_weights_start_with() -> None:
    for make, expected in (
        (lambda values: sparsity.original(values), 7.0),
        (lambda values: sparsity.descent(0.5), -0.75),  # the gradient is 3, half of it in the optimizer's units
    ):
        net = nn.Linear(3, 2, bias=False)
        with torch.no_grad():
            net.weight.fill_(7.0)
        values = sparsity.initial_values(net)
        masks = sparsity.sparsify(net, 1 / 3)
        masks["weight"].copy_(MASK)
        with torch.no_grad():
            masks.weights["weight"].parameter.copy_(WEIGHT)
        rule = Rule(1, None, lambda step: 0.25, drop.magnitude, grow.gradient, dense=True, initial=make(values))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        sparsity.Engine(net, optimizer, rule)
        step(net, optimizer)
        (net(torch.tensor([1.0, 5.0, 3.0])) * torch.tensor([1.0, -2.0])).sum().backward()
        nn.utils.clip_grad_norm_(net.parameters(), float(net.parametrizations.weight.original.grad.norm()) / 4)
        optimizer.step()
        torch.testing.assert_close(net.weight[0], torch.tensor([3.0, 0.0, expected]))


def test_original_values_have_to_fit() -> None:
    start = sparsity.original({"wieght": torch.zeros(2, 3)})
    with pytest.raises(EngineError, match=r"for the weight 'weight', got none.*Did you mean 'wieght'"):
        start(layer())
    with pytest.raises(EngineError, match=r"shape \(2, 3\).*got one of shape \(3, 2\)"):
        sparsity.original({"weight": torch.zeros(3, 2)})(layer())


def test_dense_gradient_is_needed() -> None:
    with pytest.raises(EngineError, match="dense=True"):
        sparsity.descent(0.1)(layer(dense=None))


def test_over_layers_by_hand() -> None:
    one = layer(torch.tensor([1.0, 5.0, 0.0]), torch.tensor([True, True, False]), torch.tensor([0.0, 0.0, 1.0]))
    two = layer(torch.tensor([2.0, 3.0, 0.0]), torch.tensor([True, True, False]), torch.tensor([0.0, 0.0, 9.0]))
    changes = over_layers([one, two], [Amount(1), Amount(0)], drop.magnitude, grow.gradient)
    assert [changed.tolist() for changed in changes] == [[True, False, False], [False, False, True]]
    changes = over_layers([one, two], [Amount(0, -3), Amount(0, 1)], drop.magnitude, grow.gradient)
    assert [changed.tolist() for changed in changes] == [[True, False, False], [True, False, False]]
    assert over_layers([], [], drop.magnitude, grow.gradient) == []


def test_amounts() -> None:
    def amount(active: int, total: int, wanted: int | None = None, fraction: float = 0.5, ripe: int | None = None):
        target = None if wanted is None else lambda step, path: wanted
        rule = Rule(1, None, lambda step: fraction, drop.magnitude, grow.uniform, target=target)
        return rule.amount(1, "weight", active, total, ripe)

    assert amount(10, 100) == Amount(5)
    assert amount(10, 12) == Amount(2)
    assert amount(10, 100, ripe=3) == Amount(3)
    assert amount(10, 100, wanted=6) == Amount(5, -4)
    assert amount(10, 100, wanted=3) == Amount(3, -7)
    assert amount(10, 100, wanted=15) == Amount(5, 5)
    assert amount(10, 16, wanted=15) == Amount(1, 5)
    assert (Amount(3, -7).drop, Amount(3, -7).grow) == (10, 3)
    assert (Amount(3, 7).drop, Amount(3, 7).grow) == (3, 10)
    for wrong in (-1, 101, 2.0, True):
        with pytest.raises(EngineError, match="from 0 to 100"):
            amount(10, 100, wanted=wrong)


def test_begin() -> None:
    rule = Rule(10, 40, lambda step: 0.3, drop.magnitude, grow.uniform, begin=5)
    assert [step for step in range(60) if rule.due(step)] == [5, 15, 25, 35]
    for begin in (-1, 1.5):
        with pytest.raises(EngineError, match="begin is a number of optimizer steps"):
            Rule(10, 40, lambda step: 0.3, drop.magnitude, grow.uniform, begin=begin)
    with pytest.raises(EngineError, match="so there would be none"):
        Rule(10, 40, lambda step: 0.3, drop.magnitude, grow.uniform, begin=40)


def test_a_layer_that_loses_all_weights_is_warned_of() -> None:
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        net[1].weight.mul_(1e-6)
    masks = sparsity.sparsify(net, 0.5)

    def first_layer(layer: Layer) -> torch.Tensor:
        return torch.full(layer.mask.shape, float(layer.path == "0.weight"))

    rule = Rule(1, None, lambda step: 0.5, drop.magnitude, first_layer, scope=over_layers)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    sparsity.Engine(net, optimizer, rule)
    net(torch.ones(4)).sum().backward()
    optimizer.step()
    with pytest.warns(sparsity.SparsityWarning, match=r"step 1 no weight is active in '1.weight'"):
        optimizer.step()
    assert {layer.path: layer.nonzeros for layer in masks.layers} == {"0.weight": 16, "1.weight": 0}


def test_a_scope_may_return_the_masks_themselves() -> None:
    net = nn.Linear(4, 4, bias=False)
    masks = sparsity.sparsify(net, 0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def all_active(layers, amounts, drop, grow, regrow):
        return [layer.mask for layer in layers]

    rule = Rule(1, None, lambda step: 0.5, drop.magnitude, grow.uniform, scope=all_active, target=lambda *_: 0)
    sparsity.Engine(net, optimizer, rule)
    net(torch.ones(4)).sum().backward()
    optimizer.step()
    with pytest.warns(sparsity.SparsityWarning, match="no weight is active"):
        optimizer.step()
    assert masks.nonzeros == 0
    assert not net.weight.any()


def test_ripe_are_active_weights_only() -> None:
    """A rule that calls small weights ripe calls all inactive ones so, which are zero."""
    net = nn.Linear(4, 4, bias=False)
    masks = sparsity.sparsify(net, 0.5)
    before = masks["weight"].clone()
    with torch.no_grad():
        net.weight.copy_(torch.where(before, 1.0, 0.0))  # pyright: ignore
        place = tuple(before.nonzero()[0].tolist())
        masks.weights["weight"].parameter[place] = 1e-3
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    rule = Rule(1, None, lambda step: 0.0, drop.magnitude, grow.uniform, ripe=lambda one: one.weight.abs() < 0.01)
    engine = sparsity.Engine(net, optimizer, rule)
    for _ in range(2):
        net(torch.ones(4)).sum().backward()
        optimizer.step()
    assert engine.last is not None
    assert engine.last.dropped == {"weight": 1}
    assert (before & ~masks["weight"]).nonzero().tolist() == [list(place)]


GOOD = {"fraction": lambda step: 0.3, "drop": drop.magnitude, "grow": grow.uniform}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fraction": 0.3}, r"fraction is a function, got 0.3. A constant share is sparsity.constant\(0.3\)"),
        ({"drop": "magnitude"}, "drop is a function, got 'magnitude'"),
        ({"grow": None}, "grow is a function, got None"),
        ({"scope": "global"}, "scope is a function, got 'global'"),
        ({"target": {"weight": 3}}, "target is a function or None, got one of type dict"),
        ({"initial": 0.1}, "initial is a function or None, got 0.1"),
        ({"memory": ["sign"]}, "memory tells the dtype, or None, of each name, got one of type list"),
        ({"memory": {"sign": "int8"}}, "memory tells the dtype, or None, of each name, got one of type dict"),
    ],
)
def test_parts_of_a_rule_of_the_wrong_kind(wrong: Any, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        Rule(1, None, **{**GOOD, **wrong})


def test_what_is_no_rule() -> None:
    net, _ = layer_by_hand()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(EngineError, match=r"takes a sparsity\.Rule, or None for fixed masks, got rigl"):
        sparsity.Engine(net, optimizer, sparsity.rigl)  # pyright: ignore


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"drop": drop.soft_magnitude}, r"got one of type Layer. It was called as a score: .* or with \(\)"),
        ({"observe": grow.Smoothed}, r"decay is in \[0, 1\), got one of type Layer"),
        ({"grow": grow.momentum}, r"needs smoothed gradients: a rule with observe=sparsity.grow.Smoothed\(0.9\)"),
        ({"drop": lambda one: one.weight.abs_()}, "written to layer.weight of 'weight', which is no copy"),
        ({"grow": lambda one: one.mask.fill_(True)}, "written to layer.mask of 'weight'"),
        ({"observe": lambda one: one.memory.update(seen=1)}, "'seen' of 'weight' is 1. Keep it as torch.tensor"),
    ],
)
def test_functions_that_do_what_they_must_not(parts: Any, message: str) -> None:
    net, _ = layer_by_hand()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sparsity.Engine(net, optimizer, Rule(1, None, **{**GOOD, "dense": True, **parts}))

    def two_steps() -> None:
        for _ in range(2):
            step(net, optimizer)

    with pytest.raises(EngineError, match=message):
        two_steps()


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (sparsity.rigl, {"evry": 10}, "There is no option 'evry'.*'initial'. Did you mean 'every'"),
        (sparsity.set_, {"regrow": True}, "There is no option 'regrow'.*takes .*'drop', 'grow', 'scope', 'initial'"),
        (sparsity.static, {"every": 2}, "There is no option 'every'.*takes 'seed', 'callback', 'group'"),
        (sparsity.trails, {"steps": 100_000, "drop": drop.magnitude}, "There is no option 'drop'"),
        (sparsity.trails, {"steps": 100, "preset": {"every": 10}}, "or a sparsity.Preset, got one of type dict"),
    ],
)
def test_options_that_a_method_does_not_have(method: Any, options: Any, message: str) -> None:
    net, _ = layer_by_hand()
    with pytest.raises(EngineError, match=message):
        method(net, torch.optim.SGD(net.parameters(), lr=0.1), **options)


def test_memory_of_any_shape_is_resumed() -> None:
    def count(one: Layer) -> None:
        one.memory["rows"] = one.memory.get("rows", torch.zeros(2)) + one.mask.sum(1)
        one.memory["steps"] = one.memory.get("steps", torch.tensor(0)) + 1

    net, _ = layer_by_hand()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    engine = sparsity.Engine(net, optimizer, Rule(5, None, **GOOD, observe=count))
    for _ in range(3):
        step(net, optimizer)
    state = engine.state_dict()
    assert state["memory"]["weight"]["steps"] == 3
    engine.load_state_dict(state)
    step(net, optimizer)
    memory = engine.state_dict()["memory"]["weight"]
    assert memory["steps"] == 4
    assert torch.equal(memory["rows"], 4 * engine.masks["weight"].sum(1))


def test_targets_over_layers_where_one_has_no_gradient() -> None:
    """The others do their part of the curve at most, and do not make up for what the first has more than its share."""
    torch.manual_seed(0)
    net = nn.ModuleList(nn.Linear(20, 20, bias=False) for _ in range(3))
    with torch.no_grad():
        net[0].weight.mul_(100.0)
    masks = sparsity.sparsify(net, 0.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    updates: list[sparsity.Rewiring] = []
    sparsity.gradual(net, optimizer, 0.5, begin=1, until=5, every=1, callback=updates.append)
    for number in range(6):
        optimizer.zero_grad()
        used = [net[2], net[1]] if number == 4 else net
        torch.stack([each(torch.ones(20)) for each in used]).sum().backward()
        if number == 4:
            with pytest.warns(sparsity.NoEffectWarning, match="keep their masks: '0.weight'"):
                optimizer.step()
        else:
            optimizer.step()
    assert [update.step for update in updates] == [1, 2, 3, 4, 5]
    assert not any(any(update.grown.values()) for update in updates)
    assert not any(updates[3].dropped.values())  # they have lost all that the first, of large weights, has kept
    assert masks.nonzeros == 600
    assert updates[-1].active == {layer.path: layer.nonzeros for layer in masks.layers}


def test_a_part_of_the_layers_goes_no_further_than_all() -> None:
    def change(here: int, elsewhere: int) -> int:
        return sum(amount.change for amount in limited([Amount(1, 5), Amount(2, here - 5)], elsewhere))

    assert change(-10, 0) == -10
    assert change(-10, -5) == -10
    assert change(-10, 4) == -6
    assert change(-10, 40) == 0
    assert change(89, -100) == 0
    assert change(10, -4) == 6
    assert change(10, 5) == 10
    assert limited([], 3) == []


def test_regrown_weights_stay() -> None:
    """Of two dropped the one of larger gradient comes back, so that one entry less changes on either side."""
    one = layer(torch.tensor([1.0, 2.0, 3.0, 0.0, 0.0]), torch.arange(5) < 3, torch.tensor([9.0, 1.0, 0.0, 5.0, 2.0]))
    [changed] = per_layer([one], [Amount(2)], drop.magnitude, grow.gradient, True)
    assert changed.tolist() == [False, True, False, True, False]
    [changed] = per_layer([one], [Amount(2)], drop.magnitude, grow.gradient)
    assert changed.tolist() == [True, True, False, True, True]


def test_several_callbacks() -> None:
    net, _ = layer_by_hand()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    seen: list[tuple[str, int]] = []
    callbacks = [lambda update: seen.append(("one", update.step)), lambda update: seen.append(("two", update.step))]
    sparsity.set_(net, optimizer, every=1, callback=callbacks)
    step(net, optimizer)
    step(net, optimizer)
    assert seen == [("one", 1), ("two", 1)]


def test_structures_are_not_broken() -> None:
    net = nn.Linear(8, 8)
    masks = sparsity.sparsify(net, 0.5, structure=sparsity.NM(2, 4))
    before = masks["weight"].clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(EngineError, match=r"masks of 'weight' have a structure.*Use sparsity.static"):
        sparsity.rigl(net, optimizer)
    with pytest.raises(sparsity.MaskError, match=r"masks of 'weight' have a structure.*Call sparsity.fold"):
        sparsity.prune(net, 0.8)
    assert torch.equal(masks["weight"], before)
    assert sparsity.static(net, optimizer).attached


def test_callbacks_and_seeds_of_other_kinds() -> None:
    net, _ = layer_by_hand()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for callback in (3, [lambda update: None, 3]):
        with pytest.raises(EngineError, match="callback is a function of a Rewiring, or several of them, got 3"):
            sparsity.rigl(net, optimizer, callback=callback)
    for seed in ("1", 1.0, True):
        with pytest.raises(EngineError, match="seed is an int, got"):
            sparsity.set_(net, optimizer, seed=seed)
    assert sparsity.rigl(net, optimizer).attached


def test_a_parameter_that_was_replaced_is_noticed_at_an_update() -> None:
    net, masks = layer_by_hand()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    engine = sparsity.rigl(net, optimizer, every=1)
    step(net, optimizer)
    net.parametrizations.weight.original = nn.Parameter(WEIGHT.clone())
    with pytest.raises(EngineError, match=r"does not hold 'weight'.*a parameter that was replaced since is another"):
        step(net, optimizer)
    assert torch.equal(masks["weight"], MASK)
    assert engine.last is None


def test_the_sign_of_masked_gradients() -> None:
    net, masks = layer_by_hand()
    for value in (-1.0, -math.inf, math.nan):
        net.zero_grad()
        (net(torch.ones(3)) * value).sum().backward()
        gradient = masks.weights["weight"].parameter.grad[~MASK]
        assert not gradient.any()
        assert not gradient.signbit().any()


def test_second_derivatives_pass_the_mask() -> None:
    net, masks = layer_by_hand()
    weight = masks.weights["weight"].parameter
    [first] = torch.autograd.grad((net(torch.ones(3)) ** 3).sum(), weight, create_graph=True)
    [second] = torch.autograd.grad(first.sum(), weight)
    # Of the sum of y^3: the first is 3 y^2 where active, of two weights each; the second sums 6 y over both.
    y = WEIGHT.sum(1, keepdim=True)
    torch.testing.assert_close(second, torch.where(MASK, 2 * 6 * y, 0.0))

"""FLOPs of whole trainings: by hand, and against a count kept step by step from what the engine really collects."""

# pyright: reportCallIssue=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import nn

import fxsplit
import sparsity
from sparsity import EngineError, Phase, RecordError, Rule, TrainingFlops, dense_steps, training_flops, training_plan

# Two masked layers of 24 and 12 weights, used 2 and 5 times each, and one without a mask.
LAYERS = {"0.weight": 2 * 24 * 2, "2.weight": 2 * 12 * 5, "4.weight": 2 * 6}
REST = 7


def network() -> tuple[nn.Module, sparsity.Masks]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2), nn.Tanh(), nn.Linear(2, 3))
    return net, sparsity.sparsify(net, 0.5, skip=["4"])


def step(net: nn.Module, optimizer: torch.optim.Optimizer, number: int, factor: float = 1.0) -> None:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))
    optimizer.zero_grad()
    (net(x).square().mean() * factor).backward()
    optimizer.step()


def test_methods_of_appendix_h_by_hand():
    # f_S = 100 / 4 + 10 + 1 = 36, f_D = 111; the layer of 10 and the rest of 1 have no mask.
    layers, quarter = {"masked": 100, "dense": 10}, {"masked": 0.25}

    def cost(*phases: Phase) -> float:
        return training_flops(layers, phases, rest=1)

    assert cost(Phase(20)) == 20 * 3 * 111
    assert cost(Phase(20, quarter)) == 20 * 3 * 36
    assert cost(Phase(20, quarter, dense_gradients=20)) == 20 * (2 * 36 + 111)
    assert cost(Phase(20, quarter, dense_gradients=3)) == 17 * 3 * 36 + 3 * (2 * 36 + 111)
    assert cost(Phase(5), Phase(5, {"masked": 0.5}), Phase(10, quarter)) == 3 * (5 * 111 + 5 * 61 + 10 * 36)
    assert training_flops(layers, [Phase(20, quarter)], batch=64) == 64 * 20 * 3 * 35
    assert cost() == 0


def test_every_layer_scales_with_its_own_density():
    layers = {"early": 1000, "late": 10}
    assert training_flops(layers, [Phase(1, {"early": 0.5, "late": 0.25})]) == 3 * (500 + 2.5)
    assert training_flops(layers, [Phase(1, {"early": 0.25, "late": 0.5})]) == 3 * (250 + 5)


def test_the_mean_of_the_paper_is_one_update_in_one_step_more():
    cost = training_flops({"w": 10}, [Phase(400, {"w": 0.2}, dense_gradients=100)])
    assert cost / 400 == pytest.approx(sparsity.rigl_training_flops(2, 10, every=3), rel=1e-15)


def test_thirds_are_exact():
    assert training_flops({"w": 9}, [Phase(1, {"w": Fraction(1, 3)})] * 100) == 900


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        (Phase(4, {"v": 0.5}), "No FLOPs are given for the masked weight 'v'. .*layer_flops"),
        (Phase(4, {"w": 1.5}), "density of 'w' is in \\[0, 1\\], got 1.5"),
        (Phase(4, {"w": 0.5}, dense_gradients=5), "from 0 to steps=4, got 5"),
        (Phase(-1), "from 0 to steps=-1"),
    ],
)
def test_phases_that_make_no_sense(phase, message):
    with pytest.raises(RecordError, match=message):
        training_flops({"w": 10}, [phase])


def by_hand(net, optimizer, engine, steps, batch, at=None):
    """Count step by step: what is active before the step, and whether gradients of zeros are being collected."""
    total = 0
    for number in range(steps):
        full = bool(engine._collection._collectors)
        for path, flops in LAYERS.items():
            mask = engine.masks.get(path)
            active = flops if mask is None else flops * int(mask.sum()) // mask.numel()
            total += batch * (2 * active + (flops if full else active))
        total += batch * 3 * REST
        step(net, optimizer, number, float("inf") if number == at else 1.0)
    return total


METHODS = {
    "static": (lambda n, o, c: sparsity.static(n, o, callback=c), dense_steps.never),
    "set": (lambda n, o, c: sparsity.set_(n, o, every=4, callback=c), dense_steps.never),
    "rigl": (lambda n, o, c: sparsity.rigl(n, o, every=4, until=17, callback=c), dense_steps.updates(4, 17)),
    "snfs": (lambda n, o, c: sparsity.snfs(n, o, every=4, callback=c), dense_steps.always),
    "pruning": (lambda n, o, c: sparsity.gradual(n, o, 0.8, 3, 18, 5, "uniform", callback=c), dense_steps.never),
    "global pruning": (lambda n, o, c: sparsity.gradual(n, o, 0.8, 3, 18, 5, callback=c), dense_steps.never),
}


@pytest.mark.parametrize("method", METHODS)
def test_callback_and_plan_equal_what_the_engine_does(method):
    make, full = METHODS[method]
    net, masks = network()
    meter = TrainingFlops(masks, LAYERS, full, rest=REST, batch=8)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    engine = make(net, optimizer, meter)
    planned = None if method == "global pruning" else training_plan(engine, 22)
    expected = by_hand(net, optimizer, engine, 22, batch=8)
    assert meter.total(engine.step) == expected
    assert meter.dense(22) == 22 * 8 * 3 * (sum(LAYERS.values()) + REST)
    assert meter.ratio(22) == expected / meter.dense(22) < 1
    assert sum(meter.by_path(22).values()) == expected - 22 * 8 * 3 * REST
    assert meter.by_component(22) == {"model": expected - 22 * 8 * 3 * REST}
    assert [dense_steps.of(engine)(i) for i in range(22)] == [full(i) for i in range(22)]
    if planned is not None:
        assert training_flops(LAYERS, planned, rest=REST, batch=8) == expected
        assert sum(phase.steps for phase in planned) == 22


def test_pruning_moves_densities_the_plan_has_a_phase_for_each():
    net, _ = network()
    engine = sparsity.gradual(net, torch.optim.SGD(net.parameters(), lr=0.1), 0.75, 2, 6, 2, "uniform")
    # ERK left 10 of 24 and 8 of 12 weights active, uniform will leave 6 and 3; in the middle the difference is an
    # eighth: 6.5 and 3.625, rounded. The step of an update still has the masks from before it.
    found = [(p.steps, p.densities["0.weight"] * 24, p.densities["2.weight"] * 12) for p in training_plan(engine, 10)]
    assert found == [(5, 10, 8), (2, 6, 4), (3, 6, 3)]


def test_a_plan_goes_on_from_the_step_the_engine_is_at():
    net, _ = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    engine = sparsity.rigl(net, optimizer, every=4, until=17)
    for number in range(6):
        step(net, optimizer, number)
    (phase,) = training_plan(engine, 30)
    assert (phase.steps, phase.dense_gradients) == (24, 3)
    assert training_plan(engine, 6) == ()
    with pytest.raises(EngineError, match="at step 6, so there is no training until step 5"):
        training_plan(engine, 5)


def test_what_is_not_known_beforehand_is_not_planned():
    net, _ = network()
    engine = sparsity.gradual(net, torch.optim.SGD(net.parameters(), lr=0.1), 0.8, 3, 18, 5)
    with pytest.raises(EngineError, match=r"callback=sparsity\.TrainingFlops"):
        training_plan(engine, 20)


def test_an_update_that_is_left_out_has_cost_its_gradients():
    net, masks = network()
    meter = TrainingFlops(masks, LAYERS, dense_steps.updates(every=4), rest=REST)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    engine = sparsity.rigl(net, optimizer, every=4, callback=meter)
    with pytest.warns(sparsity.SparsityWarning, match="step 8 left out"):
        # The optimizer turns weights into NaN, so that no later update happens.
        expected = by_hand(net, optimizer, engine, 12, batch=1, at=8)
    assert engine.skipped == 1
    assert meter.total(engine.step) == expected


@pytest.mark.parametrize("stop", [4, 5, 9, 14])
def test_resumed_equals_uninterrupted(stop):
    def start():
        net, masks = network()
        meter = TrainingFlops(masks, LAYERS, dense_steps.updates(4), rest=REST)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5)

        def drop(layer):
            return layer.weight.abs() / layer.mask.numel() ** 2

        # Compared over layers, so that densities move: the larger layer loses weights.
        rule = Rule(4, None, sparsity.constant(0.3), drop, sparsity.grow.gradient, True, sparsity.over_layers)
        return net, optimizer, sparsity.Engine(net, optimizer, rule, callback=meter), meter

    net, optimizer, engine, meter = start()
    for number in range(20):
        step(net, optimizer, number)
    whole = meter.total(20)
    assert meter.state_dict()["active"]["0.weight"] != 10

    net, optimizer, engine, meter = start()
    for number in range(stop):
        step(net, optimizer, number)
    saved = [each.state_dict() for each in (net, optimizer, engine, meter)]
    again = start()
    for each, state in zip(again, saved, strict=True):
        each.load_state_dict(state)
    for number in range(stop, 20):
        step(again[0], again[1], number)
    assert again[3].total(20) == whole


def test_states_and_updates_of_something_else():
    _, masks = network()
    meter = TrainingFlops(masks, LAYERS)
    with pytest.raises(RecordError, match="'weights'"):
        meter.load_state_dict({"step": 1, "active": {}, "gradients": {}})
    with pytest.raises(RecordError, match=r"other masks: 'head\.weight'"):
        meter.load_state_dict({**meter.state_dict(), "active": {**meter.state_dict()["active"], "head.weight": 1}})
    with pytest.raises(RecordError, match=r"another model: 'head\.weight'"):
        meter(sparsity.Rewiring(3, 0.1, {"head.weight": 1}, {"head.weight": 1}))
    meter(sparsity.Rewiring(3, 0.1, {"0.weight": 1}, {"0.weight": 1}))
    with pytest.raises(RecordError, match="first 3 steps are not known: the latest update came in step 3"):
        meter.total(3)
    with pytest.raises(RecordError, match=r"masked weight '2\.weight'"):
        TrainingFlops(masks, {"0.weight": 1})


@pytest.mark.parametrize("numbers", [{"every": 0}, {"every": True}, {"until": 0}, {"begin": -1}, {"every": 1.5}])
def test_steps_that_make_no_sense(numbers):
    with pytest.raises(EngineError, match=f"{next(iter(numbers))} is a number of optimizer steps"):
        dense_steps.updates(**numbers)


def test_updates_are_those_of_a_rule():
    score = sparsity.drop.magnitude
    for every, until, begin in [(3, None, 0), (3, 20, 0), (1, 2, 0), (4, 30, 7), (5, None, 2)]:
        rule = Rule(every, until, sparsity.constant(0.1), score, score, begin=begin)
        found = dense_steps.updates(every, until, begin)
        assert [found(i) for i in range(40)] == [rule.due(i) for i in range(40)]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.block(self.embed(x)).mean(1))


def test_of_a_split_model_with_attention():
    torch.manual_seed(0)
    graph = fxsplit.trace(Attention(), torch.randn(2, 5, 4))
    net = fxsplit.split(graph, "embed", heads=2)
    masks = sparsity.sparsify(net, 0.6)
    layers, rest = fxsplit.layer_flops(net), fxsplit.other_flops(net)
    # q k^T and its product with v: 2 x 2 x 5 x 5 x 8 in each head.
    assert rest == 2 * 800
    meter = TrainingFlops(masks, layers, rest=rest, batch=2)
    forward = fxsplit.summary(net).total.flops_masked
    assert meter.total(10) == pytest.approx(10 * 2 * 3 * (forward + rest), abs=10 * 2 * 3)
    parts = meter.by_component(10)
    assert list(parts) == ["trunk", "heads.0", "heads.1"]
    assert sum(parts.values()) + 10 * 2 * 3 * rest == pytest.approx(meter.total(10))
    assert parts["trunk"] == 10 * 2 * 3 * 2 * 5 * int(masks["trunk.embed.weight"].sum())


def test_tied_weights_have_the_same_name_in_masks_and_flops():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(torch.relu(self.a(x)))

    graph = fxsplit.trace(Tied(), torch.randn(2, 4))
    masks = sparsity.sparsify(graph, 0.5)
    assert TrainingFlops(masks, fxsplit.layer_flops(graph)).total(1) == 3 * 2 * 2 * 8

# Tests read weights of layers and fields that may be None, which pyright cannot know to be there.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportOptionalSubscript=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOptionalOperand=false

from __future__ import annotations

import contextlib
import copy
import gc
import io
import weakref

import pytest
import torch
from functorch.compile import make_boxed_func  # pyright: ignore
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.utils.checkpoint import checkpoint

import sparsity
from sparsity import EngineError, NoEffectWarning, Rule, SparsityWarning
from sparsity._drop import magnitude
from sparsity._engine import Engine
from sparsity._gradient import _key, _open
from sparsity._grow import gradient
from sparsity._steps import StepCount

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.5),
    "adamw unfused": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=False),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "muon": lambda p: torch.optim.Muon([each for each in p if each.ndim == 2], lr=0.01),
}
METHODS = {"rigl": sparsity.rigl, "set": sparsity.set_}


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 3))


def batch(step: int, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(size, 6, generator=generator), torch.randint(3, (size,), generator=generator)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range | int) -> None:
    for step in range(steps) if isinstance(steps, int) else steps:
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()


def collecting(masks: sparsity.Masks) -> int:
    """The number of masks whose unmasked gradients are collected; others may be open for engines of other tests."""
    return sum(_key(mask) in _open for mask in masks.values())


def state_tensors(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> list[torch.Tensor]:
    values = optimizer.state[parameter].values()
    return [each for each in values if isinstance(each, torch.Tensor) and each.shape == parameter.shape]


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_invariants_after_every_step(method, optimizer):
    net = network()
    masks = sparsity.sparsify(net, 0.6)
    optimizer = optimizer(net.parameters())
    engine = method(net, optimizer, every=3, until=20, fraction=lambda step: 0.3)
    counts = {layer.path: layer.nonzeros for layer in masks.layers}
    updates = 0
    for step in range(25):
        before = {path: mask.clone() for path, mask in masks.items()}
        train(net, optimizer, range(step, step + 1))
        assert {layer.path: layer.nonzeros for layer in masks.layers} == counts
        changed = any(not torch.equal(before[path], masks[path]) for path in masks)
        updates += changed
        assert changed == (step in (3, 6, 9, 12, 15, 18))
        for path, weight in masks.weights.items():
            zeros = ~masks[path]
            assert (weight.parameter[zeros] == 0).all()
            assert (weight.parameter.grad[zeros] == 0).all()
            for state in state_tensors(optimizer, weight.parameter):
                assert (state[zeros] == 0).all()
    assert updates == 6
    assert engine.step == 25
    assert engine.last.step == 18
    assert engine.last.dropped == engine.last.grown


def test_update_zeroes_weight_gradient_and_state_of_grown_weights():
    net = network()
    masks = sparsity.sparsify(net, 0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    seen = {}

    def momentum(weight):
        return optimizer.state[weight.parameter].get("momentum_buffer", torch.zeros(()))

    def look(rewiring):
        for path, weight in masks.weights.items():
            grown = masks[path] & ~before[path]
            dropped = before[path] & ~masks[path]
            assert grown.sum() == dropped.sum() == rewiring.grown[path] > 0
            assert (weight.parameter.grad[grown | dropped] == 0).all()
            for tensor, old in zip((weight.parameter, momentum(weight)), values[path], strict=True):
                assert torch.equal(tensor, old.masked_fill(grown | dropped, 0))
                assert (old[dropped] != 0).any()
        seen[rewiring.step] = rewiring

    engine = sparsity.rigl(net, optimizer, every=2, callback=look)
    for step in range(5):
        before = {path: mask.clone() for path, mask in masks.items()}
        values = {path: (w.parameter.detach().clone(), momentum(w).clone()) for path, w in masks.weights.items()}
        train(net, optimizer, range(step, step + 1))
    assert list(seen) == [2, 4]
    assert engine.last is seen[4]


def test_weight_decay_does_not_move_zeros_of_static_masks():
    net = network()
    masks = sparsity.sparsify(net, 0.7)
    before = {path: mask.clone() for path, mask in masks.items()}
    optimizer = OPTIMIZERS["muon"](net.parameters())
    engine = sparsity.static(net, optimizer)
    train(net, optimizer, 4)
    assert engine.last is None
    assert all(torch.equal(before[path], masks[path]) for path in masks)
    assert all((weight.parameter[~masks[path]] == 0).all() for path, weight in masks.weights.items())


def test_attaching_clears_the_state_of_dense_training():
    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    train(net, optimizer, 3)
    masks = sparsity.sparsify(net, 0.5)
    sparsity.static(net, optimizer)
    for path, weight in masks.weights.items():
        for state in state_tensors(optimizer, weight.parameter):
            assert (state[~masks[path]] == 0).all()
            assert (state[masks[path]] != 0).all()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("optimizer", ["nesterov", "adamw"])
@pytest.mark.parametrize("stop", [5, 7, 8])
def test_resume_is_bit_exact(method, optimizer, stop):
    def start(seed):
        net = network(seed)
        sparsity.sparsify(net, 0.6, seed=seed)
        made = OPTIMIZERS[optimizer](net.parameters())
        return net, made, method(net, made, every=4, until=30, seed=seed)

    net, made, engine = start(0)
    train(net, made, stop)
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": made.state_dict(), "engine": engine.state_dict()}, file)
    train(net, made, range(stop, 20))

    file.seek(0)
    saved = torch.load(file)
    resumed, remade, reengine = start(1)
    reengine.load_state_dict(saved["engine"])
    resumed.load_state_dict(saved["net"])
    remade.load_state_dict(saved["optimizer"])
    train(resumed, remade, range(stop, 20))
    assert engine.step == reengine.step == 20
    assert engine.last == reengine.last
    for (name, a), b in zip(net.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_load_state_dict_rejects_other_states():
    net = network()
    sparsity.sparsify(net, 0.5)
    engine = sparsity.static(net, torch.optim.SGD(net.parameters()))
    with pytest.raises(EngineError, match=r"it has 'epoch' and lacks 'missed', 'memory', 'collected', 'masks'"):
        engine.load_state_dict({"step": 1, "skipped": 0, "seed": 0, "epoch": 3})


def whole_numbers(net: nn.Module) -> None:
    """Make every gradient exact, so that sums don't depend on their order."""
    net.double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randint(-4, 5, parameter.shape))
    sparsity.masks_of(net).apply()


def linear() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))


def test_accumulated_micro_batches_equal_one_batch():
    def run(parts):
        torch.manual_seed(0)
        net = linear()
        masks = sparsity.sparsify(net, 0.5)
        whole_numbers(net)
        optimizer = torch.optim.SGD(net.parameters(), lr=2.0**-6)
        sparsity.rigl(net, optimizer, every=1)
        for step in range(2):
            x = torch.randint(-3, 4, (12, 6), generator=torch.Generator().manual_seed(step)).double()
            optimizer.zero_grad()
            for part in x.chunk(parts):
                net(part).square().sum().backward()
            optimizer.step()
        return net, masks

    (one, masks), (three, others) = run(1), run(3)
    assert all(torch.equal(masks[path], others[path]) for path in masks)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), three.parameters(), strict=True))


def test_gradients_without_memory_of_their_own_accumulate():
    net = nn.Linear(3, 2, bias=False)
    sparsity.sparsify(net, 0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    engine = sparsity.rigl(net, optimizer, every=1)
    net.weight.sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    for _ in range(2):
        net.weight.sum().backward()  # one number, expanded to the shape of the weight
    assert torch.equal(engine._collection._collectors["weight"].total, torch.full((2, 3), 2.0))


def test_gradients_of_a_discarded_step_do_not_count():
    def run(discard):
        torch.manual_seed(0)
        net = linear()
        masks = sparsity.sparsify(net, 0.5)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        sparsity.rigl(net, optimizer, every=1)
        for step in range(3):
            if discard and step == 2:
                (1e6 * net(torch.randn(4, 6, generator=torch.Generator().manual_seed(99)))).square().sum().backward()
            x, _ = batch(step)
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
        return masks

    clean, discarded = run(False), run(True)
    assert all(torch.equal(clean[path], discarded[path]) for path in clean)


@pytest.mark.parametrize("skipped", range(6))
def test_step_left_out_inside_a_fused_optimizer_does_not_count(skipped):
    """A GradScaler calls a fused optimizer in every step and leaves it to its kernel to change nothing."""
    net = network()
    sparsity.sparsify(net, 0.5)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, fused=True)
    updates = []
    engine = sparsity.rigl(net, optimizer, every=2, until=100, callback=updates.append)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(7):
        factor = torch.inf if step == skipped else 1.0
        scaler.scale(net(batch(step)[0]).square().sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert [update.step for update in updates] == [2, 4]
    assert engine.skipped == 0
    assert engine.step == 6
    assert engine.state_dict()["step"] == 6


def test_the_count_of_steps_waits_for_the_device_only_where_an_update_may_be_due():
    reads = []

    class Flag(torch.Tensor):
        def item(self):
            reads.append(steps._bound)
            return super().item()

    optimizer = torch.optim.SGD([torch.zeros(1)])
    optimizer.found_inf = torch.zeros(1).as_subclass(Flag)
    steps = StepCount()
    for _ in range(35):
        steps.satisfies(lambda step: step > 0 and step % 10 == 0)
        steps.add(optimizer)
    assert reads == [10, 11, 20, 21, 30, 31]
    assert steps.exact() == 35


def test_step_skipped_by_the_grad_scaler_does_not_count():
    net = linear()
    masks = sparsity.sparsify(net, 0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    engine = sparsity.rigl(net, optimizer, every=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step, factor in enumerate([1.0, 1.0, torch.inf, 1.0]):
        optimizer.zero_grad()
        scaler.scale(net(batch(step)[0]).square().sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        assert engine.step == [1, 2, 2, 3][step]
    assert engine.skipped == 0
    assert engine.last.step == 2
    assert all(weight.parameter.isfinite().all() for weight in masks.weights.values())


def test_clipping_sees_masked_gradients_in_the_step_of_an_update():
    net = linear()
    masks = sparsity.sparsify(net, 0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    sparsity.rigl(net, optimizer, every=1)
    plain = sparsity.fold(copy.deepcopy(net))
    for step in range(2):
        x, _ = batch(step)
        plain = sparsity.fold(copy.deepcopy(net))
        for model in (plain, net):
            model.zero_grad()
            model(x).square().sum().backward()
        expected = [plain.get_parameter(path).grad * mask for path, mask in masks.items()]
        expected += [plain[0].bias.grad, plain[2].bias.grad]
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        torch.testing.assert_close(norm, torch.stack([g.norm() for g in expected]).norm())
        optimizer.step()


def test_closures_make_the_same_updates_as_plain_steps():
    def run(closure):
        net = network()
        masks = sparsity.sparsify(net, 0.6)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        engine = sparsity.rigl(net, optimizer, every=2)
        for step in range(7):
            x, y = batch(step)

            def loss(x=x, y=y):
                optimizer.zero_grad()
                value = nn.functional.cross_entropy(net(x), y)
                value.backward()
                return value

            if closure == "keyword":
                assert optimizer.step(closure=loss) is not None
            elif closure == "positional":
                assert optimizer.step(loss) is not None
            else:
                loss()
                optimizer.step()
        assert engine.last.step == 6
        return masks, [p.detach() for p in net.parameters()]

    masks, weights = run(None)
    for style in ("keyword", "positional"):
        others, same = run(style)
        assert all(torch.equal(masks[path], others[path]) for path in masks)
        assert all(torch.equal(a, b) for a, b in zip(weights, same, strict=True))


def test_lbfgs_evaluates_its_closure_often_and_updates_once():
    net = network()
    masks = sparsity.sparsify(net, 0.6)
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=4)
    steps = []
    sparsity.rigl(net, optimizer, every=1, callback=lambda rewiring: steps.append(rewiring.step))
    x, y = batch(0)
    calls = 0

    def closure():
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert calls > 6
    assert steps == [1, 2]
    assert all((weight.parameter[~masks[path]] == 0).all() for path, weight in masks.weights.items())


@pytest.mark.parametrize("saving", ["checkpoint", "reentrant checkpoint", "offload"])
def test_saving_activations_otherwise_changes_no_update(saving):
    def run(how):
        torch.manual_seed(0)
        net = linear()
        masks = sparsity.sparsify(net, 0.5)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        engine = sparsity.rigl(net, optimizer, every=1)
        for step in range(4):
            x = batch(step)[0].requires_grad_()
            optimizer.zero_grad()
            with torch.autograd.graph.save_on_cpu() if how == "offload" else contextlib.nullcontext():
                if how is None or how == "offload":
                    y = net(x)
                else:
                    y = checkpoint(net, x, use_reentrant=how.startswith("reentrant"))
                y.square().sum().backward()
            optimizer.step()
        assert engine.last.step == 3
        return masks

    plain, other = run(None), run(saving)
    assert all(torch.equal(plain[path], other[path]) for path in plain)


def test_nothing_is_stored_between_updates():
    net = network()
    masks = sparsity.sparsify(net, 0.6)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    open_in_update = []
    engine = sparsity.rigl(net, optimizer, every=3, callback=lambda _: open_in_update.append(collecting(masks)))
    sizes = []
    for step in range(7):
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        sizes.append(sum(c.total.numel() for c in engine._collection._collectors.values() if c.total is not None))
        optimizer.step()
    dense = 60 + 80 + 24
    assert sizes == [0, 0, 0, dense, 0, 0, dense]
    assert open_in_update == [0, 0]
    assert collecting(masks) == 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_update_with_a_non_finite_gradient_is_left_out(bad):
    net = linear()
    masks = sparsity.sparsify(net, 0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    engine = sparsity.rigl(net, optimizer, every=1)
    before = {path: mask.clone() for path, mask in masks.items()}
    train(net, optimizer, 1)
    optimizer.zero_grad()
    (net(batch(1)[0]).sum() * bad).backward()
    with pytest.warns(SparsityWarning, match="Update at step 1 left out"):
        optimizer.step()
    assert engine.skipped == 1
    assert engine.last is None
    assert all(torch.equal(before[path], masks[path]) for path in masks)


def test_weights_without_a_gradient_keep_their_masks():
    net = linear()
    masks = sparsity.sparsify(net, 0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    engine = sparsity.rigl(net, optimizer, every=1)
    before = masks["0.weight"].clone()
    masks.weights["0.weight"].parameter.requires_grad_(False)
    train(net, optimizer, 1)
    with pytest.warns(NoEffectWarning, match=r"keep their masks: '0\.weight'"):
        train(net, optimizer, 1)
    assert list(engine.last.grown) == ["2.weight"]
    assert torch.equal(before, masks["0.weight"])


def test_gradient_that_did_not_pass_the_masks():
    net = linear()
    masks = sparsity.sparsify(net, 0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sparsity.rigl(net, optimizer, every=1)
    train(net, optimizer, 1)
    optimizer.zero_grad()
    for weight in masks.weights.values():
        weight.parameter.grad = torch.ones_like(weight.parameter)
    with pytest.raises(EngineError, match=r"'0\.weight' has a gradient at step 1"):
        optimizer.step()


def test_tied_weight_is_rewired_once_by_its_summed_gradient():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    net[1].weight = net[0].weight
    masks = sparsity.sparsify(net, 0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    engine = sparsity.rigl(net, optimizer, every=1, fraction=0.25)
    x = torch.randn(5, 4)
    reference = net[0].weight.detach().clone().requires_grad_()
    (x @ reference.T @ reference.T).square().sum().backward()
    before = masks["0.weight"].clone()
    for _ in range(2):
        optimizer.zero_grad()
        net(x).square().sum().backward()
        collected = [each.total.clone() for each in engine._collection._collectors.values()]
        optimizer.step()
    torch.testing.assert_close(collected, [reference.grad])
    assert engine.last.grown == {"0.weight": 2}
    scores = reference.grad.abs().masked_fill(before, -1)
    expected = torch.zeros(16, dtype=torch.bool)
    expected[scores.flatten().topk(2).indices] = True
    assert torch.equal(masks["0.weight"] & ~before, expected.view(4, 4))


def test_batch_norm_net():
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    masks = sparsity.sparsify(net, 0.8)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    engine = sparsity.rigl(net, optimizer, every=2)
    losses = []
    x, y = torch.randn(32, 2, 4, 4), torch.randint(3, (32,))
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert max(losses[-5:]) < losses[0]
    assert engine.last.step == 38
    assert masks.nonzeros == round(0.2 * masks.total)


def test_components_come_from_the_path():
    heads = nn.ModuleList(nn.Linear(8, 4) for _ in range(2))
    net = nn.ModuleDict({"trunk": nn.Linear(6, 8), "heads": heads, "vote": nn.Linear(4, 4)})
    sparsity.sparsify(net, 0.5, "uniform")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    engine = sparsity.set_(net, optimizer, every=1, fraction=0.5)
    for _ in range(2):
        trunk = net["trunk"](torch.randn(3, 6))
        net["vote"](sum(head(trunk) for head in heads)).sum().backward()
        optimizer.step()
    assert engine.last.components == {"trunk": 12, "heads.0": 8, "heads.1": 8, "model": 4}
    assert str(engine.last) == (
        "step 1: replaced 32 weights, fraction 0.5000 (trunk: 12, heads.0: 8, heads.1: 8, model: 4)"
    )


def test_wrapped_optimizer_and_model():
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, optimizer):
            self.optimizer = optimizer

        def step(self):
            self.optimizer.step()

    net = network()
    compiled = torch.compile(net, backend="eager")
    sparsity.sparsify(compiled, 0.5)
    optimizer = Wrapper(torch.optim.SGD(net.parameters(), lr=0.1))
    engine = sparsity.set_(compiled, optimizer, every=1)
    for step in range(2):
        nn.functional.cross_entropy(net(batch(step)[0]), batch(step)[1]).backward()
        optimizer.step()
    assert engine.last.step == 1


def test_detach():
    net = network()
    masks = sparsity.sparsify(net, 0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    engine = sparsity.rigl(net, optimizer, every=1)
    train(net, optimizer, 2)
    with pytest.raises(EngineError, match=r"Another engine keeps these masks, at step 2\. Call its detach"):
        sparsity.static(net, torch.optim.SGD(net.parameters()))
    assert engine.attached
    engine.detach()
    assert not engine.attached
    before = {path: mask.clone() for path, mask in masks.items()}
    train(net, optimizer, 2)
    assert engine.step == 2
    assert all(torch.equal(before[path], masks[path]) for path in masks)
    assert collecting(masks) == 0
    with pytest.warns(NoEffectWarning, match="not attached"):
        engine.detach()
    assert sparsity.static(net, optimizer).attached


def test_engine_ends_with_its_optimizer():
    net = network()
    sparsity.sparsify(net, 0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    engine = sparsity.rigl(net, optimizer)
    optimizer.itself = optimizer  # a cycle, such as schedulers make
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is not None  # the optimizer needs it
    del optimizer
    sparsity.rigl(net, torch.optim.SGD(net.parameters(), lr=0.1))
    assert gone() is None


def test_a_deep_copy_has_no_engine():
    net = network()
    sparsity.sparsify(net, 0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sparsity.rigl(net, optimizer)
    twin = copy.deepcopy(net)
    assert sparsity.rigl(twin, torch.optim.SGD(twin.parameters(), lr=0.1)).attached


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "every is a number of optimizer steps of at least 1"),
        ({"every": -1}, "every is a number of optimizer steps of at least 1"),
        ({"every": 1.5}, "every is a number of optimizer steps of at least 1"),
        ({"every": True}, "every is a number of optimizer steps of at least 1"),
        ({"until": 0}, "until is a number of optimizer steps of at least 1"),
        ({"every": 100, "until": 50}, "there would be none"),
        ({"every": 100, "until": 100}, "there would be none"),
        ({"fraction": 0}, r"in \(0, 1\]"),
        ({"fraction": 1.01}, r"in \(0, 1\]"),
        ({"fraction": float("nan")}, r"in \(0, 1\]"),
        ({"fraction": True}, r"in \(0, 1\]"),
        ({"fraction": "0.3"}, r"in \(0, 1\]"),
    ],
)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_bad_arguments(method, arguments, message):
    net = network()
    sparsity.sparsify(net, 0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(EngineError, match=message):
        method(net, optimizer, **arguments)
    assert not optimizer._optimizer_step_pre_hooks
    assert sparsity.static(net, optimizer).attached


@pytest.mark.parametrize(("end", "silent"), [(100, True), (91, True), (90, False), (70, False)])
def test_updates_beyond_the_end_of_the_schedule(end, silent, recwarn):
    net = network()
    sparsity.sparsify(net, 0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    if silent:
        sparsity.set_(net, optimizer, every=10, until=100, fraction=sparsity.cosine(0.3, until=end))
        assert not recwarn.list
    else:
        with pytest.warns(NoEffectWarning, match="gives 0 at step 90, the last update before until=100"):
            sparsity.set_(net, optimizer, every=10, until=100, fraction=sparsity.cosine(0.3, until=end))


def test_schedule_out_of_range():
    net = network()
    sparsity.sparsify(net, 0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sparsity.set_(net, optimizer, every=1, fraction=lambda step: 1.5)
    with pytest.raises(EngineError, match=r"gave 1\.5 at step 1"):
        train(net, optimizer, 2)


def test_model_without_masks():
    net = network()
    with pytest.raises(EngineError, match="no masks"):
        sparsity.rigl(net, torch.optim.SGD(net.parameters(), lr=0.1))


def test_optimizer_of_other_parameters():
    net = network()
    sparsity.sparsify(net, 0.5)
    with pytest.raises(EngineError, match=r"does not hold '0\.weight', '2\.weight', '4\.weight'"):
        sparsity.rigl(net, torch.optim.SGD(network().parameters(), lr=0.1))
    with pytest.raises(EngineError, match=r"does not hold '2\.weight', '4\.weight'"):
        sparsity.rigl(net, torch.optim.SGD(net[0].parameters(), lr=0.1))
    with pytest.raises(EngineError, match="got Sequential"):
        sparsity.rigl(net, net)
    sparsity.rigl(net[0], torch.optim.SGD(net[0].parameters(), lr=0.1))
    sparsity.rigl(net[2:], torch.optim.SGD(net[2:].parameters(), lr=0.1))


def test_frozen_weights_need_not_be_in_the_optimizer():
    net = network()
    sparsity.sparsify(net, 0.5)
    net[0].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    engine = sparsity.rigl(net, optimizer, every=1)
    train(net, optimizer, 1)
    with pytest.warns(NoEffectWarning, match=r"'0\.weight'"):
        train(net, optimizer, 1)
    assert list(engine.last.grown) == ["2.weight", "4.weight"]


def test_dense_masks_warn():
    net = network()
    sparsity.sparsify(net, 0.0)
    with pytest.warns(NoEffectWarning, match="nothing to rewire"):
        sparsity.rigl(net, torch.optim.SGD(net.parameters(), lr=0.1))


def test_growing_by_gradient_needs_a_dense_rule():
    net = network()
    sparsity.sparsify(net, 0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    Engine(net, optimizer, Rule(1, None, lambda step: 0.3, magnitude, gradient, dense=False))
    with pytest.raises(EngineError, match="dense=True"):
        train(net, optimizer, 2)


def test_compiled_without_breaks_or_recompiles():
    torch._dynamo.reset()
    net, eager = linear(), linear()
    eager.load_state_dict(net.state_dict())
    compiled = []

    def count(graph, example):
        compiled.append(graph)
        return make_boxed_func(graph)

    backend = aot_autograd(fw_compiler=count, bw_compiler=count)
    final = []
    for model in (net, eager):
        masks = sparsity.sparsify(model, 0.5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        engine = sparsity.rigl(model, optimizer, every=2)
        run = torch.compile(model, backend=backend, fullgraph=True) if model is net else model
        for step in range(7):
            x, y = batch(step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(run(x), y).backward()
            optimizer.step()
        assert engine.last.step == 6
        final.append([*masks.values(), *model.parameters()])
    assert len(compiled) == 2  # one forward, one backward
    for a, b in zip(*final, strict=True):
        torch.testing.assert_close(a, b)

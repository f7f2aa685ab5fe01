# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportPrivateImportUsage=false
"""Engines under FSDP2: what each process holds, unusual orders and settings, and what is refused."""

from __future__ import annotations

import gc
import math
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

import fxsplit
import sparsity
from sparsity import Layer, Rule, SparsityError, SparsityWarning
from sparsity._distributed import digests
from sparsity._smallest import smallest_of
from tests.unit._fsdp import PATHS, STEPS, Run, assert_like_one_process, batch, network, shard, whole
from tests.unit._ranks import run

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")  # of DCP in one process


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)


def backward(net: nn.Module, rank: int, ranks: int = 2, step: int = 0) -> None:
    images, labels = (each.chunk(ranks)[rank] for each in batch(step))
    dtype = next(net.parameters()).dtype
    nn.functional.cross_entropy(net(images.to(dtype)).to(dtype), labels).backward()


def message(call: Callable[[], Any]) -> str:
    try:
        call()
    except SparsityError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing raised"


def parts(rank: int) -> dict[str, Any]:
    """What one process holds, and the gradient that clipping sees."""
    net = network()
    first = sparsity.masks_of(net)
    expected = {path: mask.clone() for path, mask in first.items()}
    unsharded = weakref.ref(first.weights["1.0.weight"].parameter)
    shard(net)
    gc.collect()
    freed = unsharded() is None
    optimizer = sgd(net)
    engine = sparsity.rigl(net, optimizer, every=2)
    backward(net, rank)
    masked = all(
        not whole(weight.parameter.grad)[~expected[path]].any() and whole(weight.parameter.grad)[expected[path]].any()
        for path, weight in engine.masks.weights.items()
    )
    held: dict[str, Any] = {path: (mask, first.weights[path].parameter) for path, mask in engine.masks.items()}
    return {
        "masked": masked,
        "freed": freed,
        "text": repr(first) if rank == 0 else "",  # by one process alone
        "masks": {path: whole(mask) for path, mask in engine.masks.items()},
        "expected": expected,
        "shapes": {path: [tuple(each._local_tensor.shape) for each in pair] for path, pair in held.items()},
        "placements": {path: mask.placements == weight.placements for path, (mask, weight) in held.items()},
        "bytes": {path: mask._local_tensor.untyped_storage().nbytes() for path, (mask, _) in held.items()},
        "digests": digests(engine.masks),
    }


def late(rank: int, method: str = "rigl") -> Any:
    """Attach where a forward pass has left the root's weights whole."""
    net = network()
    masks = sparsity.masks_of(net)
    shard(net)
    optimizer = sgd(net)
    with torch.no_grad():
        net(batch(0)[0])
    engine = sparsity.rigl(net, optimizer, every=2)
    with torch.no_grad():
        net(batch(0)[0])
    return masks.nonzeros, sparsity.masks_of(net).nonzeros, engine.masks.nonzeros


def infinite(rank: int) -> tuple[int, int, bool]:
    net = shard(network())
    optimizer = sgd(net)
    engine = sparsity.rigl(net, optimizer, every=1)
    for step in range(3):
        backward(net, rank, step=step)
        if step == 1 and rank == 1:
            net[1][0].parametrizations.weight.original.grad._local_tensor[0, 0] = math.inf
        before = {path: whole(mask) for path, mask in engine.masks.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SparsityWarning)
            optimizer.step()
        same = all(torch.equal(before[path], whole(mask)) for path, mask in engine.masks.items())
        if step == 1:
            break
        optimizer.zero_grad()
    return engine.skipped, engine.step, same


def low_precision(rank: int) -> tuple[dict[str, int], dict[str, int], int]:
    from torch.distributed.fsdp import MixedPrecisionPolicy

    net = network().float()
    before = {layer.path: layer.nonzeros for layer in sparsity.masks_of(net).layers}
    shard(net, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))
    trained = Run.__new__(Run)
    trained.net, trained.optimizer = net, sgd(net)
    trained.engine = sparsity.rigl(net, trained.optimizer, every=2)
    for step in range(5):
        backward(net, rank, step=step)
        trained.optimizer.step()
        trained.check()
        trained.optimizer.zero_grad()
    return before, {layer.path: layer.nonzeros for layer in trained.engine.masks.layers}, trained.engine.last.step


def pruned(sharded: bool, allocation: Any) -> dict[str, Tensor]:
    net = shard(network()) if sharded else network()
    return {path: whole(mask) for path, mask in sparsity.prune(net, 0.85, allocation=allocation).items()}


def full_states(rank: int) -> tuple[Any, bool]:
    """Take one process's whole state dict out, and load it into another sharded model."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        set_model_state_dict,
    )

    trained = Run("set", rank, 2).steps()
    full = get_model_state_dict(trained.net, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    other = Run("set", rank, 2)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(other.net, dict(full) if rank == 0 else {}, options=options)
    same = all(torch.equal(whole(other.engine.masks[path]), whole(trained.engine.masks[path])) for path in PATHS)
    return full, same


def compiled(rank: int, ranks: int) -> dict[str, Any]:
    trained = Run.__new__(Run)
    trained.net, trained.rank, trained.ranks, trained.device = network(), rank, ranks, "cpu"
    if ranks > 1:
        for block in trained.net:
            block.compile(backend="aot_eager")
        shard(trained.net)
    trained.optimizer = sgd(trained.net)
    trained.engine = sparsity.rigl(trained.net, trained.optimizer, every=2)
    return trained.steps().result()


def partly_trained(rank: int, ranks: int) -> dict[str, Any]:
    """One block is frozen in the first steps; updates are recorded."""
    trained = Run.__new__(Run)
    trained.net, trained.rank, trained.ranks, trained.device = network(), rank, ranks, "cpu"
    trained.net[1].requires_grad_(False)
    history = sparsity.History(sparsity.masks_of(trained.net), explored=True)
    if ranks > 1:
        shard(trained.net)
    trained.optimizer = torch.optim.AdamW(trained.net.parameters(), lr=0.01)
    trained.engine = sparsity.rigl(trained.net, trained.optimizer, every=2, callback=history)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sparsity.NoEffectWarning)
        trained.steps(3)
        trained.net[1].requires_grad_(True)
        result = trained.steps().result()
    return {**result, "text": str(history)}


def averaged(rank: int, ranks: int) -> dict[str, Any]:
    """A second model, sharded alike, averages the weights and follows the masks."""
    average: Any = network()
    if ranks > 1:
        shard(average)
    trained = Run("rigl", rank, ranks)
    followed = sparsity.follow(average, trained.net)
    for stop in range(1, STEPS + 1):
        trained.steps(stop)
        with torch.no_grad():
            for mean, parameter in zip(average.parameters(), trained.net.parameters(), strict=True):
                mean.lerp_(parameter, 0.3)
    own = [whole(weight.parameter) for weight in followed.weights.values()]
    return {
        "same masks": [torch.equal(whole(mask), whole(trained.engine.masks[path])) for path, mask in followed.items()],
        "zeros": [bool((value[~whole(mask)] == 0).all()) for value, mask in zip(own, followed.values(), strict=True)],
        "weights": own,
        "alone": message(lambda: sparsity.follow(network(), trained.net)) if ranks > 1 else "",
    }


def remembering(net: nn.Module, optimizer: Any, memory: dict[str, Any]) -> sparsity.Engine:
    def observe(layer: Layer) -> None:
        layer.memory["sum"] = layer.weight.abs() + layer.memory.get("sum", 0)

    constant = sparsity.constant(0.3)
    rule = Rule(2, None, constant, sparsity.drop.magnitude, sparsity.grow.uniform, observe=observe, memory=memory)
    return sparsity.Engine(net, optimizer, rule)


def lost(rank: int, folder: Path) -> list[str]:
    """Load what a rule of one's own remembers, with and without saying so."""
    from torch.distributed import checkpoint

    messages = []
    for name, memory in (("undeclared", {}), ("declared", {"sum": None})):
        net, other = shard(network()), shard(network())
        optimizer, another = sgd(net), sgd(other)
        engine, target = remembering(net, optimizer, memory), remembering(other, another, memory)
        for _ in range(2):
            backward(net, rank)
            optimizer.step()
        checkpoint.save({"engine": engine.state_dict()}, checkpoint_id=folder / name)
        state = {"engine": target.state_dict()}
        checkpoint.load(state, checkpoint_id=folder / name)
        messages.append(message(lambda target=target, state=state: target.load_state_dict(state["engine"])))
        if not memory:
            continue
        sums = [each.state_dict()["memory"]["1.0.weight"]["sum"] for each in (engine, target)]
        messages.append(str(torch.equal(*map(whole, sums))))
    return messages


def refused(rank: int) -> dict[str, str]:
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import Shard

    def differing() -> None:
        net = network()
        sparsity.masks_of(net)["1.0.weight"][0, 0] ^= bool(rank)
        shard(net)
        sparsity.rigl(net, sgd(net))

    def seeds() -> None:
        net = shard(network())
        sparsity.set_(net, sgd(net), seed=rank)

    def columns() -> None:
        net = nn.Linear(8, 4)
        sparsity.sparsify(net, 0.5)
        fully_shard(net, mesh=mesh(), shard_placement_fn=lambda p: Shard(p.ndim - 1))
        sparsity.shard_masks(net)

    def flat() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net = FullyShardedDataParallel(network(), use_orig_params=True, device_id=torch.device("cpu"))
        sparsity.rigl(net, sgd(net))

    def sparsify() -> None:
        sparsity.sparsify(shard(nn.Sequential(nn.Linear(4, 4))), 0.5)

    def fold() -> None:
        sparsity.fold(shard(network()))

    cases = (differing, seeds, columns, flat, sparsify, fold)
    return {case.__name__: message(case) for case in cases}


def mesh() -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (2,))


def scaled(rank: int) -> tuple[int, int, bool]:
    net = shard(network().float())
    optimizer = sgd(net)
    engine = sparsity.rigl(net, optimizer, every=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(3):
        images, labels = (each.chunk(2)[rank] for each in batch(step))
        loss = nn.functional.cross_entropy(net(images.float()), labels)
        if step == 1 and rank == 0:
            loss = loss * math.inf
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return engine.step, engine.last.step, bool(whole(net[1][0].bias).isfinite().all())


def selected(rank: int) -> list[str]:
    """Where the selection over processes differs from that of one process: many ties, infinities, signs of zero.

    Also of scores of several dtypes, and of some that are computed on demand.
    """
    from torch.distributed.tensor import Shard, distribute_tensor

    generator, wrong, over = torch.Generator().manual_seed(1), [], mesh()
    for trial, dtype in enumerate(5 * [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.bool]):
        shapes = [(5, 3), (1, 4), (2, 2, 2), (7,)][: 1 + trial % 4]
        among = [torch.rand(shape, generator=generator) < 0.7 for shape in shapes]
        values = [torch.randn(shape, generator=generator, dtype=torch.double) for shape in shapes]
        if trial % 2:
            values = [(each * 2).round() for each in values]
        if trial % 7 == 0:
            values = [torch.where(each.abs() > 1, each * math.inf, each) for each in values]
        if trial % 7 == 1:
            values = [each.sign() * 0.0 for each in values]
        scores = [each.to(dtype) for each in values]
        if trial % 7 == 2:
            scores = [torch.where(some, each.float(), math.nan) for some, each in zip(among, scores, strict=True)]
        if trial % 7 == 3:
            kinds = [torch.float64, torch.float32, torch.bfloat16, torch.float16][: len(values)]
            scores = [each.to(kind) for each, kind in zip(values, kinds, strict=True)]
        # The third is not sharded, and some scores are whole.
        mine = [distribute_tensor(each, over, [Shard(0)]) if i != 2 else each for i, each in enumerate(among)]
        given: list[Any] = [
            distribute_tensor(each, over, [Shard(0)]) if i != 2 and trial % 3 else each for i, each in enumerate(scores)
        ]
        if len(scores) > 2 and trial % 2:
            given[2] = scores[2].view(-1).__getitem__
        available = sum(int(each.sum()) for each in among)
        for count in {0, 1, available // 2, available - 1, available}:
            expected, found = smallest_of(scores, count, among), smallest_of(given, count, mine)
            if not all(torch.equal(one, whole(other)) for one, other in zip(expected, found, strict=True)):
                wrong.append(f"trial {trial}, {count} of {available}")
    return wrong


def deferred(rank: int, folder: Path) -> dict[str, Any]:
    """A model that no process ever holds: drawn anew, and loaded from a checkpoint."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    results: dict[str, Any] = {}
    trained = Run("rigl", rank, 2).steps()
    checkpoint.save({"model": get_model_state_dict(trained.net)}, checkpoint_id=folder / "deferred")
    for how in ("drawn", "loaded"):
        with torch.device("meta"):
            net = network()
        shard(net)
        sparsity.shard_masks(net)
        results[f"{how} early"] = message(lambda net=net: sparsity.draw_masks(net))
        net.to_empty(device="cpu")
        for parameter in net.parameters():
            nn.init.constant_(parameter, 0.5)
        if how == "drawn":
            sparsity.draw_masks(net)
        else:
            state = get_model_state_dict(net)
            checkpoint.load({"model": state}, checkpoint_id=folder / "deferred")
            set_model_state_dict(net, state)
        optimizer = sgd(net)
        engine = sparsity.rigl(net, optimizer, every=1)
        results[how] = {path: whole(mask) for path, mask in engine.masks.items()}
        results[f"{how} zeros"] = all(
            not whole(each.parameter)[~results[how][path]].any() for path, each in engine.masks.weights.items()
        )
        for step in range(2):
            backward(net, rank, step=step)
            optimizer.step()
        results[f"{how} update"] = engine.last.step
    return {**results, "trained": {path: whole(mask) for path, mask in trained.engine.masks.items()}}


def tied(rank: int, ranks: int) -> dict[str, Any]:
    """Two layers share a weight and its mask."""
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 9)).double()
    net[2].weight = net[0].weight
    sparsity.sparsify(net, 0.7)
    if ranks > 1:
        fully_shard(net, mesh=mesh())
    optimizer = sgd(net)
    engine = sparsity.rigl(net, optimizer, every=1)
    for step in range(5):
        inputs = torch.randn(8, 9, generator=torch.Generator().manual_seed(step), dtype=torch.double)
        net(inputs.chunk(ranks)[rank]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {path: whole(mask) for path, mask in engine.masks.items()}


def split(rank: int, ranks: int) -> dict[str, Any]:
    """A trunk with three heads, each sharded for itself, rewired as NeuroTrails does."""
    torch.manual_seed(0)
    layers = (nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4))
    net: Any = nn.Sequential(*layers).double()
    net = fxsplit.neurotrailify(net, "2", heads=3, sparsity=0.7, example=torch.randn(4, 12).double())
    if ranks > 1:
        for part in (net.trunk, *net.heads.children()):
            fully_shard(part, mesh=mesh())
        fully_shard(net, mesh=mesh())
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    engine = sparsity.trails(net, optimizer, 20, "paper-cifar", every=2)
    for step in range(6):
        images, labels = (each.chunk(ranks)[rank] for each in batch(step))
        nn.functional.cross_entropy(net(images.flatten(1)[:, :12]), labels % 4).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"masks": {path: whole(mask) for path, mask in engine.masks.items()}, "last": engine.last}


def everything(rank: int, folder: Path) -> dict[str, Any]:
    """What the tests look at, all in one start of processes, because that takes longer than training."""
    return {
        "parts": parts(rank),
        "late": late(rank),
        "infinite": infinite(rank),
        "low precision": low_precision(rank),
        "pruned": [pruned(True, each) for each in (None, "uniform")],
        "full states": full_states(rank),
        "compiled": compiled(rank, 2),
        "partly trained": partly_trained(rank, 2),
        "averaged": averaged(rank, 2),
        "lost": lost(rank, folder),
        "refused": refused(rank),
        "scaled": scaled(rank),
        "selected": selected(rank),
        "tied": tied(rank, 2),
        "split": split(rank, 2),
        "deferred": deferred(rank, folder),
    }


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of two processes."""
    folder = tmp_path_factory.mktemp("pair")
    return run(everything, 2, folder, folder)


def test_each_process_holds_its_rows(pair: list[dict[str, Any]]) -> None:
    rows = {"0.0.weight": (4, 3), "1.0.weight": (8, 8), "2.0.weight": (1, 0), "2.1.weight": (3, 2)}
    assert pair[0]["parts"]["text"] == "<Masks of 4 weights, sharded>"
    for rank, results in enumerate(pair):
        held = results["parts"]
        assert held["freed"]
        for path in PATHS:
            mask, weight = held["shapes"][path]
            assert mask == weight
            assert mask[0] == rows[path][rank]
            assert held["placements"][path]
            assert held["bytes"][path] == math.prod(mask)
            assert torch.equal(held["masks"][path], held["expected"][path])
        assert torch.equal(held["digests"], pair[0]["parts"]["digests"])


def test_gradients_are_masked_after_the_backward_pass(pair: list[dict[str, Any]]) -> None:
    assert all(results["parts"]["masked"] for results in pair)


def test_attached_while_weights_are_whole(pair: list[dict[str, Any]]) -> None:
    nonzeros = sparsity.masks_of(network()).nonzeros
    for results in pair:
        assert results["late"] == (nonzeros,) * 3


def test_an_infinite_gradient_of_one_process_leaves_the_update_out_in_all(pair: list[dict[str, Any]]) -> None:
    for results in pair:
        assert results["infinite"] == (1, 2, True)


def test_mixed_precision(pair: list[dict[str, Any]]) -> None:
    for results in pair:
        before, after, step = results["low precision"]
        assert before == after
        assert step == 4


def test_pruning(pair: list[dict[str, Any]]) -> None:
    for allocation, *found in zip((None, "uniform"), *(results["pruned"] for results in pair), strict=True):
        expected = pruned(False, allocation)
        for masks in found:
            assert all(torch.equal(masks[path], mask) for path, mask in expected.items())


def test_full_state_dicts(pair: list[dict[str, Any]]) -> None:
    """A whole state dict is that of one process: it loads into a model that is not sharded."""
    one = Run("set").steps()
    full, same = pair[0]["full states"]
    assert same
    assert pair[1]["full states"][1]
    net = network()
    net.load_state_dict(full)
    for path, mask in sparsity.masks_of(net).items():
        assert torch.equal(mask, one.engine.masks[path])


@pytest.mark.parametrize(("name", "train"), [("compiled", compiled), ("partly trained", partly_trained)])
def test_like_one_process(name: str, train: Any, pair: list[dict[str, Any]]) -> None:
    one = train(0, 1)
    assert_like_one_process([results[name] for results in pair], one)
    assert all(results[name].get("text") == one.get("text") for results in pair)


def test_an_average_follows(pair: list[dict[str, Any]]) -> None:
    one = averaged(0, 1)
    for found in (one, *(results["averaged"] for results in pair)):
        assert found["same masks"] == found["zeros"] == [True] * len(PATHS)
        for value, expected in zip(found["weights"], one["weights"], strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-11)
    assert "only one is sharded (weight '0.0.weight')" in pair[0]["averaged"]["alone"]


def test_a_first_step_of_rate_zero_counts() -> None:
    trained = Run("rigl")
    for group in trained.optimizer.param_groups:
        group["lr"] = 0.0
    assert trained.steps(1).engine.step == 1


def test_memory_that_a_checkpoint_would_lose(pair: list[dict[str, Any]]) -> None:
    for results in pair:
        undeclared, declared, same = results["lost"]
        assert "EngineError: The state was saved with 'memory of 0.0.weight: sum'" in undeclared
        assert "Rule(memory=...)" in undeclared
        assert (declared, same) == ("nothing raised", "True")


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("differing", "EngineError: The 2 processes have different masks, of '1.0.weight'"),
        ("seeds", "EngineError: The 2 processes have different seeds"),
        ("columns", "EngineError: 'weight' is a DTensor placed as"),
        ("flat", "EngineError: FullyShardedDataParallel (FSDP1) flattens"),
        ("sparsify", "MaskError: sparsify changes which parameters a module has, but they are sharded already"),
        ("fold", "MaskError: fold changes which parameters a module has, but they are sharded already"),
    ],
)
def test_what_is_refused(case: str, text: str, pair: list[dict[str, Any]]) -> None:
    for results in pair:
        assert results["refused"][case].startswith(text)


def test_selection_over_processes(pair: list[dict[str, Any]]) -> None:
    assert [results["selected"] for results in pair] == [[], []]


def test_models_that_no_process_holds(pair: list[dict[str, Any]]) -> None:
    fresh = dict(sparsity.masks_of(network()))
    for results in pair:
        found = results["deferred"]
        for how, expected in (("drawn", fresh), ("loaded", found["trained"])):
            assert found[f"{how} early"].startswith("MaskError: '0.0.weight', '1.0.weight'")
            assert all(torch.equal(found[how][path], expected[path]) for path in PATHS)
            assert found[f"{how} zeros"]
            assert found[f"{how} update"] == 1


def test_tied_weights(pair: list[dict[str, Any]]) -> None:
    one = tied(0, 1)
    assert list(one) == ["0.weight"]
    for results in pair:
        assert torch.equal(results["tied"]["0.weight"], one["0.weight"])


def test_trunk_and_heads(pair: list[dict[str, Any]]) -> None:
    one = split(0, 1)
    assert any(path.startswith("heads.2.") for path in one["masks"])
    for results in pair:
        assert results["split"]["last"] == one["last"]
        assert all(torch.equal(results["split"]["masks"][path], mask) for path, mask in one["masks"].items())


def test_a_scaler_that_skips_steps(pair: list[dict[str, Any]]) -> None:
    for results in pair:
        assert results["scaled"] == (2, 1, True)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_looking_at_states_is_no_step(momentum: float) -> None:
    """torch.distributed.checkpoint steps optimizers without states, so plain SGD each time."""
    one, other = Run("rigl", momentum=momentum), Run("rigl", momentum=momentum)
    for stop in range(1, 6):
        other.states()
        other.steps(stop)
        assert other.engine.step == stop
    one.steps(5)
    for path in PATHS:
        assert torch.equal(one.engine.masks[path], other.engine.masks[path])

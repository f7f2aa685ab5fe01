# pyright: reportOptionalMemberAccess=false
"""Engines in several processes: real ones, with gloo on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import sparsity
from sparsity import EngineError
from sparsity._distributed import digests
from tests.unit._ranks import run

BATCH, STEPS = 12, 7
METHODS: dict[str, Callable[..., sparsity.Engine]] = {
    "rigl": lambda net, optimizer: sparsity.rigl(net, optimizer, every=2),
    "set": lambda net, optimizer: sparsity.set_(net, optimizer, every=2),
    "snfs": lambda net, optimizer: sparsity.snfs(net, optimizer, every=2, decay=0.5),
    "deep_r": lambda net, optimizer: sparsity.deep_r(net, optimizer),
    "gradual": lambda net, optimizer: sparsity.gradual(net, optimizer, 0.9, begin=1, until=5, every=2),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 16), nn.ReLU(), nn.Linear(16, 4))
    return net.double()


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(BATCH, 2, 5, 5, generator=generator, dtype=torch.double)
    return images, torch.randint(4, (BATCH,), generator=generator)


def share(tensor: Tensor, rank: int, ranks: int) -> Tensor:
    return tensor.chunk(ranks)[rank]


def train(rank: int, ranks: int, method: str, micro: int = 1, start: Any = None, stop: int = STEPS) -> Any:
    """Masks, weights and the states for resuming after training on this process's share of every batch."""
    net = network()
    sparsity.sparsify(net, 0.6)
    model: Any = DistributedDataParallel(net) if ranks > 1 else net
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    engine = METHODS[method](model, optimizer)
    if start is not None:
        for each, state in zip((net, optimizer, engine), start, strict=True):
            each.load_state_dict(state)
    for step in range(engine.step, stop):
        images, labels = (share(each, rank, ranks) for each in batch(step))
        for number, (x, y) in enumerate(zip(images.chunk(micro), labels.chunk(micro), strict=True)):
            if ranks > 1:
                model.require_backward_grad_sync = number == micro - 1
            (nn.functional.cross_entropy(model(x), y) / micro).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert engine.last is not None
    weights = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    masks = {path: mask.clone() for path, mask in engine.masks.items()}
    return masks, weights, [each.state_dict() for each in (net, optimizer, engine)]


def spread(rank: int, ranks: int) -> Any:
    """Masks and weights with optimizer states that are spread over the processes, and whether they are zero there."""
    net = network()
    masks = sparsity.sparsify(net, 0.6)
    settings: dict[str, Any] = {"lr": 0.01}
    if ranks > 1:
        from torch.distributed.optim import ZeroRedundancyOptimizer  # warns of something, on older versions of torch

        optimizer: Any = ZeroRedundancyOptimizer(net.parameters(), torch.optim.AdamW, **settings)
    else:
        optimizer = torch.optim.AdamW(net.parameters(), **settings)
    model: Any = DistributedDataParallel(net) if ranks > 1 else net
    engine = METHODS["rigl"](model, optimizer)
    for step in range(STEPS):
        x, y = (share(each, rank, ranks) for each in batch(step))
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    states = optimizer.optim.state if ranks > 1 else optimizer.state
    owned = [(weight, masks[path]) for path, weight in masks.weights.items() if weight.parameter in states]
    zero = all(not states[weight.parameter]["exp_avg_sq"][~mask].any() for weight, mask in owned)
    refused = ""
    if ranks > 1:
        engine.detach()
        try:
            sparsity.rigl(model, optimizer, every=2, compact_state=True)
        except EngineError as error:
            refused = str(error)
    weights = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    return dict(masks), weights, (len(owned), zero, refused)


def wrapped() -> str:
    try:
        sparsity.sparsify(DistributedDataParallel(network()), 0.5)
    except sparsity.MaskError as error:
        return str(error).split(",")[0]
    return ""


def averaged(rank: int) -> Any:
    """Masks and weights of processes that average their weights after each step instead of their gradients."""
    from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
    from torch.distributed.optim import PostLocalSGDOptimizer

    net = network()
    masks = sparsity.sparsify(net, 0.6)
    inside = torch.optim.SGD(net.parameters(), lr=0.01)
    optimizer = PostLocalSGDOptimizer(inside, PeriodicModelAverager(period=1, warmup_steps=0))
    METHODS["rigl"](net, optimizer)
    for step in range(STEPS):
        x, y = (share(each, rank, 2) for each in batch(step))
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return dict(masks), {name: parameter.detach().clone() for name, parameter in net.named_parameters()}


def assert_same_masks(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert list(one) == list(other)
    for path in one:
        assert torch.equal(one[path], other[path]), path


def everything(rank: int, states: Any) -> dict[str, Any]:
    """What the tests look at, all in one pair of processes, because starting them takes longer than training."""
    return {
        **{method: train(rank, 2, method) for method in METHODS},
        "accumulated": train(rank, 2, "rigl", micro=3),
        "continued": train(rank, 2, "rigl", start=states),
        "interrupted": train(rank, 2, "rigl", stop=5),
        "routed": route(rank, parallel=True),
        "unsynchronised": route(rank, parallel=False),
        **{when: differ(rank, when) for when in ("start", "update", "edit")},
        "alone": alone(rank),
        "spread": spread(rank, 2),
        "averaged": averaged(rank),
        "wrapped": wrapped(),
    }


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of two processes."""
    _, _, states = train(0, 1, "rigl", stop=3)
    return run(everything, 2, tmp_path_factory.mktemp("pair"), states)


def assert_like_one_process(results: list[Any], method: str) -> None:
    """In double precision the mean of the processes' gradients is that of the whole batch far below any tie."""
    expected, weights, _ = train(0, 1, method)
    for masks, values, _ in results:
        assert_same_masks(masks, expected)
        for name, value in values.items():
            torch.testing.assert_close(value, weights[name], rtol=1e-9, atol=1e-11)
            assert torch.equal(value, results[0][1][name])


@pytest.mark.parametrize("method", METHODS)
def test_masks_are_those_of_one_process(method: str, pair: list[dict[str, Any]]) -> None:
    assert_like_one_process([results[method] for results in pair], method)


def test_masks_come_before_the_wrapper(pair: list[dict[str, Any]]) -> None:
    assert [results["wrapped"] for results in pair] == 2 * ["sparsify comes before DistributedDataParallel"]


def test_states_that_are_spread_over_processes(pair: list[dict[str, Any]]) -> None:
    expected, weights, (number, zero, _) = spread(0, 1)
    assert (number, zero) == (3, True)
    for results in pair:
        masks, values, (_, zero, refused) = results["spread"]
        assert zero
        assert refused.startswith("compact_state is not for ZeroRedundancyOptimizer")
        assert_same_masks(masks, expected)
        for name, value in values.items():
            torch.testing.assert_close(value, weights[name], rtol=1e-9, atol=1e-11)
    assert sum(results["spread"][2][0] for results in pair) == 3


def test_weights_that_are_averaged_over_processes(pair: list[dict[str, Any]]) -> None:
    """After one step of plain SGD from the same weights that is the same as averaging gradients."""
    (masks, weights), (others, values) = (results["averaged"] for results in pair)
    assert_same_masks(masks, others)
    for path, mask in masks.items():
        module, name = path.rsplit(".", 1)
        found = values[f"{module}.parametrizations.{name}.original"]
        assert torch.equal(found, weights[f"{module}.parametrizations.{name}.original"])
        assert not found[~mask].any()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [3, 4])
def test_more_processes(ranks: int, tmp_path: Path) -> None:
    assert_like_one_process(run(train, ranks, tmp_path, ranks, "rigl"), "rigl")


def test_accumulation_over_micro_batches_and_processes(pair: list[dict[str, Any]]) -> None:
    assert_like_one_process([results["accumulated"] for results in pair], "rigl")


def test_resumed_on_another_number_of_processes(pair: list[dict[str, Any]]) -> None:
    assert_like_one_process([results["continued"] for results in pair], "rigl")
    _, _, states = pair[0]["interrupted"]
    expected, _, _ = train(0, 1, "rigl")
    masks, _, _ = train(0, 1, "rigl", start=states)
    assert_same_masks(masks, expected)


class Routed(nn.Module):
    """Uses one expert in each process; the gradients of the others come from other processes."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.rank = rank

    def forward(self, x: Tensor) -> Tensor:
        return self.experts[self.rank](x)


def route(rank: int, parallel: bool) -> Any:
    torch.manual_seed(0)
    net = Routed(rank)
    masks = sparsity.sparsify(net, 0.5)
    model: Any = DistributedDataParallel(net, find_unused_parameters=True) if parallel else net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    engine = sparsity.rigl(model, optimizer, every=1)
    for step in range(3):
        model(torch.randn(4, 8, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        try:
            optimizer.step()
        except EngineError as error:
            return str(error)
        optimizer.zero_grad()
    return {path: mask.clone() for path, mask in masks.items()}, engine.last


def test_weights_that_some_processes_do_not_use(pair: list[dict[str, Any]]) -> None:
    (one, update), (other, _) = (results["routed"] for results in pair)
    assert_same_masks(one, other)
    assert all(update.grown.values())


def test_gradients_that_are_not_synchronised_are_noticed_everywhere(pair: list[dict[str, Any]]) -> None:
    for results in pair:
        assert "got a gradient in some of the 2 processes only" in results["unsynchronised"]


def differ(rank: int, when: str) -> str:
    net = network()
    sparsity.sparsify(net, 0.6, seed=rank if when == "start" else 0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    try:
        engine = sparsity.set_(net, optimizer, every=1, seed=rank if when == "update" else 0)
        if when == "edit":
            if rank:
                mask = engine.masks["3.weight"]
                mask[3, 5] = ~mask[3, 5]
            engine.check_processes()
        for step in range(2):
            images, labels = batch(step)
            nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()
    except EngineError as error:
        return str(error)
    return "nothing raised"


@pytest.mark.parametrize("when", ["start", "update", "edit"])
def test_masks_that_differ_are_noticed_everywhere(when: str, pair: list[dict[str, Any]]) -> None:
    named = "'3.weight'" if when == "edit" else "'0.weight', '3.weight'"  # ERK keeps the last layer dense
    for results in pair:
        assert results[when].startswith(f"The 2 processes have different masks, of {named}.")


def alone(rank: int) -> dict[str, Tensor]:
    groups = [torch.distributed.new_group([each]) for each in range(2)]
    net = network()
    masks = sparsity.sparsify(net, 0.6, seed=rank)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sparsity.rigl(net, optimizer, every=1, group=groups[rank])
    for step in range(2):
        images, labels = batch(step)
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {path: mask.clone() for path, mask in masks.items()}


def test_processes_that_train_models_of_their_own(pair: list[dict[str, Any]]) -> None:
    one, other = (results["alone"] for results in pair)
    assert_same_masks(one, alone_in_one_process())
    assert not torch.equal(one["3.weight"], other["3.weight"])


def alone_in_one_process() -> dict[str, Tensor]:
    net = network()
    masks = sparsity.sparsify(net, 0.6, seed=0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sparsity.rigl(net, optimizer, every=1)
    for step in range(2):
        images, labels = batch(step)
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return dict(masks)


def test_digests_tell_masks_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(37, 5, generator=generator) < 0.5
    seen = {int(digests({"": mask})[0])}
    for place in range(mask.numel()):
        other = mask.clone()
        other.view(-1)[place] ^= True
        seen.add(int(digests({"": other})[0]))
    for row in range(36):  # as many active weights, elsewhere
        seen.add(int(digests({"": mask.roll(row + 1, 0)})[0]))
    assert len(seen) == 1 + mask.numel() + 36
    assert digests({"": mask}) == digests({"": mask.t().contiguous().t()})

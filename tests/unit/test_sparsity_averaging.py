"""Averaged weights stay as sparse as their source, whoever averages."""

# Tests read weights of layers, which pyright cannot know to be there.
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import copy
import gc
import io
import weakref
from collections.abc import Callable
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from timm.utils import ModelEmaV2, ModelEmaV3  # pyright: ignore
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn
from torch.utils.data import DataLoader, TensorDataset

import sparsity
from sparsity import MaskError, _averaging

DECAY = 0.9


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 3)
    )


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 2, 4, 4, generator=generator), torch.randint(3, (16,), generator=generator)


def step(net: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    x, y = batch(number)
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()


def started(**options: Any) -> tuple[nn.Sequential, torch.optim.Optimizer, sparsity.Engine]:
    net = network()
    sparsity.sparsify(net, 0.6)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    return net, optimizer, sparsity.rigl(net, optimizer, every=3, **options)


def decayed(averaged: Tensor, current: Tensor, count: int) -> Tensor:
    # The first average of torch is a copy; that of timm is not.
    return DECAY * averaged + (1 - DECAY) * current


def decayed_after_copy(averaged: Tensor, current: Tensor, count: int) -> Tensor:
    return current.clone() if count == 0 else decayed(averaged, current, count)


def mean(averaged: Tensor, current: Tensor, count: int) -> Tensor:
    return averaged + (current - averaged) / (count + 1)


Average = Callable[[nn.Module], Any]
EMA: dict[str, Any] = {"multi_avg_fn": get_ema_multi_avg_fn(DECAY)}
ONE: dict[str, Any] = {"avg_fn": get_ema_avg_fn(DECAY)}
AVERAGES: dict[str, tuple[Average, Callable[[Tensor, Tensor, int], Tensor]]] = {
    "ema": (lambda net: AveragedModel(net, **EMA), decayed_after_copy),
    "ema with buffers": (lambda net: AveragedModel(net, use_buffers=True, **EMA), decayed_after_copy),
    "ema one by one": (lambda net: AveragedModel(net, use_buffers=True, **ONE), decayed_after_copy),
    "swa": (AveragedModel, mean),
    "swa at once": (lambda net: AveragedModel(net, multi_avg_fn=get_swa_multi_avg_fn()), mean),
    "swa with buffers": (lambda net: AveragedModel(net, avg_fn=sparsity.equal_average, use_buffers=True), mean),
    "timm": (lambda net: ModelEmaV3(net, decay=DECAY), decayed),
    "timm one by one": (lambda net: ModelEmaV3(net, decay=DECAY, foreach=False), decayed),
    "timm without buffers": (lambda net: ModelEmaV3(net, decay=DECAY, exclude_buffers=True), decayed),
    "timm on a device": (lambda net: ModelEmaV3(net, decay=DECAY, device=torch.device("cpu")), decayed),
    "ema in float64": (lambda net: AveragedModel(net, **ONE).double(), decayed_after_copy),
    "timm v2": (lambda net: ModelEmaV2(net, decay=DECAY), decayed),
}


def update(average: Any, net: nn.Module) -> None:
    (average.update_parameters if isinstance(average, AveragedModel) else average.update)(net)


@pytest.mark.parametrize("interval", [1, 4])
@pytest.mark.parametrize(("make", "rule"), AVERAGES.values(), ids=AVERAGES)
def test_averages_of_the_present_life_of_each_weight(
    make: Average, rule: Callable[[Tensor, Tensor, int], Tensor], interval: int
) -> None:
    net, optimizer, engine = started()
    average = make(net)
    averaged = sparsity.follow(average, net)
    expected = {path: w.parameter.detach().clone() for path, w in engine.masks.weights.items()}
    moved, count = 0, 0
    for number in range(14):
        before = {path: mask.clone() for path, mask in engine.masks.items()}
        step(net, optimizer, number)
        for path, mask in engine.masks.items():
            changed = before[path] ^ mask
            moved += int(changed.sum())
            expected[path][changed] = 0
            assert torch.equal(averaged[f"module.{path}"], mask)
        if number % interval == 0:
            update(average, net)
            for path, weight in engine.masks.weights.items():
                expected[path] = rule(expected[path], weight.parameter.detach(), count)
            count += 1
        for path, mask in engine.masks.items():
            found = averaged.weights[f"module.{path}"].parameter
            assert not found[~mask].any()
            torch.testing.assert_close(found.float(), expected[path])
    assert moved > 100


def test_without_following_averages_are_dense() -> None:
    """What `follow` is for."""
    net, optimizer, engine = started()
    average = AveragedModel(net, **EMA)
    for number in range(5):
        step(net, optimizer, number)
        average.update_parameters(net)
    stored = sparsity.masks_of(average).weights["module.4.weight"].parameter
    assert stored[~engine.masks["4.weight"]].any()


def test_by_hand() -> None:
    net = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    (mask,) = sparsity.sparsify(net, 0.5).values()
    mask.copy_(torch.tensor([[True, True, False, False]]))
    weight = net.parametrizations.weight.original
    weight.data = torch.tensor([[1.0, 2.0, 0.0, 0.0]])
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    average = AveragedModel(net)
    average.update_parameters(net)
    sparsity.follow(average, net)

    weight.data = torch.tensor([[3.0, 0.0, 0.0, 6.0]])
    mask.copy_(torch.tensor([[True, False, False, True]]))
    optimizer.step()  # no gradient: nothing but the hooks
    # The first keeps its average, the second is dropped, the last starts where the weight does.
    assert average.module.weight.tolist() == [[1.0, 0.0, 0.0, 6.0]]
    average.update_parameters(net)
    assert average.module.weight.tolist() == [[2.0, 0.0, 0.0, 6.0]]

    mask.copy_(torch.tensor([[True, True, False, False]]))
    weight.data = torch.tensor([[8.0, 0.0, 0.0, 0.0]])
    optimizer.step()
    mask.copy_(torch.tensor([[True, False, False, True]]))
    optimizer.step()
    # Dropped and grown again between two averages: its past is forgotten all the same.
    assert average.module.weight.tolist() == [[2.0, 0.0, 0.0, 0.0]]
    average.update_parameters(net)
    assert average.module.weight.tolist() == [[4.0, 0.0, 0.0, 0.0]]


def test_grown_weights_with_values_of_their_own() -> None:
    net = network()
    values = sparsity.initial_values(net)
    sparsity.sparsify(net, 0.6)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    rule = sparsity.Rule(
        2,
        None,
        sparsity.constant(0.3),
        sparsity.drop.magnitude,
        sparsity.grow.uniform,
        initial=sparsity.original(values),
    )
    engine = sparsity.Engine(net, optimizer, rule)
    average = AveragedModel(net, **EMA)
    averaged = sparsity.follow(average, net)
    for number in range(3):
        before = {path: mask.clone() for path, mask in engine.masks.items()}
        step(net, optimizer, number)
    for path, mask in engine.masks.items():
        grown = mask & ~before[path]
        assert grown.any() == (path != "6.weight")  # which is dense by ERK
        assert torch.equal(averaged.weights[f"module.{path}"].parameter[grown], values[path][grown])


def test_what_users_do_with_an_average() -> None:
    net, optimizer, engine = started()
    average = AveragedModel(net, **EMA)
    averaged = sparsity.follow(average, net)
    for number in range(8):
        step(net, optimizer, number)
        average.update_parameters(net)
    update_bn([batch(number)[0] for number in range(4)], average)
    assert average.module[1].num_batches_tracked == 4
    average.eval()
    x = batch(0)[0]
    with torch.no_grad():
        expected = average(x)
    assert averaged.nonzeros == engine.masks.nonzeros

    file = io.BytesIO()
    torch.save(average.state_dict(), file)
    file.seek(0)
    other = network(1)
    sparsity.sparsify(other, 0.6, seed=1)
    loaded = AveragedModel(other, **EMA)
    loaded.load_state_dict(torch.load(file))
    folded = sparsity.fold(copy.deepcopy(average.module)).eval()
    exported = torch.export.export(folded, (x,)).module()
    compiled = torch.compile(average.module, backend="eager", fullgraph=True)
    with torch.no_grad():
        for each in (loaded.eval(), folded, exported, compiled):
            assert torch.equal(each(x), expected)
    assert all(not folded.get_parameter(path)[~mask].any() for path, mask in engine.masks.items())

    sparsity.fold(average)  # the model goes on training, nobody follows any more
    for number in range(8, 12):
        step(net, optimizer, number)
    assert not any(module in _averaging._following for module in average.modules())


def test_interrupted_and_resumed() -> None:
    def run(start: Any, stop: int) -> tuple[dict[str, Any], dict[str, Any]]:
        net, optimizer, engine = started()
        average = AveragedModel(net, use_buffers=True, **EMA)
        sparsity.follow(average, net)
        parts = {"net": net, "average": average, "optimizer": optimizer, "engine": engine}
        for name, part in parts.items() if start else ():
            part.load_state_dict(start[name])
        for number in range(engine.step, stop):
            step(net, optimizer, number)
            average.update_parameters(net)
        return {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}, average.state_dict()

    _, whole = run(None, 12)
    saved, _ = run(None, 7)
    _, resumed = run(saved, 12)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_several_averages_engines_and_prunings() -> None:
    net, optimizer, engine = started()
    averages = [AveragedModel(net, **EMA), ModelEmaV3(net, decay=0.5)]
    followed = [sparsity.follow(each, net) for each in averages]
    assert len(sparsity.follow(averages[0], net)) == 3  # once more changes nothing
    for number in range(4):
        step(net, optimizer, number)
    engine.detach()
    optimizer = torch.optim.Adam(net.parameters())
    sparsity.set_(net, optimizer, every=2)
    before = engine.masks["4.weight"].clone()
    for number in range(4):
        step(net, optimizer, number)
    assert not torch.equal(before, engine.masks["4.weight"])
    for masks in followed:
        assert all(torch.equal(mask, masks[f"module.{path}"]) for path, mask in engine.masks.items())

    static = network()
    sparsity.sparsify(static, 0.2)
    average = AveragedModel(static)
    masks = sparsity.follow(average, static)
    sparsity.prune(static, 0.7)
    sparsity.follow(average, static)
    assert masks.nonzeros == sparsity.masks_of(static).nonzeros == round(0.3 * masks.total)
    assert all(not weight.parameter[~masks[path]].any() for path, weight in masks.weights.items())


def test_wrapped_tied_and_partial_models() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 2))
    net[2].weight = net[0].weight
    sparsity.sparsify(net, 0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    engine = sparsity.set_(net, optimizer, every=1)
    averages = [AveragedModel(torch.compile(net, backend="eager")), AveragedModel(net), copy.deepcopy(net)]
    followed = [
        sparsity.follow(each, source) for each in averages for source in (net, averages[0]) if each is not source
    ]
    partial = sparsity.follow(copy.deepcopy(net[0]), net[0])
    assert list(partial) == ["weight"]
    for number in range(3):
        optimizer.zero_grad()
        net(torch.randn(5, 6, generator=torch.Generator().manual_seed(number))).square().sum().backward()
        optimizer.step()
    for masks in followed:
        assert len(masks) == 2
        assert all(torch.equal(a, b) for a, b in zip(masks.values(), engine.masks.values(), strict=True))


def test_following_ends_with_the_masks_of_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_averaging, "_following", weakref.WeakKeyDictionary())  # caches of compilers keep some
    net, _, engine = started()
    average, other = AveragedModel(net), AveragedModel(net)
    sparsity.follow(average, net)
    sparsity.follow(other, net)
    gone = weakref.ref(average)
    del average
    gc.collect()
    assert gone() is None
    assert len(_averaging._following) == 3
    engine.detach()
    del engine
    sparsity.fold(net)
    assert _averaging._watching
    step(other, torch.optim.SGD(other.parameters()), 0)
    assert not _averaging._following
    assert not _averaging._watching


def test_average_made_before_masks_moved_and_followed_later() -> None:
    net, optimizer, engine = started()
    average = AveragedModel(net, **EMA)
    for number in range(8):
        step(net, optimizer, number)
        average.update_parameters(net)
    kept = average.module[4].weight.detach().clone()
    averaged = sparsity.follow(average, net)
    mask = engine.masks["4.weight"]
    found = averaged.weights["module.4.weight"].parameter
    assert torch.equal(averaged["module.4.weight"], mask)
    assert torch.equal(found, torch.where(mask, kept, 0))


def test_what_can_not_be_followed() -> None:
    net, _, _ = started()
    with pytest.raises(MaskError, match="The model has no masks"):
        sparsity.follow(AveragedModel(network()), network())
    with pytest.raises(MaskError, match="The average has no masks"):
        sparsity.follow(AveragedModel(network()), net)
    with pytest.raises(MaskError, match="shares masks"):
        sparsity.follow(net, net)
    with pytest.raises(MaskError, match=r"avg_fn=sparsity\.equal_average"):
        sparsity.follow(AveragedModel(net, use_buffers=True), net)
    with pytest.raises(MaskError, match=r"'module\.weight' of \(8, 24\) where 'module\.weight' of \(6, 2, 3, 3\)"):
        sparsity.follow(AveragedModel(net[4]), net)
    with pytest.raises(MaskError, match="1 masked weights, but the model 3"):
        sparsity.follow(copy.deepcopy(net[:1]), net)
    wide = nn.Sequential(nn.Conv2d(2, 7, 3))
    sparsity.sparsify(wide, 0.5)
    with pytest.raises(MaskError, match=r"of \(7, 2, 3, 3\) where '0\.weight' of \(6, 2, 3, 3\)"):
        sparsity.follow(wide, net)
    assert not any(module in _averaging._following for each in (net, wide) for module in each.modules())


class Module(lightning.LightningModule):
    def __init__(self, average: EMAWeightAveraging) -> None:
        super().__init__()
        self.net = network()
        sparsity.sparsify(self.net, 0.6)
        self.average = (average,)  # in a tuple, so that copies don't take it along
        self.seen = 0

    def training_step(self, batch: Any, index: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def validation_step(self, batch: Any, index: int) -> None:
        """With the averaged weights, which the callback swaps in."""
        for weight in sparsity.masks_of(self.net).weights.values():
            assert not weight.parameter[~weight.holder.mask].any()
        self.seen += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        sparsity.rigl(self.net, optimizer, every=2)
        return optimizer

    def on_fit_start(self) -> None:
        sparsity.follow(self.average[0]._average_model, self)


@pytest.mark.filterwarnings(
    "ignore:The '.*_dataloader' does not have many workers",
    r"ignore:.isinstance\(treespec, LeafSpec\). is deprecated",  # how Lightning uses torch
)
@pytest.mark.parametrize("buffers", [False, True])
def test_lightning(buffers: bool) -> None:
    average = EMAWeightAveraging(use_buffers=buffers, decay=DECAY)
    module = Module(average)
    first = {path: mask.clone() for path, mask in sparsity.masks_of(module).items()}
    loader = DataLoader(TensorDataset(*batch(0)), 2)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", devices=1, callbacks=[average], enable_checkpointing=False, **quiet
    )
    trainer.fit(module, loader, loader)
    masks = sparsity.masks_of(module)
    assert module.seen >= 16
    assert any(not torch.equal(first[path], mask) for path, mask in masks.items())
    assert all(not weight.parameter[~masks[path]].any() for path, weight in masks.weights.items())


class Averaged(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        sparsity.sparsify(self.net, 0.6)

    def training_step(self, batch: Any, index: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(self.parameters(), lr=1e-2)
        self.engine = sparsity.rigl(self.net, optimizer, every=2, until=None)
        return optimizer


@pytest.mark.filterwarnings(
    "ignore:The '.*_dataloader' does not have many workers",
    r"ignore:.isinstance\(treespec, LeafSpec\). is deprecated",  # how Lightning uses torch
    "ignore:Swapping scheduler",
)
def test_lightnings_own_averaging() -> None:
    """It ends in an epoch of forward passes alone, and in one step with the gradients of the last."""
    module, (x, y) = Averaged(), batch(0)
    loader = DataLoader(TensorDataset(x[:4], y[:4]), 1)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    average = StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=2)
    trainer = lightning.Trainer(
        max_epochs=4, accelerator="cpu", devices=1, callbacks=[average], enable_checkpointing=False, **quiet
    )
    with pytest.warns(sparsity.NoEffectWarning, match="No new gradient"):
        trainer.fit(module, loader)
    assert module.engine.step == 17
    masks = sparsity.masks_of(module)
    module.net(x)
    assert all(not weight.parameter[~masks[path]].any() for path, weight in masks.weights.items())

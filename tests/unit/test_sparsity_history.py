"""What a history keeps, against a record of all masks and against updates written by hand."""

# pyright: reportCallIssue=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false

from __future__ import annotations

import io
import itertools
import json
import math

import pytest
import torch
from torch import nn

import sparsity
from sparsity import History, RecordError, Rewiring


class Split(nn.Module):
    """The paths of a split model, without splitting one."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 8))
        self.heads = nn.ModuleList(nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)) for _ in range(2))
        self.extra = nn.Linear(6, 2)

    def forward(self, x):
        shared = self.trunk(x).tanh()
        return torch.stack([head(shared) for head in self.heads]).mean(0).sum(1) + self.extra(x).sum(1)


COMPONENTS = {"trunk": 48, "heads.0": 66, "heads.1": 66, "model": 12}


def network() -> tuple[Split, sparsity.Masks]:
    torch.manual_seed(0)
    net = Split()
    return net, sparsity.sparsify(net, 0.4)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range | int) -> None:
    for number in range(steps) if isinstance(steps, int) else steps:
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()


METHODS = {
    "rigl": lambda net, optimizer, **k: sparsity.rigl(net, optimizer, every=3, until=20, fraction=0.5, **k),
    "set": lambda net, optimizer, **k: sparsity.set_(net, optimizer, every=3, until=20, fraction=0.5, **k),
    "pruning": lambda net, optimizer, **k: sparsity.gradual(net, optimizer, 0.6, 3, 18, 3, **k),
}


@pytest.mark.parametrize("method", METHODS)
def test_equals_a_record_of_all_masks(method):
    net, masks = network()
    history = History(masks, explored=True)
    kept, reported = [{path: mask.clone() for path, mask in masks.items()}], []

    def keep(update):
        reported.append(update)
        kept.append({path: mask.clone() for path, mask in masks.items()})

    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    engine = METHODS[method](net, optimizer, callback=[history, keep])
    train(net, optimizer, 22)

    assert history.updates == reported
    assert history.last == engine.last
    assert len(history) == 6
    sizes = {path: mask.numel() for path, mask in masks.items()}
    expected = []
    for number, (before, after) in enumerate(itertools.pairwise(kept)):
        for path in masks:
            ever = torch.stack([each[path] for each in kept[: number + 2]]).any(0)
            expected.append(
                {
                    "step": reported[number].step,
                    "fraction": reported[number].fraction,
                    "path": path,
                    "dropped": int((before[path] & ~after[path]).sum()),
                    "grown": int((after[path] & ~before[path]).sum()),
                    "active": int(after[path].sum()),
                    "total": sizes[path],
                    "density": int(after[path].sum()) / sizes[path],
                    "explored": int(ever.sum()) / sizes[path],
                }
            )
    assert history.layer_rows() == expected
    union = {path: torch.stack([each[path] for each in kept]).any(0) for path in masks}
    assert all(torch.equal(union[path], history.explored_masks[path]) for path in masks)
    assert history.explored == sum(int(each.sum()) for each in union.values()) / sum(sizes.values())
    assert history.explored_by_path == {path: int(each.sum()) / sizes[path] for path, each in union.items()}

    rows = history.rows()
    assert [row["component"] for row in rows] == list(COMPONENTS) * 6
    for number, row in enumerate(rows):
        own = [each for each in expected if each["step"] == row["step"] and belongs(each["path"], row["component"])]
        for column in ("dropped", "grown", "active", "total"):
            assert row[column] == sum(each[column] for each in own)
        assert row["total"] == COMPONENTS[row["component"]]
        assert row["density"] == row["active"] / row["total"]
        if number >= len(rows) - len(COMPONENTS):
            assert row["explored"] == history.explored_by_component[row["component"]]
    assert history.latest_rows() == rows[-len(COMPONENTS) :]


def belongs(path: str, component: str) -> bool:
    return path.startswith(f"{component}.") or (component == "model" and path.startswith("extra."))


def test_pruning_drops_without_growing_and_rewiring_replaces():
    drop = Rewiring(
        4, 0.0, {"trunk.a": 3, "heads.0.b": 2, "heads.0.c": 0}, {"trunk.a": 0, "heads.0.b": 0, "heads.0.c": 0}
    )
    assert drop.components_dropped == {"trunk": 3, "heads.0": 2}
    assert drop.components == {"trunk": 0, "heads.0": 0}
    assert drop.change == {"trunk.a": -3, "heads.0.b": -2}
    assert str(drop) == "step 4: dropped 5 and grew 0 weights, fraction 0.0000 (trunk: -3 +0, heads.0: -2 +0)"
    moved = Rewiring(5, 0.5, {"trunk.a": 3, "heads.0.b": 2}, {"trunk.a": 1, "heads.0.b": 4})
    assert moved.change == {"trunk.a": -2, "heads.0.b": 2}
    assert str(moved) == "step 5: dropped 5 and grew 5 weights, fraction 0.5000 (trunk: -3 +1, heads.0: -2 +4)"
    replaced = Rewiring(6, 0.5, {"heads.10.b": 3, "fc": 2}, {"heads.10.b": 3, "fc": 2})
    assert replaced.change == {}
    assert str(replaced) == "step 6: replaced 5 weights, fraction 0.5000 (heads.10: 3, model: 2)"


def test_explored_by_hand():
    net = nn.Linear(4, 1, bias=False)
    masks = sparsity.sparsify(net, 0.5)
    history = History(masks, explored=True)
    for step, mask in enumerate(([1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0]), start=1):
        masks["weight"].copy_(torch.tensor([mask]))
        if step == 1:
            history = History(masks, explored=True)
            assert history.explored == 0.5
        else:
            history(Rewiring(step, 0.5, {"weight": 1}, {"weight": 1}))
            assert history.explored == 0.75
    assert history.explored_masks["weight"].tolist() == [[True, True, True, False]]


def test_off_it_keeps_no_tensors():
    _, masks = network()
    history = History(masks)
    history(Rewiring(3, 0.5, {"extra.weight": 1}, {"extra.weight": 1}))
    assert "explored" not in history.rows()[0]
    assert json.loads(json.dumps(history.state_dict())) == history.state_dict()
    for name in ("explored", "explored_by_path", "explored_by_component", "explored_masks"):
        with pytest.raises(RecordError, match="History\\(masks, explored=True\\)"):
            getattr(history, name)


def test_layers_without_a_gradient_have_zeros():
    _, masks = network()
    history = History(masks)
    history(Rewiring(3, 0.5, {"extra.weight": 1}, {"extra.weight": 1}))
    assert history.last.dropped == {path: int(path == "extra.weight") for path in masks}


@pytest.mark.parametrize("explored", [True, False])
@pytest.mark.parametrize("stop", [2, 3, 4, 10, 21])
def test_resumed_equals_uninterrupted(stop, explored):
    def start():
        net, masks = network()
        history = History(masks, explored=explored)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        return net, optimizer, METHODS["pruning"](net, optimizer, callback=history), history

    whole = start()
    train(whole[0], whole[1], 22)
    first = start()
    train(first[0], first[1], stop)
    saved = io.BytesIO()
    torch.save([each.state_dict() for each in first], saved)
    saved.seek(0)
    second = start()
    # What happens between making and loading it must leave no trace.
    train(second[0], second[1], 7)
    for each, state in zip(second, torch.load(saved, weights_only=True), strict=True):
        each.load_state_dict(state)
    train(second[0], second[1], range(stop, 22))
    assert second[3].rows() == whole[3].rows()
    assert second[3].layer_rows() == whole[3].layer_rows()
    if explored:
        assert second[3].explored == whole[3].explored


def test_a_state_is_a_copy():
    net, masks = network()
    history = History(masks, explored=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    METHODS["set"](net, optimizer, callback=history)
    state = history.state_dict()
    train(net, optimizer, 8)
    assert state["steps"] == []
    before = sum(int(each.sum()) for each in state["explored"].values())
    assert before == masks.nonzeros < sum(int(each.sum()) for each in history.explored_masks.values())
    again = History(masks, explored=True)
    again.load_state_dict(state)
    again(Rewiring(9, 0.5, {"extra.weight": 1}, {"extra.weight": 1}))
    assert sum(int(each.sum()) for each in state["explored"].values()) == before


def test_going_back_needs_the_state_from_there():
    _, masks = network()
    history = History(masks)
    history(Rewiring(6, 0.5, {}, {}))
    with pytest.raises(RecordError, match="at step 6 came after that of step 6"):
        history(Rewiring(6, 0.5, {}, {}))
    with pytest.raises(RecordError, match=r"another model: 'fc\.weight'"):
        history(Rewiring(9, 0.5, {"fc.weight": 1}, {"fc.weight": 1}))
    assert len(history) == 1


def test_states_of_something_else():
    _, masks = network()
    history, other = History(masks), History(sparsity.sparsify(nn.Linear(6, 2), 0.5), explored=True)
    with pytest.raises(RecordError, match="Expected the state of a History with"):
        history.load_state_dict({"step": 4})
    with pytest.raises(RecordError, match=r"other masks: 'extra\.weight'"):
        history.load_state_dict({**other.state_dict(), "explored": None})
    with pytest.raises(
        RecordError, match=r"no record of the explored weights.*explored=True. Make it with explored=Fal"
    ):
        History(masks, explored=True).load_state_dict(history.state_dict())
    with pytest.raises(
        RecordError, match=r"a record of the explored weights.*explored=False. Make it with explored=Tr"
    ):
        history.load_state_dict(History(masks, explored=True).state_dict())
    wide = History(sparsity.sparsify(nn.Linear(6, 3), 0.5), explored=True)
    with pytest.raises(RecordError, match="'weight' are missing or have other shapes"):
        wide.load_state_dict(other.state_dict())


def test_shows_itself():
    _, masks = network()
    history = History(masks, explored=True)
    assert (str(history), history._repr_html_()) == ("no updates", "<p>no updates</p>")
    assert repr(history) == "<History of 0 updates of 6 masks>"
    for step in (100, 200):
        history(Rewiring(step, 30 / step, {"trunk.0.weight": 1200}, {"trunk.0.weight": 1200}))
    first = next(layer for layer in masks.layers if layer.path == "trunk.0.weight")
    lines = str(history).splitlines()
    assert lines[0] == "2 updates from step 100 to 200, fraction 0.3000 to 0.1500"
    assert lines[1].split() == ["component", "dropped", "grown", "active", "density", "explored"]
    numbers = [f"{first.nonzeros}", f"{first.density:.4f}", f"{first.density:.4f}"]
    assert lines[2].split() == ["trunk", "2,400", "2,400", *numbers]
    assert repr(history) == "<History of 2 updates of 6 masks, the last at step 200>"
    page = history._repr_html_()
    assert page.count("<tr>") == 1 + 4 + 1 + 6
    assert page.count("<svg") == 4 + 6
    assert str(History(masks)) == "no updates"


@pytest.mark.parametrize("record", ["history", "flops"])
def test_a_record_made_before_masks_were_loaded_says_so(record: str) -> None:
    """Instead of going on with the numbers of the masks that there were."""

    def start() -> tuple[nn.Module, sparsity.Masks, torch.optim.Optimizer]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        masks = sparsity.sparsify(net, 0.0)
        return net, masks, torch.optim.SGD(net.parameters(), lr=0.1)

    def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        net(torch.ones(4, 16)).square().mean().backward()
        optimizer.step()

    net, _, optimizer = start()
    engine = sparsity.gradual(net, optimizer, 0.8, 0, 20, every=2)
    for _ in range(9):
        step(net, optimizer)
    other, masks, optimizer = start()
    layers = {"0.weight": 512.0, "2.weight": 128.0}
    taken = History(masks) if record == "history" else sparsity.TrainingFlops(masks, layers)
    again = sparsity.gradual(other, optimizer, 0.8, 0, 20, every=2, callback=taken)
    other.load_state_dict(net.state_dict())
    again.load_state_dict(engine.state_dict())
    step(other, optimizer)
    with pytest.raises(RecordError, match=r"active weights, but \d+ by this record: masks were loaded"):
        step(other, optimizer)


def test_no_share_of_no_steps() -> None:
    net = nn.Linear(4, 4)
    meter = sparsity.TrainingFlops(sparsity.sparsify(net, 0.5), {"weight": 16.0})
    assert math.isnan(meter.ratio(0))
    assert meter.ratio(1) == 0.5

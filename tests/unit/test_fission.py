"""Network Fission Ensembles, against one that is written by hand."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

import fxsplit
import sparsity
from recipes.wide_resnet import WRN
from tests.checks import snapshot

X = torch.linspace(-1, 1, 4 * 2 * 36).view(4, 2, 6, 6)
Y = torch.tensor([0, 2, 1, 2])


class Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.skip = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.norm(self.conv(x)).relu()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3)
        self.stages = nn.Sequential(Stage(), Stage(), Stage())
        self.mix = nn.Conv2d(4, 4, 1, bias=False)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.stages(self.stem(x)))

    def end(self, x: Tensor) -> Tensor:
        return self.fc(self.mix(x).mean((2, 3)))


class Exits(nn.Module):
    """The paper's network of three exits: one leaves after the first stage, two after the second one."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.first, self.second = Net(), Net(), Net()

    def forward(self, x: Tensor) -> list[Tensor]:
        one = self.main.stages[0](self.main.stem(x))
        two = self.main.stages[1](one)
        return [
            self.first.end(self.first.stages[2](self.first.stages[1](one))),
            self.second.end(self.second.stages[2](two)),
            self.main.end(self.main.stages[2](two)),
        ]


def fill(hand: nn.Module, net: nn.Module, pairs: Iterable[tuple[str, str]]) -> None:
    """Copy tensors of the fission into the network by hand: ``(path there, path here)``."""
    values = sparsity.fold(copy.deepcopy(net)).state_dict()
    state = hand.state_dict()
    for there, here in pairs:
        state |= {f"{there}.{k.removeprefix(here + '.')}": v for k, v in values.items() if k.startswith(f"{here}.")}
    hand.load_state_dict(state)


EXITS = [
    ("main.stem", "trunk.stem"), ("main.stages.0", "trunk.stages.0"), ("main.stages.1", "trunk.stages.1"),
    *((f"first.{path}", f"heads.0.{path}") for path in ("stages.1", "stages.2", "mix", "fc")),
    *((f"second.{path}", f"heads.1.{path}") for path in ("stages.2", "mix", "fc")),
    *((f"main.{path}", f"heads.2.{path}") for path in ("stages.2", "mix", "fc")),
]  # fmt: skip


@pytest.mark.parametrize("training", [False, True])
def test_paths_through_two_cuts_are_those_of_the_network_by_hand(training: bool) -> None:
    net = fxsplit.fission(Net(), ("stages.0", "stages.1"), 3, example=X).train(training)
    hand = Exits().train(training)
    fill(hand, net, EXITS)
    masks = sparsity.masks_of(net)
    outputs, expected = net.head_outputs(X), hand(X)
    assert all(torch.equal(*pair) for pair in zip(outputs, expected, strict=True))
    for each in (outputs, expected):
        torch.stack([functional.cross_entropy(output, Y) for output in each]).sum().backward()
    for there, here in EXITS:
        for name, parameter in hand.get_submodule(there).named_parameters():
            path = f"{here}.{name}"
            assert parameter.grad is not None
            gradient = parameter.grad * masks[path] if path in masks else parameter.grad
            stored = path.replace(".weight", ".parametrizations.weight.original") if path in masks else path
            torch.testing.assert_close(net.get_parameter(stored).grad, gradient)
    assert net(X).shape == (4, 3)


def versions(net: nn.Module) -> dict[str, list[Tensor]]:
    found: dict[str, list[Tensor]] = {}
    for path, mask in sparsity.masks_of(net).items():
        original = path.removeprefix("trunk.")
        for index in range(9):
            original = original.removeprefix(f"heads.{index}.")
        found.setdefault(original, []).append(mask)
    return found


def test_every_weight_belongs_to_one_path() -> None:
    model = Net()
    before = snapshot(model)
    net = fxsplit.fission(model, "stages.0", 3, example=X)
    assert snapshot(model) == before
    shares = versions(net)
    mixed = shares.pop("mix.weight")
    assert torch.equal(torch.stack(mixed).sum(0), torch.ones(4, 4, 1, 1, dtype=torch.long))
    assert sorted(int(mask.sum()) for mask in mixed) == [5, 5, 6]
    assert set(shares) == {"stages.1.conv.weight", "stages.2.conv.weight"}
    for masks in shares.values():
        assert torch.equal(torch.stack(masks).sum(0), torch.ones(4, 4, 3, 3, dtype=torch.long))
        assert [int(mask.sum()) for mask in masks] == [48, 48, 48]
    assert not torch.equal(shares["stages.1.conv.weight"][0], shares["stages.2.conv.weight"][0])
    for index, head in enumerate(net.heads):
        layer: Any = head.get_submodule("stages.1.conv")
        assert torch.equal(layer.weight.bool(), shares["stages.1.conv.weight"][index])
    assert not list(net.trunk.get_submodule("stem").buffers())
    # All other parameters behind the cut are there for each path: biases, shortcuts, norms, the classifier.
    behind = 2 * (4 + (16 + 4) + 8 + 8) + (12 + 3)
    single = sum(p.numel() for p in model.parameters())
    assert fxsplit.summary(net).total.nonzeros == single + 2 * behind


def test_at_two_cuts_the_shares_are_halves_and_thirds() -> None:
    shares = versions(fxsplit.fission(Net(), ("stages.0", "stages.1"), 3, example=X))
    assert set(shares) == {"stages.1.conv.weight", "stages.2.conv.weight", "mix.weight"}
    assert [len(shares[f"stages.{stage}.conv.weight"]) for stage in (1, 2)] == [2, 3]
    for masks in shares.values():
        assert bool((torch.stack(masks).sum(0) == 1).all())
    assert [int(mask.sum()) for mask in shares["stages.1.conv.weight"]] == [72, 72]


def test_shares_that_do_not_come_out_even_differ_by_one() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 7, bias=False), nn.Linear(7, 2))
    masks = versions(fxsplit.fission(model, "0", 4, example=torch.zeros(1, 3)))["1.weight"]
    assert sorted(int(mask.sum()) for mask in masks) == [5, 5, 5, 6]


def test_copied_weights_together_are_the_model() -> None:
    model = Net()
    net = fxsplit.fission(model, "stages.0", 3, init="copy", example=X)
    layers: list[Any] = [head.get_submodule("stages.2.conv") for head in net.heads]
    assert torch.equal(
        torch.stack([layer.weight for layer in layers]).sum(0), model.get_parameter("stages.2.conv.weight")
    )


def test_layers_can_be_named() -> None:
    net = fxsplit.fission(Net(), "stages.0", 2, layers=["stages.2.conv", "mix"], example=X)
    assert set(versions(net)) == {"stages.2.conv.weight", "mix.weight"}


def test_pruned_weights_belong_to_nobody() -> None:
    model = Net()
    masks = sparsity.sparsify(model, 0.25)
    sparsity.fold(model)
    net = fxsplit.fission(model, "stages.0", 2, masks=masks, example=X)
    shares = versions(net)
    assert set(shares) == set(masks)
    for path, each in shares.items():
        if path in ("stages.1.conv.weight", "stages.2.conv.weight", "mix.weight"):
            assert torch.equal(each[0] | each[1], masks[path])
            assert not (each[0] & each[1]).any()
            assert abs(int(each[0].sum()) - int(each[1].sum())) <= 1
        else:
            assert all(torch.equal(mask, masks[path]) for mask in each)


def test_seeds_decide_and_the_global_state_stays() -> None:
    model, state = Net(), torch.get_rng_state()
    one, same, other = (fxsplit.fission(model, "stages.0", 2, seed=seed, example=X) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one(X), same(X))
    path = "heads.0.stages.1.conv.weight"
    assert not torch.equal(sparsity.masks_of(one)[path], sparsity.masks_of(other)[path])
    assert not torch.equal(one.heads[0].get_parameter("fc.weight"), one.heads[1].get_parameter("fc.weight"))


def test_training_keeps_every_path_to_its_own_weights() -> None:
    net = fxsplit.fission(Net(), ("stages.0", "stages.1"), 3, example=X)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    sparsity.static(net, optimizer)
    for _ in range(3):
        outputs = net.head_outputs(X)
        loss = sum(functional.cross_entropy(output, Y) for output in outputs) + fxsplit.ensemble_distillation(outputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for path, mask in sparsity.masks_of(net).items():
        owner, _, name = path.rpartition(".")
        assert not getattr(net.get_submodule(owner), name)[~mask].any()


@pytest.mark.parametrize("at", ["stages.0", ("stages.0", "stages.1")])
def test_copy_and_file_are_the_same_network(at: Any, tmp_path: Path) -> None:
    net = fxsplit.fission(Net(), at, 3, example=X).eval()
    fxsplit.save(net, tmp_path / "net.safetensors")
    loaded = fxsplit.load(tmp_path / "net.safetensors", Net()).eval()
    for other in (loaded, copy.deepcopy(net)):
        assert torch.equal(other(X), net(X))
        assert sparsity.masks_of(other).nonzeros == sparsity.masks_of(net).nonzeros
    assert fxsplit.summary(loaded).total == fxsplit.summary(net).total


def test_a_value_that_the_trunk_overwrites_is_kept_for_the_path_that_left() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))
            self.act = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.d(self.c(self.act(self.b(self.act(self.a(x))))))

    model, x = InPlace(), torch.randn(5, 4)
    net = fxsplit.fission(model, ("a", "b"), 3, init="copy", layers=["c"], example=x)
    plain: Any = sparsity.fold(copy.deepcopy(net))
    with torch.no_grad():
        for head in plain.heads:
            head.get_parameter("c.weight").copy_(model.c.weight)
    assert all(torch.equal(output, model(x)) for output in plain.head_outputs(x))


@pytest.mark.parametrize(
    ("make", "at"),
    [
        (lambda: WRN(10, 1, 5), ("stages.0.0", "stages.1.0")),
        (lambda: timm.create_model("resnet18", num_classes=5), ("layer2", "layer3")),
        (lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, num_classes=5), (1, 2)),
        (lambda: timm.create_model("convnext_atto", depths=(1, 1, 1, 1), num_classes=5), "stages.1"),
    ],
    ids=["wrn", "resnet18", "vit", "convnext"],
)
def test_zoo(make: Any, at: Any) -> None:
    x = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
    net = fxsplit.fission(make(), at, 3, example=x).eval()
    outputs = net.head_outputs(x)
    assert [tuple(output.shape) for output in outputs] == [(2, 5)] * 3
    assert not torch.equal(outputs[0], outputs[1])
    torch.testing.assert_close(net(x), sum(outputs) / 3)
    # One network's work, but for what every path has for itself.
    assert 1 <= fxsplit.summary(net).masked_flops_ratio < 1.4
    for masks in versions(net).values():
        assert bool((torch.stack(masks).sum(0) == 1).all())


def test_language_model() -> None:
    sizes: Any = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    tokens = torch.tensor([[1, 5, 3, 9, 2, 7]])
    model = LlamaForCausalLM(LlamaConfig(vocab_size=20, **sizes))
    net = fxsplit.fission(model, (1, 2), 3, example={"input_ids": tokens, "labels": tokens})
    output, each = net(input_ids=tokens, labels=tokens), net.head_outputs(input_ids=tokens, labels=tokens)
    torch.testing.assert_close(output.loss, sum(out.loss for out in each) / 3)
    assert len(versions(net)["model.layers.1.mlp.up_proj.weight"]) == 2
    assert len(versions(net)["model.layers.2.mlp.up_proj.weight"]) == 3


def test_distillation_is_the_formula() -> None:
    outputs = list(torch.randn(3, 5, 4).requires_grad_())
    teacher = (torch.stack(outputs).mean(0) / 2.0).softmax(1).detach()
    expected = torch.tensor(0.0)
    for z in outputs:
        student = (z / 2.0).softmax(1)
        expected = expected + 4.0 * (teacher * (teacher.log() - student.log())).sum() / 5
    torch.testing.assert_close(fxsplit.ensemble_distillation(outputs, 2.0), expected)
    one = outputs[:1]
    torch.testing.assert_close(fxsplit.ensemble_distillation(one), torch.tensor(0.0))


@pytest.mark.parametrize(
    ("outputs", "temperature", "words"),
    [
        ([], 3.0, "logits"),
        ([torch.zeros(2, 3), torch.zeros(2, 4)], 3.0, "one shape"),
        ([torch.zeros(2, 3, 4)], 3.0, "logits"),
        ([torch.zeros(2, 3)], 0.0, "temperature"),
    ],
)
def test_bad_distillation(outputs: Any, temperature: float, words: str) -> None:
    with pytest.raises(fxsplit.InputError, match=words):
        fxsplit.ensemble_distillation(outputs, temperature)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"at": "stages.0", "members": 1}, fxsplit.SplitError, "at least 2 members"),
        ({"at": ("stages.0", "stages.1"), "members": 2}, fxsplit.SplitError, "needs 1 to 1 cuts"),
        ({"at": ()}, fxsplit.SplitError, "got 0"),
        ({"at": ("stages.1", "stages.0")}, fxsplit.CutError, "'stages.0' does not come after 'stages.1'"),
        ({"at": "stages.7"}, fxsplit.CutError, "stages.7"),
        ({"at": "stages.1", "layers": ["stages.0"]}, fxsplit.SplitError, "holds, no linear layer"),
        ({"at": "stages.0", "layers": ["stage.2.conv"]}, fxsplit.SplitError, "Did you mean 'stages.2.conv'"),
        ({"at": "mix", "layers": None}, fxsplit.SplitError, "nothing to do"),
        ({"at": "stages.0", "masks": {"fd.weight": torch.ones(3, 4)}}, fxsplit.SplitError, "Did you mean 'fc.weight'"),
        ({"at": "stages.0", "masks": {"fc.weight": torch.ones(3, 4)}}, fxsplit.SplitError, r"bool tensor \[3, 4\]"),
    ],
)
def test_bad_arguments(options: Any, error: type[Exception], words: str) -> None:
    model = Net()
    before = snapshot(model)
    with pytest.raises(error, match=words):
        fxsplit.fission(model, example=X, **options)
    assert snapshot(model) == before


def test_models_without_values_are_refused() -> None:
    with torch.device("meta"):
        model = Net()
    with pytest.raises(fxsplit.SplitError, match="meta device"):
        fxsplit.fission(model, "stages.0", example=X.to("meta"))

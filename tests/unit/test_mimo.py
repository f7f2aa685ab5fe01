"""MIMO networks, against one that is written by hand."""

from __future__ import annotations

import copy
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTForImageClassification
from transformers.modeling_outputs import ImageClassifierOutput

import fxsplit
import sparsity
from recipes.wide_resnet import WRN
from tests.checks import snapshot

M = 3
X = torch.linspace(-1, 1, 4 * 2 * 36).view(4, 2, 6, 6)
XS = torch.randn(4, M, 2, 6, 6, generator=torch.Generator().manual_seed(1))
YS = torch.tensor([[0, 2, 1], [2, 2, 0], [1, 0, 1], [0, 0, 2]])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


class Mimo(nn.Module):
    """The same network for three members, as a person would write it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * M, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3 * M)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, _, height, width = x.shape
        x = x.reshape(batch, M * 2, height, width)
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3))).view(batch, M, 3)


@pytest.fixture
def pair() -> tuple[Any, Mimo]:
    net, hand = fxsplit.mimo(Net(), M, example=X), Mimo()
    hand.load_state_dict(net.trunk.state_dict())
    return net, hand


@pytest.mark.parametrize("training", [False, True])
def test_outputs_and_gradients_are_those_of_the_one_by_hand(pair: tuple[Any, Any], training: bool) -> None:
    net, hand = (each.train(training) for each in pair)
    expected = hand(XS)
    for member, output in enumerate(net.head_outputs(XS)):
        assert torch.equal(output, expected[:, member])
    hand.load_state_dict(net.trunk.state_dict())  # both have run once
    loss = M * fxsplit.head_loss(net, functional.cross_entropy, XS, YS)
    expected = hand(XS)
    losses = [functional.cross_entropy(expected[:, member], YS[:, member]) for member in range(M)]
    by_hand = torch.stack(losses).sum()
    torch.testing.assert_close(loss, by_hand)
    loss.backward()
    by_hand.backward()
    for name, parameter in hand.named_parameters():
        torch.testing.assert_close(net.trunk.get_parameter(name).grad, parameter.grad)
    for name, buffer in hand.named_buffers():
        assert torch.equal(net.trunk.get_buffer(name), buffer)


def test_a_prediction_gives_all_members_the_same_input(pair: tuple[Any, Any]) -> None:
    net, hand = (each.eval() for each in pair)
    expected = hand(X[:, None].repeat(1, M, 1, 1, 1))
    torch.testing.assert_close(net(X), expected.mean(1))
    assert all(torch.equal(output, expected[:, m]) for m, output in enumerate(net.head_outputs(X)))
    same = fxsplit.head_loss(net, functional.cross_entropy, X, YS[:, 0])
    by_hand = sum(functional.cross_entropy(expected[:, m], YS[:, 0]) for m in range(M)) / M
    torch.testing.assert_close(same, by_hand)


def test_what_grows_are_the_two_layers() -> None:
    model = Net()
    before = snapshot(model)
    net = fxsplit.mimo(model, M, example=X)
    assert snapshot(model) == before
    grown = 4 * 2 * 9 * (M - 1) + (4 * 3 + 3) * (M - 1)
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in model.parameters()) + grown
    # 16 positions; 2 FLOPs for each weight.
    assert fxsplit.summary(net).total.flops == 2 * (16 * 4 * 2 * M * 9 + 4 * 3 * M)
    assert isinstance(net, fxsplit.MimoModel)
    assert net.num_heads == M


def test_copied_weights_predict_like_the_model() -> None:
    model = Net().eval()
    net = fxsplit.mimo(model, M, init="copy", example=X)
    for output in net.head_outputs(X):
        torch.testing.assert_close(output, model(X))


def test_what_follows_the_last_layer_is_done_for_each_member() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.ReLU(inplace=True), nn.Softmax(1))
    net = fxsplit.mimo(model, 2, example=torch.zeros(1, 4))
    x = torch.randn(5, 2, 4)
    wide = net.trunk(x)
    for member, output in enumerate(net.head_outputs(x)):
        torch.testing.assert_close(output, wide[:, 3 * member : 3 * member + 3].relu().softmax(1))
    assert torch.equal(net.trunk(x), wide)


def test_flattened_images_enter_a_linear_layer() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * 36, 8), nn.ReLU(), nn.Linear(8, 3))
    net = fxsplit.mimo(model, M, init="copy", example=X)
    assert net.trunk.get_submodule("1").in_features == M * 72
    torch.testing.assert_close(net(X), model(X))
    with torch.no_grad():
        net.trunk.get_parameter("1.weight")[:, 72:] = 0  # now the first member's input is all that counts
    torch.testing.assert_close(net.head_outputs(XS)[0], net.head_outputs(torch.stack([XS[:, 0]] * M, 1))[0])


def test_sequences_are_joined_in_their_features() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(2, 5, 4)
    net = fxsplit.mimo(model, 2, init="copy", example=x)
    torch.testing.assert_close(net(x), model(x))
    assert net.head_outputs(torch.randn(2, 2, 5, 4))[1].shape == (2, 5, 3)


def test_channels_last_images_are_joined_where_their_channels_are() -> None:
    class Last(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.permute(0, 3, 1, 2))

    model, x = Last().eval(), X.permute(0, 2, 3, 1).contiguous()
    net = fxsplit.mimo(model, 2, init="copy", example=x)
    torch.testing.assert_close(net(x), model(x))


def test_layers_side_by_side_that_take_the_input_are_all_widened() -> None:
    class Stems(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.fc = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc((self.left(x) + self.right(x)).relu().mean((2, 3)))

    model = Stems()
    net = fxsplit.mimo(model, 2, init="copy", example=X)
    assert net.trunk.get_submodule("left").in_channels == net.trunk.get_submodule("right").in_channels == 4
    torch.testing.assert_close(net(X), model(X))


def test_fresh_weights_are_those_of_the_models_initialisation_at_the_new_width() -> None:
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Linear(50, 40), nn.ReLU(), nn.Linear(40, 20))
    net = fxsplit.mimo(linear, 4, example=torch.zeros(1, 50))
    for path, fan_in in (("0", 4 * 50), ("2", 40)):
        bound = 1 / math.sqrt(fan_in)  # torch's default: uniform
        for parameter in net.trunk.get_submodule(path).parameters():
            assert 0.9 * bound < float(parameter.detach().abs().max()) <= bound
    wide = WRN(10, 4, 10)
    net = fxsplit.mimo(wide, 3, example=torch.zeros(1, 3, 16, 16))
    # He's by fan out, which more inputs don't change.
    assert float(net.trunk.get_parameter("conv1.weight").detach().std()) == pytest.approx(
        math.sqrt(2 / (16 * 9)), rel=0.1
    )
    assert not net.trunk.get_parameter("fc.bias").any()
    assert torch.equal(
        net.trunk.get_parameter("stages.0.0.conv1.weight"), wide.get_parameter("stages.0.0.conv1.weight")
    )


def test_wide_layers_can_be_taken_from_a_wide_model() -> None:
    wide = WRN(10, 1, 10 * M, in_chans=3 * M)
    net = fxsplit.mimo(WRN(10, 1, 10), M, init=lambda: wide, example=torch.zeros(1, 3, 16, 16))
    assert torch.equal(net.trunk.get_parameter("conv1.weight"), wide.conv1.weight)
    assert torch.equal(net.trunk.get_parameter("fc.weight"), wide.fc.weight)
    with pytest.raises(fxsplit.SplitError, match="shape"):
        fxsplit.mimo(WRN(10, 1, 10), M, init=lambda: WRN(10, 1, 10), example=torch.zeros(1, 3, 16, 16))


def test_the_seed_decides_and_the_global_state_stays() -> None:
    model = Net()
    state = torch.get_rng_state()
    one, same, other = (fxsplit.mimo(model, M, seed=seed, example=X) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    weights = [net.trunk.get_parameter("fc.weight") for net in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0][:3], weights[0][3:6])


def test_copy_file_masks_and_modes(tmp_path: Path) -> None:
    net = fxsplit.mimo(Net(), M, example=X).eval()
    masks = sparsity.sparsify(net, 0.5)
    assert set(masks) == {"trunk.conv.weight", "trunk.fc.weight"}
    fxsplit.save(net, tmp_path / "net.safetensors")
    loaded: Any = fxsplit.load(tmp_path / "net.safetensors", Net()).eval()
    copied = copy.deepcopy(net)
    for other in (loaded, copied):
        assert isinstance(other, fxsplit.MimoModel)
        assert torch.equal(other(X), net(X))
        assert torch.equal(other.head_outputs(XS)[2], net.head_outputs(XS)[2])
    fresh = fxsplit.mimo(Net(), M, example=X).eval()
    plain = sparsity.fold(copied)
    fresh.load_state_dict(plain.state_dict())
    assert torch.equal(fresh(X), net(X))
    net.train()
    assert net.trunk.get_submodule("norm").training


def test_it_can_be_exported_and_compiled(tmp_path: Path) -> None:
    net = fxsplit.mimo(Net(), M, example=X).eval()
    report = fxsplit.export_onnx(net, tmp_path / "net.onnx", X)
    assert report.error is not None
    assert report.error < 1e-5
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), net(X))


@pytest.mark.parametrize(
    "make",
    [
        lambda: WRN(10, 1, 5),
        lambda: timm.create_model("resnet18", num_classes=5),
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5),
        lambda: timm.create_model("convnext_atto", depths=(1, 1, 1, 1), num_classes=5),
    ],
    ids=["wrn", "resnet18", "vit", "convnext"],
)
def test_zoo(make: Any) -> None:
    x = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
    model = make().eval()
    graph = fxsplit.trace(model, x)
    copied = fxsplit.mimo(graph, 2, init="copy")
    torch.testing.assert_close(copied(x), model(x), rtol=1e-4, atol=1e-5)
    net = fxsplit.mimo(graph, 2)
    xs, ys = fxsplit.mimo_batch(x, torch.tensor([1, 3]), 2, batch_repetitions=2)
    assert [tuple(output.shape) for output in net.head_outputs(xs)] == [(4, 5), (4, 5)]
    assert 1 < fxsplit.summary(net).dense_flops_ratio < 1.5
    net.train()
    fxsplit.head_loss(net, functional.cross_entropy, xs, ys).backward()
    assert all(p.grad is not None for p in net.parameters())


def test_a_transformers_classifier_keeps_its_type() -> None:
    sizes: Any = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, **sizes)).eval()
    example = {"pixel_values": torch.randn(2, 3, 32, 32), "labels": torch.tensor([1, 0])}
    net = fxsplit.mimo(model, 2, init="copy", example=example)
    output, expected = net(**example), model(**example)
    assert isinstance(output, ImageClassifierOutput)
    torch.testing.assert_close(output.logits, expected.logits)
    torch.testing.assert_close(output.loss, expected.loss)


def test_a_batch_gives_every_member_all_samples_in_another_order() -> None:
    x, y = torch.randn(8, 2), torch.arange(8)
    xs, ys = fxsplit.mimo_batch(x, y, M, batch_repetitions=4, generator=torch.Generator().manual_seed(0))
    assert xs.shape == (32, M, 2)
    assert ys.shape == (32, M)
    assert torch.equal(xs, x[ys])
    for member in range(M):
        assert Counter(ys[:, member].tolist()) == dict.fromkeys(range(8), 4)
    assert not torch.equal(ys[:, 0], ys[:, 1])
    assert not torch.equal(ys[:, 0], torch.arange(8).repeat(4))
    again = fxsplit.mimo_batch(x, y, M, batch_repetitions=4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again[1], ys)


@pytest.mark.parametrize(("probability", "common"), [(0.0, 0), (0.6, 600), (1.0, 1000)])
def test_the_last_share_of_the_rows_is_the_same_for_all_members(probability: float, common: int) -> None:
    y = torch.arange(500)
    _, ys = fxsplit.mimo_batch(y[:, None].float(), y, 2, probability, 2)
    same = ys[:, 0] == ys[:, 1]
    assert bool(same[1000 - common :].all())
    assert int(same[: 1000 - common].sum()) <= 20  # by chance, about two
    for member in range(2):
        assert torch.equal(ys[:, member].bincount(), torch.full((500,), 2))


def test_mixed_labels_are_permuted_with_the_samples() -> None:
    x, soft = torch.arange(6.0)[:, None], torch.arange(6.0)[:, None].repeat(1, 4)
    xs, ys = fxsplit.mimo_batch(x, soft, 2)
    assert ys.shape == (6, 2, 4)
    assert torch.equal(ys[..., 0], xs[..., 0])


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        (2, {}, "3 members can't see different samples in a batch of 2"),
        (4, {"repetition_probability": 0.9, "batch_repetitions": 4}, "leaves 2 of 16 rows"),
        (8, {"repetition_probability": 1.5}, "in \\[0, 1\\]"),
        (8, {"batch_repetitions": 0}, "batch_repetitions"),
        (8, {"members": 0}, "members"),
    ],
)
def test_bad_batches(rows: int, options: Any, words: str) -> None:
    with pytest.raises(fxsplit.InputError, match=words):
        fxsplit.mimo_batch(torch.zeros(rows, 2), torch.zeros(rows), **{"members": 3, **options})


def test_a_batch_needs_as_many_targets_as_samples() -> None:
    with pytest.raises(fxsplit.InputError, match=r"\[8, 2\] and \[7\]"):
        fxsplit.mimo_batch(torch.zeros(8, 2), torch.zeros(7))


def test_calls_that_mix_up_members_are_refused() -> None:
    net = fxsplit.mimo(Net(), M, example=X)
    with pytest.raises(fxsplit.InputError, match="head_outputs"):
        net(XS)
    with pytest.raises(fxsplit.InputError, match="dimension 1 has to be the 3 members"):
        net.head_outputs(XS[:, :2])
    with pytest.raises(fxsplit.InputError, match="target has to be"):
        fxsplit.head_loss(net, functional.cross_entropy, XS, YS[:, 0])
    with pytest.warns(fxsplit.FxSplitWarning, match="mimo_batch"):
        fxsplit.head_loss(net, functional.cross_entropy, X, YS[:, 0])


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + self.first(x))


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.first(x).relu()
        return self.one(h), self.two(h)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(self.first(x)))


class OwnStatistics(Net):
    def __init__(self) -> None:
        super().__init__()
        self.average: Tensor
        self.register_buffer("average", torch.ones(2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - self.average)


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4))
    model[3].weight = model[2].weight
    return model


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Skip(), "skips the first layer"),
        (TwoOutputs(), r"2 layers make it: 'one' \(Linear\)"),
        (Twice(), "runs 2 times"),
        (tied(), "also that of"),
        (nn.Sequential(nn.Linear(4, 3)), "'0' is both"),
        (nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 8), nn.Linear(8, 3)), r"enters '0' \(LayerNorm\)"),
        (nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3), nn.LayerNorm(3)), r"'2' \(LayerNorm\) makes it"),
        (nn.Sequential(nn.ReLU(), nn.Flatten()), "enters a layer with weights"),
        (nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 8)), nn.Linear(8, 3)), "computed from others"),
    ],
)
def test_models_without_such_layers(model: nn.Module, words: str) -> None:
    x = torch.randn(2, 4)
    before = snapshot(model)
    with pytest.raises(fxsplit.SplitError, match=words):
        fxsplit.mimo(model, 2, example=x)
    assert snapshot(model) == before


def test_convolutions_in_groups_and_statistics_of_the_input_are_refused() -> None:
    grouped = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(fxsplit.SplitError, match=r"enters '0' \(Conv2d\)"):
        fxsplit.mimo(grouped, 2, example=X)
    with pytest.raises(fxsplit.SplitError, match="can't be put side by side"):
        fxsplit.mimo(OwnStatistics(), 2, example=X)


def test_tokens_are_refused() -> None:
    sizes: Any = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=20, **sizes))
    with pytest.raises(fxsplit.SplitError, match=r"'model.embed_tokens' \(Embedding\)"):
        fxsplit.mimo(model, 2, example={"input_ids": torch.tensor([[1, 2, 3, 4, 5]])})


def test_bad_arguments() -> None:
    with pytest.raises(fxsplit.SplitError, match="members"):
        fxsplit.mimo(Net(), 0, example=X)
    with pytest.raises(fxsplit.SplitError, match="vote"):
        fxsplit.mimo(Net(), vote="max", example=X)

"""BatchEnsembles, against one that is written by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import fxsplit
import sparsity
from recipes.wide_resnet import WRN
from tests.checks import snapshot

M = 3
X = torch.linspace(-1, 1, 4 * 2 * 36).view(4, 2, 6, 6)
Y = torch.tensor([0, 2, 1, 2])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


class ByHand(nn.Module):
    """The same network for three members, as a person would write it: the members one after the other in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3, bias=False)
        self.conv_r, self.conv_s = nn.Parameter(torch.ones(M, 2)), nn.Parameter(torch.ones(M, 4))
        self.fc_r, self.fc_s = nn.Parameter(torch.ones(M, 4)), nn.Parameter(torch.ones(M, 3))
        self.fc_b = nn.Parameter(torch.zeros(M, 3))

    def forward(self, x: Tensor) -> Tensor:
        rows = len(x)
        each = [index for index in range(M) for _ in range(rows)]
        x = torch.cat([x] * M)
        x = self.conv(x * self.conv_r[each][:, :, None, None]) * self.conv_s[each][:, :, None, None]
        x = self.norm(x).relu().mean((2, 3))
        x = self.fc(x * self.fc_r[each]) * self.fc_s[each] + self.fc_b[each]
        return x.view(M, rows, 3)


NAMES = {
    "conv.weight": "conv.weight",
    "norm.weight": "norm.weight",
    "norm.bias": "norm.bias",
    "fc.weight": "fc.weight",
    "fast.r.conv.weight": "conv_r",
    "fast.s.conv.weight": "conv_s",
    "fast.r.fc.weight": "fc_r",
    "fast.s.fc.weight": "fc_s",
    "fast.s.fc.bias": "fc_b",
}


def pair(training: bool) -> tuple[Any, ByHand]:
    net, hand = fxsplit.batch_ensemble(Net(), M, example=X), ByHand()
    with torch.no_grad():
        for name, by_hand in NAMES.items():
            hand.get_parameter(by_hand).copy_(net.trunk.get_parameter(name))
    return net.train(training), hand.train(training)


@pytest.mark.parametrize("training", [False, True])
def test_outputs_and_gradients_are_those_of_the_one_by_hand(training: bool) -> None:
    net, hand = pair(training)
    expected = hand(X)
    actual = net.head_outputs(X)
    torch.testing.assert_close(torch.stack(actual), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(copy.deepcopy(net).eval()(X), copy.deepcopy(hand).eval()(X).mean(0))
    net, hand = pair(training)  # anew: in training, they have changed their statistics
    loss = fxsplit.head_loss(net, functional.cross_entropy, X, Y)
    by_hand = functional.cross_entropy(hand(X).flatten(0, 1), Y.repeat(M))  # the paper's: over the large batch
    torch.testing.assert_close(loss, by_hand)
    loss.backward()
    by_hand.backward()
    for name, other in NAMES.items():
        gradient = hand.get_parameter(other).grad
        torch.testing.assert_close(net.trunk.get_parameter(name).grad, gradient, rtol=1e-5, atol=1e-6)
    for name, buffer in hand.named_buffers():
        torch.testing.assert_close(net.trunk.get_buffer(name), buffer)


def test_what_it_adds_are_vectors() -> None:
    model = Net()
    before = snapshot(model)
    net = fxsplit.batch_ensemble(model, M, example=X)
    assert snapshot(model) == before
    vectors = M * ((2 + 4) + (4 + 3))
    biases = M * 3
    slow = sum(p.numel() for p in model.parameters()) - 3
    assert sum(p.numel() for p in net.fast_parameters()) == vectors + biases
    assert sum(p.numel() for p in net.slow_parameters()) == slow
    assert sum(p.numel() for p in net.parameters()) == slow + vectors + biases
    assert {p.data_ptr() for p in net.parameters()}.isdisjoint({p.data_ptr() for p in model.parameters()})
    assert fxsplit.summary(net).dense_flops_ratio == M
    assert set(net.report.shared) == {"norm"}


def test_every_member_is_a_model_with_weights_of_rank_one_around_the_shared_ones() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2),
        nn.Flatten(),
        nn.Linear(6 * 144, 3),
    )
    net = fxsplit.batch_ensemble(model, M, example=X)
    outputs = net.head_outputs(X)
    assert not torch.allclose(outputs[0], outputs[1])
    for member, output in enumerate(outputs):
        single = copy.deepcopy(model)
        single.load_state_dict(net.member_state_dict(member))
        torch.testing.assert_close(single(X), output, rtol=1e-4, atol=1e-5)
    weight = net.member_state_dict(1)["0.weight"] / model.get_parameter("0.weight")
    assert torch.linalg.matrix_rank(weight[:, :, 0, 0].detach(), rtol=1e-4) == 1


def test_ones_make_every_member_the_model() -> None:
    model = Net().eval()
    net = fxsplit.batch_ensemble(model, M, fast=torch.ones, example=X)
    for output in net.head_outputs(X):
        torch.testing.assert_close(output, model(X))
    torch.testing.assert_close(net(X), model(X))


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_any_batch_size(batch: int) -> None:
    net = fxsplit.batch_ensemble(Net().eval(), M, example=X)
    x = torch.randn(batch, 2, 6, 6)
    whole = net.head_outputs(x)
    single = [net.head_outputs(x[index : index + 1]) for index in range(batch)]
    for member in range(M):
        torch.testing.assert_close(whole[member], torch.cat([outputs[member] for outputs in single]))


def test_factors_are_drawn_as_asked_and_by_seed() -> None:
    model = nn.Sequential(nn.Linear(2000, 3), nn.Linear(3, 1000))
    example = torch.zeros(1, 2000)
    state = torch.get_rng_state()
    normal = fxsplit.batch_ensemble(model, 4, example=example).trunk.get_parameter("fast.r.0.weight").detach()
    assert torch.equal(torch.get_rng_state(), state)
    assert float(normal.mean()) == pytest.approx(1, abs=0.03)
    assert float(normal.std()) == pytest.approx(0.5, abs=0.02)
    signs = fxsplit.batch_ensemble(model, 4, fast="signs", example=example).trunk.get_parameter("fast.s.1.weight")
    assert set(signs.flatten().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.detach().mean())) < 0.1
    assert not torch.equal(signs[0], signs[1])
    again = fxsplit.batch_ensemble(model, 4, example=example, layers=["0"]).trunk.get_parameter("fast.r.0.weight")
    assert torch.equal(again, normal)  # whatever other layers get factors
    other = fxsplit.batch_ensemble(model, 4, example=example, seed=1).trunk.get_parameter("fast.r.0.weight")
    assert not torch.equal(other, normal)


def test_only_the_layers_that_are_named_get_factors() -> None:
    for layers in (["fc"], ["f*"], lambda path, module: isinstance(module, nn.Linear)):
        net = fxsplit.batch_ensemble(Net(), M, layers=layers, example=X)
        assert {name for name, _ in net.trunk.get_submodule("fast").named_parameters()} == {
            "r.fc.weight", "s.fc.weight", "s.fc.bias"}  # fmt: skip
        assert "conv" in net.report.shared


def test_a_layer_that_runs_twice_has_one_set_of_factors() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(self.first(x).relu()))

    model = Twice()
    net = fxsplit.batch_ensemble(model, M, example=torch.zeros(1, 4))
    x = torch.randn(5, 4)
    outputs = net.head_outputs(x)
    model.load_state_dict(net.member_state_dict(2))
    torch.testing.assert_close(model(x), outputs[2])


def test_what_follows_the_last_layer_is_done_for_each_member() -> None:
    class OverBatch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x).softmax(0).reshape(x.shape[0], 3)

    net = fxsplit.batch_ensemble(OverBatch(), M, example=torch.zeros(2, 4))
    assert all(torch.allclose(output.sum(0), torch.ones(3)) for output in net.head_outputs(torch.randn(5, 4)))


def test_half_precision_and_autocast_keep_their_dtypes() -> None:
    net = fxsplit.batch_ensemble(Net().eval(), M, example=X)
    with torch.autocast("cpu", torch.bfloat16):
        assert net(X).dtype == torch.bfloat16
    assert copy.deepcopy(net).bfloat16()(X.bfloat16()).dtype == torch.bfloat16


def test_copy_file_masks_and_modes(tmp_path: Path) -> None:
    net = fxsplit.batch_ensemble(Net(), M, example=X).eval()
    masks = sparsity.sparsify(net, 0.5)
    assert set(masks) == {"trunk.conv.weight", "trunk.fc.weight"}
    fxsplit.save(net, tmp_path / "net.safetensors")
    loaded: Any = fxsplit.load(tmp_path / "net.safetensors", Net()).eval()
    copied = copy.deepcopy(net)
    for other in (loaded, copied):
        assert isinstance(other, fxsplit.BatchEnsembleModel)
        assert torch.equal(other(X), net(X))
        assert len(list(other.fast_parameters())) == 5
    single = Net().eval()
    single.load_state_dict(net.member_state_dict(1), strict=False)
    torch.testing.assert_close(single(X), net.head_outputs(X)[1])
    assert not single.conv.weight[~masks["trunk.conv.weight"]].any()
    again = fxsplit.batch_ensemble(Net(), M, example=X, seed=9).eval()
    again.load_state_dict(sparsity.fold(copied).state_dict())
    assert torch.equal(again(X), net(X))
    net.train()
    assert net.trunk.get_submodule("norm").training


def test_it_can_be_exported_and_compiled(tmp_path: Path) -> None:
    net = fxsplit.batch_ensemble(Net(), M, example=X).eval()
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
        lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=32, window_size=2, depths=(1, 1, 1, 1)),
    ],
    ids=["wrn", "resnet18", "vit", "convnext", "swin"],
)
def test_zoo(make: Any) -> None:
    x = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
    model = make().eval()
    net = fxsplit.batch_ensemble(model, 2, example=x)
    outputs = net.head_outputs(x)
    single = copy.deepcopy(model)
    single.load_state_dict(net.member_state_dict(1), strict=False)
    torch.testing.assert_close(outputs[1], single(x), rtol=1e-3, atol=1e-4)
    assert fxsplit.summary(net).dense_flops_ratio == pytest.approx(2)
    net.train()
    fxsplit.head_loss(net, functional.cross_entropy, x, torch.tensor([1, 3])).backward()
    assert all(p.grad is not None for p in net.fast_parameters())


def tiny_llama() -> nn.Module:
    sizes: Any = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=20, **sizes))


def tiny_gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=16))


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_language_models(make: Any, tmp_path: Path) -> None:
    tokens = torch.tensor([[1, 5, 3, 9, 2, 7], [4, 4, 0, 1, 8, 3]])
    model = make().eval()
    example = {"input_ids": tokens, "labels": tokens}
    net = fxsplit.batch_ensemble(model, 2, example=example).eval()
    output, each = net(**example), net.head_outputs(**example)
    assert type(output) is type(each[0]) is type(model(**example))
    torch.testing.assert_close(output.loss, (each[0].loss + each[1].loss) / 2)
    assert not torch.allclose(each[0].logits, each[1].logits)
    fxsplit.save(net, tmp_path / "net.safetensors")
    assert torch.equal(fxsplit.load(tmp_path / "net.safetensors", make()).eval()(**example).logits, output.logits)


class MeanOfBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(h - h.mean(0))


class Reordered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)  # [B, T, 4]
        return self.last(h.transpose(0, 1).reshape(-1, 4)).view(x.shape[1], x.shape[0], 3).transpose(0, 1)


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x.transpose(0, 1)).transpose(0, 1))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (MeanOfBatch(), "the input of 'last' .* mixes rows"),
        (Reordered(), "the input of 'last' .* mixes rows"),
        (TimeFirst(), "the input of 'first' .* is .5, 6, 4. for 3 batches, and .5, 2, 4. for one"),
        (nn.Sequential(nn.ReLU(), nn.Flatten()), "no parameters"),
    ],
)
def test_models_that_do_not_keep_the_rows_apart(model: nn.Module, words: str) -> None:
    x = torch.randn(2, 5, 4)
    before = snapshot(model)
    with pytest.raises(fxsplit.SplitError, match=words):
        fxsplit.batch_ensemble(model, M, example=x)
    assert snapshot(model) == before


def test_a_layer_that_does_not_see_the_batch_stays_shared() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.table = nn.Linear(4, 3), nn.Linear(2, 3)
            self.register_buffer("places", torch.ones(1, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x) + self.table(self.places)

    with pytest.warns(fxsplit.FxSplitWarning, match="that sees the batch: table"):
        net = fxsplit.batch_ensemble(Table(), M, example=torch.zeros(2, 4))
    assert net.report.shared == ("table",)
    assert net(torch.zeros(5, 4)).shape == (5, 3)


def test_attention_that_is_one_module_stays_shared_with_a_warning() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.fc = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.attention(x, x, x, need_weights=False)[0])

    with pytest.warns(fxsplit.FxSplitWarning, match="1 modules have weights that stay the same .* attention"):
        net = fxsplit.batch_ensemble(Attention(), M, example=torch.zeros(2, 5, 4))
    assert net.report.shared == ("attention",)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"members": -1}, "members"),
        ({"layers": ["fd"]}, "no layer 'fd'. Did you mean 'fc'"),
        ({"layers": ["norm"]}, "'norm' is, and holds, no linear layer"),
        ({"layers": "fc"}, "sequence of paths"),
        ({"layers": lambda path, module: False}, "none of these is meant: conv, fc"),
        ({"fast": "uniform"}, "'normal', 'signs' or a function"),
        ({"fast": lambda shape: torch.ones(2)}, r"returned \[2\]"),
        ({"vote": "max"}, "vote"),
    ],
)
def test_bad_arguments(options: Any, words: str) -> None:
    with pytest.raises(fxsplit.SplitError, match=words):
        fxsplit.batch_ensemble(Net(), example=X, **options)


def test_a_member_of_a_model_that_ties_a_weight_is_not_that_model() -> None:
    example = {"input_ids": torch.tensor([[1, 5, 3, 9, 2, 7]])}
    model = tiny_gpt2().eval()
    net = fxsplit.batch_ensemble(model, 2, example=example)
    with pytest.raises(fxsplit.SplitError, match=r"ties 'lm_head.weight' to 'transformer.wte.weight'"):
        net.member_state_dict(0)
    net = fxsplit.batch_ensemble(model, 2, layers=["transformer"], example=example)
    output = net.head_outputs(**example)[1]
    model.load_state_dict(net.member_state_dict(1))
    torch.testing.assert_close(model(**example).logits, output.logits)


def test_there_is_no_such_member() -> None:
    net = fxsplit.batch_ensemble(Net(), M, example=X)
    with pytest.raises(fxsplit.SplitError, match="0 to 2, got 3"):
        net.member_state_dict(3)

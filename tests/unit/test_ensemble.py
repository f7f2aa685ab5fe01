"""Full ensembles in one module."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

import fxsplit
import sparsity
from recipes.wide_resnet import WRN
from tests.checks import snapshot

X = torch.linspace(-1, 1, 4 * 2 * 36).view(4, 2, 6, 6)
Y = torch.tensor([0, 2, 1, 2])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


def test_members_are_whole_models_that_share_nothing() -> None:
    model = Net()
    before = snapshot(model)
    net = fxsplit.ensemble(model, 3, example=X)
    assert snapshot(model) == before
    assert sum(p.numel() for p in net.parameters()) == 3 * sum(p.numel() for p in model.parameters())
    assert len({p.data_ptr() for p in net.parameters()}) == 3 * len(list(model.parameters()))
    assert not list(net.trunk.parameters())
    convs = [head.get_parameter("conv.weight") for head in net.heads]
    for index in range(3):
        assert not torch.equal(convs[index], convs[index - 1])
        assert not torch.equal(convs[index], model.conv.weight)
    assert net(X).shape == (4, 3)


def test_it_is_the_mean_of_models_written_out() -> None:
    models = [Net().eval() for _ in range(3)]
    net = fxsplit.ensemble(Net().eval(), 3, init=iter(models).__next__, example=X)
    expected = [model(X) for model in models]
    assert all(torch.equal(*pair) for pair in zip(net.head_outputs(X), expected, strict=True))
    torch.testing.assert_close(net(X), sum(expected) / 3)
    prob = fxsplit.ensemble(Net().eval(), 3, init=iter(models).__next__, vote="prob", example=X)
    torch.testing.assert_close(prob(X).exp(), torch.stack([z.softmax(-1) for z in expected]).mean(0))


def test_m_times_the_loss_trains_every_member_as_if_it_were_alone() -> None:
    models = [Net() for _ in range(3)]
    net = fxsplit.ensemble(Net(), 3, init=iter(models).__next__, example=X)
    (3 * fxsplit.head_loss(net, functional.cross_entropy, X, Y)).backward()
    for head, model in zip(net.heads, models, strict=True):
        functional.cross_entropy(model(X), Y).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(head.get_parameter(name).grad, parameter.grad)
        for name, buffer in model.named_buffers():
            assert torch.equal(head.get_buffer(name), buffer)


def test_seed_decides_and_the_trace_of_a_model_is_the_model() -> None:
    model = Net()
    state = torch.get_rng_state()
    nets = [fxsplit.ensemble(graph, 2, seed=seed, example=example) for graph, seed, example in (
        (model, 5, X), (fxsplit.trace(model, X), 5, None), (model, 6, X))]  # fmt: skip
    assert torch.equal(torch.get_rng_state(), state)
    weights = [net.heads[1].get_parameter("conv.weight") for net in nets]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_copies_start_as_the_model() -> None:
    model = Net().eval()
    net = fxsplit.ensemble(model, 3, init="copy", example=X)
    assert all(torch.equal(output, model(X)) for output in net.head_outputs(X))


def test_masks_of_every_member_make_a_sparse_ensemble_that_an_engine_rewires() -> None:
    net = fxsplit.ensemble(Net(), 3, example=X)
    masks = sparsity.sparsify(net, 0.5)
    parts = [masks[f"heads.{index}.conv.weight"] for index in range(3)]
    assert not torch.equal(parts[0], parts[1])
    assert len({int(part.sum()) for part in parts}) == 1
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = [part.clone() for part in parts]
    engine = sparsity.rigl(net, optimizer, every=1, until=10, fraction=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        (3 * fxsplit.head_loss(net, functional.cross_entropy, X, Y)).backward()
        optimizer.step()
    assert engine.last is not None
    assert any(not torch.equal(*pair) for pair in zip(parts, before, strict=True))


def test_copy_and_file_are_the_same_network(tmp_path: Path) -> None:
    net = fxsplit.ensemble(Net(), 3, example=X).eval()
    fxsplit.save(net, tmp_path / "net.safetensors")
    loaded = fxsplit.load(tmp_path / "net.safetensors", Net()).eval()
    assert torch.equal(copy.deepcopy(net)(X), net(X))
    assert torch.equal(loaded(X), net(X))
    net.train()
    assert net.heads[1].get_submodule("norm").training


def tiny_llama() -> LlamaForCausalLM:
    sizes: Any = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=20, **sizes)).eval()


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
    net = fxsplit.ensemble(model, 2, example=x)
    assert net(x).shape == model(x).shape == (2, 5)
    assert not net.report.not_redrawn
    assert fxsplit.summary(net).dense_flops_ratio == pytest.approx(2)


def test_language_model_keeps_its_type_and_averages_its_loss() -> None:
    tokens = torch.tensor([[1, 5, 3, 9, 2, 7]])
    net = fxsplit.ensemble(tiny_llama(), 2, example={"input_ids": tokens, "labels": tokens})
    output = net(input_ids=tokens, labels=tokens)
    each = net.head_outputs(input_ids=tokens, labels=tokens)
    assert isinstance(output, CausalLMOutputWithPast)
    torch.testing.assert_close(output.loss, (each[0].loss + each[1].loss) / 2)
    assert not torch.equal(each[0].logits, each[1].logits)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"members": 0}, "members must be a whole number of at least 1, got 0"),
        ({"members": True}, "members"),
        ({"members": 2, "init": "zeros"}, "init"),
        ({"members": 2, "vote": "median"}, "vote"),
    ],
)
def test_bad_arguments(options: Any, words: str) -> None:
    with pytest.raises(fxsplit.SplitError, match=words):
        fxsplit.ensemble(Net(), example=X, **options)


def test_what_is_no_untouched_model_is_refused() -> None:
    graph = fxsplit.trace(Net(), X)
    with pytest.raises(fxsplit.SplitError, match="split already"):
        fxsplit.ensemble(fxsplit.ensemble(graph))
    with pytest.raises(fxsplit.SplitError, match="Leave out example"):
        fxsplit.ensemble(graph, example=X)
    with pytest.raises(fxsplit.SplitError, match="got list"):
        fxsplit.ensemble([Net(), Net()])  # type: ignore[arg-type]

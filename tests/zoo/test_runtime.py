"""Compiled networks of timm, torchvision and transformers: outputs of the original, and what runs in plans."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import fxsplit
import sparsity
from sparsity.runtime import _build_net, _cost
from tests.checks import tensors


@pytest.fixture(autouse=True)
def _small_layers_run_sparse() -> Iterator[None]:
    with mock.patch.object(_cost, "sparse_seconds", return_value=1e-9):
        yield


def as_trained(model: nn.Module) -> nn.Module:
    """Give BatchNorm statistics, and make scales and biases differ from each other."""
    for module in model.eval().modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, 0, 0.1)  # pyright: ignore
            nn.init.uniform_(module.running_var, 0.8, 1.2)  # pyright: ignore
    for parameter in model.parameters():
        if parameter.ndim == 1 or parameter.shape[1:].numel() == 1:
            parameter.data += torch.empty_like(parameter).uniform_(-0.2, 0.2)
    return model


def sparse(model: nn.Module, example: Any, share: float = 0.9) -> Any:
    net = fxsplit.trace(as_trained(model), example)
    sparsity.sparsify(net, share)
    return net.eval()


def relative_error(got: Any, expected: Any) -> float:
    (mine,), (theirs,) = tensors(got), tensors(expected)
    return float((mine.double() - theirs).abs().max() / theirs.abs().max())


def reference(net: Any, *args: Any, **kwargs: Any) -> Any:
    with torch.no_grad():
        convert = {name: value.double() if value.is_floating_point() else value for name, value in kwargs.items()}
        return copy.deepcopy(net).double()(*(value.double() for value in args), **convert)


IMAGES: dict[str, Callable[[], nn.Module]] = {
    "timm resnet18": lambda: timm.create_model("resnet18", num_classes=10),
    "timm resnet50": lambda: timm.create_model("resnet50", num_classes=10),
    "timm resnetv2": lambda: timm.create_model("resnetv2_50", num_classes=10, layers=(1, 1, 1, 1)),
    "timm regnet": lambda: timm.create_model("regnety_002", num_classes=10),
    "timm densenet": lambda: timm.create_model("densenet121", num_classes=10, block_config=(2, 2, 2, 2)),
    "timm efficientnet": lambda: timm.create_model("efficientnet_b0", num_classes=10),
    "timm convnext": lambda: timm.create_model("convnext_atto", num_classes=10, depths=(1, 1, 1, 1)),
    "timm convnext, linear": lambda: timm.create_model("convnext_tiny", depths=(1, 1, 1, 1), dims=(16, 24, 32, 40)),
    "timm vit": lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=10),
    "timm mixer": lambda: timm.models.MlpMixer(img_size=64, num_blocks=2, embed_dim=32, num_classes=10),
    "torchvision resnet18": lambda: torchvision.models.resnet18(num_classes=10),
    "torchvision convnext": lambda: torchvision.models.ConvNeXt(
        [torchvision.models.convnext.CNBlockConfig(16, 32, 1), torchvision.models.convnext.CNBlockConfig(32, None, 1)],
        num_classes=10,
    ),
    "torchvision googlenet": lambda: torchvision.models.googlenet(num_classes=10, aux_logits=False, init_weights=False),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images(name: str) -> None:
    net = sparse(IMAGES[name](), torch.randn(2, 3, 64, 64))
    fast = sparsity.compile(net, torch.randn(2, 3, 64, 64), tune=False)
    assert any(layer.kernel == "sparse" for layer in fast.report().layers)
    for batch in (1, 3):
        x = torch.randn(batch, 3, 64, 64)
        assert relative_error(fast(x), reference(net, x)) < 1e-5


REGIONS = {"timm resnet18": 1, "torchvision resnet18": 1, "timm convnext, linear": 5}
"""A depthwise convolution, which runs in torch, ends a region."""


@pytest.mark.parametrize("name", REGIONS)
def test_number_of_regions(name: str) -> None:
    x = torch.randn(1, 3, 64, 64)
    report = sparsity.compile(sparse(IMAGES[name](), x), x, tune=False).report()
    assert report.regions == REGIONS[name], report
    assert not report.others


def test_a_split_resnet() -> None:
    model = as_trained(timm.create_model("resnet18", num_classes=10))
    net = fxsplit.neurotrailify(
        model, split="layer2.1", heads=3, example=torch.zeros(2, 3, 64, 64), sparsity=0.9
    ).eval()
    x = torch.randn(2, 3, 64, 64)
    fast = sparsity.compile(net, x, tune=False)
    assert fast.report().regions == 1
    assert relative_error(fast(x), reference(net, x)) < 1e-5
    with torch.no_grad():
        for got, expected in zip(fast.head_outputs(x), net.head_outputs(x), strict=True):
            assert relative_error(got, expected.double()) < 1e-5


def llama() -> nn.Module:
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50, n_positions=32, use_cache=False))


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("example", [(2, 7), (1, 1)], ids=["prefill", "decode"])
def test_language_models(make: Callable[[], nn.Module], example: tuple[int, int]) -> None:
    net = sparse(make(), {"input_ids": torch.randint(50, (2, 7))})
    fast = sparsity.compile(net, {"input_ids": torch.randint(50, example)}, tune=False)
    with mock.patch.object(_build_net, "look", side_effect=AssertionError("compiled again")):
        for shape in ((1, 1), (2, 1), (1, 9), (3, 5)):
            ids = torch.randint(50, shape)
            with torch.no_grad():
                expected: Tensor = net(input_ids=ids).logits
            assert relative_error(fast(input_ids=ids).logits, expected.double()) < 1e-5


def test_a_llama_layer_has_two_regions() -> None:
    net = sparse(llama(), {"input_ids": torch.randint(50, (2, 7))})
    report = sparsity.compile(net, {"input_ids": torch.randint(50, (1, 1))}, tune=False).report()
    # Norm, q, k and v before attention; after it everything up to the attention of the next layer.
    assert report.regions == 3
    assert not set(report.others) & {"LlamaRMSNorm", "SiLUActivation", "Linear"}

"""Well-known models, split in the middle: every copied head is the model, bit for bit, and the vote within rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn

import fxsplit
from tests.checks import assert_same, tensors
from tests.strategies import call

VISION = torchvision.models
IDS = torch.tensor([[5, 6, 7, 8, 9, 1], [9, 8, 7, 2, 0, 0], [3, 4, 3, 4, 3, 4]])
MASK = (IDS > 0).long()
TEXT = {"input_ids": IDS, "attention_mask": MASK}


def images(batch: int, size: int) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(size))


def small(cls: type[nn.Module], config: Callable[..., Any], **options: Any) -> nn.Module:
    """A transformers model with random weights and a tiny configuration; without the cache, which no graph returns."""
    made = config(**{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **options})
    made.use_cache = False
    return cls(made)


def vgg16_bn() -> nn.Module:
    model = VISION.vgg16_bn(num_classes=5)
    model.classifier = nn.Sequential(nn.Linear(512 * 49, 8), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(8, 5))
    return model


SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2}
PICTURES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "timm resnet50": (lambda: timm.create_model("resnet50", num_classes=5), 32),
    "timm efficientnet_b0": (lambda: timm.create_model("efficientnet_b0", num_classes=5), 32),
    "timm convnext_tiny": (lambda: timm.create_model("convnext_tiny", num_classes=5, depths=(1, 1, 3, 1)), 32),
    "timm vit_tiny": (lambda: timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=32), 32),
    "timm swin_tiny": (lambda: timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, img_size=56), 56),
    "timm regnety_002": (lambda: timm.create_model("regnety_002", num_classes=5), 32),
    "timm densenet121": (lambda: timm.create_model("densenet121", num_classes=5), 32),
    "timm mixer_b16": (lambda: timm.models.mlp_mixer.MlpMixer(5, img_size=32, num_blocks=4, embed_dim=32), 32),
    "torchvision resnet18": (lambda: VISION.resnet18(num_classes=5), 32),
    "torchvision vgg16_bn": (vgg16_bn, 32),
    "torchvision vit_b_16": (lambda: VISION.VisionTransformer(32, 8, 4, 2, 16, 24, num_classes=5), 32),
    "torchvision deeplabv3_resnet50": (
        lambda: VISION.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=5),
        32,
    ),
    "transformers ViT": (
        lambda: small(
            transformers.ViTForImageClassification,
            transformers.ViTConfig,
            image_size=16,
            patch_size=4,
            num_labels=5,
            **SIZES,
        ),
        16,
    ),
}
TEXTS: dict[str, tuple[Callable[[], nn.Module], dict[str, torch.Tensor]]] = {
    "transformers Llama": (
        lambda: small(transformers.LlamaForCausalLM, transformers.LlamaConfig, vocab_size=20, **SIZES),
        {**TEXT, "labels": IDS},
    ),
    "transformers GPT-2": (
        lambda: small(
            transformers.GPT2LMHeadModel,
            transformers.GPT2Config,
            vocab_size=20,
            n_embd=16,
            n_layer=4,
            n_head=2,
            n_positions=16,
        ),
        TEXT,
    ),
    "transformers BERT": (
        lambda: small(transformers.BertForSequenceClassification, transformers.BertConfig, vocab_size=20, **SIZES),
        TEXT,
    ),
    "transformers T5": (
        lambda: small(
            transformers.T5ForConditionalGeneration,
            transformers.T5Config,
            vocab_size=20,
            d_model=16,
            d_kv=8,
            d_ff=24,
            num_layers=3,
            num_heads=2,
        ),
        {**TEXT, "decoder_input_ids": IDS[:, :4]},
    ),
}


def assert_split_in_the_middle(model: nn.Module, example: Any, data: Any) -> None:
    model.eval()
    traced = fxsplit.trace(model, example)
    cuts = fxsplit.find_cuts(traced)
    cut = cuts[len(cuts) // 2]
    net = fxsplit.split(traced, cut, heads=3, init="copy")
    assert sum(p.numel() for p in net.parameters()) == cut.params_before + 3 * cut.params_after
    with torch.no_grad():
        expected = call(model, data)
        for output in call(net.head_outputs, data):
            assert_same(output, expected)
        voted = call(net, data)
    assert type(voted) is type(expected)
    for actual, wanted in zip(tensors(voted), tensors(expected), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", PICTURES)
def test_vision(name: str) -> None:
    build, size = PICTURES[name]
    assert_split_in_the_middle(build(), (images(2, size),), (images(3, size),))


@pytest.mark.parametrize("name", TEXTS)
def test_text(name: str) -> None:
    build, batch = TEXTS[name]
    assert_split_in_the_middle(build(), {k: v[:2] for k, v in batch.items()}, batch)

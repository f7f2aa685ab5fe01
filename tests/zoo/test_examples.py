"""Examples that are made from a model's configuration: trace(model) alone."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers

from fxsplit import trace
from tests.zoo.catalogue.hugging_face import build

SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "xlnet": {"input_ids": (2, 8), "attention_mask": (2, 8)},
    "t5": {"input_ids": (2, 8), "attention_mask": (2, 8), "decoder_input_ids": (2, 6)},
    "hiera": {"pixel_values": (2, 3, 64, 64)},
    "timesformer": {"pixel_values": (2, 4, 3, 32, 32)},
    "wav2vec2": {"input_values": (2, 3200)},
    "encodec": {"input_values": (2, 1, 3200)},
    "audio-spectrogram-transformer": {"input_values": (2, 32, 16)},
    "whisper": {"input_features": (2, 16, 40), "decoder_input_ids": (2, 6)},
    "clip": {"input_ids": (2, 8), "attention_mask": (2, 8), "pixel_values": (2, 3, 32, 32)},
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.filterwarnings("ignore:train mode is not eval mode")
def test_transformers(name: str) -> None:
    _, example = trace(build(name)).example
    assert {key: tuple(value.shape) for key, value in example.items()} == SHAPES[name]


def test_several_tokens_may_end_a_text() -> None:
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}
    config = transformers.GlmConfig(
        vocab_size=9, eos_token_id=[4, 5], pad_token_id=4, intermediate_size=16, num_key_value_heads=1, **sizes
    )
    _, example = trace(transformers.GlmForCausalLM(config)).example
    assert set(example["input_ids"].flatten().tolist()) <= {3, 6, 7, 8}


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("r3d_18", [(2, 3, 8, 112, 112)]),
        ("mvit_v1_b", [(2, 3, 16, 224, 224)]),
        ("raft_small", [(2, 3, 128, 128)] * 2),
    ],
)
def test_torchvision(name: str, shapes: list[tuple[int, ...]]) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    args, _ = trace(model).example
    assert [tuple(value.shape) for value in args] == shapes


@pytest.mark.parametrize("name", ["levit_128s", "volo_d1_224", "hiera_tiny_224"])
def test_an_image_size_that_no_attribute_tells(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, img_size=192)
    ((x,), _) = trace(model).example
    assert x.shape == (2, 3, 192, 192)

"""Models of transformers from small configurations, both kinds of attention, with and without labels."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor

from fxsplit._trace import trace
from tests.checks import assert_same
from tests.zoo.tracing import check_trace

TOKENS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2}
START: dict[str, Any] = {"decoder_start_token_id": 0}
SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
CONFIGS: dict[str, Any] = {
    "llama": lambda: tf.LlamaConfig(vocab_size=99, num_key_value_heads=1, attention_dropout=0.1, **SMALL),
    "gpt2": lambda: tf.GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=2, n_positions=32, **TOKENS),
    "bert": lambda: tf.BertConfig(vocab_size=99, max_position_embeddings=32, **SMALL),
    "t5": lambda: tf.T5Config(vocab_size=99, d_model=32, num_layers=2, num_heads=2, d_ff=48, d_kv=16, **START),
    "vit": lambda: tf.ViTConfig(image_size=32, patch_size=8, hidden_dropout_prob=0.1, **SMALL),
}

CLASSES: dict[str, Any] = {
    "llama": tf.LlamaForCausalLM,
    "gpt2": tf.GPT2LMHeadModel,
    "bert": tf.BertForSequenceClassification,
    "t5": tf.T5ForConditionalGeneration,
    "vit": tf.ViTForImageClassification,
}


def build(name: str, attention: str) -> Any:
    config = CONFIGS[name]()
    config.use_cache = False
    config._attn_implementation = attention
    return CLASSES[name](config)


def batch_of(name: str, batch: int, labels: bool, hidden: int = 3, length: int = 9) -> dict[str, Tensor]:
    """Inputs whose first row has ``hidden`` masked tokens."""
    if name == "vit":
        more = {"labels": torch.randint(2, (batch,))} if labels else {}
        return {"pixel_values": torch.randn(batch, 3, 32, 32), **more}
    ids = torch.randint(3, 99, (batch, length))
    mask = torch.ones_like(ids)
    mask[0, length - hidden :] = 0
    feed = {"input_ids": ids, "attention_mask": mask}
    if name == "t5" and not labels:
        feed["decoder_input_ids"] = torch.randint(3, 99, (batch, 6))
    if labels:
        feed["labels"] = torch.randint(2, (batch,)) if name == "bert" else ids.clone()
    return feed


@pytest.mark.parametrize("labels", [False, True], ids=["", "labels"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_transformers(name: str, attention: str, labels: bool) -> None:
    model = build(name, attention)
    traced = check_trace(model, lambda batch: batch_of(name, batch, labels))
    if name == "vit":
        return
    with torch.no_grad():
        for hidden, length in ((0, 9), (1, 9), (8, 9), (2, 5), (4, 17)):
            feed = batch_of(name, 3, labels, hidden, length)
            assert_same(traced(**feed), model(**feed))


@pytest.mark.parametrize("name", CONFIGS)
def test_examples_are_inferred(name: str) -> None:
    model = build(name, "sdpa")
    traced = trace(model)
    (_, example) = traced.example
    feed = batch_of(name, 4, labels=False)
    assert example.keys() == feed.keys()
    if name != "vit":
        assert not example["attention_mask"].all()
        assert int(example["input_ids"].max()) < 99
    assert_same(traced.eval()(**feed), model.eval()(**feed))


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_mask_that_hides_nothing_in_the_example(name: str) -> None:
    model = build(name, "sdpa").eval()
    traced = trace(model, batch_of(name, 2, labels=True, hidden=0))
    feed = batch_of(name, 3, labels=True, hidden=4)
    assert_same(traced(**feed), model(**feed))


@pytest.mark.parametrize("name", ["llama", "bert", "vit"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_casting_after_tracing(name: str, attention: str) -> None:
    model = build(name, attention).eval()
    traced = copy.deepcopy(trace(model))
    feed = batch_of(name, 3, labels=False)
    for dtype in (torch.float64, torch.bfloat16):
        cast = {key: value.to(dtype) if value.is_floating_point() else value for key, value in feed.items()}
        assert_same(copy.deepcopy(traced).to(dtype)(**cast), copy.deepcopy(model).to(dtype)(**cast))


def test_the_key_value_cache_is_switched_off_and_reported() -> None:
    model = build("llama", "sdpa").eval()
    model.config.use_cache = True
    traced = trace(model)
    feed = batch_of("llama", 3, labels=False)
    assert "argument use_cache = False" in traced.report.specialised
    assert traced(**feed).keys() == {"logits"}
    assert_same(traced(**feed).logits, model(**feed, use_cache=False).logits)

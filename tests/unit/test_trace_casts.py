"""Graphs in other dtypes, under autocast and on another device: bit for bit what the model computes there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers as tf
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fxsplit
from fxsplit._errors import TraceError
from tests.checks import assert_same, tensors

SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
IDS = torch.tensor([[5, 6, 7, 8, 9, 1], [9, 8, 7, 2, 0, 0], [3, 4, 3, 4, 3, 4]])
TEXT = {"input_ids": IDS, "attention_mask": (IDS > 0).long()}
Build = tuple[Callable[[], nn.Module], dict[str, Tensor]]


def picture(build: Callable[[], nn.Module], size: int = 32) -> Build:
    return build, {"x": torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))}


def text(cls: Any, config: Any, attention: str | None = None, **options: Any) -> Build:
    def build() -> nn.Module:
        made = config(vocab_size=99, **{**SPECIAL, **options})
        made.use_cache = False
        if attention is not None:
            made._attn_implementation = attention
        return cls(made)

    return build, TEXT


def clip() -> nn.Module:
    towers = {**SMALL, "num_hidden_layers": 2}
    words, patches = {"vocab_size": 99, **SPECIAL, **towers}, {"image_size": 32, "patch_size": 8, **towers}
    return tf.CLIPModel(tf.CLIPConfig(text_config=words, vision_config=patches))


T5: dict[str, Any] = {"d_model": 32, "num_layers": 2, "num_heads": 2, "d_ff": 48, "d_kv": 16}
GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 1, "n_head": 2}
MODERN: dict[str, Any] = {"cls_token_id": 1, "sep_token_id": 2, **SMALL}
MODELS: dict[str, Build] = {
    "resnet18": picture(lambda: torchvision.models.resnet18(num_classes=5)),
    "vit": picture(lambda: timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=32, depth=1)),
    "convnext": picture(lambda: timm.create_model("convnext_atto", num_classes=5, depths=(1, 1, 1, 1))),
    "swin": picture(
        lambda: timm.create_model(
            "swin_tiny_patch4_window7_224",
            num_classes=5,
            img_size=32,
            window_size=4,
            depths=(2, 1, 1, 1),
            embed_dim=24,
            num_heads=(2, 2, 2, 2),
        )
    ),
    "llama": text(tf.LlamaForCausalLM, tf.LlamaConfig, **SMALL),
    "llama, eager": text(tf.LlamaForCausalLM, tf.LlamaConfig, "eager", **SMALL),
    "gpt2": text(tf.GPT2LMHeadModel, tf.GPT2Config, **GPT),
    "bert": text(tf.BertForSequenceClassification, tf.BertConfig, "eager", **SMALL),
    "t5": (text(tf.T5ForConditionalGeneration, tf.T5Config, **T5)[0], {**TEXT, "decoder_input_ids": IDS[:, :5]}),
    "modernbert": text(tf.ModernBertForMaskedLM, tf.ModernBertConfig, **MODERN),
    "clip": (clip, {**TEXT, "pixel_values": torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))}),
    "bloom": text(tf.BloomForCausalLM, tf.BloomConfig, hidden_size=32, n_layer=1, n_head=2),
    "mpt": text(tf.MptForCausalLM, tf.MptConfig, d_model=32, n_layers=1, n_heads=2, max_seq_len=64),
    "openai-gpt": text(tf.OpenAIGPTLMHeadModel, tf.OpenAIGPTConfig, **GPT),
    "xlnet": text(tf.XLNetLMHeadModel, tf.XLNetConfig, d_model=32, n_layer=1, n_head=2, d_inner=48),
}


class OnlyMeta(TorchDispatchMode):
    """Every tensor that is made lives on the meta device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        assert all(tensor.is_meta for tensor in tensors(out)), f"{func} makes a tensor on another device"
        return out


def outputs(model: nn.Module, feed: dict[str, Tensor]) -> list[Tensor]:
    with torch.no_grad():
        out = model(**feed)
    return tensors({"logits": out["logits"]} if isinstance(out, dict) and "logits" in out else out)


@pytest.mark.parametrize("name", MODELS)
def test_casts_autocast_and_devices(name: str) -> None:
    build, feed = MODELS[name]
    model = build().eval()
    traced = fxsplit.trace(model, {key: value[:2] for key, value in feed.items()})
    assert not [line for line in traced.report.specialised if "dtype" in line]
    assert_same(outputs(traced, feed), outputs(model, feed))
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(outputs(traced, feed), outputs(model, feed))
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        cast = {key: value.to(dtype) if value.is_floating_point() else value for key, value in feed.items()}
        other, reference = copy.deepcopy(traced).to(dtype), copy.deepcopy(model).to(dtype)
        assert_same(outputs(other, cast), outputs(reference, cast))
    elsewhere = copy.deepcopy(traced).to("meta")
    with OnlyMeta():
        found = outputs(elsewhere, {key: value.to("meta") for key, value in feed.items()})
    assert [tensor.shape for tensor in found] == [tensor.shape for tensor in outputs(model, feed)]


class ReadsWeights(nn.Module):
    """Makes a mask in the dtype of its weights before anything else has one."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.first, self.last = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, ids: Tensor) -> Tensor:
        dtype = next(self.parameters()).dtype
        early = (ids > 3).to(dtype)[:, :, None] * torch.finfo(dtype).eps
        x = self.first(self.words(ids) + early).softmax(-1)
        dtype = next(self.last.parameters()).dtype
        return self.last(x.to(dtype) + torch.ones((), dtype=dtype) * torch.finfo(dtype).eps)


def test_dtypes_read_from_weights_follow_the_weights(tmp_path: Path) -> None:
    model = ReadsWeights().eval()
    ids = torch.randint(9, (3, 5))
    traced = fxsplit.trace(model, ids)
    net = fxsplit.split(traced, "first", heads=2, init="copy")
    fxsplit.save(net, tmp_path / "net.safetensors")
    assert traced.state_dict().keys() == model.state_dict().keys()
    for graph in (traced, net, fxsplit.load(tmp_path / "net.safetensors", ReadsWeights()).eval()):
        assert sum(p.numel() for p in graph.parameters()) == (96 if graph is not traced else 76)
        with torch.autocast("cpu", torch.bfloat16):
            assert_same(graph(ids), model(ids))
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            assert_same(copy.deepcopy(graph).to(dtype)(ids), copy.deepcopy(model).to(dtype)(ids))


class Switches(nn.Module):
    """Runs a layer under autocast, or without it, and returns the dtype that it got."""

    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self.lin, self.enabled = nn.Linear(4, 4), enabled

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.enabled):
            return self.lin(x if self.enabled else x.to(self.lin.weight.dtype)).to(x.dtype)


@pytest.mark.parametrize("enabled", [True, False])
def test_a_module_that_switches_autocast_is_kept_whole(enabled: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 4), Switches(enabled), nn.Linear(4, 9)).eval()
    traced = fxsplit.trace(model, torch.randn(2, 4))
    assert traced.report.coarse_leaves == [("2", f"it switches autocast {'on' if enabled else 'off'}")]
    x = torch.randn(3, 4)
    assert_same(traced(x), model(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(traced(x), model(x))


def test_autocast_at_the_root_is_refused_by_name() -> None:
    with pytest.raises(TraceError, match=r"Switches cannot be recorded: it switches autocast on. Move that code"):
        fxsplit.trace(Switches(True), torch.randn(2, 4))


def test_switching_off_what_is_off_is_reported_where_the_module_is_too_large_to_keep_whole() -> None:
    traced = fxsplit.trace(Switches(False), torch.randn(2, 4))
    assert traced.report.specialised == ["the model itself: it switches autocast off, which the graph leaves as it is"]
    x = torch.randn(3, 4)
    assert_same(traced(x), traced.source(x))

"""Weights of the original model go into the trunk and every head, and come back out of one head."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import timm
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fxsplit
import sparsity
from fxsplit import FxSplitWarning, NoEffectWarning, SpecError, SplitError, head_state_dict, load_pretrained
from tests.checks import assert_same, assert_unchanged, bits, snapshot

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
T5_SIZES: dict[str, Any] = {
    "vocab_size": 20,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}


def image() -> dict[str, Tensor]:
    return {"x": torch.randn(3, 3, 32, 32)}


def text() -> dict[str, Tensor]:
    ids = torch.randint(3, 20, (3, 9))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def two_texts() -> dict[str, Tensor]:
    return {**text(), "decoder_input_ids": torch.randint(3, 20, (3, 6))}


class Normed(nn.Module):
    """Parametrized weights, buffers of both kinds, bare parameters, a layer used twice, one that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(8))
        self.register_buffer("offset", torch.randn(8))
        self.register_buffer("scratch", torch.randn(8), persistent=False)
        self.first = parametrizations.weight_norm(nn.Linear(3 * 32 * 32, 8))
        self.twice = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.last = parametrizations.spectral_norm(nn.Linear(8, 5))
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1)) * self.scale + self.offset + self.scratch
        x = self.twice(self.twice(x).relu())
        return self.last(self.norm(x))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], dict[str, Tensor]]]] = {
    "resnet": (lambda: timm.create_model("test_resnet", num_classes=5), image),
    "vit": (lambda: timm.create_model("test_vit", num_classes=5, img_size=32), image),
    "llama": (lambda: tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=20, use_cache=False, **SIZES)), text),
    "t5": (
        lambda: tf.T5ForConditionalGeneration(tf.T5Config(use_cache=False, **T5_SIZES)),
        two_texts,
    ),
    "normed": (Normed, image),
}


def build(name: str, seed: int = 0) -> Any:
    """The model, with statistics that are not those it starts with."""
    torch.manual_seed(seed)
    model = MODELS[name][0]()
    if name in ("resnet", "normed"):
        with torch.no_grad():
            model(image()["x"])
    return model.eval()


def call(function: Callable[..., Any], feed: dict[str, Tensor]) -> Any:
    with torch.no_grad():
        return function(feed["x"]) if "x" in feed else function(**feed)


def scratch(net: nn.Module) -> Tensor:
    """The buffer that is in no state dict."""
    return next(buffer for name, buffer in net.named_buffers() if name.endswith("scratch"))


@cache
def traced(name: str) -> fxsplit.TracedModel:
    feed = MODELS[name][1]()
    return fxsplit.trace(build(name), (feed["x"],) if "x" in feed else feed)


def cut(name: str, at: Any = 0.4, heads: int = 2, **options: Any) -> fxsplit.SplitModel:
    return fxsplit.split(traced(name), at, heads=heads, **options).eval()


def expect_heads(net: fxsplit.SplitModel, model: nn.Module, feed: dict[str, Tensor]) -> None:
    expected = call(model, feed)
    for output in call(net.head_outputs, feed):
        assert_same(output, expected)


@pytest.mark.parametrize("at", [0, 0.4, 0.8])
@pytest.mark.parametrize("name", MODELS)
def test_every_head_becomes_the_original(name: str, at: Any) -> None:
    net, other = cut(name, at), build(name, seed=1)
    if name == "normed":
        other.scratch.copy_(scratch(net))
    before = snapshot(other)
    report = load_pretrained(net, other.state_dict())
    assert report.complete
    assert report.unused == (("unused.weight", "unused.bias") if name == "normed" else ())
    assert_unchanged(before, other)
    expect_heads(net, other, MODELS[name][1]())


@pytest.mark.parametrize("name", ["resnet", "vit", "llama", "t5"])
def test_masks_stay(name: str) -> None:
    net, other = cut(name), build(name, seed=1)
    sparsity.sparsify(net, 0.5)
    masks = {path: mask.clone() for path, mask in sparsity.masks_of(net).items()}
    assert masks
    load_pretrained(net, other.state_dict())
    for path, weight in sparsity.masks_of(net).weights.items():
        assert torch.equal(weight.holder.mask, masks[path])
        original = other.get_parameter(path.partition(".")[2] if path.startswith("trunk") else path.split(".", 2)[2])
        assert_same(weight.parameter.data, torch.where(masks[path], original.data, 0))


def test_a_file_without_tied_weights(tmp_path: Any) -> None:
    """Files of transformers hold tied weights once, under one of their names."""
    net, other = cut("t5"), build("t5", seed=1)
    assert net.report.tied
    state = other.state_dict()
    kept = {name: value.clone() for name, value in state.items() if not name.endswith("embed_tokens.weight")}
    assert {"shared.weight", "lm_head.weight"} <= kept.keys()
    del kept["lm_head.weight"]
    save_file(kept, tmp_path / "model.safetensors")
    load_pretrained(net, load_file(tmp_path / "model.safetensors"))
    expect_heads(net, other, two_texts())


def test_weights_that_a_file_does_not_tie() -> None:
    net, other = cut("t5", 0.8), build("t5", seed=1)
    state = {**other.state_dict(), "lm_head.weight": torch.full((20, 16), 0.5)}
    load_pretrained(net, state)
    assert (net.get_parameter("heads.1.lm_head.weight") == 0.5).all()
    assert_same(net.get_parameter("trunk.encoder.embed_tokens.weight").data, other.get_parameter("shared.weight").data)


def test_ties_and_sharing_survive() -> None:
    net, other = cut("t5", tied="share", share=["decoder.final_layer_norm"]), build("t5", seed=1)
    parameters = [id(parameter) for parameter in net.parameters()]
    load_pretrained(net, other.state_dict())
    assert [id(parameter) for parameter in net.parameters()] == parameters
    assert net.get_parameter("heads.1.lm_head.weight") is net.get_parameter("trunk.encoder.embed_tokens.weight")
    expect_heads(net, other, two_texts())


def test_values_are_converted_to_the_net() -> None:
    net, other = cut("vit").to(torch.bfloat16), build("vit", seed=1)
    load_pretrained(net, other.double().state_dict())
    assert {parameter.dtype for parameter in net.parameters()} == {torch.bfloat16}
    assert_same(net.get_parameter("heads.0.head.weight").data, other.get_parameter("head.weight").data.bfloat16())


def broken() -> dict[str, Tensor]:
    state = build("vit", seed=1).state_dict()
    state["head.weigth"] = state.pop("head.weight")
    state["norm.bias"] = torch.zeros(7)
    del state["pos_embed"]
    return state


def test_what_does_not_fit_is_listed_and_nothing_is_loaded() -> None:
    net, state = cut("vit"), broken()
    before = snapshot(net)
    with pytest.raises(SpecError) as caught:
        load_pretrained(net, state)
    assert str(caught.value) == (
        "the state dict is not one of VisionTransformer, nothing was loaded: missing: pos_embed, head.weight; "
        "unexpected: head.weigth; of another shape: norm.bias [7] instead of [64]. Did you mean 'head.weight'? Give "
        "the state dict of the original model, or load what fits with strict=False."
    )
    assert_unchanged(before, net)


def test_what_fits_is_loaded_on_request() -> None:
    net, other = cut("vit"), build("vit", seed=1)
    kept = {
        name: bits(net.get_parameter(name)) for name in ("trunk.pos_embed", "heads.0.head.weight", "heads.1.norm.bias")
    }
    report = load_pretrained(net, broken(), strict=False)
    assert report.missing == ("pos_embed", "head.weight")
    assert report.unexpected == ("head.weigth",)
    assert report.mismatched == {"norm.bias": ((7,), (64,))}
    assert not report.complete
    assert {name: bits(net.get_parameter(name)) for name in kept} == kept
    for head in range(2):
        assert_same(net.get_parameter(f"heads.{head}.head.bias").data, other.get_parameter("head.bias").data)


def test_nothing_that_fits_is_worth_a_warning() -> None:
    net = cut("vit")
    with pytest.warns(NoEffectWarning, match="load_pretrained changed nothing: missing: cls_token.* and .* more"):
        load_pretrained(net, {"a": torch.ones(1)}, strict=False)
    with pytest.raises(SpecError, match=r"missing: .*; unexpected: trunk"):
        load_pretrained(net, net.state_dict())


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("at", [0, 0.4, 0.8])
@pytest.mark.parametrize("name", ["resnet", "vit", "llama"])
def test_a_head_goes_back_into_the_original(name: str, at: Any, masked: bool) -> None:
    net, feed = cut(name, at), MODELS[name][1]()
    if masked:
        sparsity.sparsify(net, 0.5)
    before = {name: bits(value) for name, value in net.state_dict().items()}
    for index, output in enumerate(call(net.head_outputs, feed)):
        model = build(name, seed=2)
        state = head_state_dict(net, index)
        assert list(state) == list(model.state_dict())
        model.load_state_dict(state)
        assert_same(call(model, feed), output)
        for value in state.values():
            value.zero_()
    assert {name: bits(value) for name, value in net.state_dict().items()} == before
    assert_same(head_state_dict(net, -1), head_state_dict(net, 1))


def test_a_head_with_parametrized_weights_goes_back() -> None:
    net, feed = cut("normed"), image()
    model = build("normed", seed=2)
    model.scratch.copy_(scratch(net))
    missing = model.load_state_dict(head_state_dict(net, 1), strict=False)
    assert missing == (["unused.weight", "unused.bias"], [])
    assert_same(call(model, feed), call(net.head_outputs, feed)[1])


def test_weights_that_grew_apart() -> None:
    config = tf.LlamaConfig(vocab_size=20, use_cache=False, tie_word_embeddings=True, **SIZES)
    net, feed = fxsplit.split(fxsplit.trace(tf.LlamaForCausalLM(config)), 1, heads=2).eval(), text()
    with pytest.warns(FxSplitWarning, match="lm_head.weight and model.embed_tokens.weight. Make the original without"):
        state = head_state_dict(net, 1)
    model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=20, use_cache=False, **SIZES)).eval()
    model.load_state_dict(state)
    assert_same(call(model, feed), call(net.head_outputs, feed)[1])


def test_weights_that_are_still_equal() -> None:
    net, feed = cut("t5", init="copy"), two_texts()
    model = build("t5", seed=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_state_dict(head_state_dict(net, 0))
    assert_same(call(model, feed), call(net.head_outputs, feed)[0])


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda net: load_pretrained(nn.Linear(1, 1), {}), "Expected a split model, got Linear"),  # type: ignore[arg-type]
        (lambda net: head_state_dict(nn.Linear(1, 1), 0), "Expected a split model, got Linear"),  # type: ignore[arg-type]
        (lambda net: head_state_dict(net, 3), "from -2 to 1, as the net has 2 heads; got 3"),
        (lambda net: head_state_dict(net, True), "got True"),
        (lambda net: head_state_dict(net, "0"), "got '0'"),  # type: ignore[arg-type]
        (lambda net: load_pretrained(copy.deepcopy(net).to("meta"), {}), "'conv1.0.weight' is on the meta device"),
    ],
)
def test_bad_input(action: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(SplitError, match=message):
        action(cut("resnet"))

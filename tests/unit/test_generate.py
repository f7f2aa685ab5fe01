"""Generation: a split model writes what its copied original writes, by every method that transformers has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from torch.distributed import HashStore  # pyright: ignore
from torch.nn.parallel import DistributedDataParallel
from transformers.generation.streamers import BaseStreamer

import fxsplit
from fxsplit import FxSplitError, InputError, SpecError, SplitError
from tests.checks import assert_same, assert_unchanged, snapshot

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
TOKENS: dict[str, Any] = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
START: dict[str, Any] = {"decoder_start_token_id": 0, **TOKENS}
MODELS: dict[str, Any] = {
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(num_key_value_heads=1, **SIZES, **TOKENS)),
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=16, n_layer=3, n_head=2, n_positions=64, **TOKENS)),
    "t5": lambda: tf.T5ForConditionalGeneration(
        tf.T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, **START)
    ),
    "mistral": lambda: tf.MistralForCausalLM(
        tf.MistralConfig(num_key_value_heads=1, sliding_window=4, **SIZES, **TOKENS)
    ),
    "bloom": lambda: tf.BloomForCausalLM(tf.BloomConfig(hidden_size=16, n_layer=3, n_head=2, **TOKENS)),
    "bart": lambda: tf.BartForConditionalGeneration(
        tf.BartConfig(
            d_model=16,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            max_position_embeddings=64,
            forced_eos_token_id=None,
            **START,
        )
    ),
}
SLOW = ("mistral", "bloom", "bart")
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in MODELS]
METHODS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "returned beams": {"num_beams": 2, "num_return_sequences": 2, "no_repeat_ngram_size": 2},
    "sampling": {"do_sample": True, "top_k": 5, "temperature": 0.7},
    "a cache that is not there": {"use_cache": True},
}


def build(name: str) -> Any:
    """A model whose weights are large enough that its tokens depend on the text."""
    torch.manual_seed(len(name))
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def example(model: Any, labels: bool) -> dict[str, Tensor]:
    ids = torch.randint(3, 50, (2, 8))
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if labels:
        return {**found, "labels": ids.clone()}
    return {**found, "decoder_input_ids": torch.randint(3, 50, (2, 6))} if model.config.is_encoder_decoder else found


def copied(model: Any, heads: int = 3, labels: bool = False, vote: str = "mean") -> fxsplit.SplitModel:
    traced = fxsplit.trace(model, example(model, labels))
    cuts = fxsplit.find_cuts(traced)
    return fxsplit.split(traced, cuts[len(cuts) // 2], heads=heads, init="copy", vote=vote).eval()


def padded(length: int = 11) -> tuple[Tensor, Tensor]:
    """Three prompts, two of them padded on the left."""
    ids = torch.randint(3, 50, (3, length))
    mask = torch.ones_like(ids)
    mask[0, : length // 3] = mask[1, :1] = 0
    return ids.masked_fill(mask == 0, 0), mask


def written(model: Any, *args: Any, **options: Any) -> Tensor:
    torch.manual_seed(5)
    return model.generate(*args, **{"max_new_tokens": 9, "pad_token_id": 0, **options})


@pytest.mark.parametrize("labels", [False, True], ids=["", "labels"])
@pytest.mark.parametrize("name", NAMES)
def test_the_tokens_are_those_of_the_original(name: str, labels: bool) -> None:
    model = build(name)
    generator = fxsplit.as_generator(copied(model, labels=labels))
    for length in (11, 3):
        ids, mask = padded(length)
        for method, options in METHODS.items():
            wanted = written(model, ids, attention_mask=mask, **{"use_cache": False, **options})
            found = written(generator, ids, attention_mask=mask, **options)
            assert torch.equal(found, wanted), method
    alone = torch.randint(3, 50, (1, 1))
    wanted = written(model, alone, max_new_tokens=25, use_cache=False)
    assert torch.equal(written(generator, alone, max_new_tokens=25), wanted)


def test_the_function_does_what_the_method_does() -> None:
    model = build("llama")
    ids, mask = padded()
    net = copied(model)
    wanted = model.generate(ids, attention_mask=mask, max_new_tokens=6, use_cache=False)
    assert torch.equal(fxsplit.generate(net, ids, mask, max_new_tokens=6), wanted)
    eos = int(wanted[2, 13])
    wanted = model.generate(ids[2:], max_new_tokens=9, eos_token_id=eos, use_cache=False)
    assert wanted.shape[1] < 20
    assert torch.equal(fxsplit.generate(net, ids[2:], max_new_tokens=9, eos_token_id=eos), wanted)


def test_a_traced_model_generates_too() -> None:
    model = build("gpt2")
    ids, mask = padded()
    wanted = model.generate(ids, attention_mask=mask, max_new_tokens=6, use_cache=False)
    assert torch.equal(fxsplit.generate(fxsplit.trace(model), ids, mask, max_new_tokens=6), wanted)


@pytest.mark.filterwarnings(
    "ignore:train mode is not eval mode"
)  # some versions draw for layers to drop, of which none is
def test_audio_in_text_out() -> None:
    torch.manual_seed(0)
    config = tf.WhisperConfig(
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        num_mel_bins=4,
        max_source_positions=10,
        max_target_positions=40,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        **START,
    )
    model = tf.WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    sound = torch.randn(2, 4, 20)
    traced = fxsplit.trace(model, {"input_features": sound, "decoder_input_ids": torch.randint(3, 50, (2, 6))})
    generator: Any = fxsplit.as_generator(fxsplit.split(traced, 0.5, heads=2, init="copy").eval())
    sound = torch.randn(3, 4, 20)
    mixin: Any = tf.GenerationMixin
    for options in ({}, {"num_beams": 2}):
        # Whisper's own method adds tokens for the task and the language.
        wanted = mixin.generate(model, sound, max_new_tokens=8, use_cache=False, **options)
        assert torch.equal(generator.generate(sound, max_new_tokens=8, **options), wanted)


def test_positions_that_are_inputs() -> None:
    model = build("gpt2")
    given = example(model, labels=False)
    given["position_ids"] = torch.arange(8).expand(2, 8)
    net = fxsplit.split(fxsplit.trace(model, given), 1, heads=2, init="copy").eval()
    ids, mask = padded()
    wanted = model.generate(ids, attention_mask=mask, max_new_tokens=6, use_cache=False)
    assert torch.equal(fxsplit.generate(net, ids, mask, max_new_tokens=6), wanted)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    expected = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(fxsplit.as_generator(net)(ids, mask).logits, expected)


class Tiny(nn.Module):
    """A causal model that is not of transformers; it sees as far back as three tokens, and takes no mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.out = nn.Embedding(30, 8), nn.Conv1d(8, 8, 3, padding=2), nn.Linear(8, 30)

    def forward(self, tokens: Tensor) -> Tensor:
        mixed = self.mix(self.embed(tokens).transpose(1, 2))[:, :, : tokens.shape[1]]
        return self.out(mixed.relu().transpose(1, 2))


def test_a_model_that_is_not_of_transformers() -> None:
    model = Tiny()
    net = fxsplit.split(fxsplit.trace(model, torch.randint(30, (2, 7))), 1, heads=2, init="copy").eval()
    ids = torch.randint(30, (2, 4))
    wanted = ids
    with torch.no_grad():
        for _ in range(5):
            wanted = torch.cat([wanted, model(wanted)[:, -1:].argmax(-1)], 1)
    assert torch.equal(fxsplit.generate(net, ids, max_new_tokens=5), wanted)
    left = torch.cat([torch.zeros_like(ids[:, :3]), ids], 1)
    mask = (torch.arange(7) >= 3).long().expand(2, 7)
    assert torch.equal(fxsplit.generate(net, left, mask, max_new_tokens=5)[:, 3:], wanted)


@pytest.mark.parametrize("vote", ["mean", "prob"])
def test_the_vote_decides(vote: str) -> None:
    net = fxsplit.split(fxsplit.trace(build("llama")), 1, heads=3, vote=vote, seed=3).eval()
    ids = torch.randint(3, 50, (2, 5))
    scores = fxsplit.generate(
        net, ids, max_new_tokens=1, output_scores=True, return_dict_in_generate=True, eos_token_id=None
    )
    with torch.no_grad():
        heads = torch.stack([out.logits[:, -1] for out in net.head_outputs(ids, torch.ones_like(ids))])
    expected = heads.mean(0) if vote == "mean" else heads.softmax(-1).mean(0).log()
    torch.testing.assert_close(scores.scores[0], expected)
    assert torch.equal(scores.sequences[:, -1], expected.argmax(-1))


def test_probabilities_are_a_drop_in_for_logits() -> None:
    """What evaluation harnesses compute: log-likelihoods of continuations, and the perplexity."""
    net = fxsplit.split(fxsplit.trace(build("llama")), 1, heads=3, vote="prob").eval()
    model: Any = fxsplit.as_generator(net)
    ids = torch.randint(3, 50, (2, 9))
    with torch.no_grad():
        found = model(ids).logits
        heads = torch.stack([out.logits for out in net.head_outputs(ids, torch.ones_like(ids))])
    expected = heads.double().softmax(-1).mean(0).log()
    torch.testing.assert_close(found.log_softmax(-1).double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    rows = expected[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    loss = nn.functional.cross_entropy(found[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(loss.double(), -rows.mean(), atol=1e-5, rtol=1e-5)


def test_streamers_and_processors() -> None:
    model = build("llama")
    generator: Any = fxsplit.as_generator(copied(model))
    ids = torch.randint(3, 50, (1, 5))

    class Collect(BaseStreamer):
        def __init__(self) -> None:
            self.seen: list[Tensor] = []

        def put(self, value: Tensor) -> None:
            self.seen.append(value.flatten())

        def end(self) -> None:
            self.seen.append(torch.tensor([]))

    class Odd(tf.LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            return scores.index_fill(1, torch.arange(0, 50, 2), -torch.inf)

    streamer = Collect()
    out = generator.generate(
        ids, max_new_tokens=6, streamer=streamer, logits_processor=tf.LogitsProcessorList([Odd()]), eos_token_id=None
    )
    assert torch.equal(torch.cat(streamer.seen).long(), out[0])
    assert (out[:, 5:] % 2 == 1).all()


def test_it_looks_like_a_transformers_model() -> None:
    model = build("llama")
    model.generation_config.max_new_tokens = 3
    net = copied(model).to(torch.bfloat16)
    generator: Any = fxsplit.as_generator(net)
    before = snapshot(net)
    assert {tf.PreTrainedModel, tf.GenerationMixin} <= set(type(generator).__mro__)
    assert generator.can_generate()
    assert generator.net is net
    assert generator.dtype == torch.bfloat16
    assert generator.device == torch.device("cpu")
    assert generator.config.model_type == "llama"
    assert generator.config.vocab_size == 50
    assert generator.config.use_cache is generator.generation_config.use_cache is False
    assert model.config.use_cache is True
    assert model.generation_config.use_cache is not False
    generator.tie_weights()
    assert generator.generate(torch.tensor([[4, 5]])).shape == (1, 5)
    assert {id(p) for p in generator.parameters()} == {id(p) for p in net.parameters()}
    assert_unchanged(before, net)


def test_calls_take_what_the_net_takes() -> None:
    model = build("llama")
    net = copied(model, labels=True)
    generator: Any = fxsplit.as_generator(net)
    ids = torch.randint(3, 50, (2, 6))
    mask = torch.ones_like(ids)
    assert_same(generator(ids, mask, labels=ids), net(ids, mask, ids))
    assert_same(generator(input_ids=ids, return_dict=True, use_cache=False).logits, net(ids, mask, ids).logits)
    assert "loss" not in generator(ids)
    generator(ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in net.parameters())


def test_an_encoder_decoder_makes_its_tokens_from_labels() -> None:
    model = build("t5")
    generator: Any = fxsplit.as_generator(copied(model))
    ids, labels = torch.randint(3, 50, (2, 6)), torch.randint(3, 50, (2, 4))
    labels[0, 2:] = -100
    expected = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, use_cache=False).logits
    torch.testing.assert_close(generator(input_ids=ids, labels=labels).logits, expected)


def test_gpt2_in_parallel_and_compiled() -> None:
    model = build("gpt2")
    net = copied(model)
    ids, mask = padded()
    wanted = fxsplit.generate(net, ids, mask, max_new_tokens=4)
    compiled: Any = torch.compile(net, backend="eager", dynamic=True)
    assert torch.equal(fxsplit.generate(compiled, ids, mask, max_new_tokens=4), wanted)
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=HashStore())
    try:
        parallel = DistributedDataParallel(net)
        assert torch.equal(fxsplit.generate(parallel, ids, mask, max_new_tokens=4), wanted)
    finally:
        torch.distributed.destroy_process_group()


def test_a_length_that_is_baked_in_is_refused() -> None:
    model = build("llama")
    ids = torch.randint(3, 50, (2, 4))
    net = fxsplit.split(fxsplit.trace(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}), 1).eval()
    with pytest.raises(InputError, match=r"'input_ids' was traced as .* \[batch, 4\]; got \[2, 5\]"):
        fxsplit.generate(net, torch.randint(3, 50, (2, 5)), max_new_tokens=3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda g, ids: g(ids, token_type_ids=ids), InputError, "takes no 'token_type_ids', only"),
        (lambda g, ids: g(ids, labels=ids), InputError, "takes no 'labels'"),
        (lambda g, ids: g(ids, output_attentions=True), InputError, "output_attentions=True was not traced"),
        (lambda g, ids: g(), InputError, r"missing: \['input_ids', 'attention_mask'\]"),
        (lambda g, ids: type(g).from_pretrained("folder"), SpecError, "fxsplit.load"),
        (lambda g, ids: fxsplit.as_generator(nn.Linear(1, 1)), SplitError, "needs a traced or split model, got Linear"),
        (lambda g, ids: fxsplit.generate(ids, ids), SplitError, "needs a traced or split model, got Tensor"),
    ],
)
def test_what_does_not_fit_is_named(call: Any, error: type[FxSplitError], message: str) -> None:
    generator = fxsplit.as_generator(copied(build("llama"), heads=1))
    with pytest.raises(error, match=message):
        call(generator, torch.randint(3, 50, (2, 6)))


def test_decoders_begin_as_their_labels_say() -> None:
    generator: Any = fxsplit.as_generator(copied(build("t5"), heads=1, labels=True))
    with pytest.raises(InputError, match="begin with decoder_start_token_id 0; got"):
        generator(input_ids=torch.ones(1, 5, dtype=torch.long), decoder_input_ids=torch.tensor([[4, 5]]))

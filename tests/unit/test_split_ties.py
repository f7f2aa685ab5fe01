"""Weights and modules that occur more than once: tied across the cut, tied within a head, on both sides, shared."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import fxsplit
from fxsplit import SplitError


class Language(nn.Module):
    """Embedding and output layer share a weight; a norm runs on both sides; two layers of the head share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.one, self.two, self.three = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.three.weight = self.two.weight
        self.out = nn.Linear(4, 7)
        self.out.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.one(self.norm(self.embed(ids)))
        return self.out(self.three(self.norm(self.two(x))))


IDS = torch.tensor([[0, 1, 2], [3, 4, 6]])


def make(at: Any = "one", **options: Any) -> tuple[Language, Any]:
    model = Language()
    return model, fxsplit.split(fxsplit.trace(model, IDS), at, **{"init": "copy", **options})


@pytest.mark.parametrize("init", ["copy", "fresh"])
def test_a_tie_across_the_cut_becomes_a_weight_of_each_head(init: str) -> None:
    model, net = make(init=init)
    weights = [net.trunk.embed.weight, *(head.out.weight for head in net.heads)]
    assert len({id(w) for w in weights}) == 4
    assert ("out.weight", "embed.weight") in net.report.tied
    assert "each head has its own" in str(net.report)
    if init == "copy":
        assert all(torch.equal(output, model(IDS)) for output in net.head_outputs(IDS))
    else:
        assert len({tuple(w.flatten().tolist()) for w in weights}) == 4


@pytest.mark.parametrize("init", ["copy", "fresh"])
def test_a_tie_across_the_cut_can_be_kept(init: str) -> None:
    model, net = make(init=init, tied="share")
    for part in (net, copy.deepcopy(net)):
        assert all(head.out.weight is part.trunk.embed.weight for head in part.heads)
        assert all(head.norm.weight is part.trunk.norm.weight for head in part.heads)
    assert torch.equal(net.trunk.embed.weight, model.embed.weight)
    assert net.trunk.embed.weight is not model.embed.weight
    assert "use the trunk's" in str(net.report)
    assert "out.weight" not in net.report.init


@pytest.mark.parametrize("init", ["copy", "fresh"])
@pytest.mark.parametrize("tied", ["untie", "share"])
def test_a_tie_within_a_head_is_kept_in_every_head(init: str, tied: str) -> None:
    _, net = make(init=init, tied=tied)
    for part in (net, copy.deepcopy(net)):
        assert all(head.two.weight is head.three.weight for head in part.heads)
        assert len({id(head.two.weight) for head in part.heads}) == 3


def test_a_module_on_both_sides_is_copied_into_each_head() -> None:
    model, net = make()
    assert net.report.both_sides == ("norm",)
    norms = [net.trunk.norm, *(head.norm for head in net.heads)]
    assert len({id(n) for n in norms}) == len({n.weight.data_ptr() for n in norms}) == 4
    assert torch.equal(net.head_outputs(IDS)[2], model(IDS))


@pytest.mark.parametrize("init", ["copy", "fresh"])
def test_a_shared_module_is_one_instance_in_all_heads(init: str) -> None:
    model, net = make(init=init, share=("three",))
    twin = copy.deepcopy(net)
    for part in (net, twin):
        assert len({id(head.three) for head in part.heads}) == 1
        # The weight that the shared layer has in common with another one is shared with it.
        assert all(head.two.weight is part.heads[0].three.weight for head in part.heads)
        assert len({id(head.two.bias) for head in part.heads}) == 3
        names = [name for name, _ in part.named_parameters() if "three" in name]
        assert names == ["heads.0.three.bias"]
    assert net.heads[0].three is not twin.heads[0].three
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(IDS), net(IDS))
    net(IDS).sum().backward()
    assert net.heads[0].three.bias.grad is not None
    if init == "copy":
        assert torch.equal(net.head_outputs(IDS)[2], model(IDS))


def test_a_shared_container_covers_what_is_below_it() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), nn.Linear(4, 2))
    net = fxsplit.split(fxsplit.trace(model, torch.zeros(1, 4)), "0", share=("1",))
    assert net.heads[0].get_submodule("1.0") is net.heads[2].get_submodule("1.0")
    assert net.heads[0].get_submodule("1.2") is net.heads[2].get_submodule("1.2")
    assert net.heads[0].get_submodule("2") is not net.heads[2].get_submodule("2")
    sizes = (20, 40, 10)
    assert sum(p.numel() for p in net.parameters()) == sizes[0] + sizes[1] + 3 * sizes[2]


@pytest.mark.parametrize(
    ("share", "message"),
    [
        (("twoo",), "no module 'twoo'. Did you mean 'two'"),
        (("one",), "'one' is used in the trunk"),
        (("norm",), "'norm' is used in the trunk"),
        (("",), "no module ''"),
        ("two", r"write share=\('two',\)"),
    ],
)
def test_what_cannot_be_shared(share: Any, message: str) -> None:
    with pytest.raises(SplitError, match=message):
        make(share=share)


def test_gpt2_output_layer_is_untied_per_head() -> None:
    config = transformers.GPT2Config(
        vocab_size=20, n_embd=8, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    batch = {"input_ids": torch.randint(1, 20, (2, 5)), "attention_mask": torch.ones(2, 5).long()}
    traced = fxsplit.trace(model, batch)
    net = fxsplit.split(traced, 1, init="copy")
    assert net.report.tied == (("lm_head.weight", "transformer.wte.weight"),)
    expected = model(**batch).logits
    assert all(torch.equal(output.logits, expected) for output in net.head_outputs(**batch))
    fresh: Any = fxsplit.split(traced, 1, seed=4)
    assert len({tuple(head.lm_head.weight.flatten().tolist()) for head in fresh.heads}) == 3
    shared: Any = fxsplit.split(traced, 1, tied="share")
    assert all(head.lm_head.weight is shared.trunk.transformer.wte.weight for head in shared.heads)


@pytest.mark.parametrize("init", ["copy", "fresh"])
def test_t5_cut_in_the_decoder(init: str) -> None:
    """Encoder output, masks and position bias go to every head; the dropout of the decoder runs on both sides."""
    config = transformers.T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2)
    config.decoder_start_token_id = 0
    model = transformers.T5ForConditionalGeneration(config).eval()
    batch = {
        "input_ids": torch.randint(1, 20, (2, 5)),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
        "labels": torch.randint(1, 20, (2, 4)),
    }
    net = fxsplit.split(fxsplit.trace(model, batch), "decoder.block.0", init=init)
    assert "decoder.dropout" in net.report.both_sides
    assert [c.name for c in net.report.side_inputs if c.name == "labels"] == ["labels"]
    assert "encoder_last_hidden_state" in net.report.passed
    expected = model(**batch)
    assert type(net(**batch)) is type(expected)
    assert torch.equal(net(**batch).encoder_last_hidden_state, expected.encoder_last_hidden_state)
    outputs = net.head_outputs(**batch)
    torch.testing.assert_close(net(**batch).loss, sum(o.loss for o in outputs) / 3)
    if init == "copy":
        assert all(torch.equal(o.logits, expected.logits) and torch.equal(o.loss, expected.loss) for o in outputs)
    else:
        assert not torch.equal(outputs[0].logits, outputs[1].logits)

"""Models on the meta device: the same graph as on the CPU, also where Python reads masks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

import fxsplit
import sparsity
from fxsplit._errors import TraceError
from fxsplit._trace._recorder import Recorder
from fxsplit._trace._shadow import Shadows, value_of, with_value
from tests.checks import assert_same

SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
START: dict[str, Any] = {"decoder_start_token_id": 0}
TOKENS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2}
MODELS: dict[str, Any] = {
    "llama": (tf.LlamaForCausalLM, lambda: tf.LlamaConfig(vocab_size=99, **SMALL)),
    "gpt2": (tf.GPT2LMHeadModel, lambda: tf.GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=2, **TOKENS)),
    "bert": (tf.BertForSequenceClassification, lambda: tf.BertConfig(vocab_size=99, **SMALL)),
    "t5": (
        tf.T5ForConditionalGeneration,
        lambda: tf.T5Config(vocab_size=99, d_model=32, num_layers=1, num_heads=2, d_ff=48, d_kv=16, **START),
    ),
    "mixtral": (
        tf.MixtralForCausalLM,
        lambda: tf.MixtralConfig(vocab_size=99, num_key_value_heads=1, num_local_experts=4, **SMALL),
    ),
    "vit": (tf.ViTForImageClassification, lambda: tf.ViTConfig(image_size=32, patch_size=8, **SMALL)),
}


def build(name: str, device: str, attention: str = "sdpa") -> nn.Module:
    cls, config = MODELS[name]
    made = config()
    made._attn_implementation = attention
    with torch.device(device):
        return cls(made).eval()


def program(traced: fxsplit.TracedModel) -> list[Any]:
    return [(node.op, str(node.target), str(node.args), str(node.kwargs), node.meta) for node in traced.graph.nodes]


@pytest.mark.parametrize(("name", "attention"), [*((name, "sdpa") for name in MODELS), ("llama", "eager")])
def test_the_graph_is_the_one_of_the_cpu(name: str, attention: str) -> None:
    on_cpu, on_meta = (fxsplit.trace(build(name, device, attention)) for device in ("cpu", "meta"))
    for (*one, meta), (*two, other) in zip(program(on_cpu), program(on_meta), strict=True):
        assert one == two
        assert {**meta, "flops": 0} == {**other, "flops": 0}
    assert str(on_meta.report) == str(on_cpu.report)
    assert all(parameter.is_meta for parameter in on_meta.parameters())


def test_flops_are_those_of_the_cpu() -> None:
    counts = [
        sum(node.meta["flops"] for node in fxsplit.trace(build("llama", device, "eager")).graph.nodes if node.meta)
        for device in ("cpu", "meta")
    ]
    assert counts[0] == counts[1] > 0


IDS = torch.tensor([[5, 6, 7, 8, 9, 1], [9, 8, 7, 2, 3, 4]])


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_inputs_with_values_or_without(device: str) -> None:
    """A mask that hides nothing would be skipped, and one without values is taken to hide a token."""
    given = {"input_ids": IDS.to(device), "attention_mask": torch.ones_like(IDS, device=device)}
    traced = fxsplit.trace(build("llama", "meta"), given)
    reference = fxsplit.trace(build("llama", "cpu"), {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)})
    assert [line[:4] for line in program(traced)] == [line[:4] for line in program(reference)]
    assert traced.example == ((), given)
    out = traced(**{name: value.to("meta") for name, value in given.items()})
    assert out.logits.shape == (2, 6, 99)


def test_a_graph_of_the_meta_device_computes_once_it_has_values() -> None:
    model = build("llama", "cpu")
    traced = fxsplit.trace(build("llama", "meta"))
    traced.to_empty(device="cpu")
    traced.load_state_dict(model.state_dict(), strict=False)
    for name, buffer in model.named_buffers():  # those that state dicts leave out
        traced.get_buffer(name).copy_(buffer)
    feed = {"input_ids": IDS, "attention_mask": (IDS > 1).long()}
    with torch.no_grad():
        assert_same(traced(**feed).logits, model(**feed).logits)


class Reads(nn.Module):
    """Branches on what ``read`` gets from ids."""

    def __init__(self, read: Any) -> None:
        super().__init__()
        self.words, self.lin, self.read = nn.Embedding(20, 4), nn.Linear(4, 4), read

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        return self.lin(x) if self.read(ids, x) else x


KNOWN: dict[str, Any] = {
    "bool": lambda ids, x: (ids >= 0).all(),
    "item": lambda ids, x: ids.min().item() >= 0,
    "int": lambda ids, x: int(ids.min()) >= 0,
    "index": lambda ids, x: range(3)[(ids * 0).sum()] == 0,
    "tolist": lambda ids, x: (ids[0] * 0).tolist() == [0] * ids.shape[1],
    "equal": lambda ids, x: torch.equal(ids, ids.clone()),
    "factories": lambda ids, x: torch.arange(3, device=ids.device).sum() == torch.full((), 3, device=x.device),
    "constants": lambda ids, x: (ids.new_tensor([1, 2]) == torch.tensor([1, 2], device=ids.device)).all(),
    "views and writes": lambda ids, x: _written(ids) == 7,
    "nonzero": lambda ids, x: len((ids[0] * 0 + 1).nonzero()) == ids.shape[1],
}


def _written(ids: Tensor) -> int:
    zeros = torch.zeros(2, 2, dtype=torch.long, device=ids.device)
    zeros[0].add_(3)
    zeros[1, 1] = 1
    return int(zeros.sum())


@pytest.mark.parametrize("kind", KNOWN)
def test_values_of_integers_are_known(kind: str) -> None:
    with torch.device("meta"):
        model = Reads(KNOWN[kind])
    traced = fxsplit.trace(model, torch.zeros(2, 6, dtype=torch.long))
    assert "lin" in [node.target for node in traced.graph.nodes]


UNKNOWN: dict[str, Any] = {
    "an activation": lambda ids, x: x.sum() > 0,
    "a weight": lambda ids, x: torch.equal(x, x + 1),
    "overwritten by an activation": lambda ids, x: _overwritten(ids, x).any(),
    "random": lambda ids, x: torch.rand(3, device=ids.device).sum() > 0,
}


def _overwritten(ids: Tensor, x: Tensor) -> Tensor:
    out = torch.zeros(2, device=ids.device)
    view = out[:1]
    out[1] = x.sum()
    return view


@pytest.mark.parametrize("kind", UNKNOWN)
def test_values_of_activations_are_not(kind: str) -> None:
    with torch.device("meta"):
        model = Reads(UNKNOWN[kind])
    with pytest.raises(TraceError, match=r"on the meta device Python reads values.*Trace the model on a real device"):
        fxsplit.trace(model, torch.zeros(2, 6, dtype=torch.long))


def test_values_live_as_long_as_their_tensors() -> None:
    value = torch.arange(3)
    known = with_value(value)
    assert value_of(known) is value
    with Shadows():
        doubled = known * 2
        anywhere = torch.randn(3, device="meta") * doubled
    assert torch.equal(value_of(doubled), torch.tensor([0, 2, 4]))  # type: ignore[arg-type]
    assert value_of(anywhere) is None
    assert value_of(torch.empty(3, device="meta")) is None


def seven_billion(layers: int) -> nn.Module:
    with torch.device("meta"):
        return tf.LlamaForCausalLM(tf.LlamaConfig(intermediate_size=11008, num_hidden_layers=layers))


@pytest.mark.parametrize("init", ["copy", "fresh"])
def test_surgery_on_layers_of_a_large_llama(init: str) -> None:
    traced = fxsplit.trace(seven_billion(4))
    net = fxsplit.split(traced, 0.5, heads=3, init=init)
    masks = sparsity.sparsify(net, 0.8)
    assert sum(p.numel() for p in net.parameters()) == net.cut.params_before + 3 * net.cut.params_after
    assert all(tensor.is_meta for tensor in (*net.parameters(), *net.buffers()))
    assert masks is not None
    ids = torch.empty(2, 8, dtype=torch.long, device="meta")
    assert net(input_ids=ids, attention_mask=ids).logits.shape == (2, 8, 32000)


@pytest.mark.slow
def test_surgery_on_a_llama_of_seven_billion_weights() -> None:
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.trace_scale", "--only", "7b"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    figures = dict(part.split("=") for part in run.stdout.split() if "=" in part)
    assert float(figures["seconds"]) < 60
    assert float(figures["peak_gb"]) < 2


class _Shy(nn.Module):
    """Runs by itself, but not when a recorder looks."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        if any(isinstance(mode, Recorder) and not mode._silent for mode in _get_current_function_mode_stack()):
            raise RuntimeError("not while you look")
        return self.inside(x)


class _ReadsMask(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shy, self.last = _Shy(), nn.Linear(4, 40)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.last(self.shy(x if bool(mask.all()) else x * mask[..., None]))


def test_what_fails_under_the_recorder_alone_does_not_fix_the_batch() -> None:
    with torch.device("meta"):
        model = _ReadsMask()
    traced = fxsplit.trace(model, (torch.empty(2, 3, 4, device="meta"), torch.tensor([[1, 1, 0], [1, 1, 1]])))
    assert [path for path, _ in traced.report.coarse_leaves] == ["shy"]
    assert traced.report.warnings == []

"""Exported files compute what the net computes, at any batch size, and nothing else happens."""

from __future__ import annotations

import logging
import os
from collections import namedtuple
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import fxsplit._onnx._export
from fxsplit import ExportError, neurotrailify, trace
from fxsplit._onnx._export import export_onnx, relative_error
from fxsplit._onnx._wrapper import named_outputs
from sparsity import masks_of

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(),
        nn.Conv2d(8, 8, 3),
        nn.Flatten(),
        nn.Linear(32, 4),
    )


def run(path: Any, **feed: torch.Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {name: tensor.numpy() for name, tensor in feed.items()})  # type: ignore[return-value]


def test_split_models_are_exported_with_masks_folded(tmp_path, capfd, recwarn):
    model = cnn()
    model(X)  # BatchNorm statistics that eval mode must use
    net: Any = neurotrailify(model, "2", 3, 0.8, X)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    rng = torch.get_rng_state()
    report = export_onnx(net, tmp_path / "net.onnx")
    assert net.training
    assert len(masks_of(net)) == 7
    assert list(net.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())
    assert os.listdir(tmp_path) == ["net.onnx"]
    assert report.bytes == (tmp_path / "net.onnx").stat().st_size
    assert (report.inputs, report.outputs, report.batch_sizes) == (("input",), ("output",), (2, 3))
    assert report.dynamic == {"input": {0: "batch"}}
    assert report.error is not None
    assert report.error < 1e-5
    net.eval()
    for batch in (1, 2, 7):
        x = torch.randn(batch, 3, 6, 6)
        assert relative_error(run(tmp_path / "net.onnx", input=x)[0], net(x).detach().numpy()) < 1e-5
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in onnx.load(tmp_path / "net.onnx").graph.initializer}
    zeros = sum(int((w == 0).sum()) for w in weights.values() if w.ndim > 1)
    assert zeros == masks_of(net).total - masks_of(net).nonzeros
    assert not any("mask" in name for name in weights)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            vocab_size=32,
        )
    )


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=32,
        max_position_embeddings=16,
    )
    return BertForSequenceClassification(config)


@pytest.mark.parametrize("make", [llama, bert], ids=["llama", "bert"])
def test_text_models_with_masks_and_any_length(tmp_path, make):
    net = neurotrailify(make(), 1, 2, 0.5).eval()
    report = export_onnx(net, tmp_path / "net.onnx")
    assert report.inputs == ("input_ids", "attention_mask")
    assert report.outputs == ("logits",)
    assert report.dynamic == {name: {0: "batch", 1: "length"} for name in report.inputs}
    batch = {
        "input_ids": torch.randint(3, 32, (3, 5), generator=torch.Generator().manual_seed(0)),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]),
    }
    (got,) = run(tmp_path / "net.onnx", **batch)
    shown = batch["attention_mask"].bool() if make is llama else slice(None)
    expected = net(**batch)["logits"].detach()
    assert relative_error(got[np.asarray(shown)] if make is llama else got, expected[shown].numpy()) < 1e-5


class Several(nn.Module):
    """Containers, constants, several outputs, an input that is not a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))

    def forward(self, x: torch.Tensor, extra: dict[str, Any], table: torch.Tensor, power: int = 1) -> dict[str, Any]:
        y = self.fc(x) ** power + extra["shift"] * extra["scale"]
        return {"x": y, "nothing": None, "parts": (y @ table, x.argmax(1))}


def test_any_module_with_any_arguments(tmp_path):
    net = Several().eval()
    example = (
        (torch.randn(1, 4), {"shift": torch.randn(1, 4), "scale": 2.0}),
        {"table": torch.randn(4, 3), "power": 2},
    )
    report = export_onnx(net, tmp_path / "net.onnx", example)
    assert report.inputs == ("x", "extra_0", "table")
    assert report.outputs == ("x_out", "parts_0", "parts_1")
    assert report.dynamic == {"x": {0: "batch"}, "extra_0": {0: "batch"}}
    assert report.batch_sizes == (2, 3)  # a batch of one would be taken for a constant
    x, shift, table = torch.randn(5, 4), torch.randn(5, 4), torch.randn(4, 3)
    got = run(tmp_path / "net.onnx", x=x, extra_0=shift, table=table)
    expected = net(x, {"shift": shift, "scale": 2.0}, table, 2)
    for a, b in zip(got, [expected["x"], *expected["parts"]], strict=True):
        assert relative_error(a, b.detach().numpy()) < 1e-5
    assert nn.utils.parametrize.is_parametrized(net.fc)


def test_traced_models_use_their_example(tmp_path):
    report = export_onnx(trace(nn.Linear(4, 2), torch.zeros(3, 4)), tmp_path / "net.onnx", check=False)
    assert report.error is None
    assert report.batch_sizes == ()
    assert report.dynamic == {"input": {0: "batch"}}


def test_models_for_one_batch_size_only(tmp_path):
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, 12) + 1

    report = export_onnx(Fixed(), tmp_path / "net.onnx", torch.randn(2, 3, 4))
    assert report.dynamic == {}
    assert report.batch_sizes == (2,)


def test_a_wrong_file_is_not_delivered(tmp_path, monkeypatch):
    (tmp_path / "net.onnx").write_text("old")
    original = torch.onnx.export

    def wrong(wrapper: Any, *args: Any, **kwargs: Any) -> Any:
        program = original(wrapper, *args, **kwargs)
        wrapper.net.weight = nn.Parameter(wrapper.net.weight * 1.001)  # the file keeps the weights from before
        return program

    monkeypatch.setattr(torch.onnx, "export", wrong)
    with pytest.raises(ExportError, match=r"output 'output' in onnxruntime differs from the model by \d\.\d\de-0[34]"):
        export_onnx(nn.Linear(4, 2, bias=False), tmp_path / "net.onnx", torch.randn(2, 4))
    assert os.listdir(tmp_path) == ["net.onnx"]
    assert (tmp_path / "net.onnx").read_text() == "old"
    report = export_onnx(nn.Linear(4, 2, bias=False), tmp_path / "net.onnx", torch.randn(2, 4), rtol=0.01)
    assert report.error == pytest.approx(0.001, rel=0.5)


class Rejected(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if torch.linalg.eigvals(x @ x.mT).real.sum() > 0 else -x


@pytest.mark.parametrize(
    ("net", "example", "message"),
    [
        (Rejected(), torch.randn(2, 3, 3), "torch.onnx can't export the model"),
        (nn.Linear(4, 2), torch.randn(2, 5), "the model rejects the example with RuntimeError"),
        (nn.Linear(4, 2), None, "no example can be inferred for Linear"),
        (nn.Linear(4, 2), {"y": torch.randn(2, 4)}, "the example does not fit Linear.forward"),
        (torch.relu, torch.randn(2), "takes an nn.Module, got builtin_function_or_method"),
    ],
    ids=["unsupported", "rejected", "no example", "other arguments", "no module"],
)
def test_what_cannot_be_exported(tmp_path, net, example, message):
    with pytest.raises(ExportError, match=message):
        export_onnx(net, tmp_path / "net.onnx", example)
    assert os.listdir(tmp_path) == []


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(fxsplit._onnx._export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"needs onnx, onnxscript: pip install 'fxsplit\[onnx\]'"):
        export_onnx(nn.Linear(4, 2), tmp_path / "net.onnx", torch.zeros(2, 4), check=False)


def test_filters_end_with_the_export():
    with fxsplit._onnx._export._quiet():
        pass
    assert not logging.getLogger("onnxscript.optimizer._constant_folding").filters


def test_names_of_outputs():
    a, b, c = torch.zeros(1), torch.ones(1), torch.ones(2)
    pair = namedtuple("pair", "mean std")
    assert [name for name, _ in named_outputs(a)] == ["output"]
    assert [name for name, _ in named_outputs((a, [b, None, c]))] == ["output_0", "output_1_0", "output_1_2"]
    assert [name for name, _ in named_outputs({"logits": a, "hidden": pair(b, c)})] == [
        "logits",
        "hidden_mean",
        "hidden_std",
    ]


def test_relative_error():
    assert relative_error(np.array([1.0, 2.5]), np.array([1.0, 2.0])) == 0.25
    assert relative_error(np.zeros(3), np.zeros(3)) == 0
    assert relative_error(np.array([1e-9]), np.zeros(1)) == np.inf
    assert relative_error(np.zeros(3), np.zeros((3, 1))) == np.inf
    assert not relative_error(np.array([np.nan]), np.array([1.0])) < 1

"""Speech models of transformers, whose position convolutions are weight-normed, and a codec that is so throughout."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import fxsplit
from fxsplit._trace import trace
from tests.checks import assert_same
from tests.zoo.catalogue.hugging_face import DRAWS_AT_RATE_ZERO, build, feed
from tests.zoo.tracing import check_trace

ALIKE = ["hubert", "unispeech", "unispeech-sat"]  # built like wav2vec2
SPEECH = ["wav2vec2", *(pytest.param(name, marks=pytest.mark.slow) for name in ALIKE), "sew", "wav2vec2-conformer"]


def normed(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if parametrize.is_parametrized(module)]


def check_split(model: nn.Module, traced: fxsplit.TracedModel, at: str, inputs: dict[str, torch.Tensor]) -> None:
    net = fxsplit.split(traced, at, init="copy").eval()
    with torch.no_grad():
        for output in net.head_outputs(**inputs):
            assert_same(output, model(**inputs))
    fresh = fxsplit.split(traced, at, heads=2)
    assert fresh.report.not_redrawn == {}


@pytest.mark.parametrize("name", SPEECH)
def test_speech(name: str) -> None:
    """With layers and time steps that are left out at random, as configured; the report says so."""
    model = build(name)
    with pytest.warns(fxsplit.FxSplitWarning, match="train mode is not eval mode"):
        traced = trace(model, feed(name, 2))
    first = "lt" if DRAWS_AT_RATE_ZERO else "rand"  # of what eval mode does not run
    assert any(line.startswith(f"{first} in ") for line in traced.report.dropped)
    with torch.no_grad():
        for batch in (1, 4, 7):
            assert_same(traced(**feed(name, batch)), model(**feed(name, batch)))
    base = next(path for path in dict(model.named_modules()) if path.endswith("encoder"))
    assert len(normed(model)) == 1
    check_split(model, traced, f"{base}.layers.1", feed(name, 4))


@pytest.mark.parametrize("name", SPEECH)
def test_speech_without_random_structure_is_exact_in_train_mode(name: str) -> None:
    config: Any = copy.deepcopy(build(name).config)
    config.layerdrop, config.apply_spec_augment = 0.0, False
    model = type(build(name))(config).eval()  # type: ignore[call-arg]
    if not DRAWS_AT_RATE_ZERO:
        check_trace(model, lambda batch: feed(name, batch), batches=(2, 3))
        return
    with pytest.warns(fxsplit.FxSplitWarning, match="in train mode it runs lt"):
        traced = trace(model, feed(name, 2))
    with torch.no_grad():
        for batch in (2, 3):
            assert_same(traced(**feed(name, batch)), model(**feed(name, batch)))


def test_a_codec() -> None:
    model = build("encodec")
    traced = check_trace(model, lambda batch: feed("encodec", batch), batches=(1, 4, 7))
    assert len(normed(model)) > 10
    check_split(model, traced, "encoder.layers.7", feed("encodec", 4))

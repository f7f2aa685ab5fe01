"""Models of packages outside the three zoos: exact traces, and splits in the middle."""

from __future__ import annotations

import warnings

import pytest
import torch

import fxsplit
from fxsplit._trace import trace
from fxsplit._trace._inputs import as_example
from tests.checks import assert_same, assert_unchanged, snapshot, tensors
from tests.zoo.measure import call
from tests.zoo.tracing import check_step

with warnings.catch_warnings():
    # x_transformers makes a script when it is imported.
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
    from tests.zoo.packages import PACKAGES

FAST = {
    "smp Unet",
    "smp Segformer",
    "vit_pytorch ViT",
    "vit_pytorch CaiT",
    "vit_pytorch CCT",
    "x_transformers decoder, rotary, GLU",
    "x_transformers encoder, T5 bias",
    "open_clip CLIP",
    "open_clip CLIP, timm tower",
    "open_clip SigLIP",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in PACKAGES]
)
def test_packages(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = PACKAGES[name]()
    model.eval()
    example = inputs(2)
    before = snapshot(model)
    traced = trace(model, example)
    assert_unchanged(before, model)
    assert traced.report.warnings == []
    assert traced.report.guards == []
    # Rotations are computed without autocast by a decorator, which a graph cannot express.
    assert all("autocast" in why for _, why in traced.report.coarse_leaves)
    assert traced.report.dropped == []
    with torch.no_grad():
        for batch in (1, 4, 7):
            example = inputs(batch)
            assert_same(call(traced, example), call(model, example))
    check_step(model, traced, inputs(3))

    cuts = fxsplit.find_cuts(traced)
    cut = cuts[len(cuts) // 2]
    net = fxsplit.split(traced, cut, init="copy").eval()
    example = inputs(4)
    args, kwargs = as_example(example)
    with torch.no_grad():
        for output in net.head_outputs(*args, **kwargs):
            assert_same(output, call(model, example))
    fresh = fxsplit.split(traced, cut, heads=2)
    assert fresh.report.not_redrawn == {}
    assert [value.shape for value in tensors(call(fresh.eval(), example))] == [
        value.shape for value in tensors(call(model, example))
    ]


def test_every_package_is_there() -> None:
    assert {name.partition(" ")[0] for name in PACKAGES} == {"smp", "vit_pytorch", "x_transformers", "open_clip"}
    assert PACKAGES.keys() >= FAST

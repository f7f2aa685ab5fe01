"""Models of timm, with random depth and dropout on."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from fxsplit._trace import trace
from tests.zoo.tracing import check_trace, images

MODELS: dict[str, dict[str, Any]] = {
    "resnet50": {"drop_path_rate": 0.2, "drop_rate": 0.1},
    "wide_resnet50_2": {},
    "efficientnet_b0": {"drop_path_rate": 0.2, "drop_rate": 0.2},
    "convnext_tiny": {"drop_path_rate": 0.2, "depths": (1, 1, 2, 1)},
    "vit_tiny_patch16_224": {
        "img_size": 64,
        "depth": 3,
        "drop_path_rate": 0.2,
        "drop_rate": 0.1,
        "attn_drop_rate": 0.1,
    },
    "swin_tiny_patch4_window7_224": {"img_size": 64, "window_size": 4, "depths": (2, 2, 2, 2), "drop_path_rate": 0.2},
    "regnety_002": {"drop_path_rate": 0.1},
    "densenet121": {"drop_rate": 0.1},
    "mixer_b16_224": {"img_size": 64, "drop_path_rate": 0.1},
}


@pytest.mark.parametrize("name", MODELS)
def test_timm(name: str) -> None:
    model = timm.create_model(name, num_classes=10, **MODELS[name])
    traced = check_trace(model, images("x", size=64 if "patch4" in name or "16" in name else 40))
    assert traced.report.guards == []
    assert traced.report.constants == []
    assert sum(node.meta["flops"] for node in traced.graph.nodes if node.op != "output") > 0


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("test_vit", {}, (2, 3, 160, 160)),
        ("test_vit", {"img_size": 32, "in_chans": 1}, (2, 1, 32, 32)),
        ("mixer_s32_224", {"img_size": (64, 32)}, (2, 3, 64, 32)),
        ("test_resnet", {"in_chans": 2}, (2, 2, 160, 160)),
    ],
)
def test_examples_are_inferred(name: str, options: dict[str, Any], shape: tuple[int, ...]) -> None:
    traced = trace(timm.create_model(name, **options))
    ((x,), kwargs) = traced.example
    assert x.shape == shape
    assert kwargs == {}
    assert x.dtype is torch.float32


def test_every_block_of_a_resnet_is_contiguous() -> None:
    traced = trace(timm.create_model("test_resnet"), torch.randn(2, 3, 32, 32))
    nodes = list(traced.graph.nodes)
    for path in {path for node in nodes[:-1] for path in node.meta["modules"]}:
        inside = [position for position, node in enumerate(nodes[:-1]) if path in node.meta["modules"]]
        assert inside == list(range(inside[0], inside[-1] + 1)), path

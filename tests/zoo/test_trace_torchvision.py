"""Models of torchvision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision import models

from fxsplit._errors import TraceError
from fxsplit._trace import trace
from tests.zoo.tracing import check_trace, images

MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: models.resnet18(num_classes=10),
    "vgg16_bn": lambda: nn.Sequential(models.vgg16_bn(num_classes=10).features, nn.Flatten(), nn.Linear(512, 10)),
    "vit_b_16": lambda: models.VisionTransformer(32, 16, 2, 2, 32, 64, dropout=0.1, attention_dropout=0.1),
    "deeplabv3_resnet50": lambda: models.segmentation.deeplabv3_resnet50(
        weights=None, weights_backbone=None, aux_loss=True, num_classes=5
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_torchvision(name: str) -> None:
    model = MODELS[name]()
    argument = "input" if name == "vgg16_bn" else "x"
    traced = check_trace(model, images(argument, size=32))
    assert traced.report.guards == []
    assert traced.report.constants == []


def test_examples_are_inferred() -> None:
    ((x,), _) = trace(models.VisionTransformer(32, 16, 1, 2, 32, 64)).example
    assert x.shape == (2, 3, 32, 32)
    ((x,), _) = trace(models.squeezenet1_1()).example
    assert x.shape == (2, 3, 224, 224)


def test_detection_is_refused_with_what_can_be_split() -> None:
    with pytest.raises(TraceError, match=r"SSD cannot be traced.*Its backbone can be split"):
        trace(models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None))


def test_what_only_train_mode_returns_is_said() -> None:
    """GoogLeNet computes its auxiliary heads in train mode only."""
    model = models.googlenet(num_classes=5, aux_logits=True, init_weights=False)
    with pytest.warns(UserWarning, match="left out"):
        traced = trace(model, torch.randn(2, 3, 64, 64))
    assert any("aux1" in line for line in traced.report.dropped)
    model.eval()
    x = torch.randn(3, 3, 64, 64)
    assert torch.equal(traced.eval()(x), model(x))

"""Detection models: refused as a whole, split at their backbone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD

import fxsplit
from fxsplit import TraceError

SIDE = 32


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x).relu())


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out_channels = 8
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.Sequential(Block(), Block(), Block())

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x))


def detector(name: str) -> nn.Module:
    torch.manual_seed(0)
    size = {"min_size": SIDE, "max_size": SIDE}
    if name == "SSD":
        backbone = Backbone()
        del backbone.out_channels
        return SSD(backbone, DefaultBoxGenerator([[2]]), (SIDE, SIDE), 2).eval()
    anchors = AnchorGenerator(((8,),), ((1.0,),))
    if name == "RetinaNet":
        return RetinaNet(Backbone(), 2, anchor_generator=anchors, score_thresh=0.0, **size).eval()
    return FasterRCNN(Backbone(), 2, rpn_anchor_generator=anchors, box_score_thresh=0.0, **size).eval()


@pytest.mark.parametrize("name", ["FasterRCNN", "RetinaNet", "SSD"])
def test_a_detection_model_is_refused_and_its_backbone_split(name: str) -> None:
    model, image = detector(name), torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with pytest.raises(TraceError, match=rf"{name} cannot be traced: .*neurotrailify\(model\.backbone, split, exam"):
        fxsplit.neurotrailify(model, 1)
    expected = model([image])[0]
    backbone, example = model.get_submodule("backbone"), torch.zeros(2, 3, SIDE, SIDE)
    assert [cut.path for cut in fxsplit.find_cuts(backbone, example)] == ["blocks.0", "blocks.1"]
    net = fxsplit.neurotrailify(backbone, 1, heads=1, sparsity=0, example=example, init="copy")
    model.backbone = net
    found = model([image])[0]
    assert len(expected["boxes"]) > 0
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_detector_within_a_model_is_named() -> None:
    model = nn.Sequential(nn.Identity(), detector("RetinaNet"))
    with pytest.raises(TraceError, match=r"RetinaNet \(at '1'\) cannot be traced.*model\.1\.backbone = net"):
        fxsplit.trace(model, torch.zeros(1, 3, SIDE, SIDE))

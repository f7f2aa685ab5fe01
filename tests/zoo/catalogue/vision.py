"""timm and torchvision, by the lists that they keep of themselves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from tests.zoo.catalogue.entry import Entry, Inputs

_KINDS = {
    "detection": torchvision.models.detection,
    "segmentation": torchvision.models.segmentation,
    "video": torchvision.models.video,
    "optical_flow": torchvision.models.optical_flow,
}
_INCEPTION = {"inception_v3": 299}
# With real numbers, attention over large images takes tens of gigabytes.
_LARGE = 448
_FLOW = 128  # the smallest image of RAFT


def timm_entries() -> list[Entry]:
    """All of ``timm.list_models()``; the family is the module that defines the model."""
    return [
        Entry("timm", name, timm.models._registry._model_to_module[name], partial(_timm, name), _timm_inputs)
        for name in timm.list_models()
    ]


def torchvision_entries(kinds: tuple[str, ...] = ("", "segmentation", "video", "optical_flow")) -> list[Entry]:
    """Models of ``kinds``; ``''`` is classification. Quantized ones are ScriptModules in all but name: left out."""
    found: list[Entry] = []
    for kind in kinds:
        package = _KINDS.get(kind, torchvision.models)
        for name in torchvision.models.list_models(module=package):
            family = torchvision.models.get_model_builder(name).__module__.rpartition(".")[2]
            found.append(
                Entry("torchvision", name, family, partial(_torchvision, name), _torchvision_inputs(kind, name))
            )
    return found


def _timm(name: str) -> nn.Module:
    return timm.create_model(name, pretrained=False).eval()


def _timm_inputs(model: nn.Module) -> Inputs:
    config: Any = model.pretrained_cfg
    channels, *size = config["input_size"]
    takes_any = config.get("min_input_size") is not None and not config.get("fixed_input_size")
    if takes_any and max(size) > _LARGE and not next(model.parameters()).is_meta:
        size = [384 if size[0] % 32 == 0 else 336] * 2  # of patches of 16 pixels in windows, or of 14 pixels
    return partial(_normal, model, (channels, *size))


def _torchvision(name: str) -> nn.Module:
    options: dict[str, object] = {"weights": None}
    if name in ("inception_v3", "googlenet"):
        options["init_weights"] = False
    if torchvision.models.get_model_builder(name).__module__.split(".")[2] in ("detection", "segmentation"):
        options["weights_backbone"] = None
    device = torch.get_default_device()
    if name.startswith("regnet"):  # it computes its widths with tensors, which have to have values
        with torch.device("cpu"):
            return torchvision.models.get_model(name, **options).eval().to(device)
    return torchvision.models.get_model(name, **options).eval()


def _torchvision_inputs(kind: str, name: str) -> Callable[[nn.Module], Inputs]:
    if kind == "video":
        frames, size = (16, 224) if name.startswith(("mvit", "s3d", "swin3d")) else (8, 112)
        return lambda model: partial(_normal, model, (3, frames, size, size))
    if kind == "optical_flow":
        return lambda model: lambda batch: tuple(_normal(model, (3, _FLOW, _FLOW), batch, seed) for seed in (1, 2))
    size = _INCEPTION.get(name, 224)
    return lambda model: partial(_normal, model, (3, size, size))


def _normal(model: nn.Module, shape: tuple[int, ...], batch: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * seed + batch)
    device = next(model.parameters()).device
    if device.type == "meta":
        return torch.empty(batch, *shape, device=device)
    return torch.randn(batch, *shape, generator=generator).to(device)

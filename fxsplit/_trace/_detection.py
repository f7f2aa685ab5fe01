"""Detection models of torchvision, which no graph describes: how many boxes they return depends on the data."""

from __future__ import annotations

from torch import nn

from fxsplit._errors import TraceError

_PACKAGE = "torchvision.models.detection."


def refuse_detection(model: nn.Module) -> None:
    """Reject a detection model as a whole, and say how its backbone is split.

    Raises:
        TraceError: The model is one, or contains one.
    """
    for path, module in model.named_modules():
        if _is_detector(module):
            name = ".".join(filter(None, (path, "backbone")))
            where = f" (at {path!r})" if path else ""
            raise TraceError(
                f"{type(module).__name__}{where} cannot be traced: it takes a list of images, and the number of its "
                "boxes follows from the data, so that no graph holds for other images. Its backbone can be split: "
                f"net = fxsplit.neurotrailify(model.{name}, split, example=images); model.{name} = net, with images "
                "[B, 3, H, W] of the size that the model resizes its images to (model.transform). "
                f"fxsplit.find_cuts(model.{name}, images) lists its blocks."
            )


def _is_detector(module: nn.Module) -> bool:
    """By names, because torchvision must not become a dependency."""
    family = any(cls.__module__.startswith(_PACKAGE) for cls in type(module).__mro__)
    return family and isinstance(getattr(module, "backbone", None), nn.Module) and hasattr(module, "transform")

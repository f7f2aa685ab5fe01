"""Infers a small example for models of timm, torchvision and transformers."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from fxsplit._errors import TraceError
from fxsplit._trace._inputs import Argument, Example
from fxsplit._trace._transformers_example import transformers_examples

_BATCH = 2
_IMAGE = 224
_INCEPTION = 299
_FLOW = 128  # the smallest that RAFT takes
_VIDEOS = ((8, 112), (16, 224))
# Of models that were built for another size than their configuration says, and do not say which.
_USUAL_SIZES = (224, 256, 192, 384, 160, 128, 288, 240, 320, 448, 512, 96, 64, 32)
# Arguments that switch it off, and what asks for it in a configuration.
_KEPT_FROM_CALL_TO_CALL = {"use_cache": ("use_cache",), "use_mems": ("use_mems_eval", "use_mems_train")}


def infer_examples(model: nn.Module) -> Iterator[Example]:
    """Make inputs for ``model`` from its configuration, the likeliest first, each when it is asked for.

    Raises:
        TraceError: the model comes from none of the known libraries; the message shows what to pass.
    """
    library = next((name for name in _mro_libraries(model) if name in _MAKERS), None)
    examples = _MAKERS[library](model) if library is not None else iter(())
    first = next(examples, None)
    if first is None:
        raise TraceError(
            f"no example can be inferred for {type(model).__name__}{inspect.signature(model.forward)}. Pass what you "
            "would call the model with: trace(model, x), trace(model, (x, y)), trace(model, {'x': x}) or trace(model, "
            "((x,), {'y': y})), for instance trace(model, torch.randn(2, 3, 224, 224))."
        )
    return itertools.chain([first], examples)


def complete(model: nn.Module, arguments: tuple[Argument, ...]) -> tuple[Argument, ...]:
    """Switch off what transformers models hand from call to call: a graph cannot hand out cache objects."""
    parameters = inspect.signature(model.forward).parameters
    given = {argument.name for argument in arguments}
    # Models made of several hand keyword arguments on to the one that has the cache.
    handed_on = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    added = [
        Argument(name, False, keyword=True)
        for name, flags in _KEPT_FROM_CALL_TO_CALL.items()
        if name not in given and (name in parameters or handed_on) and _switched_on(model, flags)
    ]
    return (*arguments, *added)


def _switched_on(model: nn.Module, flags: tuple[str, ...]) -> bool:
    config = getattr(model, "config", None)
    configs = [config, *(part for part in getattr(config, "__dict__", {}).values() if hasattr(part, "to_dict"))]
    return any(getattr(part, flag, None) is True for part in configs for flag in flags)


def _mro_libraries(model: nn.Module) -> list[str]:
    return [cls.__module__.partition(".")[0] for cls in type(model).__mro__]


def _like(model: nn.Module) -> dict[str, Any]:
    """Device and floating type of the model's parameters."""
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    return {} if parameter is None else {"device": parameter.device, "dtype": parameter.dtype}


def _image(model: nn.Module, channels: int, size: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(_BATCH, channels, *size, generator=generator).to(**_like(model))


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, (list, tuple)):
        return int(size[-2]), int(size[-1])
    return int(size), int(size)


def _timm(model: nn.Module) -> Iterator[Example]:
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    channels, *size = config.get("input_size", (3, _IMAGE, _IMAGE))
    # A model built with another img_size or in_chans than its configuration says so in its first layers.
    built = [found for m in model.modules() if (found := getattr(m, "img_size", None)) is not None]
    conv = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    sizes = dict.fromkeys([*map(_pair, built[:1]), _pair(size), *map(_pair, _USUAL_SIZES)])
    for size in sizes:
        yield (_image(model, conv.in_channels if conv is not None else int(channels), size),), {}


def _torchvision(model: nn.Module) -> Iterator[Example]:
    kind = type(model).__module__
    conv = next((m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))), None)
    if conv is None or "detection" in kind:
        return
    if "optical_flow" in kind:
        yield tuple(_image(model, conv.in_channels, (_FLOW, _FLOW), seed) for seed in (0, 1)), {}
    elif isinstance(conv, nn.Conv3d):
        for frames, size in _VIDEOS:
            yield (_image(model, conv.in_channels, (frames, size, size)),), {}
    else:
        for size in (getattr(model, "image_size", _IMAGE), _INCEPTION):
            yield (_image(model, conv.in_channels, _pair(size)),), {}


_MAKERS: dict[str, Callable[[nn.Module], Iterator[Example]]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "transformers": transformers_examples,
}

"""Infers a small example for models of timm, torchvision and transformers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fxsplit._errors import TraceError
from fxsplit._trace._inputs import Argument, Example
from fxsplit._trace._shadow import with_value

_BATCH = 2
_LENGTH = 8
_TARGET_LENGTH = 6
_IMAGE = 224
_FIRST_TOKEN = 3
# Arguments that switch it off, and what asks for it in a configuration.
_KEPT_FROM_CALL_TO_CALL = {"use_cache": ("use_cache",), "use_mems": ("use_mems_eval", "use_mems_train")}


def infer_examples(model: nn.Module) -> list[Example]:
    """Make inputs for ``model`` from its configuration, the likeliest first.

    Raises:
        TraceError: the model comes from none of the known libraries; the message shows what to pass.
    """
    library = next((name for name in _mro_libraries(model) if name in _MAKERS), None)
    examples = _MAKERS[library](model) if library is not None else []
    if not examples:
        raise TraceError(
            f"no example can be inferred for {type(model).__name__}{inspect.signature(model.forward)}. Pass what you "
            "would call the model with: trace(model, x), trace(model, (x, y)), trace(model, {'x': x}) or trace(model, "
            "((x,), {'y': y})), for instance trace(model, torch.randn(2, 3, 224, 224))."
        )
    return examples


def infer_example(model: nn.Module) -> Example:
    """The likeliest of ``infer_examples``."""
    return infer_examples(model)[0]


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


def _image(model: nn.Module, channels: int, size: tuple[int, int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(_BATCH, channels, *size, generator=generator).to(**_like(model))


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, (list, tuple)):
        return int(size[-2]), int(size[-1])
    return int(size), int(size)


def _timm(model: nn.Module) -> list[Example]:
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    channels, *size = config.get("input_size", (3, _IMAGE, _IMAGE))
    # A model built with another img_size or in_chans than its configuration says so in its first layers.
    built = [found for m in model.modules() if (found := getattr(m, "img_size", None)) is not None]
    conv = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    sizes = dict.fromkeys([*map(_pair, built[:1]), _pair(size)])
    return [((_image(model, conv.in_channels if conv is not None else int(channels), size),), {}) for size in sizes]


def _torchvision(model: nn.Module) -> list[Example]:
    conv = next((m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))), None)
    if not isinstance(conv, nn.Conv2d) or "detection" in type(model).__module__:
        return []
    return [((_image(model, conv.in_channels, _pair(getattr(model, "image_size", _IMAGE))),), {})]


def _transformers(model: nn.Module) -> list[Example]:
    config: Any = getattr(model, "config", None)
    names = inspect.signature(model.forward).parameters
    main = getattr(model, "main_input_name", "input_ids")
    if main == "pixel_values":
        size, channels = getattr(config, "image_size", _IMAGE), getattr(config, "num_channels", 3)
        return [((), {"pixel_values": _image(model, channels, _pair(size))})]
    if main != "input_ids":
        return []
    text = getattr(config, "text_config", config)
    device = _like(model).get("device")
    limit = getattr(text, "max_position_embeddings", None) or _LENGTH
    example = {"input_ids": _tokens(text, min(_LENGTH, limit), device)}
    if "attention_mask" in names:
        mask = torch.ones(example["input_ids"].shape, dtype=torch.long)
        mask[0, -2:] = 0
        example["attention_mask"] = _on(device, mask)
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in names:
        example["decoder_input_ids"] = _tokens(text, min(_TARGET_LENGTH, limit), device)
    return [((), example)]


def ordinary_tokens(config: Any) -> list[int]:
    """Ids that stand for nothing special."""
    vocabulary = int(getattr(config, "vocab_size", 2))
    special = {getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos")}
    return [token for token in range(min(_FIRST_TOKEN, vocabulary - 1), vocabulary) if token not in special]


def _tokens(config: Any, length: int, device: torch.device | None) -> torch.Tensor:
    ordinary = ordinary_tokens(config)
    choice = torch.randint(len(ordinary), (_BATCH, length), generator=torch.Generator().manual_seed(0))
    return _on(device, torch.tensor(ordinary)[choice])


def _on(device: torch.device | None, value: torch.Tensor) -> torch.Tensor:
    """On the meta device, where models read masks too, the values stay known."""
    return with_value(value) if device is not None and device.type == "meta" else value.to(device)


_MAKERS: dict[str, Callable[[nn.Module], list[Example]]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "transformers": _transformers,
}

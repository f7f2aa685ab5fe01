"""Examples for models of transformers, made from their configuration."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fxsplit._trace._inputs import Example
from fxsplit._trace._shadow import with_value

_BATCH = 2
_LENGTH = 8
_TARGET_LENGTH = 6
_FIRST_TOKEN = 3
_IMAGE = 224
_SAMPLES = 3200  # a fifth of a second at 16 kHz
_FRAMES = 100
_FEATURES = ("num_mel_bins", "input_feat_per_channel", "feature_size", "feature_projection_input_dim")


def transformers_examples(model: nn.Module) -> Iterator[Example]:
    """Keyword arguments for a model's main input, and for others that it may need, the likeliest first."""
    config: Any = getattr(model, "config", None)
    names = inspect.signature(model.forward).parameters
    main = getattr(model, "main_input_name", "input_ids")
    text = _text(config, names, model)
    if main == "input_ids":
        images = [{**text, **picture} for picture in _images(config, model)] if "pixel_values" in names else []
        found = [text, *images]
    elif main == "pixel_values":
        found = _images(config, model)
        if "input_ids" in names:
            found += [{**picture, **text} for picture in found]
    elif main == "input_values":
        found = [_as(model, {main: values}) for values in _waves(config)]
    elif main == "input_features":
        found = [_as(model, {main: values}) for values in _spectrograms(config)]
        if "decoder_input_ids" in names:
            found = [{**features, "decoder_input_ids": _tokens(config, _TARGET_LENGTH, model)} for features in found]
    else:
        found = []
    return (((), example) for example in found)


def ordinary_tokens(config: Any) -> list[int]:
    """Ids that stand for nothing special."""
    vocabulary = int(getattr(config, "vocab_size", 2))
    named = (getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos"))
    special = {token for ids in named for token in (ids if isinstance(ids, list) else [ids])}
    return [token for token in range(min(_FIRST_TOKEN, vocabulary - 1), vocabulary) if token not in special]


def _text(config: Any, names: Any, model: nn.Module) -> dict[str, Tensor]:
    text = getattr(config, "text_config", config)
    limit = getattr(text, "max_position_embeddings", None)
    # XLNet says -1 where there is no limit.
    limit = limit if isinstance(limit, int) and limit > 0 else _LENGTH
    example = {"input_ids": _tokens(text, min(_LENGTH, limit), model)}
    if "attention_mask" in names:
        mask = torch.ones(_BATCH, example["input_ids"].shape[1], dtype=torch.long)
        mask[0, -2:] = 0
        example["attention_mask"] = _on(model, mask)
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in names:
        example["decoder_input_ids"] = _tokens(text, min(_TARGET_LENGTH, limit), model)
    return example


def _images(config: Any, model: nn.Module) -> list[dict[str, Tensor]]:
    vision = getattr(config, "vision_config", getattr(config, "image_config", config))
    size, channels = getattr(vision, "image_size", None) or _IMAGE, getattr(vision, "num_channels", 3)
    height, width = (size[-2], size[-1]) if isinstance(size, (list, tuple)) else (size, size)
    frames = getattr(vision, "num_frames", None)
    shapes = [(frames, channels, height, width)] if isinstance(frames, int) else []
    return [_as(model, {"pixel_values": _normal(*shape)}) for shape in (*shapes, (channels, height, width))]


def _waves(config: Any) -> list[Tensor]:
    length, bins = getattr(config, "max_length", None), getattr(config, "num_mel_bins", None)
    if isinstance(length, int) and isinstance(bins, int):
        return [_normal(length, bins)]
    return [_normal(_SAMPLES), _normal(getattr(config, "audio_channels", 1), _SAMPLES)]


def _spectrograms(config: Any) -> list[Tensor]:
    bins = next((n for name in _FEATURES if isinstance(n := getattr(config, name, None), int)), None)
    if bins is None:
        return []
    positions = getattr(config, "max_source_positions", None)
    whole = [_normal(bins, 2 * positions)] if isinstance(positions, int) else []
    return [*whole, _normal(_FRAMES, bins)]


def _normal(*shape: int) -> Tensor:
    return torch.randn(_BATCH, *shape, generator=torch.Generator().manual_seed(0))


def _as(model: nn.Module, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """On the device and in the floating type of the model's parameters."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return {name: value.to(device=like.device, dtype=like.dtype) for name, value in values.items()}


def _tokens(config: Any, length: int, model: nn.Module) -> Tensor:
    ordinary = ordinary_tokens(config)
    choice = torch.randint(len(ordinary), (_BATCH, length), generator=torch.Generator().manual_seed(0))
    return _on(model, torch.tensor(ordinary)[choice])


def _on(model: nn.Module, value: Tensor) -> Tensor:
    """On the meta device, where models read masks too, the values stay known."""
    device = next((parameter.device for parameter in model.parameters()), value.device)
    return with_value(value) if device.type == "meta" else value.to(device)

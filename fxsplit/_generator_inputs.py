"""Inputs of a language model that a caller left out, and batches that are padded on the left."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from fxsplit._errors import InputError, near_matches

_IGNORED_LABEL = -100
_TRACE_WITH = "Trace the original model with it in the example."


def complete_inputs(
    given: dict[str, Any], names: Collection[str], main_input: str, config: Any
) -> tuple[dict[str, Any], bool]:
    """Fill in what follows from the rest.

    Args:
        given: Arguments of a call by name, without those that are None.
        names: Inputs of the net.
        main_input: Name of the first one.
        config: Of the original model.

    Returns:
        The arguments, with masks, positions, labels and the decoder's tokens if the net takes them; and whether the
        labels are made up, so that the loss means nothing.

    Raises:
        InputError: An argument is missing, or one was given that the net doesn't take.
    """
    values = dict(given)
    decodes = bool(config.is_encoder_decoder)
    labels = values.get("labels")
    if decodes and labels is not None and "decoder_input_ids" in names:
        values.setdefault("decoder_input_ids", shifted_right(labels, config))
    text = "decoder_input_ids" if decodes else main_input
    invented = labels is None and "labels" in names and text in values
    if invented:
        values["labels"] = shifted_left(values[text]) if decodes else values[text]
    if decodes and "decoder_input_ids" not in names:
        tokens = values.pop("decoder_input_ids", None)
        if tokens is not None and not _starts_right(tokens, config):
            raise InputError(
                "The net makes the decoder's tokens from labels, so they begin with decoder_start_token_id "
                f"{config.decoder_start_token_id}; got {tokens[:, 0].tolist()}. To begin otherwise, trace the original "
                "model with decoder_input_ids in the example."
            )
    _ones(values, names, "attention_mask", values.get(main_input))
    _ones(values, names, "decoder_attention_mask", values.get("decoder_input_ids"))
    if "position_ids" in names and "position_ids" not in values and "attention_mask" in values:
        values["position_ids"] = (values["attention_mask"].long().cumsum(-1) - 1).clamp(min=0)
    _check(values, names, decodes)
    return values, invented


def shifted_right(labels: Tensor, config: Any) -> Tensor:
    """The decoder's tokens ``[B, T]`` for labels ``[B, T]``."""
    start = torch.full_like(labels[:, :1], config.decoder_start_token_id)
    tokens = torch.cat([start, labels[:, :-1]], 1)
    return tokens.masked_fill(tokens == _IGNORED_LABEL, config.pad_token_id or 0)


def shifted_left(tokens: Tensor) -> Tensor:
    """Labels ``[B, T]`` from which a model makes the decoder's ``tokens``; the last one plays no part in that."""
    return torch.cat([tokens[:, 1:], tokens[:, -1:]], 1)


def text_first(values: dict[str, Any]) -> tuple[dict[str, Any], Callable[[Tensor], Tensor]]:
    """Move padding from the left of each row to its right, where a causal model does not see it.

    Returns:
        The arguments, and a function that brings a result ``[B, T, ...]`` back into the order of the caller.
    """
    mask = values.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2 or not _is_padded_left(mask):
        return values, same
    order = torch.argsort((mask == 0).to(torch.uint8), dim=1, stable=True)
    back = torch.argsort(order, dim=1)
    moved = {
        name: value.gather(1, order) if isinstance(value, Tensor) and value.shape == mask.shape else value
        for name, value in values.items()
    }
    return moved, lambda result: torch.take_along_dim(result, back.view(*back.shape, *[1] * (result.ndim - 2)), 1)


def same(result: Tensor) -> Tensor:
    """The result as it is."""
    return result


def _is_padded_left(mask: Tensor) -> bool:
    """Whether a token follows padding somewhere."""
    return mask.shape[1] > 1 and not mask.is_meta and bool(((mask[:, 1:] != 0) & (mask[:, :-1] == 0)).any())


def _starts_right(tokens: Tensor, config: Any) -> bool:
    return tokens.is_meta or bool((tokens[:, 0] == config.decoder_start_token_id).all())


def _ones(values: dict[str, Any], names: Collection[str], mask: str, of: Any) -> None:
    if mask in names and mask not in values and isinstance(of, Tensor):
        values[mask] = of.new_ones(of.shape[:2], dtype=torch.long)


def _check(values: dict[str, Any], names: Collection[str], decodes: bool) -> None:
    missing = [name for name in names if name not in values]
    if missing:
        raise InputError(f"The net was traced with {list(names)}; missing: {missing}.")
    for name in values.keys() - set(names):
        if name == "labels" and decodes:
            continue  # the decoder's tokens were made from them
        harmless = name.endswith("attention_mask") and not _hides(values[name])
        # A causal model needs no mask for padding that comes last.
        if not harmless and not (name == "attention_mask" and not decodes):
            raise InputError(f"The net takes no {name!r}, only {list(names)}. {_TRACE_WITH}{near_matches(name, names)}")


def _hides(mask: Any) -> bool:
    return isinstance(mask, Tensor) and not mask.is_meta and bool((mask == 0).any())

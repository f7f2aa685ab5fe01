"""Further architectures of transformers: its default configurations, made small by the usual names of sizes.

These are the models that nobody looked at one by one. What cannot be built or run this way is left out of the list.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto import modeling_auto as auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.zoo.catalogue.entry import Entry, Inputs
from tests.zoo.catalogue.hugging_face import transformers_entries, without_memory

_SMALL: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embed_dim", "hidden_dim", "dim", "encoder_hidden_size"), 32),
    **dict.fromkeys(("intermediate_size", "d_ff", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "mlp_dim"), 32),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "n_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "d_head", "attention_head_dim"), 8),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers", "num_decoder_layers"), 3),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_encoder_layers"), 3),
    **dict.fromkeys(("vocab_size", "text_vocab_size"), 128),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "n_group", "topk_group"), 2),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **{"image_size": 32, "patch_size": 8, "embedding_size": 32, "rotary_dim": 4, "sliding_window": 4},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
}
# The classes to look for, the most telling first.
_TASKS: Any = (
    auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
    auto.MODEL_MAPPING_NAMES,
)
_LARGEST = 20_000_000
_LENGTH = 12


def shrunk_entries() -> list[Entry]:
    """Every model type outside the catalogue that has a class for one of the usual tasks."""
    known = {entry.name.replace("-", "_") for entry in transformers_entries()}
    found: list[Entry] = []
    for kind in CONFIG_MAPPING:
        names = next((task[kind] for task in _TASKS if kind in task), None)
        if names is None or kind.replace("-", "_") in known:
            continue
        name = names if isinstance(names, str) else names[0]
        found.append(Entry("others", kind, name, partial(_build, kind, name), _inputs))
    return found


def _build(kind: str, name: str) -> nn.Module:
    torch.manual_seed(0)
    cls: Callable[..., nn.Module] = getattr(transformers, name)
    model = cls(without_memory(_shrink(CONFIG_MAPPING[kind]))).eval()
    size = sum(parameter.numel() for parameter in model.parameters())
    if size > _LARGEST:
        raise ValueError(f"its configuration did not shrink: {size} parameters")
    return model


def _shrink(config_class: type[Any]) -> Any:
    default = config_class()
    options: dict[str, Any] = {}
    for key, value in vars(default).items():
        if isinstance(value, int) and not isinstance(value, bool) and key in _SMALL:
            options[key] = _SMALL[key]
        elif hasattr(value, "to_dict"):
            options[key] = _shrink(type(value)).to_dict()
    return config_class(**options)


def _inputs(model: nn.Module) -> Inputs:
    return partial(_feed, model)


def _feed(model: Any, batch: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    config, main = model.config, model.main_input_name

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    if main == "pixel_values":
        size = getattr(config, "image_size", None)
        height, width = size if isinstance(size, (list, tuple)) else (size or 64,) * 2
        return {main: normal(getattr(config, "num_channels", 3), height, width)}
    if main == "input_values":
        return {main: normal(1200)}
    ids = torch.randint(3, 90, (batch, _LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    text = {"input_ids": ids, "attention_mask": mask}
    if getattr(config, "is_encoder_decoder", False):
        text["decoder_input_ids"] = torch.randint(3, 90, (batch, _LENGTH // 2), generator=generator)
    return text

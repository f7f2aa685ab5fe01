"""transformers: 108 tiny architectures, of every kind that the library has."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn

from tests.zoo.catalogue.entry import Entry, Inputs

Options = dict[str, Any]

# Where layers may be dropped (LayerDrop), transformers before 5.23 draws a number for each of them in train mode, also
# at a rate of 0; its speech models do so in eval mode, too.
DRAWS_AT_RATE_ZERO = Version(transformers.__version__) < Version("5.23")

_SIZES: Options = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
_SPECIAL: Options = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_TEXT: Options = {**_SIZES, "vocab_size": 128, "max_position_embeddings": 64}
_DECODER: Options = {**_TEXT, **_SPECIAL, "num_key_value_heads": 2, "head_dim": 8}
_EXPERTS: Options = {**_DECODER, "num_local_experts": 4, "num_experts_per_tok": 2}
_GPT: Options = {"vocab_size": 128, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
_STATE_SPACE: Options = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "state_size": 8,
    "pad_token_id": 0,
}
_T5: Options = {
    **{"vocab_size": 128, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_decoder_layers": 3},
    **{"num_heads": 4, "decoder_start_token_id": 0, "pad_token_id": 0},
}
_TWO_STACKS: Options = {
    **{"encoder_layers": 3, "decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 4},
    **{"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "d_model": 32},
}
_BART: Options = {
    **_TWO_STACKS, **_SPECIAL, "vocab_size": 128, "max_position_embeddings": 64, "decoder_start_token_id": 1,
}  # fmt: skip
_PATCHES: Options = {**_SIZES, "image_size": 32, "patch_size": 8}
_STAGES: Options = {"hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 2, 1]}
_WAVE: Options = {
    **_SIZES,
    **{"conv_dim": [32, 32, 32], "conv_stride": [5, 2, 2], "conv_kernel": [10, 3, 3], "num_feat_extract_layers": 3},
    **{"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "vocab_size": 32, "mask_time_length": 2},
}
_TOWERS: Options = {"text_config": {**_TEXT, "eos_token_id": 2}, "vision_config": _PATCHES}


def _resnet(*features: str) -> Options:
    options: Options = {**_STAGES, "embedding_size": 16, "out_features": list(features)}
    config = transformers.ResNetConfig(**options)
    return {**_TWO_STACKS, "num_queries": 5, "backbone_config": config}


# Name: class, arguments of its configuration.
_DECODERS: dict[str, tuple[str, Options]] = {
    "llama": ("LlamaForCausalLM", _DECODER),
    "mistral": ("MistralForCausalLM", _DECODER),
    "qwen3": ("Qwen3ForCausalLM", _DECODER),
    "gemma": ("GemmaForCausalLM", _DECODER),
    "gemma2": ("Gemma2ForCausalLM", _DECODER),
    "phi3": ("Phi3ForCausalLM", _DECODER),
    "stablelm": ("StableLmForCausalLM", _DECODER),
    "olmo": ("OlmoForCausalLM", _DECODER),
    "olmo2": ("Olmo2ForCausalLM", _DECODER),
    "cohere": ("CohereForCausalLM", _DECODER),
    "starcoder2": ("Starcoder2ForCausalLM", _DECODER),
    "glm4": ("Glm4ForCausalLM", _DECODER),
    "persimmon": ("PersimmonForCausalLM", _DECODER),
    "gpt_neox": ("GPTNeoXForCausalLM", _DECODER),
    "nemotron": ("NemotronForCausalLM", _DECODER),
    "helium": ("HeliumForCausalLM", _DECODER),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        {**_DECODER, "layer_types": ["sliding_attention"] * 2 + ["full_attention"], "sliding_window": 4},
    ),
    "gpt2": ("GPT2LMHeadModel", {**_GPT, "bos_token_id": 1, "eos_token_id": 2}),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        {
            **{"vocab_size": 128, "hidden_size": 32, "num_layers": 4, "num_heads": 4, "window_size": 8},
            **{"attention_types": [[["global", "local"], 2]], "max_position_embeddings": 64},
        },
    ),
    "gptj": ("GPTJForCausalLM", {**_GPT, "rotary_dim": 4}),
    "codegen": ("CodeGenForCausalLM", {**_GPT, "rotary_dim": 4}),
    "bloom": ("BloomForCausalLM", {"vocab_size": 128, "hidden_size": 32, "n_layer": 3, "n_head": 4}),
    "mpt": ("MptForCausalLM", {"vocab_size": 128, "d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 64}),
    "openai-gpt": ("OpenAIGPTLMHeadModel", _GPT),
    "xlnet": ("XLNetLMHeadModel", {"vocab_size": 128, "d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 64}),
}
_MIXTURES: dict[str, tuple[str, Options]] = {
    "mixtral": ("MixtralForCausalLM", _EXPERTS),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        {
            **_DECODER,
            **{"num_experts": 4, "num_experts_per_tok": 2},
            **{"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
        },
    ),
    "olmoe": ("OlmoeForCausalLM", {**_DECODER, "num_experts": 4, "num_experts_per_tok": 2}),
    "deepseek_v3": (
        "DeepseekV3ForCausalLM",
        {
            **{**_TEXT, "bos_token_id": 1, "eos_token_id": 2, "num_key_value_heads": 4, "moe_intermediate_size": 32},
            **{"n_routed_experts": 8, "n_shared_experts": 1, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2},
            **{"first_k_dense_replace": 1, "kv_lora_rank": 16, "q_lora_rank": 16},
            **{"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
        },
    ),
    "gpt_oss": (
        "GptOssForCausalLM",
        {
            **{**_EXPERTS, "sliding_window": 4, "layer_types": ["sliding_attention"] + ["full_attention"] * 2},
            **{"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        },
    ),
    "granitemoe": ("GraniteMoeForCausalLM", _EXPERTS),
}
_STATE_SPACES: dict[str, tuple[str, Options]] = {
    "mamba": ("MambaForCausalLM", _STATE_SPACE),
    "falcon_mamba": ("FalconMambaForCausalLM", _STATE_SPACE),
    "rwkv": (
        "RwkvForCausalLM",
        {
            **{"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 3},
            **{"attention_hidden_size": 32, "context_length": 64},
        },
    ),
    "jamba": (
        "JambaForCausalLM",
        {
            **{**_DECODER, "num_experts": 2, "num_experts_per_tok": 1, "use_mamba_kernels": False},
            **{"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8},
        },
    ),
}
_GROUPED: Options = {
    **{"embedding_size": 32, "q_groups": 2, "k_groups": 2, "v_groups": 2, "post_attention_groups": 1},
    **{"intermediate_groups": 2, "output_groups": 2},
}
_ENCODERS: dict[str, tuple[str, Options]] = {
    "bert": ("BertForSequenceClassification", _TEXT),
    "roberta": ("RobertaForSequenceClassification", _TEXT),
    "electra": ("ElectraForSequenceClassification", {**_TEXT, "embedding_size": 32}),
    "albert": ("AlbertForSequenceClassification", {**_TEXT, "embedding_size": 16}),
    "deberta": (
        "DebertaForSequenceClassification",
        {**_TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 16},
    ),
    "modernbert": (
        "ModernBertForSequenceClassification",
        {**_TEXT, **_SPECIAL, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 8},
    ),
    "roformer": ("RoFormerForSequenceClassification", _TEXT),
    "rembert": ("RemBertForSequenceClassification", {**_TEXT, "input_embedding_size": 16, "output_embedding_size": 16}),
    "megatron-bert": ("MegatronBertForSequenceClassification", _TEXT),
    "layoutlm": ("LayoutLMForSequenceClassification", _TEXT),
    "nystromformer": (
        "NystromformerForSequenceClassification",
        {**_TEXT, "segment_means_seq_len": 12, "num_landmarks": 12},
    ),
    "fnet": ("FNetForSequenceClassification", _TEXT),
    "squeezebert": ("SqueezeBertForSequenceClassification", {**_TEXT, **_GROUPED}),
    "big_bird": ("BigBirdForSequenceClassification", {**_TEXT, "attention_type": "original_full"}),
    "longformer": ("LongformerForSequenceClassification", {**_TEXT, "attention_window": 4}),
    "esm": ("EsmForSequenceClassification", {**_TEXT, "pad_token_id": 1}),
    "ibert": ("IBertForSequenceClassification", _TEXT),
    "canine": (
        "CanineForSequenceClassification",
        {
            **{**_TEXT, "num_hash_functions": 2, "num_hash_buckets": 64},
            **{"downsampling_rate": 2, "local_transformer_stride": 8},
        },
    ),
    "mobilebert": (
        "MobileBertForSequenceClassification",
        {**_TEXT, "embedding_size": 32, "intra_bottleneck_size": 16},
    ),
    "camembert": ("CamembertForMaskedLM", _TEXT),
    "xmod": ("XmodForSequenceClassification", {**_TEXT, "default_language": "en_XX"}),
    "funnel": (
        "FunnelForSequenceClassification",
        {"vocab_size": 128, "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64, "block_sizes": [1, 2, 1]},
    ),
}
_ENCODER_DECODERS: dict[str, tuple[str, Options]] = {
    "t5": ("T5ForConditionalGeneration", _T5),
    "mt5": ("MT5ForConditionalGeneration", _T5),
    "umt5": ("UMT5ForConditionalGeneration", _T5),
    "longt5": ("LongT5ForConditionalGeneration", _T5),
    "switch_transformers": ("SwitchTransformersForConditionalGeneration", {**_T5, "num_experts": 4}),
    "mbart": ("MBartForConditionalGeneration", _BART),
    "pegasus": ("PegasusForConditionalGeneration", _BART),
    "marian": ("MarianMTModel", _BART),
    "blenderbot": ("BlenderbotForConditionalGeneration", _BART),
    "led": (
        "LEDForConditionalGeneration",
        {
            **{**_BART, "attention_window": 4},
            **{"max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64},
        },
    ),
    "prophetnet": (
        "ProphetNetForConditionalGeneration",
        {
            **{"vocab_size": 128, "hidden_size": 32, "num_encoder_layers": 3, "num_decoder_layers": 3},
            **{"num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4},
            **{"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64},
        },
    ),
}
_VISION: dict[str, tuple[str, Options]] = {
    "vit": ("ViTForImageClassification", _PATCHES),
    "deit": ("DeiTForImageClassification", _PATCHES),
    "beit": ("BeitForImageClassification", _PATCHES),
    "vit_mae": ("ViTMAEModel", _PATCHES),
    "dinov2": ("Dinov2ForImageClassification", _PATCHES),
    "dinov3_vit": ("DINOv3ViTModel", _PATCHES),
    "ijepa": ("IJepaForImageClassification", _PATCHES),
    "swin": (
        "SwinForImageClassification",
        {
            **{"image_size": 32, "patch_size": 2, "embed_dim": 16},
            **{"depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        },
    ),
    "convnext": ("ConvNextForImageClassification", {**_STAGES, "image_size": 64}),
    "convnextv2": ("ConvNextV2ForImageClassification", {**_STAGES, "image_size": 64}),
    "segformer": (
        "SegformerForSemanticSegmentation",
        {**_STAGES, "num_attention_heads": [1, 2, 2, 4], "decoder_hidden_size": 32},
    ),
    "resnet": ("ResNetForImageClassification", {**_STAGES, "embedding_size": 16}),
    "mobilevit": ("MobileViTForImageClassification", {"image_size": 64}),
    "pvt_v2": ("PvtV2ForImageClassification", {"image_size": 64}),
    "focalnet": ("FocalNetForImageClassification", {"image_size": 64, "embed_dim": 16}),
    "bit": (
        "BitForImageClassification",
        {"embedding_size": 32, "hidden_sizes": [32, 32, 64, 64], "depths": [1, 1, 2, 1], "num_groups": 8},
    ),
    "hiera": (
        "HieraForImageClassification",
        {"image_size": [64, 64], "patch_stride": [4, 4], "embed_dim": 16, "depths": [1, 1, 2, 1]},
    ),
    "siglip_vision_model": ("SiglipVisionModel", _PATCHES),
    "yolos": (
        "YolosForObjectDetection",
        {**_SIZES, "image_size": [32, 32], "patch_size": 8, "num_detection_tokens": 5},
    ),
    "dpt": (
        "DPTForDepthEstimation",
        {
            **{**_PATCHES, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "is_hybrid": False},
            **{"neck_hidden_sizes": [16, 32, 32, 32], "fusion_hidden_size": 32},
        },
    ),
    "swiftformer": ("SwiftFormerForImageClassification", {}),
    "timesformer": ("TimesformerForVideoClassification", {**_PATCHES, "num_frames": 4}),
    "conditional_detr": ("ConditionalDetrForObjectDetection", _resnet("stage4")),
    "deformable_detr": (
        "DeformableDetrForObjectDetection",
        {**_resnet("stage2", "stage3", "stage4"), "num_feature_levels": 3},
    ),
}
_AUDIO: dict[str, tuple[str, Options]] = {
    "wav2vec2": ("Wav2Vec2ForCTC", _WAVE),
    "hubert": ("HubertForCTC", _WAVE),
    "unispeech": ("UniSpeechForCTC", _WAVE),
    "unispeech-sat": ("UniSpeechSatForCTC", _WAVE),
    "sew": ("SEWForCTC", _WAVE),
    "wav2vec2-conformer": ("Wav2Vec2ConformerForCTC", _WAVE),
    "whisper": (
        "WhisperForConditionalGeneration",
        {**_BART, "num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 32},
    ),
    "audio-spectrogram-transformer": (
        "ASTForAudioClassification",
        {**_PATCHES, "max_length": 32, "num_mel_bins": 16, "frequency_stride": 8, "time_stride": 8},
    ),
    "encodec": ("EncodecModel", {"num_filters": 4, "hidden_size": 16, "codebook_size": 32, "codebook_dim": 16}),
}
_SEVERAL_INPUTS: dict[str, tuple[str, Options]] = {
    "clip": ("CLIPModel", _TOWERS),
    "chinese_clip": ("ChineseCLIPModel", {"text_config": _TEXT, "vision_config": _PATCHES}),
    "altclip": ("AltCLIPModel", {"text_config": {**_TEXT, "project_dim": 32}, "vision_config": _PATCHES}),
    "clipseg": (
        "CLIPSegForImageSegmentation",
        {**_TOWERS, "extract_layers": [0, 1, 2], "reduce_dim": 16, "decoder_num_attention_heads": 4},
    ),
    "flava": (
        "FlavaModel",
        {
            **{"text_config": _TEXT, "image_config": _PATCHES, "hidden_size": 32},
            **{"multimodal_config": {**_SIZES, "num_hidden_layers": 2}},
        },
    ),
    "groupvit": (
        "GroupViTModel",
        {
            "text_config": {**_TEXT, "eos_token_id": 2},
            "vision_config": {
                **{"hidden_size": 32, "image_size": 64, "patch_size": 8, "depths": [1, 1, 1]},
                **{"num_group_tokens": [8, 4, 0], "num_output_groups": [8, 4, 1]},
                **{"num_attention_heads": 4, "intermediate_size": 64},
            },
        },
    ),
    "llava": (
        "LlavaForConditionalGeneration",
        {
            "text_config": {**_DECODER, "model_type": "llama"},
            "vision_config": {**_PATCHES, "model_type": "clip_vision_model", "projection_dim": 32},
            **{"image_token_index": 99, "image_seq_length": 16},
        },
    ),
}
_KINDS = {
    "decoder": _DECODERS,
    "mixture of experts": _MIXTURES,
    "state space": _STATE_SPACES,
    "encoder": _ENCODERS,
    "encoder-decoder": _ENCODER_DECODERS,
    "vision": _VISION,
    "audio": _AUDIO,
    "multimodal": _SEVERAL_INPUTS,
}
_CONFIG_CLASSES = {"gemma3_text": "Gemma3TextConfig"}
_IDS_ONLY = {"mamba", "falcon_mamba", "rwkv", "fnet"}
_IMAGE_SIZES = {
    **dict.fromkeys(("convnext", "convnextv2", "segformer", "resnet", "mobilevit", "pvt_v2", "focalnet", "bit"), 64),
    **{"hiera": 64, "conditional_detr": 64, "deformable_detr": 64, "groupvit": 64, "swiftformer": 224},
}
_LENGTH, _TARGET_LENGTH = 12, 6
_IMAGE_TOKEN = 99


def transformers_entries() -> list[Entry]:
    """All 108, with the attention that transformers picks by itself."""
    return [
        Entry("transformers", name, kind, partial(build, name), partial(_inputs, name, kind))
        for kind, models in _KINDS.items()
        for name in models
    ]


def build(name: str) -> nn.Module:
    """The model called ``name``, in eval mode, from a fixed seed."""
    cls_name, options = next(models[name] for models in _KINDS.values() if name in models)
    cls: Any = getattr(transformers, cls_name)
    config_class: Any = getattr(transformers, _CONFIG_CLASSES[name]) if name in _CONFIG_CLASSES else cls.config_class
    config = without_memory(config_class(**options))
    torch.manual_seed(0)
    return cls(config).eval()


def without_memory(config: Any) -> Any:
    """Switch off what a model returns for its next call, like a key-value cache: no graph holds it."""
    for part in (config, *vars(config).values()):
        for flag in ("use_cache", "use_mems_eval", "use_mems_train"):
            if getattr(part, flag, None) is True:
                setattr(part, flag, False)
    return config


def feed(name: str, batch: int, length: int = _LENGTH) -> dict[str, Tensor]:
    """Keyword arguments for the model called ``name``; the first row of an attention mask has three hidden tokens."""
    kind = next(kind for kind, models in _KINDS.items() if name in models)
    generator = torch.Generator().manual_seed(batch)
    return _feed(name, kind, batch, length, generator)


def _inputs(name: str, kind: str, model: nn.Module) -> Inputs:
    device = next(model.parameters()).device
    return lambda batch: {key: value.to(device) for key, value in feed(name, batch).items()}


def _feed(name: str, kind: str, batch: int, length: int, generator: torch.Generator) -> dict[str, Tensor]:
    def ids(count: int) -> Tensor:
        return torch.randint(3, 90, (batch, count), generator=generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, -3:] = 0
    size = _IMAGE_SIZES.get(name, 32)
    special: dict[str, Callable[[], dict[str, Tensor]]] = {
        "whisper": lambda: {"input_features": normal(16, 40), "decoder_input_ids": ids(_TARGET_LENGTH)},
        "audio-spectrogram-transformer": lambda: {"input_values": normal(32, 16)},
        "encodec": lambda: {"input_values": normal(1, 1200)},
        "timesformer": lambda: {"pixel_values": normal(4, 3, size, size)},
        "llava": lambda: {**_around_image(ids(24)), "pixel_values": normal(3, size, size)},
    }
    by_kind: dict[str, Callable[[], dict[str, Tensor]]] = {
        "audio": lambda: {"input_values": normal(1200)},
        "vision": lambda: {"pixel_values": normal(3, size, size)},
        "multimodal": lambda: {**_ends(ids(length)), "attention_mask": mask, "pixel_values": normal(3, size, size)},
        "encoder-decoder": lambda: {
            "input_ids": ids(length),
            "attention_mask": mask,
            "decoder_input_ids": ids(_TARGET_LENGTH),
        },
    }
    text = {"input_ids": ids(length), "attention_mask": mask}
    if name in _IDS_ONLY:
        del text["attention_mask"]
    make = special.get(name) or by_kind.get(kind)
    return make() if make is not None else text


def _ends(ids: Tensor) -> dict[str, Tensor]:
    """CLIP pools where the text ends."""
    ids[:, -4] = 2
    return {"input_ids": ids}


def _around_image(ids: Tensor) -> dict[str, Tensor]:
    ids[:, 1:17] = _IMAGE_TOKEN
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    return {"input_ids": ids, "attention_mask": mask}

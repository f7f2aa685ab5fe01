"""Small models of packages that write models in their own ways: how to build them, and inputs at any batch size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import open_clip
import segmentation_models_pytorch as smp
import torch
import x_transformers as xt
from torch import Tensor, nn
from vit_pytorch import cait, cct, deepvit, efficient, levit, mobile_vit, nest, simple_vit, t2t, vit

Inputs = Callable[[int], Any]
Build = Callable[[], tuple[nn.Module, Inputs]]


def _images(size: int = 32, channels: int = 3) -> Inputs:
    return lambda batch: (torch.randn(batch, channels, size, size),)


def _tokens(length: int = 12) -> Inputs:
    return lambda batch: (torch.randint(3, 90, (batch, length)),)


def _masked_tokens(length: int = 12) -> Inputs:
    def make(batch: int) -> tuple[tuple[Tensor], dict[str, Tensor]]:
        mask = torch.ones(batch, length, dtype=torch.bool)
        mask[0, -3:] = False
        return (torch.randint(3, 90, (batch, length)),), {"mask": mask}

    return make


def _segmentation(name: str, encoder: str = "resnet18", size: int = 64, **options: Any) -> Build:
    def build() -> tuple[nn.Module, Inputs]:
        model = getattr(smp, name)(encoder, encoder_weights=None, classes=3, **options)
        return model, _images(size)

    return build


def _decoder(**options: Any) -> Build:
    def build() -> tuple[nn.Module, Inputs]:
        layers = xt.Decoder(dim=32, depth=3, heads=2, attn_dim_head=16, **options)
        return xt.TransformerWrapper(num_tokens=99, max_seq_len=32, attn_layers=layers), _tokens()

    return build


def _encoder(**options: Any) -> Build:
    def build() -> tuple[nn.Module, Inputs]:
        layers = xt.Encoder(dim=32, depth=3, heads=2, attn_dim_head=16, **options)
        return xt.TransformerWrapper(num_tokens=99, max_seq_len=32, attn_layers=layers), _masked_tokens()

    return build


def _continuous() -> tuple[nn.Module, Inputs]:
    layers = xt.Encoder(dim=32, depth=3, heads=2, attn_dim_head=16)
    model = xt.ContinuousTransformerWrapper(dim_in=5, dim_out=4, max_seq_len=32, attn_layers=layers)
    return model, lambda batch: (torch.randn(batch, 9, 5),)


def _xt_vision() -> tuple[nn.Module, Inputs]:
    layers = xt.Encoder(dim=32, depth=3, heads=2, attn_dim_head=16)
    return xt.ViTransformerWrapper(image_size=32, patch_size=8, num_classes=5, attn_layers=layers), _images()


_VIT: dict[str, Any] = {"image_size": 32, "patch_size": 8, "num_classes": 5, "dim": 32}
_BLOCKS: dict[str, Any] = {"depth": 3, "heads": 2, "mlp_dim": 48}
_CLIP_TEXT: dict[str, Any] = {"context_length": 12, "vocab_size": 99, "width": 32, "heads": 2, "layers": 3}


def _clip(kind: type[nn.Module], vision: dict[str, Any], **options: Any) -> Build:
    def build() -> tuple[nn.Module, Inputs]:
        model = kind(embed_dim=16, vision_cfg=vision, text_cfg={**_CLIP_TEXT, **options})

        def make(batch: int) -> tuple[Tensor, Tensor]:
            text = torch.randint(3, 90, (batch, 12))
            text[:, -2] = 98  # the end of the text, which is the largest token
            return torch.randn(batch, 3, 32, 32), text

        return model, make

    return build


_CLIP_VIT = {"image_size": 32, "patch_size": 8, "layers": 3, "width": 32, "head_width": 16}

PACKAGES: dict[str, Build] = {
    "smp Unet": _segmentation("Unet"),
    "smp UnetPlusPlus": _segmentation("UnetPlusPlus"),
    "smp FPN": _segmentation("FPN"),
    "smp DeepLabV3Plus": _segmentation("DeepLabV3Plus"),
    "smp PSPNet": _segmentation("PSPNet"),
    "smp MAnet": _segmentation("MAnet"),
    "smp Linknet": _segmentation("Linknet"),
    "smp PAN": _segmentation("PAN", size=128),
    "smp UPerNet": _segmentation("UPerNet"),
    "smp Segformer": _segmentation("Segformer", "mit_b0"),
    "smp Unet, timm encoder, two outputs": _segmentation(
        "Unet", "tu-resnet10t", aux_params={"classes": 4, "dropout": 0.2}, decoder_attention_type="scse"
    ),
    "vit_pytorch ViT": lambda: (vit.ViT(**_VIT, **_BLOCKS, dropout=0.1, emb_dropout=0.1), _images()),
    "vit_pytorch SimpleViT": lambda: (simple_vit.SimpleViT(**_VIT, **_BLOCKS), _images()),
    "vit_pytorch DeepViT": lambda: (deepvit.DeepViT(**_VIT, **_BLOCKS, dim_head=16), _images()),
    "vit_pytorch CaiT": lambda: (
        cait.CaiT(**_VIT, **_BLOCKS, cls_depth=2, dropout=0.1, layer_dropout=0.0),
        _images(),
    ),
    "vit_pytorch T2TViT": lambda: (
        t2t.T2TViT(dim=32, image_size=32, num_classes=5, **_BLOCKS, t2t_layers=((7, 4), (3, 2))),
        _images(),
    ),
    "vit_pytorch CCT": lambda: (
        cct.CCT(img_size=32, embedding_dim=32, n_conv_layers=1, num_layers=3, num_heads=2, mlp_ratio=2, num_classes=5),
        _images(),
    ),
    "vit_pytorch LeViT": lambda: (
        levit.LeViT(
            image_size=64, num_classes=5, stages=2, dim=(32, 48), depth=2, heads=(2, 3), mlp_mult=2, dropout=0.1
        ),
        _images(64),
    ),
    "vit_pytorch NesT": lambda: (
        nest.NesT(image_size=32, patch_size=4, num_classes=5, dim=16, heads=2, num_hierarchies=2, block_repeats=(2, 2)),
        _images(),
    ),
    "vit_pytorch MobileViT": lambda: (
        mobile_vit.MobileViT((64, 64), [24, 32, 40], [8, 8, 16, 16, 24, 24, 32, 32, 40, 40, 48], 5),
        _images(64),
    ),
    "vit_pytorch efficient ViT": lambda: (
        efficient.ViT(**_VIT, transformer=xt.Encoder(dim=32, depth=3, heads=2, attn_dim_head=16)),
        _images(),
    ),
    "x_transformers decoder": _decoder(),
    "x_transformers decoder, rotary, GLU": _decoder(rotary_pos_emb=True, ff_glu=True, ff_swish=True, use_rmsnorm=True),
    "x_transformers decoder, ALiBi": _decoder(alibi_pos_bias=True, alibi_num_heads=1, attn_dropout=0.1, ff_dropout=0.1),
    "x_transformers encoder": _encoder(),
    "x_transformers encoder, T5 bias": _encoder(rel_pos_bias=True, pre_norm=False, residual_attn=True),
    "x_transformers encoder, fused attention": _encoder(attn_flash=True, sandwich_coef=1),
    "x_transformers continuous": _continuous,
    "x_transformers ViT": _xt_vision,
    "open_clip CLIP": _clip(open_clip.model.CLIP, _CLIP_VIT),
    "open_clip CLIP, quick GELU": _clip(open_clip.model.CustomTextCLIP, {**_CLIP_VIT, "ls_init_value": 0.1}),
    "open_clip CLIP, ResNet": _clip(
        open_clip.model.CLIP, {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    ),
    "open_clip CLIP, timm tower": _clip(
        open_clip.model.CustomTextCLIP,
        {
            "image_size": 32,
            "timm_model_name": "test_resnet",
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
        },
    ),
    "open_clip CLIP, attention pool": _clip(
        open_clip.model.CustomTextCLIP,
        {**_CLIP_VIT, "attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2},
    ),
    "open_clip SigLIP": _clip(
        open_clip.model.CustomTextCLIP, _CLIP_VIT, pool_type="last", no_causal_mask=True, proj_bias=True
    ),
}

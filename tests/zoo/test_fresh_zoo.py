"""Fresh heads of real models: what is random in them, what is fixed, and how the random part is distributed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import timm
import torch
from torch import Tensor, nn

from fxsplit._init._fresh import HeadDraw, fresh_heads
from tests.zoo.catalogue.entry import Entry
from tests.zoo.catalogue.hugging_face import transformers_entries
from tests.zoo.catalogue.vision import timm_entries, torchvision_entries
from tests.zoo.fresh import Make, check_fresh, ks_p, maker, seeded

# The smallest of every family that has something of its own to initialise, first those of the default tests.
_TELLING = (
    *("test_vit", "test_resnet", "test_efficientnet", "test_mambaout", "test_convnext", "test_nfnet"),
    *("edgenext_xx_small"),
    *("llama", "gemma", "camembert", "mamba", "rwkv", "t5", "wav2vec2", "encodec", "swin", "gpt2", "deformable_detr"),
    "shufflenet_v2_x0_5",
)
_TIMM = (
    *("beit_base_patch16_224", "cait_xxs24_224", "coat_tiny", "convmixer_768_32", "cpubone_nano", "crossvit_tiny_240"),
    *("cs3darknet_focus_s", "csatv2", "cspnext_tiny", "davit_tiny", "deepseek_vit_412m", "deit_tiny_patch16_224"),
    *("densenet121", "dpn48b", "efficientformer_l1", "efficientformerv2_s0", "efficientvim_m1", "efficientvit_b0"),
    *("efficientvit_m0", "ese_vovnet19b_slim_dw", "fasternet_t0", "fastvit_t8", "focalnet_tiny_srf", "gcvit_xxtiny"),
    *("gemma4_vit_167m", "ghostnet_050", "gmlp_ti16_224", "halonet_h1", "hardcorenas_b", "hgnetv2_b0"),
    *("hiera_tiny_224", "hrnet_w18_small", "iformer_t", "inception_next_atto", "inception_resnet_v2", "inception_v3"),
    *("inception_v4", "lcnetv2_small", "legacy_seresnet18", "legacy_xception", "levit_128s", "lowformer_b0"),
    *("mobilenetv3_small_050", "mobilenetv5_base", "mobilevit_xxs", "mvitv2_tiny", "nasnetalarge", "nest_tiny"),
    *("naflexvit_so150m2_patch16_reg1_gap", "nextvit_small", "pit_ti_224", "pnasnet5large", "poolformerv2_s12"),
    *("pvt_v2_b0", "qwen3_vit_88m", "rdnet_tiny", "regnetx_002", "repghostnet_050", "repvit_m1", "res2next50"),
    *("resnest14d", "resnetv2_18", "rexnet_100", "sam2_hiera_tiny", "samvit_base_patch16_224", "selecsls42"),
    *("sequencer2d_s", "shvit_s1", "skresnet18", "starnet_s050", "swiftformer_xs", "swin_tiny_patch4_window7_224"),
    *("swinv2_cr_tiny_224", "swinv2_tiny_window16_256", "test_byobnet", "test_coatnet", "test_vit_relpos"),
    *("tiny_vit_5m_224", "tnt_s_legacy_patch16_224", "tresnet_m", "twins_svt_small", "vgg11", "visformer_tiny"),
    *("vit_tiny_patch16_dinov3_qkvb", "vit_tiny_r_s16_p8_224", "vitamin_small_224", "volo_d1_224", "xception41p"),
    *("xcit_nano_12_p8_224", "convit_tiny", "dla46x_c", "resnetblur18", "mobilenetv4_conv_blur_medium"),
)
_TORCHVISION = (
    *("alexnet", "convnext_tiny", "deeplabv3_mobilenet_v3_large", "densenet121", "efficientnet_b0", "fcn_resnet50"),
    *("googlenet", "inception_v3", "lraspp_mobilenet_v3_large", "maxvit_t", "mnasnet0_5", "mobilenet_v2"),
    *("mobilenet_v3_small", "mvit_v2_s", "raft_small", "regnet_y_400mf", "resnet18", "s3d"),
    *("squeezenet1_1", "swin3d_t", "vgg11", "vit_b_16", "swin_v2_t"),
)
# Families without a small model.
_SHALLOW = {
    *("deepseek_vit_412m", "gemma4_vit_167m", "naflexvit_so150m2_patch16_reg1_gap", "qwen3_vit_88m"),
    *("beit_base_patch16_224", "samvit_base_patch16_224"),
}


def entries(telling: bool) -> Iterator[Entry]:
    """Those of the installed versions of the three libraries."""
    for entry in (*timm_entries(), *torchvision_entries(), *transformers_entries()):
        names = {"timm": _TIMM, "torchvision": _TORCHVISION}.get(entry.zoo)
        chosen = entry.name in _TELLING or (not telling and (names is None or entry.name in names))
        if chosen and (entry.name in _TELLING) == telling:
            yield entry


def make_of(entry: Entry) -> Make:
    if entry.zoo == "timm" and entry.name in _SHALLOW:
        return seeded(partial(timm.create_model, entry.name, depth=2))
    return maker(entry)


def check(entry: Entry) -> None:
    verdict = check_fresh(make_of(entry))
    assert verdict.faults == []
    assert verdict.unset == []
    if len(verdict.p_values) >= 8:
        # Right distributions give uniform p-values: a small bias of many tensors would show here.
        assert ks_p_uniform(verdict.p_values) > 1e-6


def ks_p_uniform(values: list[float]) -> float:
    return ks_p(torch.tensor(values).numpy(), torch.linspace(0, 1, 10_001).numpy())


@pytest.mark.parametrize("entry", list(entries(telling=True)), ids=str)
def test_telling_models(entry: Entry):
    check(entry)


@pytest.mark.slow
@pytest.mark.parametrize("entry", list(entries(telling=False)), ids=str)
def test_all_families(entry: Entry):
    check(entry)


def draws(model: nn.Module, heads: int = 2) -> list[HeadDraw]:
    return list(fresh_heads(model, list(tensors_of(model)), heads, 0))


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return dict([*model.named_parameters(), *model.named_buffers()])


def trained(model: nn.Module) -> nn.Module:
    """Values as training leaves them: everything has moved, tails are heavy."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.distributions.StudentT(4.0).sample(parameter.shape)
            parameter.mul_(2).add_(noise * (0.02 + 3 * float(parameter.std(correction=0))))
        for name, buffer in model.named_buffers():
            if "running_" in name:
                buffer.add_(torch.rand_like(buffer))
    return model


_TRAINED = ("resnet10t", "edgenext_xx_small", "test_vit", "gpt2", "bert", "t5", "swin")


@pytest.mark.parametrize(
    "entry", [e for e in (*timm_entries(), *transformers_entries()) if e.name in _TRAINED], ids=str
)
def test_heads_of_trained_models_start_like_new_models(entry: Entry):
    make = maker(entry)
    source, new = trained(make(0)), tensors_of(make(1))
    head = draws(source)[0]
    old = tensors_of(source)
    far: list[str] = []
    for path, value in head.values.items():
        if not value.is_floating_point() or torch.equal(new[path], old[path]):
            continue
        if (new[path] == new[path].flatten()[0]).all():
            far += [path] if not torch.equal(value, new[path]) else []
        elif value.numel() >= 16 and ks_p(value.flatten().numpy(), new[path].detach().flatten().numpy()) < 1e-6:
            far.append(path)
    assert far == []


def test_trained_layers_without_a_model_that_knows_better_use_their_own_initialisers():
    entry = next(e for e in torchvision_entries() if e.name == "resnet18")
    new = maker(entry)(0)
    assert draws(new)[0].rule["layer1.0.conv1.weight"] == "permuted"  # its constructor has drawn it in its own way
    head = draws(trained(new))[0]
    weight = head.values["layer1.0.conv1.weight"]
    assert head.rule["layer1.0.conv1.weight"] == "reset_parameters"
    bound = (64 * 9) ** -0.5  # of nn.Conv2d
    assert 0.99 * bound < float(weight.abs().max()) <= bound


def test_fresh_heads_of_meta_models_are_meta():
    with torch.device("meta"):
        model = timm.create_model("resnet18")
    for head in draws(model, 3):
        assert all(value.is_meta for value in head.values.values())
        assert set(head.rule.values()) == {"meta: holds no values"}

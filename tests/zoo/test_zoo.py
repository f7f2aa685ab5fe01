"""Whole zoos: every model is traced exactly, split with copied heads that are the model, and drawn anew."""

from __future__ import annotations

import pytest

from tests.zoo.catalogue.entry import Entry
from tests.zoo.catalogue.hugging_face import DRAWS_AT_RATE_ZERO, transformers_entries
from tests.zoo.catalogue.vision import timm_entries, torchvision_entries
from tests.zoo.measure import EXACT, Outcome, measure

# What cannot be exact in train mode, and is reported: layers and time steps that are dropped at random (LayerDrop,
# SpecAugment), and with an older transformers those that could be dropped.
NOT_EXACT_IN_TRAINING = {
    *("wav2vec2", "hubert", "unispeech", "unispeech-sat", "sew", "wav2vec2-conformer"),
    *(("mbart", "pegasus", "marian", "blenderbot", "led", "conditional_detr") if DRAWS_AT_RATE_ZERO else ()),
}
TRANSFORMERS = {entry.name: entry for entry in transformers_entries()}
TIMM = {entry.name: entry for entry in timm_entries()}
TORCHVISION = {entry.name: entry for entry in torchvision_entries()}

# Every family of trouble: mixtures of experts, state spaces, convolutions over tokens, several towers, weight norm,
# tied weights, buffers made on the way, windows, relative positions, masks, detection queries, nested outputs.
QUICK_TRANSFORMERS = (
    *("llama", "gemma2", "gemma3_text", "phi3", "gpt2", "gpt_neo", "bloom", "mpt", "xlnet", "gptj"),
    *("mixtral", "deepseek_v3", "gpt_oss", "mamba", "rwkv", "jamba"),
    *("bert", "albert", "deberta", "modernbert", "nystromformer", "fnet", "longformer", "canine", "funnel", "xmod"),
    *("t5", "longt5", "switch_transformers", "mbart", "led", "prophetnet"),
    *("vit", "beit", "dinov3_vit", "swin", "segformer", "hiera", "yolos", "dpt", "timesformer", "conditional_detr"),
    *("wav2vec2", "whisper", "encodec", "clip", "flava", "groupvit", "llava"),
)
QUICK_TIMM = (
    *("test_byobnet", "test_convnext", "test_efficientnet", "test_mambaout", "test_nfnet", "test_resnet", "test_vit"),
    *("edgenext_xx_small", "ghostnet_050", "mobilevit_xxs", "lcnet_035", "xcit_nano_12_p16_224", "pit_ti_224"),
)
QUICK_TORCHVISION = ("mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "regnet_y_400mf")
QUICK_ON_META = ("r3d_18", "swin3d_t", "lraspp_mobilenet_v3_large")


def assert_right(outcome: Outcome, blocks: int = 2) -> None:
    assert outcome.runs, outcome.error
    assert outcome.traced, outcome.error
    assert {how for how in outcome.eval.values() if how != "rejected by the model"} == {EXACT}, outcome.eval
    if outcome.real:
        expected = "reported: " if outcome.name in NOT_EXACT_IN_TRAINING else EXACT
        assert outcome.train.startswith(expected)
        assert outcome.fresh == "drawn"
    assert outcome.cuts >= blocks
    assert outcome.cut_errors == []
    assert outcome.split == outcome.tried > 0


@pytest.mark.parametrize("name", QUICK_TRANSFORMERS)
def test_transformers(name: str) -> None:
    assert_right(measure(TRANSFORMERS[name], real=True, cuts=1))


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_all_of_transformers(name: str) -> None:
    assert_right(measure(TRANSFORMERS[name], real=True, cuts=None))


@pytest.mark.parametrize("name", QUICK_TIMM)
def test_timm(name: str) -> None:
    assert_right(measure(TIMM[name], real=True, cuts=1))


@pytest.mark.parametrize("name", QUICK_TORCHVISION)
def test_torchvision(name: str) -> None:
    assert_right(measure(TORCHVISION[name], real=True, cuts=1))


@pytest.mark.parametrize("name", QUICK_ON_META)
def test_videos_and_masks(name: str) -> None:
    assert_right(measure(TORCHVISION[name], real=False, cuts=1))


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_all_of_torchvision(name: str) -> None:
    assert_right(measure(TORCHVISION[name], real=False, cuts=2))


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted({entry.family for entry in TIMM.values()}))
def test_families_of_timm(family: str) -> None:
    """One model of each family; ``python -m benchmarks.coverage`` has all 1371."""
    assert_right(measure(_first(family), real=False, cuts=2))


def _first(family: str) -> Entry:
    return next(entry for entry in TIMM.values() if entry.family == family)

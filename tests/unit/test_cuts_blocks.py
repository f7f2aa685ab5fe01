"""Which module classes count as blocks, on well-known architectures."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn

import fxsplit
from fxsplit._cuts._block_classes import Instance, block_paths


def timm_paths(name: str, size: int = 32, **options: Any) -> list[str]:
    model = timm.create_model(name, **options)
    return [cut.path for cut in fxsplit.find_cuts(model, torch.zeros(2, 3, size, size))]


def numbered(prefix: str, count: int) -> list[str]:
    return [f"{prefix}.{index}" for index in range(count)]


def test_resnet50_has_16_blocks() -> None:
    expected = [f"layer{stage}.{i}" for stage, count in enumerate((3, 4, 6, 3), 1) for i in range(count)]
    traced = fxsplit.trace(timm.create_model("resnet50", num_classes=4), torch.zeros(2, 3, 32, 32))
    assert [cut.path for cut in fxsplit.find_cuts(traced)] == expected
    for at in (6, 6 / 16, 0.4):
        assert fxsplit.split(traced, at, heads=1, init="copy").cut.path == "layer2.2"


def test_densenet_has_dense_blocks_and_transitions() -> None:
    assert timm_paths("densenet121", growth_rate=4, block_config=(2, 2, 2)) == [
        "features.denseblock1",
        "features.transition1",
        "features.denseblock2",
        "features.transition2",
        "features.denseblock3",
    ]


def test_vision_transformer_has_its_layers() -> None:
    assert timm_paths("vit_tiny_patch16_224", img_size=32, embed_dim=12) == numbered("blocks", 12)


def test_swin_has_its_blocks_and_no_patch_mergings() -> None:
    assert timm_paths(
        "swin_tiny_patch4_window7_224", 56, img_size=56, embed_dim=6, depths=(2, 1, 2), num_heads=(1, 1, 1)
    ) == ["layers.0.blocks.0", "layers.0.blocks.1", "layers.1.blocks.0", "layers.2.blocks.0", "layers.2.blocks.1"]


def test_efficientnet_b0_has_all_its_blocks_though_the_first_is_of_another_class() -> None:
    expected = [f"blocks.{stage}.{i}" for stage, count in enumerate((1, 2, 2, 3, 3, 4, 1)) for i in range(count)]
    assert timm_paths("efficientnet_b0", num_classes=4) == expected


def test_convnext_has_blocks_not_stages() -> None:
    paths = timm_paths("convnext_atto", depths=(1, 2, 1, 1), dims=(4, 4, 8, 8))
    assert paths == [
        "stages.0.blocks.0",
        "stages.1.blocks.0",
        "stages.1.blocks.1",
        "stages.2.blocks.0",
        "stages.3.blocks.0",
    ]


def test_mixer_block_is_one_block_though_it_holds_two_mlps() -> None:
    model = timm.models.mlp_mixer.MlpMixer(img_size=32, embed_dim=8, num_blocks=3)
    assert [cut.path for cut in fxsplit.find_cuts(model, torch.zeros(2, 3, 32, 32))] == numbered("blocks", 3)


def test_vgg16_bn_is_cut_before_every_layer() -> None:
    model = torchvision.models.vgg16_bn(num_classes=4)
    model.classifier = nn.Sequential(nn.Linear(512 * 49, 2), nn.ReLU(), nn.Dropout(), nn.Linear(2, 2))
    paths = [cut.path for cut in fxsplit.find_cuts(model, torch.zeros(2, 3, 32, 32))]
    assert len(paths) == 13 + 2 - 1
    assert paths[:2] == ["features.2", "features.6"]
    assert paths[-2:] == ["avgpool", "classifier.2"]


def test_llama_has_its_decoder_layers() -> None:
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2, pad_token_id=0
    )
    model = transformers.LlamaForCausalLM(config)
    traced = fxsplit.trace(
        model, {"input_ids": torch.randint(1, 20, (2, 5)), "attention_mask": torch.ones(2, 5).long()}
    )
    assert [cut.path for cut in fxsplit.find_cuts(traced)] == numbered("model.layers", 3)
    assert fxsplit.split(traced, 1 / 3, heads=1, init="copy").cut.path == "model.layers.0"


def test_bert_has_its_layers() -> None:
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8
    )
    model = transformers.BertForSequenceClassification(config)
    example = {"input_ids": torch.randint(1, 20, (2, 5)), "attention_mask": torch.ones(2, 5).long()}
    assert [cut.path for cut in fxsplit.find_cuts(model, example)] == numbered("bert.encoder.layer", 2)


def test_t5_has_encoder_and_decoder_blocks() -> None:
    config = transformers.T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2)
    model = transformers.T5ForConditionalGeneration(config)
    example = {"input_ids": torch.randint(1, 20, (2, 5)), "decoder_input_ids": torch.randint(1, 20, (2, 4))}
    expected = [*numbered("encoder.block", 2), *numbered("decoder.block", 2)]
    assert [cut.path for cut in fxsplit.find_cuts(model, example)] == expected


class Layer(nn.Module): ...


class Attention(nn.Module): ...


class Stage(nn.Module): ...


def instance(path: str, kind: type[nn.Module], complete: bool = True) -> Instance:
    return Instance(path, kind, complete)


def test_of_nested_classes_the_repeated_inner_one_wins() -> None:
    found = [instance(f"stages.{i}", Stage) for i in range(2)]
    found += [instance(f"stages.{i}.{j}", Layer) for i in range(2) for j in range(2)]
    found += [instance(f"stages.{i}.{j}.attention", Attention) for i in range(2) for j in range(2)]
    assert block_paths(found) == ["stages.0.0", "stages.0.1", "stages.1.0", "stages.1.1"]


def test_a_class_needs_two_instances_three_quarters_of_them_complete() -> None:
    layers = [instance(f"layers.{i}", Layer, i > 0) for i in range(4)]
    assert block_paths(layers) == [f"layers.{i}" for i in range(1, 4)]
    assert block_paths(layers[:3]) == []
    assert block_paths([instance("only", Layer)]) == []


def test_the_instance_that_ends_the_model_says_nothing_against_its_class() -> None:
    layers = [Instance("layers.0", Layer, True), Instance("layers.1", Layer, False, last=True)]
    assert block_paths(layers) == ["layers.0"]
    assert block_paths([Instance("layers.0", Layer, False), layers[1]]) == []
    assert block_paths([Instance(f"towers.{i}", Layer, False, last=True) for i in range(2)]) == []


@pytest.mark.parametrize("count", [2, 3])
def test_a_model_that_ends_with_a_block_has_the_blocks_before(count: int) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, count, enable_nested_tensor=False)
    cuts = fxsplit.find_cuts(encoder.eval(), torch.zeros(3, 5, 8))
    assert [cut.path for cut in cuts] == numbered("layers", count - 1)


def test_what_stands_in_a_list_with_blocks_is_one_but_a_first_single_layer_is_not() -> None:
    convolution = Instance("features.0", Attention, True, layers=1)
    found = [convolution, instance("features.1", Stage), *(instance(f"features.{i}", Layer) for i in (2, 3))]
    between = [Instance("features.4", Attention, True, layers=1), instance("features.5", Layer)]
    assert block_paths([*found, *between]) == [f"features.{i}" for i in range(1, 6)]


def test_what_lies_between_lists_of_blocks_is_none() -> None:
    found = [instance(f"stages.{i}.{name}", Layer) for i in range(2) for name in ("blocks.0", "blocks.1")]
    merging = [Instance(f"stages.{i}.merging", Stage, True, listed=False) for i in range(2)]
    mixed = [*found[:2], merging[0], *found[2:], merging[1]]
    assert block_paths(mixed) == [i.path for i in found]


def test_a_block_of_parallel_branches_is_one_block() -> None:
    stages = [f"stages.{i}" for i in range(3)]
    found: list[Instance] = []
    for stage in stages:
        found += [*(instance(f"{stage}.branches.{j}", Layer) for j in range(2)), instance(stage, Stage)]

    def follows(one: str, other: str) -> bool:
        return one.split(".")[:2] != other.split(".")[:2]

    assert block_paths(found, follows) == stages


def test_blocks_that_run_once_go_before_parts_that_run_repeatedly() -> None:
    found = [instance(f"encoder.{i}", Layer) for i in range(2)]
    recurrent = [Instance(f"update.{i}", Attention, True, reused=True) for i in range(2)]
    assert block_paths([*found, *recurrent]) == ["encoder.0", "encoder.1"]
    assert block_paths(recurrent) == ["update.0", "update.1"]


def test_a_stage_of_a_single_layer_is_no_block_where_layers_are_listed() -> None:
    found: list[Instance] = []
    for i in range(2):
        found += [instance(f"stages.{i}.layers.0", Layer), instance(f"stages.{i}", Stage)]
    text = [instance(f"text.layers.{i}", Layer) for i in range(2)]
    assert block_paths([*found, *text]) == ["stages.0.layers.0", "stages.1.layers.0", "text.layers.0", "text.layers.1"]
    assert block_paths(found) == ["stages.0", "stages.1"]


def test_containers_count_only_if_nothing_else_does() -> None:
    stages = [instance(f"stage{i}", nn.Sequential) for i in range(2)]
    layers = [instance(f"layers.{i}", Layer) for i in range(2)]
    assert block_paths(stages) == ["stage0", "stage1"]
    assert block_paths([*stages, *layers]) == ["layers.0", "layers.1"]


@pytest.mark.parametrize("reverse", [False, True])
def test_classes_side_by_side_both_count(reverse: bool) -> None:
    found = [instance("a.0", Layer), instance("b.0", Attention), instance("a.1", Layer), instance("b.1", Attention)]
    found = found[::-1] if reverse else found
    assert block_paths(found) == [i.path for i in found]

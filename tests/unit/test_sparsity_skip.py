# Tests read weights of layers and fields that may be None, which pyright cannot know to be there.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportOptionalSubscript=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false

from __future__ import annotations

import copy

import pytest
import timm
import torch
import transformers
from packaging.version import Version
from torch import fx, nn
from torch.nn.utils import parametrizations

import fxsplit
import sparsity
from sparsity import MaskError, NoEffectWarning
from tests.checks import assert_unchanged, snapshot


class Attention(nn.Module):
    def __init__(self, names: str, out: str = "") -> None:
        super().__init__()
        for name in [*names.split(), *out.split()]:
            setattr(self, name, nn.Linear(4, 4))


class Small(nn.Module):
    """A stem, a depthwise and a plain convolution, and a classifier, defined in another order than they are used."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(4, 3)
        self.stem = nn.Conv2d(3, 4, 3)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1))

    def forward(self, x):
        return self.classifier(self.block(self.stem(x)).mean((2, 3)))


class LanguageModel(nn.Module):
    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.layer = nn.Linear(4, 4)
        self.lm_head = nn.Linear(4, 7, bias=False)
        if tied:
            self.lm_head.weight = self.embed.weight

    def forward(self, ids):
        return self.lm_head(self.layer(self.embed(ids)))


X = torch.randn(2, 3, 8, 8)


def kept(model: nn.Module, skip, **options) -> list[str]:
    return [path.removesuffix(".weight") for path in sparsity.sparsify(model, 0.5, skip=skip, **options)]


def of(kind, model: nn.Module) -> list[str]:
    """The weights that a ready-made choice means, as what stays dense."""
    return [path.removesuffix(".weight") for path in sparsity.sparsify(model, 0.0, skip=kind).left]


@pytest.mark.parametrize(
    ("skip", "expected"),
    [
        (nn.Conv2d, ["classifier"]),
        ([nn.Conv2d], ["classifier"]),
        ((nn.Linear, "stem"), ["block.0", "block.1"]),
        ([nn.Sequential, "class*"], ["stem"]),
        ([sparsity.depthwise, lambda path, module, weight: weight.shape[0] == 3], ["stem", "block.1"]),
        ([sparsity.depthwise, nn.Linear, "stem"], ["block.1"]),
        (sparsity.depthwise, ["classifier", "stem", "block.1"]),
        ([], ["classifier", "stem", "block.0", "block.1"]),
        (iter(["block.0", "block.1"]), ["classifier", "stem"]),
    ],
)
def test_types_predicates_and_paths_can_be_mixed(skip, expected):
    assert kept(Small(), skip) == expected


def test_a_type_means_all_within_it():
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    assert kept(layer, nn.MultiheadAttention) == ["linear1", "linear2"]


@pytest.mark.parametrize(
    ("skip", "message"),
    [
        (nn.ConvTranspose2d, "skip=ConvTranspose2d changed nothing: no weight that could be masked"),
        (["stem", nn.Embedding], "skip=Embedding changed nothing"),
        (sparsity.attention, r"skip=sparsity\.attention changed nothing"),
        (lambda path, module, weight: False, "skip=<function .*lambda.* changed nothing"),
    ],
)
def test_rules_that_mean_nothing_warn(skip, message):
    with pytest.warns(NoEffectWarning, match=message) as record:
        sparsity.sparsify(Small(), 0.5, skip=skip)
    assert record[0].filename == __file__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"skip": ["stem", "blok"]}, "skip names 'blok'.*Did you mean 'block"),
        ({"skip": [nn.Conv2d, int]}, "got <class 'int'> of type type"),
        ({"skip": [nn.Conv2d, 3]}, "got 3 of type int"),
        ({"skip": int}, "got <class 'int'>"),
        ({"skip": nn.Linear(2, 2)}, "named by its path or its type, got a Linear itself"),
        ({"skip": None}, "got None of type NoneType"),
        ({"include": "norm"}, "include names 'norm'"),
        ({"include": 3}, "include takes paths .* got 3"),
        ({"include": ["lm_head"]}, "include names 'lm_head'"),
    ],
)
def test_bad_selectors_leave_the_model_untouched(arguments, message):
    net = Small()
    net.norm = nn.BatchNorm2d(3)
    before = snapshot(net)
    with pytest.raises(MaskError, match=message):
        sparsity.sparsify(net, 0.5, **arguments)
    assert_unchanged(before, net)


def test_what_is_dense_anyway_may_be_named_by_any_selector():
    computed = nn.Sequential(nn.Linear(4, 4), parametrizations.weight_norm(nn.Conv1d(4, 4, 1)))
    masks = sparsity.sparsify(computed, 0.5, skip=nn.Conv1d)
    assert masks.left["1.weight"].startswith("computed from")
    assert of(sparsity.classifier, LanguageModel(tied=True)) == ["lm_head"]


def test_first_layer_and_classifier_of_any_module_go_by_definition():
    assert of(sparsity.first_layer, Small()) == ["classifier"]
    assert of(sparsity.classifier, Small()) == ["block.1"]


def test_in_a_graph_they_go_by_use():
    graph = fx.symbolic_trace(Small())
    assert of(sparsity.first_layer, copy.deepcopy(graph)) == ["stem"]
    assert of(sparsity.classifier, graph) == ["classifier"]


def test_a_graph_may_use_a_weight_itself_or_a_module_twice_or_never():
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused, self.twice, self.inner = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
            self.last = nn.Linear(3, 3)

        def forward(self, x):
            x = nn.functional.linear(x, self.inner.weight)
            return self.twice(self.last(self.twice(x)))

    graph = fx.symbolic_trace(Functional())
    graph.add_submodule("unused", nn.Linear(3, 3))
    assert kept(copy.deepcopy(graph), sparsity.first_layer, include="inner") == ["twice", "last", "unused"]
    assert of(sparsity.classifier, graph) == ["twice"]


def test_a_split_model_has_one_first_layer_and_a_classifier_in_each_head():
    net = fxsplit.split(fxsplit.trace(Small(), X), "stem", heads=2)
    assert of([sparsity.first_layer, sparsity.classifier], net) == [
        "trunk.stem",
        "heads.0.classifier",
        "heads.1.classifier",
    ]


def test_a_head_without_a_layer_has_no_classifier():
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.norm = nn.Linear(3, 3), nn.Linear(3, 3), nn.LayerNorm(3)

        def forward(self, x):
            return self.norm(self.second(self.first(x)))

    net = fxsplit.split(fxsplit.trace(Normed(), torch.randn(2, 3)), "second", heads=2)
    with pytest.warns(NoEffectWarning, match="classifier"):
        assert of(sparsity.classifier, net) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", ["fc"]),
        ("test_vit", ["head"]),
        ("efficientformer_l1", ["head", "head_dist"]),
        ("caformer_s18", ["head.fc.fc2"]),
        ("efficientvim_m1", ["heads.0", "heads.1", "heads.2", "heads.3"]),
    ],
)
def test_timm_names_its_classifiers(name, expected):
    if not timm.is_model(name) and Version(timm.__version__) < Version("1.0.31"):
        pytest.skip(f"timm {timm.__version__} is too old for {name}")
    model = timm.create_model(name)
    assert of(sparsity.classifier, model) == expected


def test_a_model_without_a_classifier_has_none():
    model = timm.create_model("resnet18", num_classes=0)
    with pytest.warns(NoEffectWarning, match="classifier"):
        assert of(sparsity.classifier, model) == ["layer4.1.conv2"][:0]


def test_transformers_classifiers():
    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.LlamaConfig(**sizes, vocab_size=50, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    assert of(sparsity.classifier, transformers.LlamaForCausalLM(config)) == ["lm_head"]
    bert = transformers.BertConfig(**sizes, vocab_size=50)
    assert of(sparsity.classifier, transformers.BertForSequenceClassification(bert)) == ["classifier"]


@pytest.mark.parametrize(
    ("names", "out"),
    [
        ("qkv", "proj"),
        ("q k v", "o"),
        ("query key value", ""),
        ("q kv", "proj"),
        ("q_proj k_proj v_proj", "out_proj"),
        ("c_attn", "c_proj"),
        ("Wqkv", "Wo"),
        ("to_q to_kv", "to_out"),
        ("q_lin k_lin v_lin", "out_lin"),
    ],
)
def test_attention_by_names(names, out):
    block = nn.ModuleDict({"a": Attention(f"{names} other", out), "proj": nn.Linear(4, 4)})
    assert of(sparsity.attention, block) == [f"a.{name}" for name in [*names.split(), *out.split()]]


def test_layers_inside_of_a_projection_and_beside_the_attention():
    inside = nn.ModuleDict({"to_qkv": nn.Sequential(nn.Linear(4, 12)), "to_out": nn.Sequential(nn.Linear(4, 4))})
    inside["norm"] = nn.Linear(4, 4)
    assert of(sparsity.attention, inside) == ["to_qkv.0", "to_out.0"]
    output = nn.ModuleDict({"dense": nn.Linear(4, 4)})
    bert = nn.ModuleDict({"self": Attention("query key value"), "output": output})
    layer = nn.ModuleDict({"attention": bert, "output": copy.deepcopy(output)})
    expected = [*(f"attention.self.{name}" for name in ("query", "key", "value")), "attention.output.dense"]
    assert of(sparsity.attention, layer) == expected
    # With an output of its own, what lies beside it belongs to something else.
    layer = nn.ModuleDict({"attention": Attention("q_proj k_proj v_proj", "o_proj"), "output": output})
    assert of(sparsity.attention, layer) == [f"attention.{name}_proj" for name in "qkvo"]


def test_names_alone_do_not_make_attention():
    gate = nn.ModuleDict({"attn": nn.ModuleDict({"fc1": nn.Linear(4, 4), "proj": nn.Linear(4, 4)})})
    key = nn.ModuleDict({"key": nn.Linear(4, 4), "value": nn.Linear(4, 4)})
    for net in (gate, key):
        with pytest.warns(NoEffectWarning, match="attention"):
            assert of(sparsity.attention, net) == []


def test_attention_of_torch():
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    assert of(sparsity.attention, layer) == ["self_attn.in_proj_weight", "self_attn.out_proj"]


def test_attention_survives_a_split():
    model = timm.create_model("test_vit", img_size=32, num_classes=3)
    plain = of(sparsity.attention, copy.deepcopy(model))
    assert len(plain) == 2 * len(model.blocks)
    net = fxsplit.split(fxsplit.trace(model, torch.zeros(1, 3, 32, 32)), "blocks.2", heads=2)
    last = len(model.blocks) - 1
    expected = {f"{where}{path}" for path in plain for where in ("trunk.", "heads.0.", "heads.1.")}
    found = set(of(sparsity.attention, net))
    assert found < expected
    assert {path.removeprefix("trunk.") for path in found if "trunk" in path} == {
        path for path in plain if int(path.split(".")[1]) <= 2
    }
    assert f"heads.1.blocks.{last}.attn.qkv" in found


def test_embeddings_are_masked_on_request():
    masks = sparsity.sparsify(LanguageModel(tied=False), 0.5, include=sparsity.embeddings)
    assert list(masks) == ["embed.weight", "layer.weight", "lm_head.weight"]
    assert masks.nonzeros == (28 + 16 + 28) // 2


@pytest.mark.parametrize("include", [sparsity.embeddings, nn.Embedding, "embed", ["lm_head"], "*.weight"])
def test_a_tied_embedding_has_one_mask(include):
    net = LanguageModel()
    masks = sparsity.sparsify(net, 0.5, include=include)
    assert list(masks) == ["embed.weight", "layer.weight"]
    assert masks.tied == {"lm_head.weight": "embed.weight"}
    assert masks.left == {}
    assert masks.total == 28 + 16
    assert net.embed.parametrizations.weight.original is net.lm_head.parametrizations.weight.original
    net(torch.arange(7)).square().sum().backward()
    gradient = net.embed.parametrizations.weight.original.grad
    assert (gradient[~masks["embed.weight"]] == 0).all()
    assert (gradient != 0).any()
    sparsity.fold(net)
    assert net.lm_head.weight is net.embed.weight


def test_skip_wins_over_include():
    masks = sparsity.sparsify(LanguageModel(), 0.5, skip="lm_head", include=nn.Embedding)
    assert list(masks) == ["layer.weight"]
    assert masks.left["lm_head.weight"].startswith("tied to 'embed.weight'")


def test_included_weights_are_trained_like_others():
    net = LanguageModel()
    masks = sparsity.sparsify(net, 0.5, include=sparsity.embeddings)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    engine = sparsity.rigl(net, optimizer, every=2, fraction=0.5)
    nonzeros = {path: int(mask.sum()) for path, mask in masks.items()}
    for _ in range(5):
        optimizer.zero_grad()
        net(torch.arange(7)).square().sum().backward()
        optimizer.step()
    assert engine.last.grown["embed.weight"] > 0
    assert {path: int(mask.sum()) for path, mask in masks.items()} == nonzeros
    assert (net.lm_head.weight[~masks["embed.weight"]] == 0).all()


def test_bare_parameters_keep_their_place_when_folded():
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))
            self.up, self.down = nn.Parameter(torch.randn(2, 3, 5)), nn.Parameter(torch.randn(2, 5, 3))
            self.last = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return torch.einsum("edh,bed->beh", self.down, torch.einsum("ehd,be->bed", self.up, x))

    net = nn.ModuleDict({"experts": Experts()})
    names = [name for name, _ in net.named_parameters()]
    masks = sparsity.sparsify(net, 0.5, include="experts")
    assert list(masks) == ["experts.up", "experts.down"]
    assert masks.nonzeros == 30
    assert [name for name, _ in sparsity.fold(net).named_parameters()] == names


def test_what_cannot_carry_a_mask_is_not_included():
    net = nn.ModuleDict(
        {
            "gru": nn.GRU(4, 4),
            "sparse": nn.Embedding(4, 4, sparse=True),
            "bounded": nn.Embedding(4, 4, max_norm=1.0),
            "attention": nn.MultiheadAttention(4, 1, add_bias_kv=True),
            "norm": nn.LayerNorm(4),
        }
    )
    masks = sparsity.sparsify(net, 0.5, include=lambda path, module, weight: True)
    assert list(masks) == ["attention.in_proj_weight", "attention.out_proj.weight"]
    for path in ("gru", "sparse", "bounded", "norm", "attention.bias_k"):
        with pytest.raises(MaskError, match="weight of two or more dimensions that can have a mask"):
            sparsity.sparsify(sparsity.fold(copy.deepcopy(net)), 0.5, include=path)


def test_a_parameter_of_a_graph_module_is_not_included():
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions, self.fc = nn.Parameter(torch.randn(2, 3)), nn.Linear(3, 3)

        def forward(self, x):
            return self.fc(x + self.positions)

    with pytest.raises(MaskError, match="include names 'positions'"):
        sparsity.sparsify(fx.symbolic_trace(Positions()), 0.5, include="positions")


def test_a_kind_of_ones_own():
    widest = sparsity.Kind("widest", lambda model, sites: [max(sites, key=lambda site: site.weight.numel()).path])
    assert of(widest, Small()) == ["stem"]


def test_gpt2_tied_embedding_and_head():
    config = transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=50, n_positions=8, bos_token_id=0)
    config.eos_token_id = 0
    net = transformers.GPT2LMHeadModel(config)
    masks = sparsity.sparsify(net, 0.8, include="transformer.wte", skip=sparsity.attention)
    assert list(masks) == [
        "transformer.wte.weight",
        "transformer.h.0.mlp.c_fc.weight",
        "transformer.h.0.mlp.c_proj.weight",
    ]
    assert masks.tied == {"lm_head.weight": "transformer.wte.weight"}
    ids = torch.arange(8)[None]
    output = net(ids, labels=ids)
    output.loss.backward()
    plain = sparsity.fold(copy.deepcopy(net).eval())
    torch.testing.assert_close(net.eval()(ids).logits, plain(ids).logits)

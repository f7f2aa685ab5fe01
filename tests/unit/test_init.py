"""Fresh heads: the distribution of every tensor against freshly constructed models, and what must not change."""

from __future__ import annotations

import copy
import math
import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from fxsplit._errors import SplitError
from fxsplit._init._fresh import HeadDraw, fresh_heads
from fxsplit._init._replica import Replica
from fxsplit._init._statistics import ks_p_value, looks_drawn, same_distribution, same_extent

SEEDS = 6


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def names(model: Any) -> list[str]:
    return [name for name, _ in [*model.named_parameters(), *model.named_buffers()]]


def draws(model: nn.Module, heads: int = 2, seed: int = 0, **kwargs) -> list[HeadDraw]:
    return list(fresh_heads(model, names(model), heads, seed, **kwargs))


def numpy_state() -> np.ndarray:
    return np.random.get_state(legacy=False)["state"]["key"].copy()  # type: ignore[call-overload]  # noqa: NPY002


def tv_resnet() -> Any:
    from torchvision.models.resnet import BasicBlock, ResNet

    model: Any = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)
    model.layer3 = model.layer4 = nn.Identity()  # these hold most of the weights
    model.fc = nn.Linear(128, 10)
    return model


def timm_resnet() -> Any:
    from timm.models.resnet import BasicBlock, ResNet

    block: Any = BasicBlock
    return ResNet(block, (1, 1), num_classes=10, channels=(16, 32), zero_init_last=False)


def timm_vit() -> Any:
    import timm

    return timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=48, img_size=64, num_classes=10)


def timm_convnext() -> Any:
    import timm

    return timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(16, 32, 32, 32), num_classes=10)


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=64,
            initializer_range=0.05,
        )
    )


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(n_embd=32, n_layer=3, n_head=4, vocab_size=64, n_positions=32, bos_token_id=1, eos_token_id=2)
    )


def hf_vit() -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    settings: Any = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
        "num_labels": 5,
    }
    return ViTForImageClassification(ViTConfig(**settings))


def bert() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=64,
        max_position_embeddings=32,
    )
    return BertForSequenceClassification(config)


def mamba() -> Any:
    from transformers import MambaConfig, MambaModel

    return MambaModel(MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=64, state_size=8))


MODELS = [tv_resnet, timm_resnet, timm_vit, timm_convnext, llama, gpt2, hf_vit, bert, mamba]


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_every_tensor_is_distributed_as_in_a_newly_constructed_model(make):
    torch.manual_seed(7)
    source = make()
    fresh = [make().state_dict(keep_vars=True) for _ in range(SEEDS)]
    drawn = draws(source, SEEDS, seed=3)
    tensors = dict([*source.named_parameters(), *source.named_buffers()])
    p_values = []
    for name, original in tensors.items():
        ours = torch.stack([head.values[name] for head in drawn])
        assert ours.shape[1:] == original.shape
        assert ours.dtype == original.dtype
        if name not in fresh[0]:
            assert (ours == original).all(), f"the table {name} has changed"
            continue
        theirs = torch.stack([state[name].detach() for state in fresh])
        if (theirs == theirs[0]).all():
            assert (ours == theirs).all(), f"{name} is constant in new models"
            continue
        # Permuted heads hold the same values, so that only one of them counts as a sample.
        independent = ours[:1] if drawn[0].rule[name] == "permuted" else ours
        a, b = independent.double().flatten(), theirs.double().flatten()
        error = float(b.std()) / len(a) ** 0.5
        assert abs(float(a.mean() - b.mean())) < 6 * 2**0.5 * error, name
        if len(b) > 100:
            assert float(a.std() / b.std()) == pytest.approx(1, abs=6 / len(a) ** 0.5 + 0.02), name
        p_values.append(stats.ks_2samp(a.numpy(), b.numpy())[1])
        assert p_values[-1] > 1e-6, f"{name}: {drawn[0].rule[name]}"
        for head in drawn[1:]:
            assert (head.values[name] != drawn[0].values[name]).double().mean() > 0.9, f"{name} repeats between heads"
    # With the right distributions the p-values are uniform: a bias shared by many tensors would show here.
    assert stats.kstest(p_values, "uniform")[1] > 1e-4


def test_depth_scaled_projections_of_gpt2_keep_their_scale():
    head = draws(gpt2(), 1)[0]
    scaled = torch.cat([head.values[f"transformer.h.{i}.mlp.c_proj.weight"].flatten() for i in range(3)])
    assert float(scaled.std()) == pytest.approx(0.02 / (2 * 3) ** 0.5, rel=0.05)
    assert float(head.values["transformer.h.0.mlp.c_fc.weight"].std()) == pytest.approx(0.02, rel=0.05)


def test_default_layers_use_reset_parameters():
    head = draws(nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.Flatten(), nn.Linear(64, 32)))[0]
    assert head.rule["0.weight"] == head.rule["3.weight"] == "reset_parameters"
    assert head.rule["1.weight"] == head.rule["1.running_mean"] == "kept: constant"
    bound = 1 / 64**0.5  # nn.Linear draws uniformly from (-1/sqrt(in), 1/sqrt(in))
    assert 0.95 * bound < float(head.values["3.weight"].abs().max()) <= bound


@pytest.mark.parametrize("n", [48, 256, 4096])
def test_initialisers_of_other_scale_or_shape_are_told_apart(n):
    rejected = dict.fromkeys(("same", "wider", "normal"), 0)
    for seed in range(40):
        generator = np.random.default_rng(seed)
        uniform = generator.uniform(-1, 1, n)
        rejected["same"] += not same_distribution(generator.uniform(-1, 1, n), uniform, 0.001)
        rejected["wider"] += not same_distribution(generator.uniform(-2, 2, n), uniform, 0.001)
        rejected["normal"] += not same_distribution(generator.normal(0, 3**-0.5, n), uniform, 0.001)
    assert rejected["same"] <= 1
    assert rejected["wider"] == 40
    assert rejected["normal"] >= 36 or n < 128


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("draw", [lambda t: t.uniform_(-0.1, 0.1), lambda t: t.normal_(std=0.02)], ids=["U", "N"])
@pytest.mark.parametrize("shape", [(100,), (40, 50), (64, 16, 4, 4), (1 << 10, 1 << 11)], ids=str)
def test_all_elements_show_small_differences_of_width(draw, dtype, shape):
    rounds = 20 if math.prod(shape) < 1e5 else 3
    pairs = [[draw(torch.empty(shape, dtype=dtype)) for _ in range(2)] for _ in range(rounds)]
    assert all(same_extent(a, b, 1e-6) for a, b in pairs)
    if len(shape) == 4:
        assert same_extent(pairs[0][0].contiguous(memory_format=torch.channels_last), pairs[0][1], 1e-6)
    if math.prod(shape) > 1e4:
        narrower = 0.98 if math.prod(shape) > 1e5 else 0.9
        assert not any(same_extent(a, narrower * b, 1e-3) for a, b in pairs)


@pytest.mark.parametrize("n", [128, 1000])
def test_uniform_draws_of_small_layers_are_told_apart_by_their_bounds(n):
    # As Xavier's bounds and torch's default ones, in a layer that widens four times.
    pairs = [(torch.empty(n).uniform_(-1, 1), torch.empty(n).uniform_(-0.913, 0.913)) for _ in range(20)]
    assert not any(same_extent(a, b, 1e-3) for a, b in pairs)


@pytest.mark.parametrize("seed", [385, 1173, 1211])
def test_bounds_near_the_default_ones_are_not_taken_for_them(seed):
    # One draw in a few hundred: in these, a sample of the weights does not show the difference.
    torch.manual_seed(seed)
    layer = nn.Linear(64, 256, bias=False)
    nn.init.xavier_uniform_(layer.weight)
    assert draws(layer)[0].rule["weight"] == "permuted"


@pytest.mark.parametrize("seed", [178, 242, 322, 327, 432])
def test_unlikely_draws_are_not_taken_for_trained_weights(seed):
    # One draw in a thousand: a sample of these weights fits a normal distribution as badly.
    torch.manual_seed(seed)
    layer = nn.Linear(64, 64, bias=False)
    nn.init.normal_(layer.weight)
    assert draws(layer)[0].rule["weight"] == "permuted"


def test_ks_p_value_agrees_with_scipy():
    generator = np.random.default_rng(0)
    for n, shift in [(40, 0.0), (40, 0.5), (500, 0.1), (2048, 0.05), (2048, 0.3)]:
        a, b = generator.normal(size=n), generator.normal(shift, 1, size=n)
        assert ks_p_value(a, b) == pytest.approx(stats.ks_2samp(a, b, method="exact")[1], rel=0.3, abs=0.01)


def test_layers_initialised_by_the_constructor_are_permuted():
    layer = nn.Linear(64, 64)
    nn.init.normal_(layer.weight, std=3.0)
    head = draws(layer)[0]
    assert head.rule == {"weight": "permuted", "bias": "reset_parameters"}
    assert torch.equal(head.values["weight"].flatten().sort().values, layer.weight.detach().flatten().sort().values)


@pytest.mark.parametrize("shape", [(700, 513), (1 << 18,), (64, 64, 8, 9)])
def test_permuting_large_tensors_keeps_the_values_and_aligns_nothing(shape):
    module = nn.Module()
    module.weight = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)).add_(3))
    source = module.weight.detach().flatten()
    first, second = (head.values["weight"].flatten() for head in draws(module))
    for a, b in [(source, first), (source, second), (first, second)]:
        assert torch.equal(a.sort().values, b.sort().values)
        assert (a == b).double().mean() < 1e-3
        assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 6 / len(source) ** 0.5
    rows = first.view(shape).flatten(1) if len(shape) > 1 else first.view(-1, 512)
    original_rows = source.view(rows.shape)
    assert not torch.isclose(rows.mean(1), original_rows.mean(1)[:, None].T).any(0).all(), "whole rows have moved"


def test_trained_norms_return_to_their_initial_values():
    norm = nn.BatchNorm1d(16)
    norm(torch.randn(8, 16) + 2)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
    head = draws(norm)[0]
    assert head.rule["weight"] == head.rule["running_mean"] == "reset_parameters"
    for name, value in {"weight": 1, "running_mean": 0, "running_var": 1, "num_batches_tracked": 0}.items():
        assert (head.values[name] == value).all(), name


def test_trained_transformers_models_are_drawn_from_their_configuration():
    source = llama()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.mul_(5).add_(0.3 * torch.randn_like(parameter))
    head = draws(source)[0]
    assert set(head.rule.values()) == {"config init", "kept: structured"}
    assert (head.values["model.norm.weight"] == 1).all()
    assert float(head.values["lm_head.weight"].std()) == pytest.approx(0.05, rel=0.1)


def test_padding_rows_stay_zero():
    embedding = nn.Embedding(50, 32, padding_idx=3)
    with torch.no_grad():
        embedding.weight.mul_(0.01)
    first, second = draws(embedding)
    assert first.rule["weight"] == "permuted"
    assert (first.values["weight"][3] == 0).all()
    assert (first.values["weight"] == 0).sum() == 32
    assert (first.values["weight"] == second.values["weight"]).sum() < 50


class Bare(nn.Module):
    """Parameters and buffers of every kind that no initialiser knows."""

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(1)
        positions, channels = torch.arange(32.0)[:, None], torch.arange(16.0)[None]
        table = torch.cat(
            [torch.sin(positions / 100 ** (channels / 16)), torch.cos(positions / 100 ** (channels / 16))], 1
        )
        self.token = nn.Parameter(torch.randn(1, 1, 64, generator=g) * 0.02)
        self.few = nn.Parameter(torch.randn(4, generator=g))
        self.narrow = nn.Parameter((torch.randn(64, 64, generator=g) * 0.02).bfloat16())
        self.scale = nn.Parameter(torch.full((64,), 1e-6))
        self.temperature = nn.Parameter(torch.tensor(1 / 0.07).log())
        self.single = nn.Parameter(torch.randn(1, generator=g))
        self.sincos = nn.Parameter(table, requires_grad=False)
        self.decay = nn.Parameter(torch.arange(1.0, 17.0).log().repeat(8, 1))
        self.slopes = nn.Parameter(2.0 ** -torch.arange(1.0, 9.0))
        self.eye = nn.Parameter(torch.eye(32))
        self.register_buffer("index", torch.randperm(64, generator=g))
        self.register_buffer("causal", torch.ones(16, 16).tril())
        self.register_buffer("inv_freq", 1 / 10000 ** (torch.arange(0, 64, 2) / 64))
        self.register_buffer("features", torch.randn(64, 8, generator=g))


def test_bare_tensors():
    source = Bare()
    first, second = draws(source)
    expected = {
        **dict.fromkeys(("token", "narrow"), "permuted"),
        "few": "normal fit",
        **dict.fromkeys(("scale", "temperature"), "kept: constant"),
        "single": "NOT redrawn: a single value, which may be a constant as well as a draw",
        **dict.fromkeys(("sincos", "decay", "slopes", "eye", "index", "causal", "inv_freq"), "kept: structured"),
        "features": "NOT redrawn: a buffer whose meaning is not known",
    }
    assert first.rule == expected
    tensors = dict([*source.named_parameters(), *source.named_buffers()])
    for name, rule in expected.items():
        kept = torch.equal(first.values[name], tensors[name])
        assert kept == rule.startswith(("kept", "NOT")), name
        assert torch.equal(first.values[name], second.values[name]) == kept, name
        assert first.values[name].data_ptr() != tensors[name].data_ptr(), name


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 2.6592, math.log(1 / 0.07), -4.6052])
def test_single_round_values_are_constants(value):
    layer = nn.Linear(8, 1)
    with torch.no_grad():
        layer.bias.fill_(value)
    module = nn.Module()
    module.bare = layer.bias
    assert draws(module)[0].rule["bare"] == "kept: constant"
    assert (draws(layer)[0].rule["bias"] == "kept: constant") == (value in (0.0, 1.0))


def test_orthogonal_weights_stay_orthogonal():
    layer = nn.Linear(32, 16, bias=False)
    nn.init.orthogonal_(layer.weight, gain=1.5)
    head = draws(layer)[0]
    assert head.rule["weight"] == "orthogonal"
    torch.testing.assert_close(head.values["weight"] @ head.values["weight"].T, 2.25 * torch.eye(16))
    assert not torch.allclose(head.values["weight"], layer.weight)


def test_rows_of_different_scale_keep_their_scales():
    module = nn.Module()
    module.weight = nn.Parameter(torch.randn(8, 256, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        module.weight.mul_(torch.arange(1.0, 9.0)[:, None])
    head = draws(module)[0]
    torch.testing.assert_close(head.values["weight"].std(1), module.weight.detach().std(1))
    assert (head.values["weight"] == module.weight).double().mean() < 0.05


def test_initialisers_of_submodules_are_used():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.text = llama()
            self.head = nn.Linear(32, 4)

    head = draws(Wrapper())[0]
    assert head.rule["text.lm_head.weight"] == "config init"
    assert head.rule["head.weight"] == "reset_parameters"


def test_padding_rows_stay_zero_where_an_output_layer_is_tied_to_the_embedding():
    from transformers import CamembertConfig, CamembertForMaskedLM

    config = CamembertConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=64
    )
    source = CamembertForMaskedLM(config)
    assert source.lm_head.decoder.weight is source.roberta.embeddings.word_embeddings.weight
    first, second = draws(source)
    path = next(
        name for name in first.rule if name in ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight")
    )
    assert first.rule[path] == "config init"
    zero = [(head.values[path] == 0).all(dim=1).nonzero().flatten().tolist() for head in (first, second)]
    assert zero == [[config.pad_token_id]] * 2
    assert (first.values[path] == second.values[path]).sum() == 32


def test_written_values_are_kept_however_few():
    module = nn.Module()
    module.offsets = nn.Parameter(torch.tensor([[-1.0, -1, 2], [1, -1, 0.25], [-1, 1, 2], [1, 1, 0.5]]))
    module.drawn = nn.Parameter(torch.randn(4, 3))
    head = draws(module)[0]
    assert head.rule == {"offsets": "kept: structured", "drawn": "normal fit"}


@pytest.mark.parametrize(
    ("family", "seems"),
    [
        (lambda rng, n: rng.normal(0, 0.02, n), True),
        (lambda rng, n: rng.uniform(-0.3, 0.3, n), True),
        (lambda rng, n: stats.truncnorm.rvs(-2, 2, size=n, random_state=rng), True),
        (lambda rng, n: rng.laplace(size=n), False),
        (lambda rng, n: rng.standard_t(5, n), False),
        (lambda rng, n: rng.normal(0.3, 1, n), False),
        (lambda rng, n: np.zeros(n), False),
    ],
    ids=["normal", "uniform", "truncated normal", "Laplace", "Student t", "normal off centre", "zero"],
)
def test_draws_of_initialisers_are_told_from_trained_values(family, seems):
    samples = [family(np.random.default_rng(seed), 2048) for seed in range(50)]
    assert sum(map(looks_drawn, samples)) in ((49, 50) if seems else (0,))
    assert sum(looks_drawn(values, 1e-7) for values in samples) == (50 if seems else 0)


class Custom(nn.Module):
    """An init_weights whose behaviour the tests choose."""

    def __init__(self, body):
        super().__init__()
        self.layer = nn.Linear(64, 64, bias=False)
        self.norm = nn.LayerNorm(64)
        self.body = body
        self.init_weights()

    def init_weights(self):
        self.body(self)


@pytest.mark.parametrize(
    "body",
    [
        lambda m: m.layer.weight.data.normal_(std=5.0, generator=torch.Generator().manual_seed(0)),
        lambda m: m.layer.weight.data.copy_(torch.from_numpy(np.random.default_rng(0).normal(size=(64, 64)))),
        lambda m: m.layer.weight.data.mul_(9.0),
    ],
    ids=["own torch generator", "own numpy generator", "scales only"],
)
def test_initialisers_that_repeat_themselves_are_not_trusted(body):
    first, second = draws(Custom(body))
    assert (first.values["layer.weight"] == second.values["layer.weight"]).double().mean() < 0.01


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (lambda weight: weight.normal_(), "drawn"),
        (lambda weight: weight.t().uniform_(), "drawn"),
        (lambda weight: weight[1:].zero_(), "first row"),
        (lambda weight: weight.add_(0), "source"),
        (lambda weight: weight.copy_(weight.flip(0).flip(0)), "source"),
        (lambda weight: weight.numpy().__setitem__((slice(1, None),), 0), "first row"),
        (lambda weight: weight.shape, "nothing"),
    ],
    ids=["overwritten", "through a view", "in part", "read", "copied from itself", "through numpy", "untouched"],
)
def test_initialisers_find_the_values_of_the_source(body, expected):
    source = nn.Linear(4, 4, bias=False)
    values = source.weight.detach()
    replica = Replica(source, ["weight"])
    found = replica.run(lambda: body(replica.module("").weight.data), "")
    assert found is not None
    assert replica.module("").weight.is_meta
    if expected == "nothing":
        assert found == {}
        return
    drawn = found[id(source.weight)]
    if expected == "drawn":
        assert (drawn != values).all()
        assert drawn.isfinite().all()
    elif expected == "source":
        assert torch.equal(drawn, values)
    else:
        assert torch.equal(drawn[0], values[0])
        assert (drawn[1:] == 0).all()


@pytest.mark.parametrize("generator", ["numpy", "random"])
def test_initialisers_that_use_other_global_generators(generator):
    def body(module):
        if generator == "numpy":
            values = np.random.normal(size=64 * 64)  # noqa: NPY002
        else:
            values = [random.gauss(0, 1) for _ in range(64 * 64)]
        module.layer.weight.data.copy_(torch.as_tensor(values).view(64, 64))

    model = Custom(body)
    state, python_state = numpy_state(), random.getstate()
    first, second = draws(model)
    assert first.rule["layer.weight"] == "init_weights"
    assert (first.values["layer.weight"] == second.values["layer.weight"]).double().mean() < 0.01
    assert (numpy_state() == state).all()
    assert random.getstate() == python_state


def test_initialisers_that_zero_what_the_constructor_drew_are_not_trusted():
    class Residual(nn.Module):
        def __init__(self, zero_init_last):
            super().__init__()
            self.first, self.last = nn.Linear(32, 32), nn.Linear(32, 32)
            self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(4))
            self.init_weights(zero_init_last)

        def init_weights(self, zero_init_last=True):
            nn.init.normal_(self.first.weight, std=0.5)
            nn.init.constant_(self.last.weight, 0) if zero_init_last else nn.init.normal_(self.last.weight, std=0.5)

    first, second = draws(Residual(zero_init_last=False))
    assert first.rule["first.weight"] == "init_weights"
    assert first.rule["last.weight"] == "permuted"
    assert not torch.equal(first.values["last.weight"], second.values["last.weight"])
    kept = draws(Residual(zero_init_last=True))[0]
    assert kept.rule["last.weight"] == "kept: constant"


@pytest.mark.parametrize("seed", range(5))
def test_initialisers_that_draw_more_widely_than_the_constructor_did_are_not_trusted(seed):
    class Gained(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Linear(256, 256, bias=False), nn.LayerNorm(256)
            self.init_weights(gain=0.9)

        def init_weights(self, gain=1.0):
            nn.init.normal_(self.layer.weight, std=0.02 * gain)

    torch.manual_seed(seed)
    assert draws(Gained())[0].rule["layer.weight"] == "permuted"


def test_failing_initialisers_are_replaced():
    def body(module):
        if module.layer.weight.detach().sum().item() != float("inf") and hasattr(module, "ready"):
            raise RuntimeError("cannot initialise twice")
        module.ready = True
        nn.init.normal_(module.layer.weight, std=2.0)

    head = draws(Custom(body))[0]
    assert head.rule["layer.weight"] == "permuted"


def test_transformers_models_that_cannot_be_initialised_in_place_are_constructed(monkeypatch):
    source = llama()
    monkeypatch.setattr(type(source), "initialize_weights", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # the constructor needs the method too
        draws(source)
    calls = []
    original = type(source).__mro__[1].initialize_weights

    def fail_on_replicas(self):
        calls.append(self)
        if any(p.is_meta for p in self.parameters()):
            raise RuntimeError("no data")
        original(self)

    monkeypatch.setattr(type(source), "initialize_weights", fail_on_replicas)
    paths = [name for name in names(source) if "layers.1" in name]
    first, second = fresh_heads(source, paths, 2, 0)
    assert first.rule["model.layers.1.mlp.up_proj.weight"] == "config init"
    assert not torch.equal(*(h.values["model.layers.1.mlp.up_proj.weight"] for h in (first, second)))
    assert len(calls) == 3  # one attempt, then one construction per head


@pytest.mark.parametrize("make", [timm_resnet, gpt2, tv_resnet], ids=lambda make: make.__name__)
def test_source_and_global_state_stay_as_they_were(make):
    source = make()
    source.eval()
    next(source.children()).train()
    before = {name: tensor.detach().clone() for name, tensor in source.state_dict().items()}
    versions = [p._version for p in source.parameters()]
    modes = [module.training for module in source.modules()]
    attributes = [sorted(vars(module)) for module in source.modules()]
    rng, numpy_rng, python_rng = torch.get_rng_state(), numpy_state(), random.getstate()
    iterator = fresh_heads(source, names(source), 2, 0)
    for _ in range(2):
        head = next(iterator)
        torch.testing.assert_close(torch.get_rng_state(), rng, rtol=0, atol=0)
    assert (numpy_state() == numpy_rng).all()
    assert random.getstate() == python_rng
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.state_dict().items())
    assert [p._version for p in source.parameters()] == versions
    assert [module.training for module in source.modules()] == modes
    assert [sorted(vars(module)) for module in source.modules()] == attributes
    own = {t.untyped_storage().data_ptr() for t in head.values.values()}
    assert not own & {t.untyped_storage().data_ptr() for t in source.state_dict().values()}


def test_the_seed_alone_decides():
    source = timm_resnet()
    first = draws(source, 2, seed=5)
    torch.manual_seed(99)
    again = draws(source, 3, seed=5)
    other = draws(source, 1, seed=6)[0]
    for head, same in zip(first, again, strict=False):
        assert all(torch.equal(head.values[name], same.values[name]) for name in head.values)
    assert not torch.equal(first[0].values["fc.weight"], other.values["fc.weight"])
    assert not torch.equal(again[1].values["fc.weight"], again[2].values["fc.weight"])
    # head i of seed s must not be head i - 1 of seed s + 1
    assert not torch.equal(first[1].values["fc.weight"], other.values["fc.weight"])


def test_heads_are_drawn_lazily():
    made = []

    def factory():
        made.append(1)
        return nn.Linear(4, 4)

    iterator = fresh_heads(nn.Linear(4, 4), ["weight"], 3, 0, factory)
    assert not made
    next(iterator)
    assert len(made) == 1


def test_tied_tensors_stay_one_tensor():
    source = nn.Module()
    source.a = nn.Linear(16, 16, bias=False)
    source.b = nn.Linear(16, 16, bias=False)
    source.b.weight = source.a.weight
    head = next(fresh_heads(source, ["a.weight", "b.weight"], 1, 0))
    assert head.values["a.weight"] is head.values["b.weight"]
    made = next(fresh_heads(source, ["a.weight", "b.weight"], 1, 0, lambda: copy.deepcopy(source)))
    assert made.values["a.weight"] is made.values["b.weight"]


def test_tied_tensors_can_be_asked_for_by_either_name():
    source = gpt2()
    assert source.lm_head.weight is source.transformer.wte.weight
    head = next(fresh_heads(source, ["lm_head.weight"], 1, 0))
    assert head.rule == {"lm_head.weight": "config init"}
    assert float(head.values["lm_head.weight"].std()) == pytest.approx(0.02, rel=0.1)


def test_meta_models_give_meta_tensors():
    with torch.device("meta"):
        source = nn.Linear(8, 8)
    head = draws(source)[0]
    assert head.values["weight"].is_meta
    assert head.values["weight"].shape == (8, 8)
    assert head.rule["weight"] == "meta: holds no values"


def test_half_precision_and_channels_last_are_kept():
    source = nn.Conv2d(32, 64, 3).bfloat16().to(memory_format=torch.channels_last)
    with torch.no_grad():
        source.weight.mul_(7)
    head = draws(source)[0]
    assert head.rule["weight"] == "permuted"
    assert head.values["weight"].dtype == torch.bfloat16
    assert head.values["weight"].stride() == source.weight.stride()


def test_factory_draws_everything():
    def make():
        layer = nn.Linear(64, 64)
        nn.init.normal_(layer.weight, std=3.0)
        return layer

    source = nn.Linear(64, 64).double()
    first, second = draws(source, factory=make)
    assert set(first.rule.values()) == {"factory"}
    assert first.values["weight"].dtype == torch.float64
    assert float(first.values["weight"].std()) == pytest.approx(3, rel=0.1)
    assert not torch.equal(first.values["weight"], second.values["weight"])


def seeded_factory():
    torch.manual_seed(0)
    return nn.Linear(64, 64)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda: nn.Linear(64, 65), r"'weight' of the model made by factory has shape \(65, 64\), expected \(64, 64\)"),
        (lambda: nn.Linear(64, 64, bias=False), "the model made by factory has no 'bias'"),
        (lambda: 3, "factory returned int, expected an nn.Module"),
        (seeded_factory, "factory drew the same 'weight' for two heads"),
    ],
    ids=["shape", "missing", "no module", "seeded"],
)
def test_factories_that_do_not_fit(factory, message):
    with pytest.raises(SplitError, match=message):
        draws(nn.Linear(64, 64), factory=factory)


def test_bad_arguments():
    layer = nn.Linear(4, 4)
    with pytest.raises(SplitError, match=r"'wieght' is neither .* Did you mean 'weight'"):
        fresh_heads(layer, ["wieght"], 1, 0)
    with pytest.raises(SplitError, match="heads must be a positive number, got 0"):
        fresh_heads(layer, ["weight"], 0, 0)
    with pytest.raises(SplitError, match="factory must be callable"):
        fresh_heads(layer, ["weight"], 1, 0, factory=layer.weight)  # type: ignore[arg-type]
    with pytest.raises(SplitError, match="new model at every call"):
        list(fresh_heads(layer, ["weight"], 1, 0, factory=lambda: layer))


def test_no_warnings_on_the_way():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draws(mamba())

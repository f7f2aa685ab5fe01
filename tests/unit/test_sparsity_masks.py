# Tests read weights of layers and fields that may be None, which pyright cannot know to be there.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportOptionalSubscript=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOptionalOperand=false

from __future__ import annotations

import copy
import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import sparsity
from sparsity import AllocationError, MaskError, NoEffectWarning


class Net(nn.Module):
    """One layer of each kind that matters to the default rule."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.conv = nn.Conv1d(8, 8, 3, padding=1, groups=2)
        self.norm = nn.LayerNorm(8)
        self.scale = nn.Parameter(torch.ones(2, 8))
        self.gru = nn.GRU(8, 8, batch_first=True)
        self.head = nn.Linear(8, 11)

    def forward(self, ids):
        x = self.embed(ids)
        x = x + self.attention(x, x, x)[0]
        x = self.norm(self.conv(x.transpose(1, 2)).transpose(1, 2))
        return self.head(self.gru(x * self.scale.sum(0))[0])


class Conv1D(nn.Module):
    """Stands for the class of this name in transformers, whose weight is [in, out]."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))
        self.bias = nn.Parameter(torch.zeros(6))

    def forward(self, x):
        return x @ self.weight + self.bias


def two_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4))


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_untouched(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(parametrize.is_parametrized(module) for module in model.modules())


def test_default_selection():
    masks = sparsity.sparsify(nn.ModuleList([Net(), Conv1D()]), 0.5)
    assert list(masks) == [
        "0.attention.in_proj_weight",
        "0.attention.out_proj.weight",
        "0.conv.weight",
        "0.head.weight",
        "1.weight",
    ]
    assert masks.left == {}
    assert masks.total == 24 * 8 + 8 * 8 + 8 * 4 * 3 + 11 * 8 + 4 * 6
    assert masks.nonzeros == masks.total // 2


def test_separate_attention_projections():
    masks = sparsity.sparsify(nn.MultiheadAttention(8, 2, kdim=6, vdim=4), 0.5)
    assert list(masks) == ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"]


def test_weights_are_zero_where_masked_and_unchanged_elsewhere():
    net = two_layers()
    before = snapshot(net)
    parameters = dict(net.named_parameters())
    masks = sparsity.sparsify(net, 0.7)
    for path, mask in masks.items():
        module = net.get_submodule(path.rpartition(".")[0])
        assert torch.equal(module.weight, before[path] * mask)
        assert masks.weights[path].parameter is parameters[path]
        assert mask.dtype == torch.bool
    assert masks.nonzeros == round(0.3 * 100)
    assert masks.density + masks.sparsity == 1
    assert [layer.nonzeros for layer in masks.layers] == [int(mask.sum()) for mask in masks.values()]


def test_zero_sparsity_makes_masks_that_keep_all():
    net = two_layers()
    before = snapshot(net)
    masks = sparsity.sparsify(net, 0.0)
    assert all(mask.all() for mask in masks.values())
    assert len(masks) == 2
    assert torch.equal(net[0].weight, before["0.weight"])


def test_seed_and_path_decide_the_masks_and_nothing_else():
    first = sparsity.sparsify(two_layers(), 0.5, seed=3)
    longer = nn.Sequential(*two_layers(), nn.Linear(4, 4))
    state = torch.get_rng_state()
    again = sparsity.sparsify(
        longer, 0.5, allocation={"0": first.layers[0].density, "2": first.layers[1].density}, seed=3
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[path], again[path]) for path in first)
    other = sparsity.sparsify(two_layers(), 0.5, seed=4)
    assert not torch.equal(first["0.weight"], other["0.weight"])
    same_shape = sparsity.sparsify(nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9)), 0.5)
    assert not torch.equal(same_shape["0.weight"], same_shape["1.weight"])


def test_masks_are_the_same_in_another_process():
    code = "import torch, sparsity; print(sparsity.sparsify(torch.nn.Linear(5, 4), .5)['weight'].int().tolist())"
    root = Path(sparsity.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == f"{sparsity.sparsify(nn.Linear(5, 4), 0.5)['weight'].int().tolist()}\n"


def test_mask_entries_are_uniform():
    # 1000 draws of 3 out of 12; each entry is active in a quarter of them, within five standard deviations.
    total = torch.zeros(3, 4)
    for seed in range(1000):
        total += sparsity.sparsify(nn.Linear(4, 3), 0.75, seed=seed)["weight"]
    deviation = (1000 * 0.25 * 0.75) ** 0.5
    assert (total - 250).abs().max() < 5 * deviation
    assert total.sum() == 3000


def test_gradients_are_masked_and_the_forward_pass_is_not_changed():
    net = two_layers()
    masks = sparsity.sparsify(net, 0.6)
    plain = sparsity.fold(copy.deepcopy(net))
    x = torch.randn(5, 6)
    assert torch.equal(net(x), plain(x))
    net(x).square().sum().backward()
    plain(x).square().sum().backward()
    for path, weight in masks.weights.items():
        expected = plain.get_parameter(path).grad
        assert torch.equal(weight.parameter.grad, expected * masks[path])
        assert (expected[~masks[path]] != 0).any()


def test_infinite_gradient_of_a_zero_is_masked():
    net = nn.Linear(3, 2, bias=False)
    masks = sparsity.sparsify(net, 0.5)
    (net.weight * torch.where(masks["weight"], 1.0, torch.inf)).nan_to_num(0).sum().backward()
    (grad,) = (weight.parameter.grad for weight in masks.weights.values())
    assert torch.equal(grad, masks["weight"].float())


def test_second_derivatives():
    net = nn.Linear(3, 2, bias=False)
    masks = sparsity.sparsify(net, 0.5)
    x = torch.randn(4, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
    gradient.square().sum().backward()
    reference = net.weight.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad((x @ reference.T).square().sum(), x, create_graph=True)
    gradient.square().sum().backward()
    torch.testing.assert_close(masks.weights["weight"].parameter.grad, reference.grad * masks["weight"])


@pytest.mark.parametrize("backend", [None, "eager", "inductor"])
def test_functorch_transforms(backend):
    net = nn.Linear(3, 2, bias=False)
    mask = sparsity.sparsify(net, 0.5)["weight"]
    x = torch.randn(4, 3)

    def loss(parameters, row):
        return torch.func.functional_call(net, parameters, (row,)).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))
    if backend is not None:
        per_sample = torch.compile(per_sample, backend=backend, fullgraph=True)
    (gradient,) = per_sample(dict(net.named_parameters()), x).values()
    dense = 2 * torch.einsum("bo,bi->boi", net(x).detach(), x)
    torch.testing.assert_close(gradient, dense * mask)


def test_tied_weights_share_one_mask():
    net = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    net[1].weight = net[0].weight
    masks = sparsity.sparsify(net, 0.4)
    assert list(masks) == ["0.weight"]
    assert masks.tied == {"1.weight": "0.weight"}
    assert masks["1.weight"] is masks["0.weight"]
    assert masks.total == 25
    assert len(list(net.parameters())) == 3
    net(torch.randn(2, 5)).sum().backward()
    weight = masks.weights["0.weight"].parameter
    assert (weight.grad[~masks["0.weight"]] == 0).all()
    twin = copy.deepcopy(net)
    assert twin[0].parametrizations.weight.original is twin[1].parametrizations.weight.original
    assert sparsity.masks_of(twin).tied == {"1.weight": "0.weight"}
    sparsity.fold(net)
    assert net[0].weight is net[1].weight is weight


def test_weight_tied_to_an_embedding_stays_dense_and_is_reported():
    net = Net()
    net.head.weight = net.embed.weight
    masks = sparsity.sparsify(net, 0.5)
    assert "head.weight" not in masks
    assert "tied to 'embed.weight' of Embedding" in masks.left["head.weight"]
    assert "head.weight" in str(masks)
    with pytest.raises(KeyError, match=r"tied to 'embed\.weight'"):
        masks["head.weight"]


def test_weight_tied_to_a_bare_parameter_stays_dense():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net.register_parameter("again", net[1].weight)
    assert "tied to 'again'" in sparsity.sparsify(net, 0.5).left["1.weight"]


def test_reused_module_has_one_mask():
    layer = nn.Linear(4, 4)
    masks = sparsity.sparsify(nn.Sequential(layer, nn.ReLU(), layer), 0.5)
    assert list(masks) == ["0.weight"]


@pytest.mark.parametrize("normalise", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_computed_weight_stays_dense_and_is_reported(normalise):
    net = nn.Sequential(nn.Linear(4, 4), normalise(nn.Linear(4, 4)))
    with pytest.warns(sparsity.SparsityWarning, match=r"1 weights stay dense, .*: '1.weight'.*name them in skip"):
        masks = sparsity.sparsify(net, 0.5)
    assert list(masks) == ["0.weight"]
    assert "computed from other parameters" in masks.left["1.weight"]


def test_computed_weights_that_are_skipped_need_no_warning():
    net = nn.Sequential(nn.Linear(4, 4), parametrizations.weight_norm(nn.Linear(4, 4)))
    assert list(sparsity.sparsify(net, 0.5, skip=["1"])) == ["0.weight"]


@pytest.mark.parametrize(
    ("skip", "kept"),
    [
        ("0", ["2.weight"]),
        (["0.weight"], ["2.weight"]),
        (["[12]"], ["0.weight"]),
        (lambda path, module, weight: weight.shape[0] == 4, ["0.weight"]),
        (lambda path, module, weight: isinstance(module, nn.Linear) and module.in_features == 6, ["2.weight"]),
    ],
)
def test_skip(skip, kept):
    masks = sparsity.sparsify(two_layers(), 0.5, skip=skip)
    assert list(masks) == kept
    assert list(masks.left.values()) == ["skipped on request"]


def test_skip_globs_reach_all_heads():
    net = nn.ModuleDict(
        {"trunk": nn.Linear(3, 3), "heads": nn.ModuleList(nn.ModuleDict({"fc": nn.Linear(3, 3)}) for _ in "ab")}
    )
    assert list(sparsity.sparsify(net, 0.5, skip=["heads.*.fc"])) == ["trunk.weight"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sparsity": 1.0}, AllocationError, r"in \[0, 1\)"),
        ({"sparsity": float("nan")}, AllocationError, r"in \[0, 1\)"),
        ({"sparsity": True}, AllocationError, "of type bool"),
        ({"sparsity": "0.5"}, AllocationError, "of type str"),
        ({"sparsity": 0.99}, AllocationError, "needs at least one"),
        ({"sparsity": 0.5, "allocation": "erkk"}, AllocationError, "Did you mean 'erk'"),
        ({"sparsity": 0.5, "allocation": {"1": 0.5}}, AllocationError, "names '1'"),
        ({"sparsity": 0.5, "skip": ["3"]}, MaskError, "skip names '3'"),
        ({"sparsity": 0.5, "skip": [0]}, MaskError, "of type int"),
        ({"sparsity": 0.5, "skip": 0}, MaskError, "of type int"),
        ({"sparsity": 0.5, "seed": 0.5}, MaskError, "seed is an int"),
    ],
)
def test_bad_arguments_leave_the_model_untouched(arguments, error, message):
    net = two_layers()
    before = snapshot(net)
    with pytest.raises(error, match=message):
        sparsity.sparsify(net, **arguments)
    assert_untouched(net, before)


def test_failing_predicate_leaves_the_model_untouched():
    net = two_layers()
    before = snapshot(net)

    def fail(path, module, weight):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sparsity.sparsify(net, 0.5, skip=fail)
    assert_untouched(net, before)


def test_uninitialised_parameters():
    with pytest.raises(MaskError, match=r"'1\.weight' is not initialised"):
        sparsity.sparsify(nn.Sequential(nn.Linear(2, 3), nn.LazyLinear(4)), 0.5)


def test_not_a_module():
    with pytest.raises(MaskError, match="got function"):
        sparsity.sparsify(test_not_a_module, 0.5)


def test_twice():
    net = two_layers()
    sparsity.sparsify(net, 0.5)
    before = snapshot(net)
    with pytest.raises(MaskError, match=r"has masks already.*fold"):
        sparsity.sparsify(net, 0.2)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_nothing_to_mask_warns():
    with pytest.warns(NoEffectWarning, match="no linear, convolution or attention weight"):
        masks = sparsity.sparsify(nn.Sequential(nn.Embedding(3, 3), nn.LayerNorm(3)), 0.5)
    assert len(masks) == 0
    assert (masks.total, masks.nonzeros, masks.density) == (0, 0, 1.0)
    assert str(masks) == "no masks"
    with pytest.warns(NoEffectWarning, match="fold changed nothing"):
        sparsity.fold(nn.Linear(2, 2))


def test_fold_restores_names_types_and_order():
    net = Net()
    names = [name for name, _ in net.named_parameters()]
    parameters = list(net.parameters())
    types = [type(module) for module in net.modules()]
    masks = sparsity.sparsify(net, 0.8)
    expected = {path: mask.clone() for path, mask in masks.items()}
    ids = torch.randint(11, (2, 5))
    output = net(ids)
    assert sparsity.fold(net) is net
    assert [name for name, _ in net.named_parameters()] == names
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert [type(module) for module in net.modules()] == types
    assert torch.equal(net(ids), output)
    assert len(sparsity.masks_of(net)) == 0
    for path, mask in expected.items():
        assert torch.equal(net.get_parameter(path) != 0, mask)


def test_fold_zeroes_weights_that_drifted():
    net = two_layers()
    mask = sparsity.sparsify(net, 0.5)["0.weight"]
    net[0].parametrizations.weight.original.data.fill_(1.0)
    assert torch.equal(sparsity.fold(net)[0].weight != 0, mask)


def test_fold_refuses_stacked_parametrizations():
    net = two_layers()
    sparsity.sparsify(net, 0.5)
    parametrize.register_parametrization(net[0], "weight", nn.Identity())
    with pytest.raises(MaskError, match="other parametrizations besides its mask"):
        sparsity.fold(net)
    assert len(sparsity.masks_of(net)) == 2


def test_apply_zeroes_after_editing_by_hand():
    net = two_layers()
    masks = sparsity.sparsify(net, 0.5)
    with torch.no_grad():
        masks.weights["0.weight"].parameter.fill_(2.0)
    masks.apply()
    assert torch.equal(net[0].weight, 2.0 * masks["0.weight"])


def test_assignment_is_masked():
    net = two_layers()
    masks = sparsity.sparsify(net, 0.5)
    ones = torch.ones(10, 6)
    net[0].weight = ones
    assert torch.equal(net[0].weight, masks["0.weight"].float())
    assert (ones == 1).all()


def test_deepcopy_is_independent():
    net = two_layers()
    masks = sparsity.sparsify(net, 0.5)
    twin = copy.deepcopy(net)
    copied = sparsity.masks_of(twin)
    assert list(copied) == list(masks)
    copied["0.weight"].fill_(True)
    assert not masks["0.weight"].all()
    net(torch.randn(2, 6)).sum().backward()
    weight = net[0].weight
    sparsity.fold(twin)
    assert torch.equal(net[0].weight, weight)
    assert len(sparsity.masks_of(net)) == 2
    assert len(sparsity.masks_of(twin)) == 0


def test_masking_a_copy_leaves_a_parametrized_original_alone():
    net = two_layers()
    parametrize.register_parametrization(net[0], "bias", nn.Identity())
    twin = copy.deepcopy(net)
    sparsity.sparsify(twin, 0.5)
    assert net(torch.randn(2, 6)).shape == (2, 4)
    sparsity.fold(twin)
    assert parametrize.is_parametrized(twin[0], "bias")
    assert twin(torch.randn(2, 6)).shape == (2, 4)


def test_state_dict_restores_masks():
    net, other = two_layers(), two_layers()
    masks = sparsity.sparsify(net, 0.5, seed=1)
    loaded = sparsity.sparsify(other, 0.5, seed=2)
    assert not torch.equal(masks["0.weight"], loaded["0.weight"])
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    assert all(torch.equal(masks[path], loaded[path]) for path in masks)
    x = torch.randn(3, 6)
    assert torch.equal(net(x), other(x))


def test_meta_device():
    with torch.device("meta"):
        net = two_layers()
    masks = sparsity.sparsify(net, 0.5, seed=5)
    assert masks["0.weight"].is_meta
    assert masks.nonzeros == 50
    real = two_layers()
    expected = sparsity.sparsify(real, 0.5, seed=5)
    assert [layer.nonzeros for layer in masks.layers] == [layer.nonzeros for layer in expected.layers]
    net.load_state_dict(real.state_dict(), assign=True)
    assert torch.equal(sparsity.masks_of(net)["0.weight"], expected["0.weight"])


def test_dtype_and_memory_format():
    net = nn.Sequential(nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last)
    masks = sparsity.sparsify(net, 0.5)
    assert masks["0.weight"].is_contiguous(memory_format=torch.channels_last)
    net.to(torch.bfloat16)
    assert masks["0.weight"].dtype == torch.bool
    net(torch.randn(1, 3, 5, 5, dtype=torch.bfloat16)).sum().backward()
    assert net[0].parametrizations.weight.original.grad.dtype == torch.bfloat16


def test_encoder_layer_in_eval_mode():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    sparsity.sparsify(layer, 0.5)
    plain = sparsity.fold(copy.deepcopy(layer)).eval()
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), plain(x))


def test_wrapped_models():
    net = two_layers()
    compiled = torch.compile(net)
    masks = sparsity.sparsify(compiled, 0.5)
    assert list(masks) == list(sparsity.masks_of(net)) == ["0.weight", "2.weight"]


def test_unknown_path_suggests():
    masks = sparsity.sparsify(two_layers(), 0.5)
    with pytest.raises(KeyError, match=r"Did you mean '0\.weight'"):
        masks["0.weigth"]
    assert "0.weigth" not in masks


def test_text():
    masks = sparsity.sparsify(two_layers(), 0.5, allocation="uniform", skip=["2"])
    assert str(masks).splitlines() == [
        "weight             shape  nonzeros  density",
        "0.weight          10 x 6        30   0.5000",
        "1 masked weights      60        30   0.5000",
        "left dense: 2.weight: skipped on request",
    ]
    assert repr(masks) == "<Masks of 1 weights, sparsity 0.5000>"


def test_html_escapes_and_folds():
    net = nn.ModuleDict({"<b>&": nn.Linear(2, 2)})
    page = sparsity.sparsify(net, 0.5)._repr_html_()
    assert "&lt;b&gt;&amp;.weight" in page
    assert "<b>&" not in page
    assert "width:60px" in page
    assert "<details>" not in page
    long = nn.Sequential(*(nn.Linear(2, 2) for _ in range(31)))
    page = sparsity.sparsify(long, 0.5)._repr_html_()
    assert page.startswith("<details><summary>31 masked weights: 62 nonzeros, density 0.5000")
    assert page.count("<tr>") == 33

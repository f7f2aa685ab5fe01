"""Whatever is wrong with the input, the public functions say what and where, how to fix it, and touch nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxsplit
import sparsity
from tests.checks import assert_unchanged, snapshot
from tests.strategies import ConvCase

X = torch.linspace(-1, 1, 2 * 3 * 6 * 6).view(2, 3, 6, 6)


def small(**options: Any) -> nn.Module:
    """A model in a state that a call could disturb: mixed modes, a hook, gradients."""
    model = ConvCase(blocks=("plain", "residual", "plain"), **options).build().train()
    model.get_submodule("blocks.0").eval()
    model.get_submodule("classifier").register_forward_hook(lambda *_: None)
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    return model


class Surgery:
    """The three ways into the package, as one would call them with a model and an example."""

    @staticmethod
    def trace(model: Any, example: Any) -> Any:
        return fxsplit.trace(model, example)

    @staticmethod
    def find_cuts(model: Any, example: Any) -> Any:
        return fxsplit.find_cuts(model, example)

    @staticmethod
    def neurotrailify(model: Any, example: Any) -> Any:
        return fxsplit.neurotrailify(model, split="blocks.0", example=example)


ENTRIES = [Surgery.trace, Surgery.find_cuts, Surgery.neurotrailify]
every_entry = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.__name__)


def refuses(error: type[Exception], *words: str, model: nn.Module, call: Callable[[], Any]) -> None:
    """``call`` raises exactly this type, its message has all the words, and the model is bit for bit as before."""
    before = snapshot(model)
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"
    assert_unchanged(before, model)


# ------------------------------------------------------------------------------------------------ where to cut


def test_a_path_across_a_skip_connection() -> None:
    model = small()
    refuses(
        fxsplit.CutError,
        "blocks.1.conv1",
        "blocks.0",  # what crosses, and the nearest legal cut before
        "2x4x6x6",
        "every_module=True",
        model=model,
        call=lambda: fxsplit.neurotrailify(model, split="blocks.1.conv1", example=X),
    )


def test_an_unknown_path() -> None:
    model = small()
    refuses(
        fxsplit.CutError,
        "'block.1'",
        "Did you mean",
        "blocks.1",
        model=model,
        call=lambda: fxsplit.neurotrailify(model, split="block.1", example=X),
    )


@pytest.mark.parametrize("at", [-1, 4, 99, -0.5, 1.5, float("nan"), True, None, ["blocks.0"], ""])
def test_a_split_that_names_no_block(at: Any) -> None:
    model = small()
    refuses(
        fxsplit.CutError,
        repr(at) if at != "" else "split",
        model=model,
        call=lambda: fxsplit.neurotrailify(model, split=at, example=X),
    )


def test_a_cut_after_which_nothing_is_left() -> None:
    model = small()
    refuses(
        fxsplit.CutError,
        "classifier",
        model=model,
        call=lambda: fxsplit.neurotrailify(model, split="classifier", example=X),
    )


def test_a_module_that_never_runs() -> None:
    model = small()
    model.add_module("spare", nn.Linear(2, 2))
    refuses(
        fxsplit.CutError,
        "spare",
        model=model,
        call=lambda: fxsplit.neurotrailify(model, split="spare", example=X),
    )


# ------------------------------------------------------------------------------------------------- options


class Untouchable(nn.Module):
    """Must not run: a call that is refused for its options is refused before any work."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        pytest.fail("the model ran")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("heads", 0),
        ("heads", -2),
        ("heads", 1.5),
        ("heads", "3"),
        ("heads", True),
        ("vote", "median"),
        ("vote", None),
        ("init", "zeros"),
        ("init", None),
    ],
)
def test_surgery_options_are_checked_before_any_work(option: str, value: Any) -> None:
    model = Untouchable()
    refuses(
        fxsplit.SplitError,
        option,
        repr(value),
        model=model,
        call=lambda: fxsplit.neurotrailify(model, split="first", example=torch.ones(2, 3), **{option: value}),
    )


@pytest.mark.parametrize("value", [1.0, -0.1, 1.5, float("nan"), "0.8", True])
def test_sparsity_is_checked_before_any_work(value: Any) -> None:
    model = Untouchable()
    before = snapshot(model)
    with pytest.raises(sparsity.SparsityError, match="sparsity"):
        fxsplit.neurotrailify(model, split="first", sparsity=value, example=torch.ones(2, 3))
    assert_unchanged(before, model)


def test_allocation_is_checked_before_any_work() -> None:
    model = Untouchable()
    before = snapshot(model)
    with pytest.raises(sparsity.SparsityError, match="erdos"):
        fxsplit.neurotrailify(model, split="first", allocation="erdos", example=torch.ones(2, 3))
    assert_unchanged(before, model)


@pytest.mark.parametrize(("option", "value"), [("tied", "cut"), ("share", ("clasifier",)), ("heads", 0)])
def test_split_options(option: str, value: Any) -> None:
    model = small()
    traced = fxsplit.trace(model, X)
    refuses(
        fxsplit.SplitError,
        option,
        *(["Did you mean", "classifier"] if option == "share" else []),
        model=model,
        call=lambda: fxsplit.split(traced, "blocks.0", **{option: value}),
    )


# -------------------------------------------------------------------------------------------------- models


@every_entry
@pytest.mark.parametrize(
    "thing", [None, 3, "resnet50", torch.ones(2), nn.Linear, lambda x: x], ids=lambda thing: type(thing).__name__
)
def test_something_that_is_not_a_module(entry: Callable[..., Any], thing: Any) -> None:
    with pytest.raises(fxsplit.TraceError, match=r"nn\.Module"):
        entry(thing, X)


@every_entry
def test_a_scripted_model(entry: Callable[..., Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        scripted = torch.jit.trace(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), torch.ones(2, 3))
    with pytest.raises(fxsplit.TraceError, match=r"(?i)script"):
        entry(scripted, torch.ones(2, 3))


@every_entry
def test_a_compiled_model(entry: Callable[..., Any]) -> None:
    model = small()
    compiled = torch.compile(model)
    refuses(fxsplit.TraceError, "compile", model=model, call=lambda: entry(compiled, X))


@every_entry
def test_a_model_compiled_in_place(entry: Callable[..., Any]) -> None:
    model = small()
    model.compile()
    refuses(fxsplit.TraceError, "compile", model=model, call=lambda: entry(model, X))


@every_entry
def test_a_sparsified_model(entry: Callable[..., Any]) -> None:
    model = small()
    sparsity.sparsify(model, 0.5)
    refuses(fxsplit.TraceError, "carries a mask", model=model, call=lambda: entry(model, X))


def test_a_model_that_is_split_already() -> None:
    net = fxsplit.split(fxsplit.trace(small(), X), "blocks.0", heads=2)
    for call in (
        lambda: fxsplit.trace(net, X),
        lambda: fxsplit.neurotrailify(net, split="trunk", example=X),
        lambda: fxsplit.split(net, "trunk", heads=2),
    ):
        before = snapshot(net)
        with pytest.raises(fxsplit.FxSplitError, match=r"(?i)split already|already split|already been split"):
            call()
        assert_unchanged(before, net)


def test_a_part_of_a_split_model() -> None:
    net = fxsplit.split(fxsplit.trace(small(), X), "blocks.0", heads=2)
    refuses(
        fxsplit.SplitError, "Trunk", "fxsplit.trace", model=net, call=lambda: fxsplit.split(net.trunk, "stem", heads=2)
    )


def test_a_vote_that_does_not_reduce() -> None:
    net = fxsplit.split(fxsplit.trace(small(), X), "blocks.0", heads=2, vote=lambda stack: stack).eval()
    refuses(fxsplit.SplitError, "vote", "[2, 2, 5]", "[2, 5]", model=net, call=lambda: net(X))


@every_entry
def test_a_model_on_two_devices(entry: Callable[..., Any]) -> None:
    model = small()
    model.get_submodule("classifier").to("meta")
    refuses(fxsplit.TraceError, "classifier", "meta", "cpu", model=model, call=lambda: entry(model, X))


@every_entry
def test_a_lazy_model(entry: Callable[..., Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = nn.Sequential(nn.Linear(3, 4), nn.LazyLinear(2))
    kinds = [type(parameter) for parameter in model.parameters()]
    with pytest.raises(fxsplit.TraceError, match=r"(?is)lazy.*1|1.*lazy"):
        entry(model, torch.ones(2, 3))
    assert [type(parameter) for parameter in model.parameters()] == kinds


# ------------------------------------------------------------------------------------------------- examples


@every_entry
def test_an_example_that_the_model_rejects(entry: Callable[..., Any]) -> None:
    model = small()
    refuses(fxsplit.TraceError, "stem", "[2, 4, 6, 6]", model=model, call=lambda: entry(model, torch.ones(2, 4, 6, 6)))


@every_entry
@pytest.mark.parametrize(
    "example", [{"image": X}, (X, X, X), ((X,), {"image": X}), ()], ids=["dict", "many", "both", "none"]
)
def test_an_example_that_does_not_fit_the_signature(entry: Callable[..., Any], example: Any) -> None:
    model = small()
    refuses(fxsplit.TraceError, "forward", model=model, call=lambda: entry(model, example))


@every_entry
def test_no_example_and_none_to_infer(entry: Callable[..., Any]) -> None:
    model = small()
    refuses(fxsplit.TraceError, "example", "ConvNet", model=model, call=lambda: entry(model, None))


# ---------------------------------------------------------------------------------------------- untraceable


class Routed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.out = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.left(x) if x.sum() > 0 else self.right(x)
        return self.out(x)


@every_entry
def test_a_model_whose_path_depends_on_its_data(entry: Callable[..., Any]) -> None:
    """Which of the two ways runs can't be read off shapes: either refused with a reason, or reported as a guard."""
    model = Routed()
    before = snapshot(model)
    with pytest.raises(fxsplit.TraceError) as caught:
        entry(model, torch.ones(2, 3))
    assert "Routed" in str(caught.value)
    assert "leaf" in str(caught.value) or "module of its own" in str(caught.value)
    assert_unchanged(before, model)


class Fails(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)
        self.seen = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.seen(torch.rand_like(x) + self.first(x))
        if x.shape[0] != 2:
            raise RuntimeError("only pairs")
        return self.second(x)


@every_entry
def test_a_model_that_fails_half_way_is_restored(entry: Callable[..., Any]) -> None:
    """It has drawn random numbers and moved its running averages by then."""
    model = Fails().train()
    before = snapshot(model)
    with pytest.raises(fxsplit.TraceError, match="only pairs"):
        entry(model, torch.ones(3, 3))
    assert_unchanged(before, model)

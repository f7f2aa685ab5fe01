"""Inputs that are not of the kind that was traced: an InputError instead of wrong numbers, everywhere."""

from __future__ import annotations

import copy
import timeit
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxsplit
from fxsplit._errors import FxSplitWarning, InputError
from fxsplit._trace._guards import guard_of
from tests.checks import assert_same


class Tokens(nn.Module):
    """Ids and a mask [B, T], a float side input [B, 4] that only a linear layer sees."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.side, self.mix = nn.Embedding(20, 6), nn.Linear(4, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, ids: Tensor, mask: Tensor, side: Tensor) -> Tensor:
        x = self.words(ids) * mask[:, :, None]
        return self.head(self.mix(x.sum(1) + self.side(side)).relu())


def tokens(batch: int = 2, length: int = 8) -> dict[str, Tensor]:
    return {
        "ids": torch.randint(20, (batch, length)),
        "mask": torch.ones(batch, length, dtype=torch.long),
        "side": torch.randn(batch, 4),
    }


WRONG: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Any]], str]] = {
    "floating ids": (
        lambda d: {**d, "ids": d["ids"].float()},
        r"'ids'.*\(integer\) \[batch, length\]; got torch.float32",
    ),
    "bool mask": (lambda d: {**d, "mask": d["mask"].bool()}, r"'mask'.*\(integer\).*; got torch.bool"),
    "complex side": (
        lambda d: {**d, "side": d["side"].to(torch.complex64)},
        r"'side'.*\(floating\).*got torch.complex64",
    ),
    "rank": (lambda d: {**d, "mask": d["mask"][:, None]}, r"'mask'.*got 3 dimensions, \[2, 1, 8\]"),
    "batches": (lambda d: {**d, "side": torch.randn(3, 4)}, r"'side'.*\[3, 4\], but the batch of input 'ids' is 2"),
    "lengths": (lambda d: {**d, "mask": d["mask"][:, :7]}, r"'mask'.*\[2, 7\], but the length of input 'ids' is 8"),
    "no tensor": (lambda d: {**d, "mask": None}, r"'mask'.*got None. Pass a tensor"),
    "a list": (lambda d: {**d, "ids": d["ids"].tolist()}, r"'ids'.*got a value of type list"),
}


@pytest.fixture(scope="module")
def traced() -> fxsplit.TracedModel:
    return fxsplit.trace(Tokens(), tokens())


@pytest.mark.parametrize("kind", WRONG)
def test_other_kinds_of_inputs_are_refused(traced: fxsplit.TracedModel, kind: str) -> None:
    change, message = WRONG[kind]
    feed = change(tokens())
    net = fxsplit.split(traced, "mix", heads=2)
    for call in (
        traced,
        net,
        net.head_outputs,
        copy.deepcopy(traced),
        copy.deepcopy(net),
        copy.deepcopy(net).head_outputs,
    ):
        with pytest.raises(InputError, match=message) as caught:
            call(**feed)
        assert "trace the model again with example=" in str(caught.value)
        assert isinstance(caught.value, (fxsplit.FxSplitError, ValueError))


def test_free_sizes_and_dtypes_of_one_category_pass(traced: fxsplit.TracedModel) -> None:
    for batch, length in ((1, 8), (5, 3), (2, 17)):
        feed = tokens(batch, length)
        assert_same(traced(**feed), traced.source(**feed))
        feed["ids"], feed["mask"] = feed["ids"].int(), feed["mask"].short()
        assert_same(traced(**feed), traced.source(**feed))


def test_the_graph_stays_as_it_is(traced: fxsplit.TracedModel) -> None:
    assert [node.op for node in traced.graph.nodes][:3] == ["placeholder"] * 3
    assert all("check" not in node.name for node in traced.graph.nodes)
    assert traced.code.count("_check_inputs(") == 1


def test_it_costs_microseconds(traced: fxsplit.TracedModel) -> None:
    guard = guard_of(traced.graph)
    assert guard is not None
    values = tuple(tokens().values())
    assert min(timeit.repeat(lambda: guard(values), number=200, repeat=5)) / 200 < 20e-6


def test_compiled_in_one_graph_without_a_recompilation_per_call(traced: fxsplit.TracedModel) -> None:
    graphs: list[fx.GraphModule] = []

    def backend(graph: fx.GraphModule, example: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    net = fxsplit.split(traced, "mix", heads=2)
    for module in (traced, net):
        graphs.clear()
        compiled = torch.compile(module, fullgraph=True, backend=backend)
        for batch in (2, 3, 4, 5, 6):
            feed = tokens(batch)
            assert_same(compiled(**feed), module(**feed))
        assert len(graphs) <= 2  # once for the first batch, once for all others
    with pytest.raises(Exception, match=r"'mask'.*got torch.bool"):
        torch.compile(traced, fullgraph=True, backend=backend)(**WRONG["bool mask"][0](tokens()))
    with pytest.raises(InputError, match=r"'mask'.*got torch.bool"):
        torch.compile(traced, backend=backend)(**WRONG["bool mask"][0](tokens()))
    torch._dynamo.reset()


@pytest.mark.parametrize("strict", [False, True])
def test_exported(traced: fxsplit.TracedModel, strict: bool) -> None:
    batch, length = torch.export.Dim("batch", min=2), torch.export.Dim("length", min=2)
    shapes = {"ids": {0: batch, 1: length}, "mask": {0: batch, 1: length}, "side": {0: batch}}
    for module in (traced, fxsplit.split(traced, "mix", heads=2)):
        exported = torch.export.export(module, (), tokens(3, 6), dynamic_shapes=shapes, strict=strict)
        feed = tokens(4, 9)
        torch.testing.assert_close(exported.module()(**feed), module(**feed))


def test_called_functionally(traced: fxsplit.TracedModel) -> None:
    values = {name: torch.zeros_like(p) for name, p in traced.named_parameters()}
    assert not torch.func.functional_call(traced, values, (), tokens()).any()
    with pytest.raises(InputError, match="'ids'"):
        torch.func.functional_call(traced, values, (), WRONG["floating ids"][0](tokens()))


def test_saved_and_loaded(traced: fxsplit.TracedModel, tmp_path: Path) -> None:
    fxsplit.save(fxsplit.split(traced, "mix", heads=2), tmp_path / "net.safetensors")
    net = fxsplit.load(tmp_path / "net.safetensors", Tokens())
    net(**tokens(5))
    with pytest.raises(InputError, match="'mask'"):
        net(**WRONG["bool mask"][0](tokens()))


def test_exported_to_onnx(traced: fxsplit.TracedModel, tmp_path: Path) -> None:
    report = fxsplit.export_onnx(fxsplit.split(traced, "mix", heads=2), tmp_path / "net.onnx")
    assert report.dynamic["ids"] == {0: "batch", 1: "length"}


def test_symbolic_tracing_passes_through(traced: fxsplit.TracedModel) -> None:
    again = fx.Tracer().trace(traced)
    assert [n.target for n in again.nodes if n.op == "call_module"] == ["words", "side", "mix", "head"]


class Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.exp()


def test_a_fixed_batch() -> None:
    """A batch of 1 would broadcast to four rows."""
    with pytest.warns(FxSplitWarning, match="batch size only"):
        traced = fxsplit.trace(Fixed(), torch.randn(4, 3))
    with pytest.raises(InputError, match=r"'x'.*\[4, any\]; got \[1, 3\]: size 1 of dimension 0 instead of 4"):
        traced(torch.randn(1, 3))


class Columns(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(5, 3) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([table(column) for table, column in zip(self.tables, x.unbind(1), strict=False)], 1)


def test_a_specialised_length() -> None:
    traced = fxsplit.trace(Columns(), torch.randint(5, (2, 6)))
    with pytest.raises(InputError, match=r"\[batch, 6\]; got \[2, 5\]: size 5 of dimension 1 instead of 6"):
        traced(torch.randint(5, (2, 5)))


class Picture(nn.Module):
    """``what`` decides how the height and width are used."""

    def __init__(self, what: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.what, self.last = nn.Conv2d(3, 4, 3, padding=1), what, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.what(self.conv(x)).mean((2, 3)))


def halves(x: Tensor) -> Tensor:
    return torch.cat([x[:, :, : x.shape[2] // 2] * 2, x[:, :, x.shape[2] // 2 :]], 2)


FOLLOWED: dict[str, Callable[[Tensor], Tensor]] = {
    "not read": lambda x: x.relu(),
    "read and checked only": lambda x: x * (1 if x.shape[2] > 2 else 0),
    "resized to its own size": lambda x: nn.functional.interpolate(x[:, :, 1:, ::2], size=x.shape[-2:]),
    "divided by the area": lambda x: x / (x.shape[2] * x.shape[3]),
    "flattened and back": lambda x: x.flatten(2).reshape(x.shape[0], 4, x.shape[3], x.shape[2]),
}


@pytest.mark.parametrize("kind", FOLLOWED)
def test_sizes_of_images_that_are_followed_are_free(kind: str) -> None:
    net = Picture(FOLLOWED[kind]).eval()
    traced = fxsplit.trace(net, torch.randn(2, 3, 16, 16))
    assert not [line for line in traced.report.specialised if "shape[2]" in line or "shape[3]" in line]
    for batch, height, width in ((1, 16, 16), (3, 9, 14), (2, 33, 21)):
        x = torch.randn(batch, 3, height, width)
        assert_same(traced(x), net(x))


class Auxiliary(nn.Module):
    """Has a second output in train mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.second = Picture(FOLLOWED["divided by the area"]), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.body(x)
        return (x, self.second(x)) if self.training else (x,)


def test_sizes_are_free_where_train_mode_does_something_else() -> None:
    net = Auxiliary().eval()
    with pytest.warns(FxSplitWarning, match="train mode"):
        traced = fxsplit.trace(net, torch.randn(2, 3, 16, 16))
    x = torch.randn(3, 3, 11, 22)
    assert_same(traced(x), net(x))


BAKED: dict[str, Callable[[Tensor], Tensor]] = {
    "halved": halves,
    "control flow": lambda x: x * 2 if x.shape[2] == 16 else x,
    "number of parts": lambda x: sum(part * n for n, part in enumerate(x.split(5, 3)) if part.shape[3] == 5),  # type: ignore[return-value, misc]
}


@pytest.mark.parametrize("kind", BAKED)
def test_sizes_of_images_that_are_baked_in_are_guarded(kind: str) -> None:
    net = Picture(BAKED[kind]).eval()
    traced = fxsplit.trace(net, torch.randn(2, 3, 16, 16))
    (line,) = traced.report.specialised
    assert line.startswith("x.shape[1] = 3, x.shape[2] = 16, x.shape[3] = 16 (sizes are read in ")
    assert line.endswith("free are: batch)")
    x = torch.randn(5, 3, 16, 16)
    assert_same(traced(x), net(x))
    with pytest.raises(InputError, match="size 15 of dimension 2 instead of 16"):
        traced(torch.randn(2, 3, 15, 16))
    with pytest.raises(InputError, match="size 17 of dimension 3 instead of 16"):
        traced(torch.randn(2, 3, 16, 17))


def test_a_size_that_the_model_refuses_is_guarded() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places = nn.Parameter(torch.randn(1, 64, 3))

        def forward(self, x: Tensor) -> Tensor:
            return (x.flatten(2).transpose(1, 2) + self.places).reshape(x.shape[0], -1)

    net = Patches()
    traced = fxsplit.trace(net, torch.randn(2, 3, 8, 8))
    x = torch.randn(3, 3, 8, 8)
    assert_same(traced(x), net(x))
    with pytest.raises(InputError, match=r"\[batch, 3, 8, 8\]; got \[2, 3, 4, 16\]"):
        traced(torch.randn(2, 3, 4, 16))


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        return self.lin(x).view(batch * length, 4).softmax(-1).view(batch, length, 4)


def test_the_length_of_a_floating_sequence_is_free() -> None:
    net = Sequence()
    traced = fxsplit.trace(net, torch.randn(2, 7, 5))
    x = torch.randn(3, 12, 5)
    assert_same(traced(x), net(x))
    with pytest.raises(InputError, match=r"\[batch, x.shape\[1\], 5\]; got \[2, 7, 6\]"):
        traced(torch.randn(2, 7, 6))


@dataclass
class Pair:
    left: Tensor
    right: Tensor | None = None


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 2)

    def forward(self, many: list[Tensor], named: dict[str, Any], pair: Pair) -> Tensor:
        x = sum(many) + named["x"] * named["factor"] + pair.left
        return self.lin(x if pair.right is None else x + pair.right)  # type: ignore[arg-type, operator]


def nested(batch: int = 2) -> dict[str, Any]:
    x = torch.randn(batch, 3)
    return {"many": [x, x + 1], "named": {"x": x, "factor": 2}, "pair": Pair(x)}


NESTED: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "missing item": (lambda d: {**d, "many": d["many"][:1]}, "'many' lacks its part 1, which was traced"),
    "further item": (lambda d: {**d, "many": [*d["many"], d["many"][0]]}, "'many' has a part 2 that was not traced"),
    "missing key": (lambda d: {**d, "named": {"factor": 2}}, "'named' lacks its part 'x'"),
    "further key": (lambda d: {**d, "named": {**d["named"], "y": 1}}, "'named' has a part 'y' that was not traced"),
    "another constant": (
        lambda d: {**d, "named": {**d["named"], "factor": 3}},
        r"\"named\['factor'\]\" was traced as 2; got 3",
    ),
    "further field": (
        lambda d: {**d, "pair": Pair(d["pair"].left, torch.ones(2, 3))},
        r"\"pair\['right'\]\" was traced as None; got a tensor",
    ),
    "part of another kind": (
        lambda d: {**d, "pair": Pair(torch.ones(2, 3, dtype=torch.long))},
        r"\"pair\['left'\]\".*got torch.int64",
    ),
    "no container": (
        lambda d: {**d, "named": torch.ones(2, 3)},
        "'named' was traced as a dict; got a value of type Tensor",
    ),
}


@pytest.mark.parametrize("kind", NESTED)
def test_nested_inputs(kind: str) -> None:
    net = Nested()
    traced = fxsplit.trace(net, nested())
    feed = nested(4)
    assert_same(traced(**feed), net(**feed))
    assert_same(traced(tuple(feed["many"]), feed["named"], feed["pair"]), net(**feed))
    change, message = NESTED[kind]
    with pytest.raises(InputError, match=message):
        traced(**change(nested()))


def test_a_graph_with_other_placeholders_is_not_guarded() -> None:
    """Whoever edits the inputs of the graph has to check them."""
    traced = fxsplit.trace(Sequence(), torch.randn(2, 7, 5))
    first = next(iter(traced.graph.nodes))
    with traced.graph.inserting_after(first):
        traced.graph.placeholder("more")
    traced.recompile()
    traced(torch.randn(2, 7, 5), None)
    assert "_check_inputs" not in traced.code


class _Context(nn.Module):
    """Enlarges one value to the size of a map behind a stride of 32, which is read."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        return features + nn.functional.interpolate(features.mean((2, 3), keepdim=True), size=features.shape[-2:])


def test_small_pictures_vary_by_more_than_a_stride() -> None:
    traced = fxsplit.trace(_Context(), torch.randn(2, 3, 64, 64))
    with pytest.raises(InputError, match="dimension 2"):
        traced(torch.randn(2, 3, 320, 320))

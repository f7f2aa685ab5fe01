"""Usages that are unusual but legitimate, one by one: heads copied from the model each compute what the model does."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxsplit
from tests.checks import assert_same, scalar, seeded, state_storages
from tests.strategies import ConvCase, TokenCase, call

CASE = ConvCase(blocks=("residual", "plain", "squeeze"))
X = torch.linspace(-1, 1, 12).view(3, 4)


def halves(model: nn.Module, example: Any, at: Any, **options: Any) -> fxsplit.SplitModel:
    return fxsplit.split(fxsplit.trace(model, example), at, **{"heads": 2, "init": "copy", **options})


class Pair(nn.Module):
    """Two layers, ``a`` and ``b``; what happens between and after them is the test's."""

    def __init__(self, body: Callable[..., Any]) -> None:
        super().__init__()
        self.a, self.b, self.body = nn.Linear(4, 4), nn.Linear(4, 4), body

    def forward(self, x: Any) -> Any:
        return self.body(self, x)


@dataclasses.dataclass
class Result:
    logits: Tensor
    hidden: Tensor | None = None


def written_leaf(m: Pair, x: Tensor) -> Any:
    hidden = m.a(x)
    return m.b(hidden.relu_()), hidden


def written_alias(m: Pair, x: Tensor) -> Any:
    hidden = m.a(x)
    hidden[:, :2].mul_(2.0)
    return m.b(hidden)


def written_slice(m: Pair, x: Tensor) -> Any:
    hidden = m.a(x)
    hidden[:, 0] = 1.0
    return m.b(hidden)


def one_tensor_twice(m: Pair, x: Tensor) -> Any:
    hidden = m.a(x)
    return {"y": m.b(hidden), "same": hidden, "again": hidden, "view": hidden[:, :2], "input": x}


def constants(m: Pair, x: Tensor) -> Any:
    return {"y": m.b(m.a(x)), "size": x.shape[0], "none": None, "name": "pair"}


def recomputed(m: Pair, x: Tensor) -> Any:
    return m.b(checkpoint(m.a, x, use_reentrant=False))


def selected(m: Pair, x: Tensor) -> Any:
    out = m.b(m.a(x))
    return out[out > 0].sum() + out.sum()


def spectrum(m: Pair, x: Tensor) -> Any:
    return m.b(torch.fft.fft(m.a(x)).real)


@pytest.mark.parametrize(
    "body",
    [written_leaf, written_alias, written_slice, one_tensor_twice, constants, recomputed, selected, spectrum],
    ids=lambda body: body.__name__,
)
def test_idioms_between_two_layers(body: Callable[..., Any]) -> None:
    model = Pair(body)
    net = halves(model, X, "a")
    for x in (X, torch.randn(5, 4)):
        for output in net.head_outputs(x.clone()):
            assert_same(output, model(x.clone()))


def test_a_dataclass_comes_back_as_itself() -> None:
    def body(m: Pair, x: Tensor) -> Result:
        hidden = m.a(x)
        return Result(m.b(hidden), hidden)

    model = Pair(body)
    result, expected = halves(model, X, "a", heads=1)(X), model(X)
    assert type(result) is Result
    assert_same((result.logits, result.hidden), (expected.logits, expected.hidden))


def test_containers_of_inputs() -> None:
    model = Pair(lambda m, x: m.b(m.a(x[0]) + x[1]["bias"]))
    net = halves(model, ([X, {"bias": X}],), "a")
    given = [torch.randn(5, 4), {"bias": torch.randn(5, 4)}]
    for output in net.head_outputs(given):
        assert_same(output, model(given))


@pytest.mark.parametrize("at", ["layers.0", "layers.1", "layers.2"])
def test_hidden_states_pass_any_cut(at: str) -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(4)])

        def forward(self, x: Tensor) -> dict[str, Any]:
            states = [x]
            for layer in self.layers:
                states.append(layer(states[-1]).relu())
            return {"logits": states[-1], "hidden_states": tuple(states)}

    model = Stack()
    for output in halves(model, X, at).head_outputs(X):
        assert_same(output, model(X))


@pytest.mark.parametrize("place", ["root", "block"])
def test_a_buffer_that_counts_calls(place: str) -> None:
    class Counter(nn.Module):
        calls: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.layer(x) / self.calls

    model = nn.Sequential(nn.Linear(4, 4), Counter()) if place == "block" else nn.Sequential(Counter(), nn.Linear(4, 4))
    net = halves(model, X, "0")
    for _ in range(3):
        expected = model(X)
        for output in net.head_outputs(X):
            assert_same(output, expected)


def test_an_empty_trunk_is_an_ensemble() -> None:
    model = CASE.build()
    net = halves(model, CASE.example(), 0)
    assert not list(net.trunk.parameters())
    for output in call(net.head_outputs, CASE.example(3)):
        assert_same(output, call(model, CASE.example(3)))


@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_a_share_of_the_blocks(share: float) -> None:
    case = ConvCase(blocks=("plain",) * 4)
    cut = halves(case.build(), case.example(), share).cut
    assert cut.path == f"blocks.{max(round(share * 4), 1) - 1}"


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(kind: torch.dtype) -> None:
    model = CASE.build().to(kind)
    (x,) = CASE.example(3)
    for output in halves(model, x.to(kind), "blocks.0").head_outputs(x.to(kind)):
        assert_same(output, model(x.to(kind)))
    later = halves(CASE.build(), x, "blocks.0").to(kind)
    for output in later.head_outputs(x.to(kind)):
        assert_same(output, model(x.to(kind)))


@pytest.mark.parametrize("init", ["copy", "fresh"])
def test_a_model_without_storage(init: str) -> None:
    model = CASE.build().to("meta")
    (x,) = CASE.example(3)
    net = halves(model, x.to("meta"), "blocks.0", init=init)
    assert {tensor.device.type for tensor in net.state_dict().values()} == {"meta"}
    assert net(x.to("meta")).shape == (3, 5)
    filled = net.to_empty(device="cpu")
    filled.load_state_dict(halves(CASE.build(), x, "blocks.0").state_dict())
    assert_same(filled.head_outputs(x)[1], CASE.build()(x))


@pytest.mark.parametrize("init", ["copy", "fresh"])
def test_channels_last_is_kept(init: str) -> None:
    layout = torch.channels_last
    model = CASE.build()
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)
    x = CASE.example(3)[0].contiguous(memory_format=layout)
    net = halves(model, x, "blocks.0", init=init)
    assert all(p.is_contiguous(memory_format=layout) for p in net.parameters() if p.ndim == 4)
    if init == "copy":
        assert_same(net.head_outputs(x)[0], model(x))


def test_a_frozen_trunk_gets_no_gradient_and_heads_do() -> None:
    model = CASE.build().train()
    model.get_submodule("stem").requires_grad_(False)
    model.get_submodule("blocks.0").requires_grad_(False)
    net = halves(model, CASE.example(), "blocks.0")
    scalar(call(net, CASE.example())).backward()
    assert all(parameter.grad is None for parameter in net.trunk.parameters())
    assert all(parameter.grad is not None for parameter in net.heads.parameters())


def test_surgery_under_no_grad_leaves_a_net_that_trains() -> None:
    with torch.no_grad():
        net = halves(CASE.build(), CASE.example(), "blocks.0")
    scalar(call(net, CASE.example())).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_positional_and_keyword_calls_are_the_same() -> None:
    case = TokenCase(mask=True, labels=True)
    model, example = case.build(), case.example(3)
    net = halves(model, case.example(), "blocks.0", heads=1)
    assert_same(net(*example.values()), model(**example))
    assert_same(net(**example), model(**example))


def test_dropout_differs_between_heads_and_follows_their_mode() -> None:
    case = ConvCase(blocks=("plain", "dropped"))
    net = halves(case.build(), case.example(), "blocks.0").train()
    one, two = call(net.head_outputs, case.example())
    assert not torch.equal(one, two)
    net.trunk.eval()
    assert all(head.training for head in net.heads)
    net.eval()
    one, two = call(net.head_outputs, case.example())
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    "case", [CASE, TokenCase(blocks=("softmax", "fused"), mask=True, rotary=True)], ids=["conv", "token"]
)
def test_torch_compile_takes_the_net_whole(case: ConvCase | TokenCase) -> None:
    net = fxsplit.neurotrailify(case.build(), "blocks.0", heads=2, example=case.example())
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(call(compiled, case.example(2)), call(net, case.example(2)))


def test_functional_calls_see_other_parameters() -> None:
    net = halves(CASE.build(), CASE.example(), "blocks.0")
    zeros = {name: torch.zeros_like(parameter) for name, parameter in net.named_parameters()}
    assert not torch.func.functional_call(net, zeros, CASE.example()).any()
    assert call(net, CASE.example()).any()


def test_an_average_of_the_net_over_time() -> None:
    net = halves(CASE.build(), CASE.example(), "blocks.0")
    average = torch.optim.swa_utils.AveragedModel(net)
    average.update_parameters(net)
    assert not state_storages(average.module) & state_storages(net)
    assert_same(average(*CASE.example(3)), call(net, CASE.example(3)))


def test_a_copy_trains_apart() -> None:
    net = halves(CASE.build(), CASE.example(), "blocks.0").train()
    expected = seeded(lambda: call(copy.deepcopy(net), CASE.example()))
    twin = copy.deepcopy(net)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    scalar(call(twin, CASE.example())).backward()
    optimizer.step()
    assert_same(seeded(lambda: call(net, CASE.example())), expected)
    assert twin.cut == net.cut
    assert twin.origin == net.origin
    assert str(twin.report) == str(net.report)


def test_a_batch_of_none() -> None:
    net = halves(CASE.build(), CASE.example(), "blocks.0")
    assert net(CASE.example()[0][:0]).shape == (0, 5)

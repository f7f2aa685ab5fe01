"""Models and examples that cannot be traced, and that tracing leaves no marks on a model."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

import sparsity
from fxsplit._errors import TraceError
from fxsplit._trace import trace
from tests.checks import assert_same, assert_unchanged, snapshot


class Busy(nn.Module):
    """Changes whatever a module can change in its forward."""

    def __init__(self, raises: Exception | None = None) -> None:
        super().__init__()
        self.lin, self.norm, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)
        self.register_buffer("count", torch.zeros(4))
        self.calls = 0
        self.cache: dict[int, Tensor] = {}
        self.seen: list[int] = []
        self.raises = raises

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(len(x))
        self.cache.setdefault(x.shape[1], torch.ones(4))
        self.latest = x
        self.frozen.mul_(1.01)
        self.count += 1
        self.lin.training = True
        x = self.drop(self.norm(self.lin(x))) + self.cache[4] * self.frozen
        x = x + float(numpy.random.rand()) * 0  # noqa: NPY002 - the global generator is the point
        if self.raises is not None:
            raise self.raises
        return x * 1.0


def busy(raises: Exception | None = None) -> nn.Sequential:
    net = nn.Sequential(Busy(raises), nn.Linear(4, 30), nn.BatchNorm1d(30)).train()
    net[1].eval()
    net[0].register_forward_hook(lambda *_: None)
    net.get_parameter("2.weight").grad = torch.ones(30)
    return net


def busy_snapshot(net: nn.Module) -> dict[str, Any]:
    """All but how often a parameter was written: the model writes one itself."""
    return {key: value for key, value in snapshot(net).items() if key != "writes"}


def test_a_traced_model_is_as_before() -> None:
    net = busy()
    before, seen = busy_snapshot(net), list(net[0].seen)  # type: ignore[arg-type]
    trace(net, torch.ones(3, 4))
    assert before == busy_snapshot(net)
    assert net[0].cache == {}
    assert net[0].seen == seen
    assert nn.Module.__call__.__qualname__.startswith("Module.")
    assert torch.autograd.Function.apply.__qualname__.startswith("Function.")


def test_a_model_that_raises_is_as_before() -> None:
    net = busy(KeyError("no such thing"))
    before = busy_snapshot(net)
    with pytest.raises(TraceError, match=r"in '0' with KeyError: 'no such thing'") as caught:
        trace(net, torch.ones(3, 4))
    assert isinstance(caught.value.__cause__, KeyError)
    assert before == busy_snapshot(net)
    assert nn.Module.__call__.__qualname__.startswith("Module.")


class RaisesWhenRecorded(nn.Module):
    """Fails only in train mode, after the model has been run in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.busy = Busy()

    def forward(self, x: Tensor) -> Tensor:
        x = self.busy(x)
        if self.training:
            raise RuntimeError("not for training")
        return x


def test_a_model_that_raises_in_train_mode_only() -> None:
    net = RaisesWhenRecorded()
    before = busy_snapshot(net)
    with pytest.raises(TraceError, match=r"RaisesWhenRecorded cannot be recorded.*not for training") as caught:
        trace(net, torch.ones(3, 4))
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert before == busy_snapshot(net)


def test_interrupts_pass_and_restore() -> None:
    net = nn.Sequential(Busy(), Stops())
    before = busy_snapshot(net)
    with pytest.raises(KeyboardInterrupt):
        trace(net, torch.ones(3, 4))
    assert before == busy_snapshot(net)


class Stops(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise KeyboardInterrupt
        return x


def refused(model: Any, example: Any, match: str, **options: Any) -> None:
    before = snapshot(model) if isinstance(model, nn.Module) else None
    with pytest.raises(TraceError, match=match):
        trace(model, example, **options)
    if before is not None:
        assert_unchanged(before, model)


X = torch.ones(2, 4)


@pytest.mark.parametrize("thing", [None, "resnet50", nn.Linear, torch.ones(2), abs], ids=str)
def test_no_module(thing: Any) -> None:
    refused(thing, X, r"expected a torch.nn.Module, got")


def test_script_modules() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Linear(4, 4))
    refused(scripted, X, "ScriptModule.*Pass the original")
    refused(nn.Sequential(nn.Linear(4, 4), scripted), X, "module '1'.*ScriptModule")


class Wraps(nn.Module):
    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner


def test_compiled_modules() -> None:
    refused(torch.compile(nn.Linear(4, 4)), X, "wrapped by torch.compile. Trace the original")
    refused(Wraps(torch.compile(nn.Linear(4, 4))), X, "module 'inner'.*wrapped by torch.compile")
    net = nn.Sequential(nn.Linear(4, 4))
    net[0].compile()
    refused(net, X, "module '0'.*compiled in place")


def test_graphs() -> None:
    refused(trace(nn.Linear(4, 4), X), X, r"Linear is a graph already \(a TracedModel\)")


def test_masked_modules() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    sparsity.sparsify(net, 0.5, skip=["0"])
    refused(net, X, r"'1.weight' carries a mask.*sparsity.fold.*masks belong on the split model")


def test_several_devices() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, device="meta"))
    refused(net, X, "'0.weight' on cpu, '1.weight' on meta.*model.to")


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_modules() -> None:
    with pytest.raises(TraceError, match=r"'1.weight' is not initialised yet.*lazy"):
        trace(nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(3)), X)


def test_names_that_a_graph_needs() -> None:
    net = nn.Sequential()
    net.add_module("report", nn.Linear(4, 4))
    refused(net, X, "submodule 'report', a name that traced models use")


@pytest.mark.parametrize(
    ("example", "match"),
    [
        (torch.ones(2, 3), r"rejects the example \(input: \[2, 3\]\) in '0' with RuntimeError: mat1 and mat2"),
        ((X, X), "does not fit Sequential.forward"),
        ({"x": X}, "does not fit Sequential.forward"),
        ((), "does not fit Sequential.forward"),
        (3.0, "holds no tensor"),
        (None, r"no example can be inferred for Sequential.*trace\(model, torch.randn"),
    ],
    ids=["shape", "too many", "name", "too few", "no tensor", "none"],
)
def test_examples_that_do_not_fit(example: Any, match: str) -> None:
    refused(nn.Sequential(nn.Linear(4, 4)), example, match)


def test_an_object_as_an_argument_of_the_model() -> None:
    class Bag:
        def __init__(self) -> None:
            self.x = X

    class Takes(nn.Module):
        def forward(self, bag: Bag) -> Tensor:
            return bag.x + 1

    refused(Takes(), (Bag(),), "argument of type Bag holds tensors.*dataclass")


class Wrong(nn.Module):
    """Hides its work from torch, so that the recording is not the model."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.lin(x)
        with torch.no_grad(), torch._C.DisableTorchFunction():
            y.mul_(3)
        return y + x

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)


def test_a_graph_that_does_not_reproduce_the_model_is_refused() -> None:
    refused(Wrong(), X, "does not reproduce the model in eval mode.*leaf=")


class Gates(nn.Module):
    def __init__(self, *names: str) -> None:
        super().__init__()
        self.gates = nn.ModuleDict({name: nn.Linear(4, 4) for name in names})

    def forward(self, x: Tensor) -> Tensor:
        for gate in self.gates.values():
            x = gate(x)
        return x


@pytest.mark.parametrize("name", ["in", "class", "None", 'a"b', "a\\", "a\nb"])
def test_names_that_code_cannot_hold(name: str) -> None:
    refused(Gates("out", name), X, re.escape(f"uses {f'gates.{name}'!r}") + r".* Rename it\.$")
    refused(nn.Sequential(Gates(name)), X, r"Rename it, or keep the module around it whole with leaf=\['0'\]\.$")
    whole = nn.Sequential(Gates(name), nn.Linear(4, 3)).eval()
    assert_same(trace(whole, X, leaf=["0"])(X), whole(X))


def test_a_parameter_whose_name_is_a_keyword() -> None:
    class Weighs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_parameter("lambda", nn.Parameter(torch.ones(4)))
            self.lin = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.lin(x) * getattr(self, "lambda")

    refused(Weighs(), X, r"uses 'lambda', .*Rename it\.$")


def test_names_that_only_look_odd() -> None:
    net = Gates("1x", "a-b", "match", "in_", "ключ").eval()
    traced = trace(net, X)
    assert_same(traced(X), net(X))
    assert list(traced.state_dict()) == list(net.state_dict())

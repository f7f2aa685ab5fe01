"""What one does with a traced model: copy, cast, train, compile, export."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fxsplit._errors import TraceError
from fxsplit._trace import trace
from tests.checks import assert_same, scalar, seeded


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.bias = nn.Parameter(torch.zeros(5, 5))
        self.register_buffer("scale", torch.full((1,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT * self.scale + self.bias).softmax(-1, dtype=torch.float32).to(x.dtype)
        weights = nn.functional.dropout(weights, 0.1, self.training)
        mask = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        y = (weights.masked_fill(~mask, 0.0) @ v).transpose(1, 2).reshape(batch, length, width)
        return x + self.proj(y)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(8, 3)
        self.table = torch.linspace(0, 1, 8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = x + self.table
        for block in self.blocks:
            x = block(x)
        return {"logits": self.head(x.mean(1))}


def example(batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 5, 8, dtype=dtype)


def test_a_copy_shares_nothing_but_its_provenance() -> None:
    net = Net()
    traced = trace(net, example())
    twin = copy.deepcopy(traced)
    assert type(twin).__mro__[1:] == type(traced).__mro__[1:]
    assert twin.source is net
    assert twin.report is traced.report
    assert twin.meta["batch"] == traced.meta["batch"]
    x = example(3)
    assert_same(seeded(lambda: twin(x)), seeded(lambda: traced(x)))
    ours = {t.data_ptr() for t in [*traced.parameters(), *traced.buffers()]}
    assert not ours & {t.data_ptr() for t in [*twin.parameters(), *twin.buffers()]}
    assert [n.meta["path"] for n in twin.graph.nodes if n.op != "output"] == [
        n.meta["path"] for n in traced.graph.nodes if n.op != "output"
    ]
    with torch.no_grad():
        twin.get_parameter("head.bias").add_(1)
    assert not torch.equal(twin.eval()(x)["logits"], traced.eval()(x)["logits"])


def test_a_trace_is_not_pickled_but_what_it_was_made_of_is(tmp_path: Path) -> None:
    traced = trace(Net(), example())
    for store in (pickle.dumps, lambda value: torch.save(value, tmp_path / "traced")):
        for value in (traced, copy.deepcopy(traced), nn.Sequential(traced)):
            with pytest.raises(TraceError, match=r"cannot be pickled.*traced.source.*state_dict\(\)"):
                store(value)
    again = trace(pickle.loads(pickle.dumps(traced.source)), example())
    torch.save(traced.state_dict(), tmp_path / "weights")
    again.load_state_dict(torch.load(tmp_path / "weights"))
    x = example(3)
    assert_same(again.eval()(x), traced.eval()(x))


def test_a_copy_keeps_modes() -> None:
    net = Net().train()
    net.blocks[0].eval()
    twin = copy.deepcopy(trace(net, example()))
    assert not twin.get_submodule("blocks.0").training
    assert twin.get_submodule("blocks.1").training
    assert [twin.get_submodule(f"_switch_{n}").training for n in range(2)] == [False, True]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_casting_after_tracing(dtype: torch.dtype) -> None:
    net = Net().eval()
    traced = copy.deepcopy(trace(net, example())).to(dtype)
    got = traced(example(3, dtype))["logits"]
    assert got.dtype is dtype
    net.to(dtype).table = net.table.to(dtype)
    torch.manual_seed(1)
    x = example(4, dtype)
    assert_same(traced(x), net(x))


def test_training_the_trace_trains_the_model() -> None:
    net = Net().train()
    traced = trace(net, example())
    before = net.head.weight.detach().clone()
    optimizer = torch.optim.SGD(traced.parameters(), lr=0.1)
    scalar(traced(example(4))).backward()
    optimizer.step()
    assert not torch.equal(net.head.weight, before)
    assert {name for name, _ in traced.named_parameters()} == {name for name, _ in net.named_parameters()}


def test_state_dicts_are_interchangeable_but_for_captured_constants() -> None:
    net = Net()
    traced = trace(net, example())
    assert set(traced.state_dict()) - set(net.state_dict()) == {"_tensor_constant_0"}
    other = Net()
    missing, unexpected = trace(other, example()).load_state_dict(net.state_dict(), strict=False)
    assert (missing, unexpected) == (["_tensor_constant_0"], [])
    x = example(3)
    assert_same(other.eval()(x), net.eval()(x))


def test_a_model_on_the_meta_device() -> None:
    with torch.device("meta"):
        net = Net()
        x = torch.empty(3, 5, 8)
    traced = trace(net, x)
    with torch.device("meta"):
        assert traced(torch.empty(7, 5, 8))["logits"].shape == (7, 3)
    reference = trace(Net(), example())
    # `table` is a plain attribute, on the CPU or not: everything else is the same program.
    assert [(n.op, n.target) for n in traced.graph.nodes] == [(n.op, n.target) for n in reference.graph.nodes]
    assert sum(n.meta["flops"] for n in traced.graph.nodes if n.op != "output") == sum(
        n.meta["flops"] for n in reference.graph.nodes if n.op != "output"
    )


def test_torch_compile() -> None:
    net = Net().eval()
    traced = trace(net, example())
    compiled = torch.compile(traced, fullgraph=True, backend="aot_eager")
    x = example(3)
    torch.testing.assert_close(compiled(x), net(x))


def test_torch_export() -> None:
    net = Net().eval()
    traced = trace(net, example())
    batch = torch.export.Dim("batch", min=2, max=16)
    exported = torch.export.export(traced, (example(4),), dynamic_shapes=({0: batch},), strict=False)
    x = example(7)
    torch.testing.assert_close(exported.module()(x), net(x))

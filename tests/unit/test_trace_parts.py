"""Parts of tracing on their own: alignment, dead code, restoring, caches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxsplit._trace import trace
from fxsplit._trace._align import Mismatch, pair_loosely, pair_up
from fxsplit._trace._dce import live_records
from fxsplit._trace._preserve import preserved
from fxsplit._trace._records import Record, Ref
from tests.checks import assert_same, assert_unchanged, snapshot


def records(text: str) -> list[Record]:
    """``"a.b:add a:mul"``: an add in module a.b, a mul in module a."""
    found: list[Record] = []
    for part in text.split():
        path, name = part.split(":")
        names = path.split(".") if path else []
        modules = tuple(".".join(names[: n + 1]) for n in range(len(names)))
        found.append(Record("call_method", name, (), {}, modules))
    return found


def test_equal_recordings_align() -> None:
    program = records("a:add a.b:mul :sum")
    assert pair_up(program, list(program), "then") == []


def test_a_disagreement_is_in_the_innermost_module_open_in_both_and_comparing_goes_on_behind_it() -> None:
    one = records("x.a:add x.a:mul x:sub y.b:cos :sum")
    two = records("x.a:add x.a:div x.a:neg x:sub y.c:sin :sum")
    assert pair_up(one, two, "then") == [
        Mismatch("x.a", "then it runs div (in x.a) where it ran mul (in x.a)"),
        Mismatch("y", "then it runs sin (in y.c) where it ran cos (in y.b)"),
    ]


def test_a_recording_that_goes_on_disagrees_at_the_root() -> None:
    one, two = records(":add"), records(":add x:mul")
    assert [problem.path for problem in pair_up(one, two, "then")] == [""]
    assert [problem.path for problem in pair_up(two, one, "then")] == [""]


def test_loose_pairs_leave_out_what_has_no_partner() -> None:
    one, two = records("a:add b:mul c:sub"), records("a:add b:rand b:mul b:neg c:sub")
    assert pair_loosely(one, two) == {0: 0, 1: 2, 2: 4}


def test_writes_into_memory_that_is_read_are_alive() -> None:
    x = Record("call_function", "zeros", (), {}, (), storage=1)
    view = Record("call_method", "view", (Ref(0),), {}, (), storage=1)
    write = Record("call_method", "mul_", (Ref(1),), {}, (), mutates=(1,), storage=1)
    other = Record("call_method", "clone", (Ref(0),), {}, (), storage=2)
    lost = Record("call_method", "mul_", (Ref(3),), {}, (), mutates=(2,), storage=2)
    program = [x, view, write, other, lost]
    values = [(record.args, record.kwargs) for record in program]
    assert live_records(program, values, Ref(0), set()) == [True, True, True, False, False]
    assert live_records(program, values, Ref(0), {4}) == [True, True, True, True, True]


class Caches(nn.Module):
    """Builds a buffer and an attribute for the size that it sees first."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.register_buffer("table", torch.zeros(1), persistent=False)
        self.scale: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.table.shape[0] != x.shape[1]:
            self.table = torch.arange(x.shape[1], dtype=x.dtype)
        if self.scale is None:
            self.scale = torch.full((x.shape[1],), 0.5)
        return self.lin(x) + self.table * self.scale


def test_caches_that_the_model_builds_become_constants_of_the_graph_only() -> None:
    net = Caches()
    example = torch.randn(2, 4)
    before = snapshot(net)
    traced = trace(net, example)
    assert_unchanged(before, net)
    assert len(traced.report.constants) == 2
    assert traced.report.coarse_leaves == []
    x = torch.randn(3, 4)
    assert_same(traced(x), net(x))


def test_preserved_keeps_what_was_built_only_if_asked() -> None:
    net = Caches()
    with preserved(net, attributes=False), torch.no_grad():
        net(torch.randn(2, 4))
        net.lin.weight.add_(1)
    assert net.scale is not None
    built = snapshot(net)
    with preserved(net), torch.no_grad():
        net.scale = None
        net(torch.randn(2, 4))
        net.table.add_(1)
        net.register_buffer("more", torch.ones(2))
        net.eval()
    now = snapshot(net)
    assert {key for key in built if built[key] != now.get(key)} == set()


def test_parameters_written_in_any_way_are_put_back() -> None:
    net = nn.Linear(3, 3)
    bits = net.weight.detach().clone()
    with preserved(net), torch.no_grad():
        net.weight.data[0].mul_(2)
        torch.add(net.weight, 1, out=net.weight)
        net.weight.t().copy_(torch.ones(3, 3))
    assert torch.equal(net.weight, bits)

"""Plans of the sparse runtime: steps by hand or against torch, stages, threads, the ends of memory, and misuse."""

from __future__ import annotations

import ctypes
import math
import mmap
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparsity._errors import PlanError
from sparsity.runtime._cpu import supported_isas
from sparsity.runtime._plan import Activation, Affine, Epilogue, Plan, PoolKind
from tests import plans
from tests.plans import FUNCTIONS, Case


@pytest.fixture(params=supported_isas())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SPARSITY_ISA", request.param)
    return request.param


def of_one_step(append, sources: list[Tensor], shape: tuple[int, ...], threads: int = 2) -> Tensor:
    """Run ``append(plan, source buffers, target buffer)`` on samples along the first dimension of the sources."""
    plan = Plan()
    inputs = [plan.buffer(source[0].numel()) for source in sources]
    target = plan.buffer(math.prod(shape))
    append(plan, inputs, target)
    plan.finish(inputs, [target], 0)
    out = torch.full((len(sources[0]), *shape), float("nan"))
    plan.run(sources, [out], len(out), threads)
    return out


@pytest.mark.parametrize("activation", Activation)
@pytest.mark.usefixtures("isa")
def test_activations(activation: Activation) -> None:
    special = torch.tensor([0.0, -0.0, 1e-40, -1e-40, float("nan"), float("inf"), 88.5, -88.5, -150.0, 150.0])
    x = torch.cat([torch.linspace(-12, 12, 3001), torch.randn(500) * 0.01, torch.randn(500) * 30, special])[None]
    floats = x.numel()
    got = of_one_step(
        lambda plan, inputs, out: plan.activation(inputs[0], out, floats=floats, activation=activation),
        [x],
        (floats,),
    )
    wanted = FUNCTIONS[activation](x.double())
    if activation is Activation.GELU:
        wanted[x == torch.inf] = torch.inf  # NaN in torch
    torch.testing.assert_close(got.double(), wanted, rtol=1e-6, atol=2e-6, equal_nan=True)
    assert torch.equal(got.isnan(), x.isnan())


@pytest.mark.parametrize("inner", [1, 5, 16, 33])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("scale", "shift"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.usefixtures("isa")
def test_affine(inner: int, relu: bool, scale: bool, shift: bool) -> None:
    x = torch.randn(3, 37, inner)
    x[0, 1, 0] = float("nan")
    affine = Affine(torch.randn(37) if scale else None, torch.randn(37) if shift else None, relu)
    wanted = x if affine.scale is None else x * affine.scale[:, None]
    wanted = wanted if affine.shift is None else wanted + affine.shift[:, None]
    got = of_one_step(
        lambda plan, inputs, out: plan.affine(inputs[0], out, channels=37, inner=inner, affine=affine),
        [x],
        (37, inner),
    )
    torch.testing.assert_close(got, torch.relu(wanted) if relu else wanted, equal_nan=True, rtol=1e-6, atol=1e-6)
    if inner > 1:
        mean = of_one_step(
            lambda plan, inputs, out: plan.global_mean(inputs[0], out, channels=37, size=(inner, 1), affine=affine),
            [x],
            (37,),
        )
        wanted = (torch.relu(wanted) if relu else wanted).mean(-1)
        torch.testing.assert_close(mean, wanted, equal_nan=True, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.usefixtures("isa")
def test_add_and_multiply(count: int) -> None:
    x = [torch.randn(4, 53) for _ in range(count)]
    got = of_one_step(
        lambda plan, inputs, out: plan.add(inputs, out, floats=53, scale=0.5, activation=Activation.SILU), x, (53,)
    )
    torch.testing.assert_close(got, F.silu(torch.stack(x).sum(0) * 0.5), rtol=1e-5, atol=1e-6)
    x = [torch.randn(4, 53) for _ in range(2)]
    got = of_one_step(
        lambda plan, inputs, out: plan.multiply(inputs, out, floats=53, activation=Activation.SILU), x, (53,)
    )
    torch.testing.assert_close(got, F.silu(x[0]) * x[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("features", [1, 3, 16, 100])
@pytest.mark.parametrize("learnt", [False, True])
@pytest.mark.usefixtures("isa")
def test_norms(features: int, learnt: bool) -> None:
    x = torch.randn(2, 7, features) + 3
    weight, bias = (torch.randn(features), torch.randn(features)) if learnt else (None, None)
    sizes = {"rows": 7, "features": features, "weight": weight, "eps": 1e-5}
    got = of_one_step(lambda plan, inputs, out: plan.layer_norm(inputs[0], out, bias=bias, **sizes), [x], (7, features))
    torch.testing.assert_close(got, F.layer_norm(x, (features,), weight, bias, 1e-5), rtol=1e-4, atol=2e-5)
    got = of_one_step(lambda plan, inputs, out: plan.rms_norm(inputs[0], out, **sizes), [x], (7, features))
    torch.testing.assert_close(got, F.rms_norm(x, (features,), weight, 1e-5), rtol=1e-5, atol=1e-5)
    images = x.transpose(1, 2).contiguous()
    got = of_one_step(
        lambda plan, inputs, out: plan.channel_norm(
            inputs[0], out, channels=features, inner=7, weight=weight, bias=bias, eps=1e-5
        ),
        [images],
        (features, 7),
    )
    wanted = F.layer_norm(x, (features,), weight, bias, 1e-5).transpose(1, 2)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 50), (16, 16), (49, 33)])
@pytest.mark.usefixtures("isa")
def test_transpose(rows: int, columns: int) -> None:
    x = torch.randn(3, rows, columns)
    got = of_one_step(
        lambda plan, inputs, out: plan.transpose(inputs[0], out, rows=rows, columns=columns), [x], (columns, rows)
    )
    assert torch.equal(got, x.transpose(1, 2))


def test_pool_by_hand() -> None:
    x = torch.tensor([[1.0, 5.0, 2.0], [4.0, float("nan"), 3.0], [7.0, 0.0, -1.0]]).view(1, 1, 3, 3)
    sizes = {"channels": 1, "size": (3, 3), "kernel": (2, 2), "stride": (1, 1)}
    got = of_one_step(lambda plan, inputs, out: plan.pool2d(inputs[0], out, kind=PoolKind.MAX, **sizes), [x], (1, 2, 2))
    assert got.isnan().all()
    x[0, 0, 1, 1] = 6
    got = of_one_step(
        lambda plan, inputs, out: plan.pool2d(inputs[0], out, kind=PoolKind.AVERAGE, **sizes), [x], (1, 2, 2)
    )
    assert got.view(-1).tolist() == [4, 4, 4.25, 2]


@pytest.mark.usefixtures("isa")
def test_denormals_are_kept() -> None:
    weight = torch.zeros(3, 2, 1, 1)
    weight[0, 0], weight[1, 1] = 1, 2
    x = torch.full((1, 2, 4, 4), 1e-40)
    got = of_one_step(lambda plan, inputs, out: plan.conv2d(inputs[0], out, weight, None, size=(4, 4)), [x], (3, 4, 4))
    assert torch.equal(got, F.conv2d(x, weight))
    assert got[0, 0, 0, 0] > 0


@pytest.mark.parametrize("inputs", [65536, 65537, 140001])
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.usefixtures("isa")
def test_more_features_than_an_offset_counts(inputs: int, rows: int) -> None:
    case = Case(inputs, 3, (rows, 1), None, 0.01)
    drawn = plans.operands(case)
    plan = plans.plan_of(case, drawn)
    assert plans.error(case, drawn, plans.run(case, drawn, plan)) < 3e-6
    assert torch.equal(plan.weight(0), drawn.weight)


@pytest.mark.usefixtures("isa")
def test_wide_images_are_tiled_in_columns() -> None:
    for kernel, stride in (((3, 3), (1, 1)), ((5, 7), (2, 2)), ((1, 1), (1, 1))):
        case = Case(3, 4, (6, 1000), kernel, 0.5, stride, (kernel[0] // 2, kernel[1] // 2), threads=2)
        drawn = plans.operands(case)
        assert plans.error(case, drawn, plans.run(case, drawn)) < 3e-6


def test_large_batches() -> None:
    for case in (
        Case(40, 24, (8, 8), (3, 3), 0.1, padding=(1, 1), samples=37, threads=3),
        Case(40, 24, (7, 7), (1, 1), 0.1, samples=37, threads=3, residual="buffer"),
        Case(100, 50, (1, 1), None, 0.1, samples=999, threads=2),
    ):
        drawn = plans.operands(case)
        assert plans.error(case, drawn, plans.run(case, drawn)) < 3e-6


@pytest.mark.parametrize("kernel", [None, (1, 1), (3, 3)])
def test_layer_without_weights_is_computed_once(kernel: tuple[int, int] | None) -> None:
    case = Case(3, 5, (4, 4), kernel, 0.0, threads=4, residual="aliased")
    drawn = plans.operands(case)
    for _ in range(20):
        assert plans.error(case, drawn, plans.run(case, drawn)) < 1e-6


@pytest.mark.parametrize("samples", [1, 2, 3, 7])
def test_batch_that_does_not_fit_the_caches(samples: int) -> None:
    net, size = Net(), 8 * 100
    x = torch.randn(samples, 8, 10, 10)
    for room in (2_100_000, 1_000_000, 400_000):  # floats per sample: pieces of 1, 2 and 4
        plan = net.plan(arena=room)
        assert room > 7 * size
        for threads in (1, 3):
            out = torch.empty_like(x)
            plan.run([x], [out], samples, threads)
            torch.testing.assert_close(out, net.expected(x), rtol=1e-4, atol=1e-4)


def test_step_information() -> None:
    weight = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 3.0]])
    plan = Plan()
    x, y = plan.buffer(12), plan.buffer(8)
    assert plan.linear(x, y, weight, None, rows=4) == 0
    info = plan.steps[0]
    assert (info.kind, info.shape, info.nonzeros, info.density) == ("linear", "4x3 -> 4x2", 3, 0.5)
    assert info.flops == 2 * 3 * 4
    assert plan.bytes == info.bytes < 200
    big = Plan()
    source, target = big.buffer(64 * 256), big.buffer(64 * 256)
    big.conv2d(source, target, torch.ones(64, 64, 3, 3), None, size=(16, 16), padding=(1, 1))
    assert 6 <= big.bytes / big.steps[0].nonzeros < 6.5


class Net:
    """Three heads of two layers on one trunk, averaged: what a plan of an ensemble looks like."""

    def __init__(self) -> None:
        self.weights = [torch.randn(8, 8, 3, 3) * (torch.rand(8, 8, 3, 3) < 0.3) for _ in range(7)]

    def plan(self, arena: int = 0, heads_apart: bool = True) -> Plan:
        plan = Plan()
        size = 8 * 100
        source, trunk, target = (plan.buffer(size) for _ in range(3))
        heads = [[plan.buffer(size), plan.buffer(size)] for _ in range(3)]
        options = {"size": (10, 10), "padding": (1, 1), "epilogue": Epilogue(Activation.RELU)}
        plan.conv2d(source, trunk, self.weights[0], None, **options)
        for i, (middle, end) in enumerate(heads):
            plan.conv2d(trunk, middle, self.weights[1 + 2 * i], None, **options)
            plan.conv2d(middle, end, self.weights[2 + 2 * i], None, **options)
        plan.add([end for _, end in heads], target, floats=size, scale=1 / 3)
        slots = 1 if not heads_apart else 3
        plan.place(trunk, 0)
        for i, (middle, end) in enumerate(heads):
            plan.place(middle, size * (1 + i % slots))  # one middle for all heads, or one each
            plan.place(end, size * (4 + i))
        plan.finish([source], [target], max(arena, 7 * size))
        return plan

    def expected(self, x: Tensor) -> Tensor:
        def layer(x: Tensor, i: int) -> Tensor:
            return F.conv2d(x, self.weights[i], padding=1).relu()

        trunk = layer(x, 0)
        return sum((layer(layer(trunk, 1 + 2 * i), 2 + 2 * i) for i in range(3)), torch.zeros(())) / 3


@pytest.mark.parametrize("heads_apart", [True, False])
@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_heads_side_by_side(heads_apart: bool, threads: int) -> None:
    net = Net()
    plan = net.plan(heads_apart=heads_apart)
    for samples in (1, 4, 2):
        x = torch.randn(samples, 8, 10, 10)
        out = torch.empty_like(x)
        for _ in range(20):  # a missing barrier would show sooner or later
            plan.run([x], [out.fill_(-1)], samples, threads)
            torch.testing.assert_close(out, net.expected(x), rtol=1e-4, atol=1e-4)


def test_profile_gives_seconds_of_every_step() -> None:
    plan = Net().plan()
    x = torch.randn(2, 8, 10, 10)
    seconds = plan.profile([x], [torch.empty_like(x)], 2, 2)
    assert len(seconds) == len(plan.steps) == 8
    assert all(0 < second < 1 for second in seconds)


def test_python_threads_share_a_plan() -> None:
    net = Net()
    plan = net.plan()
    x = [torch.randn(3, 8, 10, 10) for _ in range(4)]
    out = [torch.empty_like(each) for each in x]

    def work(i: int) -> None:
        for _ in range(50):
            plan.run([x[i]], [out[i]], 3, 1 + i % 3)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for each, result in zip(x, out, strict=True):
        torch.testing.assert_close(result, net.expected(each), rtol=1e-4, atol=1e-4)


def _run_in_child(plan: Plan, x: Tensor, connection) -> None:
    out = torch.empty_like(x)
    plan.run([x], [out], len(x), 3)
    connection.send(out.numpy().tobytes())


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_child_has_threads_of_its_own() -> None:
    net = Net()
    plan, x = net.plan(), torch.randn(2, 8, 10, 10)
    here = torch.empty_like(x)
    plan.run([x], [here], 2, 3)  # the parent's threads exist now
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_run_in_child, args=(plan, x, sender))
    child.start()
    assert receiver.poll(60), "the child hangs"
    assert receiver.recv() == here.numpy().tobytes()
    child.join()


_RUN = """
import os, torch
from tests.unit.test_runtime_kernels import Net
torch.set_num_threads(2)
a = torch.randn(400, 400)
for _ in range(3):
    a @ a, a.exp().sum()
before = len(os.listdir("/proc/self/task"))
net = Net()
plan, x = net.plan(), torch.ones(2, 8, 10, 10)
alone, together = torch.empty_like(x), torch.empty_like(x)
plan.run([x], [alone], 2, 1)
for _ in range(50):
    plan.run([x], [together], 2, 2)
print(len(os.listdir("/proc/self/task")) - before, torch.equal(alone, together))
"""


def _fresh(code: str, **environment: str) -> str:
    known = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**known, **environment}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_the_threads_of_torch_are_used() -> None:
    """With threads of its own beside them, one would wait for the core that the other spins on."""
    assert _fresh(_RUN) == "0 True"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_where_openmp_gives_less_threads_there_are_others() -> None:
    assert _fresh(_RUN, OMP_THREAD_LIMIT="1") == "1 True"


_FORKED = """
import os, torch
from tests.unit.test_runtime_kernels import Net
torch.set_num_threads(2)
net = Net()
plan, x = net.plan(), torch.ones(2, 8, 10, 10)
a = torch.randn(400, 400)
for _ in range(3):
    a @ a, a.exp().sum()
if os.fork() == 0:
    out = torch.empty(x.shape)
    plan.run([x], [out], 2, 2)
    os._exit(0)
print(os.wait()[1])
"""


def test_a_child_forked_while_only_torch_had_threads() -> None:
    assert _fresh(_FORKED) == "0"


@pytest.fixture
def fenced() -> Iterator:
    """Copies of tensors whose memory starts right after, or ends right before, a page that cannot be touched."""
    libc = ctypes.CDLL(None, use_errno=True)
    page, kept = mmap.PAGESIZE, []

    def make(x: Tensor, at_end: bool) -> Tensor:
        size = -(-x.numel() * 4 // page) * page
        memory = mmap.mmap(-1, size + 2 * page)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for start in (address, address + page + size):
            if libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(page), 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        kept.append((memory, address, size))
        start = page + (size - x.numel() * 4 if at_end else 0)
        return torch.frombuffer(memory, dtype=torch.float32, offset=start, count=x.numel()).view(x.shape).copy_(x)

    yield make
    for _, address, size in kept:
        libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size + 2 * page), mmap.PROT_READ | mmap.PROT_WRITE)


@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize(
    "case",
    [
        Case(3, 5, (9, 13), (3, 3), 0.5, padding=(1, 1), residual="buffer"),
        Case(3, 5, (9, 13), (3, 3), 0.5, (2, 2), (1, 1), affine="scale and relu", residual="buffer"),
        Case(2, 3, (11, 70), (7, 7), 0.5, (2, 2), (3, 3)),
        Case(2, 3, (5, 33), (1, 5), 0.5, (3, 3), (0, 2)),
        Case(4, 3, (7, 7), (1, 1), 0.5, samples=3, affine="relu", residual="buffer"),
        Case(4, 3, (8, 8), (1, 1), 0.5, (2, 2)),
        Case(37, 19, (1, 1), None, 0.5, residual="buffer"),
        Case(37, 19, (23, 1), None, 0.5, affine="scale", residual="buffer", activation=Activation.SILU),
    ],
    ids=str,
)
@pytest.mark.usefixtures("isa")
def test_layers_touch_nothing_beyond_their_tensors(case: Case, at_end: bool, fenced) -> None:
    drawn = plans.operands(case)
    inputs = [fenced(drawn.x, at_end)] + ([] if drawn.residual is None else [fenced(drawn.residual, at_end)])
    out = fenced(torch.full((case.samples, *case.target_shape), float("nan")), at_end)
    plans.plan_of(case, drawn).run(inputs, [out], case.samples, 2)
    assert plans.error(case, drawn, out) < 3e-6


@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.usefixtures("isa")
def test_other_steps_touch_nothing_beyond_their_tensors(at_end: bool, fenced) -> None:
    x = fenced(torch.randn(2, 3, 5, 7), at_end)
    norm = {"weight": torch.ones(7), "bias": torch.ones(7), "eps": 1e-5}
    pool = {"channels": 3, "size": (5, 7), "kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)}
    affine = Affine(torch.ones(3), torch.ones(3))
    steps = {
        (3, 5, 7): [
            lambda plan, x, y: plan.add([x, x], y, floats=105),
            lambda plan, x, y: plan.multiply([x, x], y, floats=105, activation=Activation.GELU),
            lambda plan, x, y: plan.activation(x, y, floats=105, activation=Activation.TANH),
            lambda plan, x, y: plan.affine(x, y, channels=3, inner=35, affine=affine),
            lambda plan, x, y: plan.layer_norm(x, y, rows=15, features=7, **norm),
            lambda plan, x, y: plan.channel_norm(x, y, channels=7, inner=15, **norm),
            lambda plan, x, y: plan.transpose(x, y, rows=15, columns=7),
        ],
        (3,): [lambda plan, x, y: plan.global_mean(x, y, channels=3, size=(5, 7), affine=affine)],
        (3, 3, 4): [lambda plan, x, y: plan.pool2d(x, y, kind=PoolKind.MAX, **pool)],
    }
    for shape, several in steps.items():
        for append in several:
            plan = Plan()
            source, target = plan.buffer(105), plan.buffer(math.prod(shape))
            append(plan, source, target)
            plan.finish([source], [target], 0)
            out = fenced(torch.full((2, *shape), float("nan")), at_end)
            plan.run([x], [out], 2, 2)
            assert out.isfinite().all()


def small() -> tuple[Plan, int, int]:
    plan = Plan()
    return plan, plan.buffer(16), plan.buffer(16)


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (lambda p, x, y: p.buffer(0), "at least one float"),
        (lambda p, x, y: p.linear(x, y, torch.ones(16, 8), None), "buffer 0 must hold 8 floats"),
        (lambda p, x, y: p.linear(x, y, torch.ones(8, 16), None), "buffer 1 must hold 8 floats"),
        (lambda p, x, y: p.linear(x, y, torch.ones(16), None), r"shape \[M, K\]"),
        (lambda p, x, y: p.linear(x, y, torch.ones(16, 16), torch.ones(3)), r"bias must have shape \[16\]"),
        (lambda p, x, y: p.linear(x, x, torch.ones(16, 16), None), "both source and target"),
        (lambda p, x, y: p.linear(x, 7, torch.ones(16, 16), None), "no buffer 7"),
        (lambda p, x, y: p.conv2d(x, y, torch.ones(16, 16), None, size=(4, 4)), "shape"),
        (lambda p, x, y: p.conv2d(x, y, torch.ones(1, 1, 5, 5), None, size=(4, 4)), "no output"),
        (lambda p, x, y: p.conv2d(x, y, torch.ones(1, 1, 1, 1), None, size=(4, 4), stride=(0, 1)), "no output"),
        (
            lambda p, x, y: p.conv2d(
                x, y, torch.ones(1, 1, 1, 1), None, size=(4, 4), affine=Affine(torch.ones(2), None)
            ),
            r"scale must have shape \[1\]",
        ),
        (
            lambda p, x, y: p.pool2d(
                x, y, kind=PoolKind.MAX, channels=1, size=(4, 4), kernel=(2, 2), stride=(2, 2), padding=(2, 0)
            ),
            "at most half",
        ),
        (lambda p, x, y: p.add([], y, floats=16), "at least one source"),
        (lambda p, x, y: p.multiply([x], y, floats=16), "two sources"),
        (lambda p, x, y: p.place(y, 8), "multiple of 16"),
        (lambda p, x, y: p.weight(0), "no weight"),
        (lambda p, x, y: p.run([], [], 1, 1), "finish the plan"),
        (lambda p, x, y: p.finish([x], [y], 0), "written by no step"),
        (lambda p, x, y: p.finish([x, x], [y], 0), "more than one of input, output"),
        (lambda p, x, y: (p.add([x], y, floats=16), p.finish([], [y], 0)), "nothing has written"),
        (lambda p, x, y: (p.add([x], y, floats=16), p.finish([x], [], 0)), "neither input nor output"),
        (lambda p, x, y: (p.add([y], x, floats=16), p.finish([x, y], [], 0)), "an input"),
        (lambda p, x, y: (p.place(y, 16), p.finish([x], [], 16)), "ends at 32, the arena at 16"),
        (lambda p, x, y: (p.add([x], y, floats=16), p.finish([x], [y], 0), p.buffer(1)), "finished"),
    ],
)
def test_misuse(misuse, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        misuse(*small())


def test_source_that_overlaps_its_target_in_the_arena() -> None:
    plan, x, y = small()
    z = plan.buffer(32)
    plan.linear(x, z, torch.ones(32, 16), None)
    plan.linear(z, y, torch.ones(16, 32), None)
    w = plan.buffer(16)
    plan.add([y], w, floats=16)
    plan.place(z, 0)
    plan.place(y, 16)
    with pytest.raises(PlanError, match="source 2 overlaps target 1"):
        plan.finish([x], [w], 64)


@pytest.mark.parametrize(
    ("inputs", "outputs", "samples", "message"),
    [
        ([torch.ones(2, 16, dtype=torch.float64)], [torch.empty(2, 16)], 2, "input 0 must be a contiguous float32"),
        ([torch.ones(16, 2).t()], [torch.empty(2, 16)], 2, "input 0 must be a contiguous float32"),
        ([torch.ones(2, 16, device="meta")], [torch.empty(2, 16)], 2, "CPU tensor"),
        ([torch.ones(2, 16)], [torch.empty(3, 16)], 2, "output 0 must have 32 elements, got 48"),
        ([torch.ones(2, 16)], [], 2, "expected 1 outputs, got 0"),
        ([torch.ones(0, 16)], [torch.empty(0, 16)], 0, "at least 1"),
    ],
)
def test_tensors_that_do_not_fit(inputs: list[Tensor], outputs: list[Tensor], samples: int, message: str) -> None:
    plan, x, y = small()
    plan.add([x], y, floats=16)
    plan.finish([x], [y], 0)
    with pytest.raises(PlanError, match=message):
        plan.run(inputs, outputs, samples, 1)


@pytest.mark.slow
@pytest.mark.parametrize("isa", supported_isas())
def test_under_the_address_sanitizer(isa: str, tmp_path: Path) -> None:
    runtime = subprocess.check_output(["g++", "-print-file-name=libasan.so"], text=True).strip()
    environment = {
        **os.environ,
        "SPARSITY_ISA": isa,
        "SPARSITY_CACHE_DIR": str(tmp_path),
        "CXX": "g++ -fsanitize=address,undefined -fno-sanitize-recover=undefined -g1 -DSPARSITY_POISON",
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": "detect_leaks=0",
        "OMP_NUM_THREADS": "1",
    }
    tests = "tests/property/test_runtime_kernels.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests, "-k", f"{isa} or reach"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

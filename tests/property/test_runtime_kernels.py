"""Any convolution and linear layer in the sparse kernels, for every instruction set, held against torch in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsity.runtime._cpu import supported_isas
from sparsity.runtime._plan import Activation, Plan, PoolKind
from tests import plans
from tests.plans import Case

MOST = max(25, settings().max_examples)
TOLERANCE = 3e-6  # of the sum of the sizes of what is added: some rounding steps of float32

densities = st.one_of(st.sampled_from([0.0, 1e-3, 0.01, 0.05, 0.2, 0.5, 1.0]), st.floats(0, 1))
seeds = st.integers(0, 2**31)
runs = {
    "density": densities,
    "threads": st.integers(1, 4),
    "bias": st.booleans(),
    "affine": st.sampled_from(["", "", "relu", "scale", "scale and relu"]),
    "residual": st.sampled_from(["", "", "buffer", "aliased"]),
    "activation": st.sampled_from([Activation.NONE, Activation.RELU, *Activation]),
    "offset": st.integers(0, 15),
    "seed": seeds,
}


@st.composite
def convolutions(draw: st.DrawFn) -> Case:
    kernel = draw(
        st.one_of(
            st.sampled_from([(1, 1), (3, 3), (5, 5), (7, 7), (1, 7), (7, 1)]),
            st.tuples(st.integers(1, 8), st.integers(1, 8)),
        )
    )
    padding = (draw(st.integers(0, kernel[0])), draw(st.integers(0, kernel[1])))
    size = tuple(draw(st.integers(max(1, k - 2 * p), 70)) for k, p in zip(kernel, padding, strict=True))
    return Case(
        inputs=draw(st.integers(1, 48)),
        outputs=draw(st.integers(1, 40)),
        size=(size[0], size[1]),
        kernel=kernel,
        stride=draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (2, 1), (1, 3), (4, 4), (5, 2)])),
        padding=padding,
        samples=draw(st.sampled_from([1, 1, 2, 3, 5])),
        **{name: draw(strategy) for name, strategy in runs.items()},
    )


@st.composite
def linears(draw: st.DrawFn) -> Case:
    return Case(
        inputs=draw(st.integers(1, 700)),
        outputs=draw(st.integers(1, 120)),
        size=(draw(st.sampled_from([1, 1, 2, 7, 33])), 1),
        kernel=None,
        samples=draw(st.sampled_from([1, 1, 2, 3, 17, 100])),
        **{name: draw(strategy) for name, strategy in runs.items()},
    )


@pytest.fixture(params=supported_isas())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SPARSITY_ISA", request.param)
    return request.param


def check(case: Case) -> None:
    drawn = plans.operands(case)
    plan = plans.plan_of(case, drawn)
    got = plans.run(case, drawn, plan)
    assert plans.error(case, drawn, got) < TOLERANCE
    assert torch.equal(plans.run(case, drawn, plan, threads=1), got)  # whatever the number of threads
    assert torch.equal(plan.weight(len(plan.steps) - 1), drawn.weight)
    assert plan.steps[-1].nonzeros == drawn.weight.count_nonzero()


@given(case=convolutions())
@settings(max_examples=MOST)
@pytest.mark.usefixtures("isa")
def test_convolution(case: Case) -> None:
    check(case)


@given(case=linears())
@settings(max_examples=MOST)
@pytest.mark.usefixtures("isa")
def test_linear(case: Case) -> None:
    check(case)


@given(case=st.one_of(convolutions(), linears()))
@settings(max_examples=MOST)
def test_instruction_sets_agree(case: Case) -> None:
    drawn = plans.operands(case)
    results = []
    for isa in supported_isas():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SPARSITY_ISA", isa)
            results.append(plans.run(case, drawn))
    for result in results:
        assert plans.error(case, drawn, result) < TOLERANCE


@given(case=st.one_of(convolutions(), linears()), place=seeds, value=st.sampled_from([float("nan"), float("inf")]))
@settings(max_examples=MOST)
def test_nan_and_infinity_reach_what_they_are_multiplied_with(case: Case, place: int, value: float) -> None:
    case = Case(**{**case.__dict__, "activation": Activation.RELU, "affine": "", "residual": ""})
    drawn = plans.operands(case)
    touched = torch.zeros_like(drawn.x)
    touched.view(-1)[place % touched.numel()] = 1
    reference = plans.Operands(touched, (drawn.weight != 0).float(), None, None, None)
    reached = plans.expected(case, reference) > 0  # by a nonzero weight: zeros are skipped
    bad = plans.Operands(torch.where(touched > 0, value, drawn.x), drawn.weight, drawn.bias, None, None)
    got = plans.run(case, bad)
    clean = plans.run(case, drawn)
    assert torch.equal(got[~reached], clean[~reached])
    if value != value:
        assert got[reached].isnan().all()
    else:  # ReLU makes a negative infinity zero; one input reaches an output at most once
        assert (got[reached].isinf() | (got[reached] == 0)).all()


@given(
    channels=st.integers(1, 20),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padded=st.booleans(),
    ceil_mode=st.booleans(),
    count=st.booleans(),
    samples=st.integers(1, 3),
    threads=st.integers(1, 4),
    seed=seeds,
)
@settings(max_examples=MOST)
@pytest.mark.usefixtures("isa")
def test_pools(
    channels: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padded: bool,
    ceil_mode: bool,
    count: bool,
    samples: int,
    threads: int,
    seed: int,
) -> None:
    kernel = (min(kernel[0], size[0]), min(kernel[1], size[1]))
    padding = (kernel[0] // 2, kernel[1] // 2) if padded else (0, 0)
    x = torch.randn(samples, channels, *size, generator=torch.Generator().manual_seed(seed))
    x[0, 0, -1, -1] = float("nan")
    windows = (kernel, stride, padding)
    torch_results = {
        PoolKind.MAX: torch.nn.functional.max_pool2d(x, *windows, ceil_mode=ceil_mode),
        PoolKind.AVERAGE: torch.nn.functional.avg_pool2d(x, *windows, ceil_mode, count),
    }
    for kind, wanted in torch_results.items():
        plan = Plan()
        source, target = plan.buffer(x[0].numel()), plan.buffer(wanted[0].numel())
        plan.pool2d(
            source,
            target,
            kind=kind,
            channels=channels,
            size=size,
            kernel=kernel,
            stride=stride,
            padding=padding,
            ceil_mode=ceil_mode,
            count_include_pad=count,
        )
        plan.finish([source], [target], 0)
        got = torch.empty_like(wanted)
        plan.run([x], [got], samples, threads)
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6, equal_nan=True)

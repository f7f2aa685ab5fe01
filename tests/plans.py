"""Single steps of the sparse runtime, run on random operands and held against torch in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsity.runtime._plan import Activation, Affine, Epilogue, Plan

FUNCTIONS = {
    Activation.NONE: lambda x: x,
    Activation.RELU: torch.relu,
    Activation.GELU: F.gelu,
    Activation.GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
    Activation.SILU: F.silu,
    Activation.SIGMOID: torch.sigmoid,
    Activation.TANH: torch.tanh,
    Activation.RELU6: F.relu6,
    Activation.HARDSWISH: F.hardswish,
}


@dataclass(frozen=True)
class Case:
    """A convolution (or, without ``kernel``, a linear layer on ``size[0]`` rows) and how it is run."""

    inputs: int
    outputs: int
    size: tuple[int, int]
    kernel: tuple[int, int] | None
    density: float
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    samples: int = 1
    threads: int = 1
    bias: bool = True
    affine: str = ""
    residual: str = ""
    activation: Activation = Activation.NONE
    offset: int = 0
    seed: int = 0

    @property
    def source_shape(self) -> tuple[int, ...]:
        return (self.size[0], self.inputs) if self.kernel is None else (self.inputs, *self.size)

    @property
    def target_shape(self) -> tuple[int, ...]:
        if self.kernel is None:
            return (self.size[0], self.outputs)
        windows = zip(self.size, self.kernel, self.stride, self.padding, strict=True)
        return (self.outputs, *((n + 2 * p - k) // s + 1 for n, k, s, p in windows))


@dataclass(frozen=True)
class Operands:
    """What a case computes with."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    affine: Affine | None
    residual: Tensor | None


def operands(case: Case) -> Operands:
    """Draw the operands of a case."""
    generator = torch.Generator().manual_seed(case.seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weight = draw(case.outputs, case.inputs, *(case.kernel or ()))
    weight = weight * (torch.rand(weight.shape, generator=generator) < case.density)
    affine = None
    if case.affine:
        scaled = "scale" in case.affine
        affine = Affine(
            draw(case.inputs) if scaled else None, draw(case.inputs) if scaled else None, "relu" in case.affine
        )
    return Operands(
        x=draw(case.samples, *case.source_shape),
        weight=weight,
        bias=draw(case.outputs) if case.bias else None,
        affine=affine,
        residual=draw(case.samples, *case.target_shape) if case.residual else None,
    )


def misaligned(x: Tensor, floats: int) -> Tensor:
    """Copy a tensor to an address that lies so many floats after a 64-byte boundary."""
    room = torch.full((x.numel() + 32,), float("nan"))
    start = (-room.data_ptr() % 64) // 4 + floats
    placed = room[start : start + x.numel()].view(x.shape)
    return placed.copy_(x)


def plan_of(case: Case, given: Operands) -> Plan:
    """Make the plan of a case: inputs are the source and perhaps a residual; the one output is the target."""
    plan = Plan()
    source, target = plan.buffer(given.x[0].numel()), plan.buffer(torch.Size(case.target_shape).numel())
    inputs, residual = [source], None
    arena = 0
    if case.residual:
        inputs.append(plan.buffer(torch.Size(case.target_shape).numel()))
        residual = inputs[1]
    if case.residual == "aliased":  # first copied to the target, which then is source and target of the sum
        plan.add([inputs[1]], target, floats=torch.Size(case.target_shape).numel())
        residual = target
    epilogue = Epilogue(case.activation, residual)
    if case.kernel is None:
        plan.linear(source, target, given.weight, given.bias, rows=case.size[0], affine=given.affine, epilogue=epilogue)
    else:
        plan.conv2d(
            source,
            target,
            given.weight,
            given.bias,
            size=case.size,
            stride=case.stride,
            padding=case.padding,
            affine=given.affine,
            epilogue=epilogue,
        )
    plan.finish(inputs, [target], arena)
    return plan


def run(case: Case, given: Operands, plan: Plan | None = None, threads: int | None = None) -> Tensor:
    """Run a case and return the output."""
    plan = plan or plan_of(case, given)
    out = misaligned(torch.full((case.samples, *case.target_shape), float("nan")), case.offset)
    inputs = [misaligned(given.x, case.offset)]
    if given.residual is not None:
        inputs.append(misaligned(given.residual, case.offset))
    plan.run(inputs, [out], case.samples, threads or case.threads)
    return out


def expected(case: Case, given: Operands) -> Tensor:
    """Compute a case in torch, in float64."""
    x = given.x.double()
    if given.affine is not None:
        shape = (-1,) if case.kernel is None else (-1, 1, 1)
        if given.affine.scale is not None and given.affine.shift is not None:
            x = x * given.affine.scale.double().view(shape) + given.affine.shift.double().view(shape)
        x = torch.relu(x) if given.affine.relu else x
    bias = None if given.bias is None else given.bias.double()
    if case.kernel is None:
        y = F.linear(x, given.weight.double(), bias)
    else:
        y = F.conv2d(x, given.weight.double(), bias, case.stride, case.padding)
    return FUNCTIONS[case.activation](y if given.residual is None else y + given.residual)


def error(case: Case, given: Operands, got: Tensor) -> float:
    """The largest error, relative to the sizes of what was added and of the result."""
    magnitude = Operands(
        given.x.abs() if given.affine is None or given.affine.scale is None else _affine_size(case, given),
        given.weight.abs(),
        None if given.bias is None else given.bias.abs(),
        None,
        None if given.residual is None else given.residual.abs(),
    )
    plain = Case(**{**case.__dict__, "activation": Activation.NONE})
    wanted = expected(case, given)
    return ((got - wanted).abs() / (expected(plain, magnitude) + wanted.abs() + 1e-30)).max().item()


def _affine_size(case: Case, given: Operands) -> Tensor:
    assert given.affine is not None
    assert given.affine.scale is not None
    assert given.affine.shift is not None
    shape = (-1,) if case.kernel is None else (-1, 1, 1)
    return given.x.abs() * given.affine.scale.abs().view(shape) + given.affine.shift.abs().view(shape)

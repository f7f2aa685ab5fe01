"""A plan: a sequence of operations on float32 buffers that runs in one parallel region of the sparse kernels."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsity._errors import PlanError
from sparsity.runtime._library import library
from sparsity.runtime._operands import SUPPORTED, Activation, Affine, Epilogue, PoolKind, StepInfo
from sparsity.runtime._placement import Placement

__all__ = ["SUPPORTED", "Activation", "Affine", "Epilogue", "Plan", "PlanError", "PoolKind", "StepInfo"]

_ELEMENTWISE = frozenset({"affine", "activation", "add", "multiply", "layer_norm", "rms_norm", "channel_norm"})


class Plan:
    """A sequence of operations on float32 buffers.

    Make buffers, append steps, `place` what is neither input nor output in the arena, then `finish` and `run`. Shapes
    are per sample: images ``[C, H, W]``, token matrices ``[rows, features]``; a buffer holds one sample after the
    other. Zero weights are skipped, so a NaN that meets only zero weights does not reach the output.

    Elementwise steps and norms may write to their first source; a residual may be the target itself.

    Attributes:
        steps: what was appended, in order.

    Raises:
        BuildError: the kernels can be neither found nor built.
        PlanError: from every method, if what it is given does not fit.

    Example:
        >>> import torch
        >>> from sparsity.runtime._plan import Plan
        >>> plan = Plan()
        >>> x, y = plan.buffer(4), plan.buffer(3)
        >>> step = plan.linear(x, y, torch.eye(3, 4), None, rows=1)
        >>> plan.finish([x], [y], arena=0)
        >>> out = torch.empty(2, 3)
        >>> plan.run([torch.arange(8.0).view(2, 4)], [out], samples=2, threads=1)
        >>> out.tolist()
        [[0.0, 1.0, 2.0], [4.0, 5.0, 6.0]]
    """

    def __init__(self) -> None:
        self._library = library()
        self._handle = self._library.plan_new()
        if not self._handle:
            raise MemoryError("no memory for a plan")
        self._free = weakref.finalize(self, self._library.plan_free, self._handle)
        self.steps: list[StepInfo] = []
        self._placement = Placement()
        self._weight_shapes: dict[int, torch.Size] = {}
        self._inputs: list[int] = []
        self._outputs: list[int] = []
        self._finished = False

    def buffer(self, floats: int) -> int:
        """Make a buffer of so many floats per sample and return its index."""
        self._open()
        self._placement.add(floats)
        return self._library.plan_buffer(self._handle, floats)

    def conv2d(
        self,
        source: int,
        target: int,
        weight: Tensor,
        bias: Tensor | None,
        *,
        size: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        affine: Affine | None = None,
        epilogue: Epilogue | None = None,
    ) -> int:
        """Append a convolution of images ``[C, *size]`` by a sparse weight ``[Co, C, kh, kw]``."""
        if weight.ndim != 4:
            raise PlanError(f"conv2d needs a weight of shape [Co, C, kh, kw], got {list(weight.shape)}")
        outputs, inputs, *kernel = weight.shape
        padded = [n + 2 * p - k for n, p, k in zip(size, padding, kernel, strict=True)]
        if min(*size, *kernel, *stride, inputs, outputs) < 1 or min(*padding, *padded) < 0:
            raise PlanError(
                f"conv2d of {tuple(size)} by a kernel of {tuple(kernel)}, stride {tuple(stride)} and padding "
                f"{tuple(padding)} has no output"
            )
        out = [n // s + 1 for n, s in zip(padded, stride, strict=True)]
        epilogue = epilogue or Epilogue()
        self._check("conv2d", target, math.prod(out) * outputs, {source: math.prod(size) * inputs}, epilogue.residual)
        window = _ints(inputs, outputs, *size, *kernel, *stride, *padding)
        step = self._layer(
            self._library.plan_conv2d,
            (source, target, _index(epilogue.residual), window),
            weight,
            bias,
            affine,
            epilogue,
        )
        shape = f"{inputs}x{size[0]}x{size[1]} -> {outputs}x{out[0]}x{out[1]}"
        return self._append("conv2d", step, shape, weight, math.prod(out))

    def linear(
        self,
        source: int,
        target: int,
        weight: Tensor,
        bias: Tensor | None,
        *,
        rows: int = 1,
        affine: Affine | None = None,
        epilogue: Epilogue | None = None,
    ) -> int:
        """Append a product of ``[rows, K]`` with a sparse weight ``[M, K]``; batches come as samples or as rows."""
        if weight.ndim != 2 or min(*weight.shape, rows) < 1:
            raise PlanError(f"linear needs a weight of shape [M, K] and rows >= 1, got {list(weight.shape)} and {rows}")
        outputs, inputs = weight.shape
        epilogue = epilogue or Epilogue()
        self._check("linear", target, rows * outputs, {source: rows * inputs}, epilogue.residual)
        sizes = (source, target, _index(epilogue.residual), inputs, outputs, rows)
        step = self._layer(self._library.plan_linear, sizes, weight, bias, affine, epilogue)
        return self._append("linear", step, f"{rows}x{inputs} -> {rows}x{outputs}", weight, rows)

    def pool2d(
        self,
        source: int,
        target: int,
        *,
        kind: PoolKind,
        channels: int,
        size: tuple[int, int],
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int] = (0, 0),
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> int:
        """Append a pooling of images ``[channels, H, W]``, counted as torch's ``max_pool2d`` and ``avg_pool2d`` do."""
        if min(*size, *kernel, *stride, channels) < 1 or any(
            not 0 <= 2 * p <= k for p, k in zip(padding, kernel, strict=True)
        ):
            raise PlanError(
                f"pool2d of {tuple(size)} by a kernel of {tuple(kernel)}, stride {tuple(stride)}: the padding must be "
                f"at most half the kernel, got {tuple(padding)}"
            )
        out = [_pooled(*each, ceil_mode) for each in zip(size, kernel, stride, padding, strict=True)]
        if min(out) < 1:
            raise PlanError(f"pool2d of {tuple(size)} by a kernel of {tuple(kernel)} has no output")
        self._check("pool2d", target, channels * math.prod(out), {source: channels * math.prod(size)})
        window = _ints(channels, channels, *size, *kernel, *stride, *padding)
        average = kind is PoolKind.AVERAGE
        step = self._library.plan_pool2d(self._handle, source, target, window, *out, average, count_include_pad)
        shape = f"{channels}x{size[0]}x{size[1]} -> {channels}x{out[0]}x{out[1]}"
        return self._append(f"{kind.name.lower()}_pool2d", step, shape)

    def global_mean(
        self, source: int, target: int, *, channels: int, size: tuple[int, int], affine: Affine | None = None
    ) -> int:
        """Append the mean over ``H x W`` of images ``[channels, H, W]``, taken after ``affine``."""
        inner = math.prod(size)
        self._check("global_mean", target, channels, {source: channels * inner})
        operands = _affine(affine, channels)
        step = self._library.plan_mean(self._handle, source, target, channels, inner, *_pointers(operands))
        return self._append("global_mean", step, f"{channels}x{size[0]}x{size[1]} -> {channels}")

    def affine(self, source: int, target: int, *, channels: int, inner: int, affine: Affine) -> int:
        """Append ``x * scale + shift``, then a ReLU if asked, per channel of ``[channels, inner]``."""
        self._check("affine", target, channels * inner, {source: channels * inner})
        operands = _affine(affine, channels)
        step = self._library.plan_affine(self._handle, source, target, channels, inner, *_pointers(operands))
        return self._append("affine", step, f"{channels}x{inner}")

    def add(
        self,
        sources: Sequence[int],
        target: int,
        *,
        floats: int,
        scale: float = 1.0,
        activation: Activation = Activation.NONE,
    ) -> int:
        """Append ``activation(scale * (the sum of the sources))``."""
        if not sources:
            raise PlanError("add needs at least one source")
        self._check("add", target, floats, dict.fromkeys(sources, floats))
        step = self._library.plan_add(
            self._handle, _ints(*sources), len(sources), target, floats, scale, activation.value
        )
        return self._append("add", step, f"{len(sources)} of {floats}")

    def multiply(
        self, sources: Sequence[int], target: int, *, floats: int, activation: Activation = Activation.NONE
    ) -> int:
        """Append ``activation(first) * second``."""
        if len(sources) != 2:
            raise PlanError(f"multiply takes two sources, got {len(sources)}")
        self._check("multiply", target, floats, dict.fromkeys(sources, floats))
        step = self._library.plan_multiply(self._handle, *sources, target, floats, activation.value)
        return self._append("multiply", step, f"2 of {floats}")

    def activation(self, source: int, target: int, *, floats: int, activation: Activation) -> int:
        """Append an elementwise function."""
        self._check("activation", target, floats, {source: floats})
        step = self._library.plan_activation(self._handle, source, target, floats, activation.value)
        return self._append("activation", step, f"{activation.name} of {floats}")

    def layer_norm(
        self,
        source: int,
        target: int,
        *,
        rows: int,
        features: int,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> int:
        """Append a LayerNorm of each row of ``[rows, features]``."""
        return self._norm("layer_norm", source, target, rows, features, weight, bias, eps)

    def rms_norm(self, source: int, target: int, *, rows: int, features: int, weight: Tensor | None, eps: float) -> int:
        """Append an RMSNorm of each row of ``[rows, features]``."""
        return self._norm("rms_norm", source, target, rows, features, weight, None, eps)

    def channel_norm(
        self,
        source: int,
        target: int,
        *,
        channels: int,
        inner: int,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> int:
        """Append a LayerNorm over the channels of ``[channels, inner]``."""
        self._check("channel_norm", target, channels * inner, {source: channels * inner})
        held = [_vector(weight, channels, "weight"), _vector(bias, channels, "bias")]
        pointers = [_pointer(each) for each in held]
        step = self._library.plan_channel_norm(self._handle, source, target, channels, inner, *pointers, eps)
        return self._append("channel_norm", step, f"{channels}x{inner}")

    def transpose(self, source: int, target: int, *, rows: int, columns: int) -> int:
        """Append the transposition of ``[rows, columns]``."""
        self._check("transpose", target, rows * columns, {source: rows * columns})
        step = self._library.plan_transpose(self._handle, source, target, rows, columns)
        return self._append("transpose", step, f"{rows}x{columns}")

    def place(self, buffer: int, offset: int) -> None:
        """Place a buffer in the arena, ``offset`` floats per sample from its start; a multiple of 16."""
        self._placement.place(buffer, offset)
        self._library.plan_place(self._handle, buffer, offset)

    def finish(self, inputs: Sequence[int], outputs: Sequence[int], arena: int) -> None:
        """Say which buffers `run` is given, and the arena's floats per sample; nothing can be appended afterwards."""
        self._open()
        self._placement.finish(inputs, outputs, arena)
        self._inputs, self._outputs = list(inputs), list(outputs)
        arguments = (_ints(*inputs), len(inputs), _ints(*outputs), len(outputs), arena)
        _done(self._library.plan_finish(self._handle, *arguments))
        self._finished = True

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], samples: int, threads: int) -> None:
        """Compute the outputs of so many samples; contiguous float32 CPU tensors, which must not overlap.

        Several Python threads may run one plan at once. Results do not depend on the number of threads.
        """
        self._run(inputs, outputs, samples, threads, None)

    def profile(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], samples: int, threads: int) -> list[float]:
        """Run once and return the CPU seconds of each step: those of the thread that took longest."""
        seconds = (ctypes.c_double * len(self.steps))()
        self._run(inputs, outputs, samples, threads, seconds)
        return list(seconds)

    def weight(self, step: int) -> Tensor:
        """Rebuild the dense weight of a conv2d or linear step."""
        if step not in self._weight_shapes:
            raise PlanError(f"step {step} has no weight")
        weight = torch.zeros(self._weight_shapes[step])
        self._library.plan_step_weight(self._handle, step, weight.data_ptr())
        return weight

    @property
    def bytes(self) -> int:
        """Memory that the packed weights take."""
        return sum(step.bytes for step in self.steps)

    def _run(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], samples: int, threads: int, seconds: object
    ) -> None:
        if not self._finished:
            raise PlanError("finish the plan before running it")
        if samples < 1 or threads < 1:
            raise PlanError(f"samples and threads must be at least 1, got {samples} and {threads}")
        pointers = [
            _tensor_pointers(what, tensors, [self._placement.floats[i] * samples for i in indices])
            for what, tensors, indices in (("input", inputs, self._inputs), ("output", outputs, self._outputs))
        ]
        _done(self._library.plan_run(self._handle, *pointers, samples, threads, seconds))

    def _norm(
        self,
        kind: str,
        source: int,
        target: int,
        rows: int,
        features: int,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> int:
        self._check(kind, target, rows * features, {source: rows * features})
        held = [_vector(weight, features, "weight"), _vector(bias, features, "bias")]
        pointers = [_pointer(each) for each in held]
        centred = kind == "layer_norm"
        step = self._library.plan_norm(self._handle, source, target, rows, features, *pointers, eps, centred)
        return self._append(kind, step, f"{rows}x{features}")

    def _layer(
        self,
        function: object,
        sizes: tuple[object, ...],
        weight: Tensor,
        bias: Tensor | None,
        affine: Affine | None,
        epilogue: Epilogue,
    ) -> int:
        dense = weight.detach().to("cpu", torch.float32).contiguous()
        held = (dense, _vector(bias, weight.shape[0], "bias"))
        operands = _affine(affine, weight.shape[1])
        arguments = (*sizes, *map(_pointer, held), *_pointers(operands), epilogue.activation.value)
        return function(self._handle, *arguments)  # type: ignore[operator]

    def _check(self, kind: str, target: int, floats: int, sources: dict[int, int], residual: int | None = None) -> None:
        self._open()
        reads = sources if residual is None else {**sources, residual: floats}
        in_place = set(sources) if kind in _ELEMENTWISE else set()
        if residual is not None and residual not in sources:
            in_place.add(residual)
        self._placement.step(kind, target, floats, reads, in_place)

    def _append(self, kind: str, step: int, shape: str, weight: Tensor | None = None, pixels: int = 0) -> int:
        _done(step)
        if weight is None:
            self.steps.append(StepInfo(kind, shape))
            return step
        self._weight_shapes[step] = weight.shape
        nonzeros = self._library.plan_step_nonzeros(self._handle, step)
        size = self._library.plan_step_bytes(self._handle, step)
        density = nonzeros / weight.numel()
        self.steps.append(StepInfo(kind, shape, nonzeros, density, size, 2 * nonzeros * pixels))
        return step

    def _open(self) -> None:
        if self._finished:
            raise PlanError("the plan is finished: nothing can be added")


def _pooled(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> int:
    out = (size + 2 * padding - kernel + (stride - 1 if ceil_mode else 0)) // stride + 1
    # As torch: the last window must start inside the image or its left padding.
    return out - 1 if ceil_mode and (out - 1) * stride >= size + padding else out


def _affine(affine: Affine | None, channels: int) -> tuple[Tensor | None, Tensor | None, bool]:
    if affine is None:
        return None, None, False
    return _vector(affine.scale, channels, "scale"), _vector(affine.shift, channels, "shift"), affine.relu


def _pointers(operands: tuple[Tensor | None, Tensor | None, bool]) -> tuple[int | None, int | None, bool]:
    return _pointer(operands[0]), _pointer(operands[1]), operands[2]


def _vector(values: Tensor | None, length: int, what: str) -> Tensor | None:
    if values is None:
        return None
    if values.shape != (length,):
        raise PlanError(f"{what} must have shape [{length}], got {list(values.shape)}")
    return values.detach().to("cpu", torch.float32).contiguous()


def _pointer(values: Tensor | None) -> int | None:
    return None if values is None else values.data_ptr()


def _index(buffer: int | None) -> int:
    return -1 if buffer is None else buffer


def _ints(*values: int) -> object:
    return (ctypes.c_int * len(values))(*values)


def _tensor_pointers(what: str, tensors: Sequence[Tensor], floats: list[int]) -> object:
    if len(tensors) != len(floats):
        raise PlanError(f"expected {len(floats)} {what}s, got {len(tensors)}")
    for i, (tensor, count) in enumerate(zip(tensors, floats, strict=True)):
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise PlanError(
                f"{what} {i} must be a contiguous float32 CPU tensor, got {tensor.dtype} on {tensor.device} with "
                f"strides {tensor.stride()}"
            )
        if tensor.numel() != count:
            raise PlanError(f"{what} {i} must have {count} elements, got {tensor.numel()}")
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _done(result: int) -> None:
    if result < 0:
        raise MemoryError("the sparse kernels ran out of memory")

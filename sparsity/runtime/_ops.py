"""The operations that a plan can hold: what each reads and computes, and how it is appended to a plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from sparsity.runtime._operands import SUPPORTED, Activation, Affine, Epilogue, PoolKind
from sparsity.runtime._plan import Plan

if TYPE_CHECKING:
    from sparsity.runtime._choice import Choice

Shape = tuple[int, ...]
Frame = tuple[str, Shape]
"""What a sample is: ``('batch', (N,))`` dimension 0 of images, ``('rows', (N, T))`` all but the last of tokens."""


@dataclass
class Buffers:
    """Where the values of a region are, while its plan is written.

    Attributes:
        plan: The plan that is written.
        frame: What a sample is.
        shapes: Shape of every value in the recorded run.
        index: Buffer of every value written so far.
    """

    plan: Plan
    frame: Frame
    shapes: Mapping[fx.Node, Shape]
    index: dict[fx.Node, int] = field(default_factory=dict)

    def sample(self, node: fx.Node) -> Shape:
        """Shape of one sample of a value."""
        return self.shapes[node][len(self.frame[1]) :]

    def floats(self, node: fx.Node) -> int:
        """Floats of one sample of a value."""
        return math.prod(self.sample(node))

    def rows(self, node: fx.Node) -> int:
        """Rows of one sample of a value whose last dimension holds features."""
        return math.prod(self.sample(node)[:-1])

    def target(self, node: fx.Node) -> int:
        """Make the buffer of a value that is about to be written."""
        self.index[node] = self.plan.buffer(self.floats(node))
        return self.index[node]


@dataclass(eq=False)
class Op:
    """One operation, on nodes of a flat graph.

    Attributes:
        node: The node whose value it computes.
        inputs: The values it reads.
        verbatim: Whether it is exactly what the graph says at ``node``, so that torch can run that instead.
    """

    node: fx.Node
    inputs: list[fx.Node]
    verbatim: bool = field(default=True, kw_only=True)

    def frames(self, shapes: Mapping[fx.Node, Shape]) -> frozenset[Frame]:
        """The ways in which it can be cut into samples; none if no plan can hold it."""
        return frozenset()

    def emit(self, buffers: Buffers) -> int | None:
        """Append it to the plan; return the number of its step."""
        raise NotImplementedError

    def renamed(self, old: fx.Node, new: fx.Node) -> None:
        """Read ``new`` instead of ``old``."""
        self.inputs = [new if each is old else each for each in self.inputs]


@dataclass(eq=False)
class Torch(Op):
    """Anything else: the node runs in torch as it is."""


@dataclass(eq=False)
class Reshape(Op):
    """The same floats in another shape, sample by sample."""

    def frames(self, shapes: Mapping[fx.Node, Shape]) -> frozenset[Frame]:
        return _batch(shapes[self.node])

    def emit(self, buffers: Buffers) -> None:
        buffers.index[self.node] = buffers.index[self.inputs[0]]


@dataclass(eq=False)
class Layer(Op):
    """A convolution or linear layer: input affine, weights, bias, residual, activation.

    Attributes:
        path: Name of the layer in the network.
        shape: Shape of the weight.
        weight: Returns the weight with everything folded into it; None once it was given away.
        bias: One value per output, or None.
        affine: What is applied to each input channel first.
        residual: A value of the output's shape that is added.
        activation: What comes last.
        choice: Which kernel runs it, and why.
    """

    path: str
    shape: Shape
    weight: Callable[[], Tensor]
    bias: Tensor | None
    affine: Affine | None = None
    residual: fx.Node | None = None
    activation: Activation = Activation.NONE
    choice: Choice | None = None

    @property
    def source(self) -> fx.Node:
        """The value that the weights multiply."""
        return self.inputs[0]

    def renamed(self, old: fx.Node, new: fx.Node) -> None:
        super().renamed(old, new)
        self.residual = new if self.residual is old else self.residual

    def scale_outputs(self, scale: Tensor | None, shift: Tensor | None) -> None:
        """Fold ``y * scale + shift`` of each output channel into weight and bias."""
        if scale is not None:
            inner, column = self.weight, scale.view(-1, *[1] * (len(self.shape) - 1))
            self.weight = lambda: inner() * column
            self.bias = None if self.bias is None else self.bias * scale
        if shift is not None:
            self.bias = shift if self.bias is None else self.bias + shift
        self.verbatim = False

    def epilogue(self, buffers: Buffers) -> Epilogue:
        """The plan's form of what follows the bias."""
        return Epilogue(self.activation, None if self.residual is None else buffers.index[self.residual])


@dataclass(eq=False)
class Conv(Layer):
    """A convolution of images ``[N, C, H, W]``; a plan holds those with one group and no dilation."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def plannable(self) -> bool:
        """Whether there is a sparse kernel for it."""
        return self.groups == 1 and self.dilation == (1, 1)

    def frames(self, shapes: Mapping[fx.Node, Shape]) -> frozenset[Frame]:
        return _batch(shapes[self.node])

    def emit(self, buffers: Buffers) -> int:
        height, width = buffers.sample(self.source)[1:]
        epilogue = self.epilogue(buffers)
        return buffers.plan.conv2d(
            buffers.index[self.source],
            buffers.target(self.node),
            self.weight(),
            self.bias,
            size=(height, width),
            stride=self.stride,
            padding=self.padding,
            affine=self.affine,
            epilogue=epilogue,
        )


@dataclass(eq=False)
class Linear(Layer):
    """A linear layer on the last dimension."""

    def frames(self, shapes: Mapping[fx.Node, Shape]) -> frozenset[Frame]:
        return _rows(shapes[self.node])

    def emit(self, buffers: Buffers) -> int:
        epilogue = self.epilogue(buffers)
        return buffers.plan.linear(
            buffers.index[self.source],
            buffers.target(self.node),
            self.weight(),
            self.bias,
            rows=buffers.rows(self.node),
            affine=self.affine,
            epilogue=epilogue,
        )


@dataclass(eq=False)
class ChannelAffine(Op):
    """``x * scale + shift`` per channel, then perhaps a ReLU: a BatchNorm, a LayerScale, a plain ReLU before a layer.

    Attributes:
        affine: Scale and shift, one value per channel.
        dim: Dimension of the channels, 1 or the last.
    """

    affine: Affine
    dim: int

    def frames(self, shapes: Mapping[fx.Node, Shape]) -> frozenset[Frame]:
        shape = shapes[self.node]
        if len(shape) == 2:
            return _elementwise(shape)
        return _batch(shape) if self.dim == 1 else frozenset({("rows", shape[:-1])})

    def emit(self, buffers: Buffers) -> int:
        sample = buffers.sample(self.node)
        channels = sample[0] if self.dim == 1 and buffers.frame[0] == "batch" else sample[-1]
        inner = math.prod(sample) // channels
        source = buffers.index[self.inputs[0]]
        target = buffers.target(self.node)
        return buffers.plan.affine(source, target, channels=channels, inner=inner, affine=self.affine)


@dataclass(eq=False)
class Activate(Op):
    """An activation, element by element."""

    activation: Activation

    def frames(self, shapes: Mapping[fx.Node, Shape]) -> frozenset[Frame]:
        return _elementwise(shapes[self.node]) if self.activation in SUPPORTED else frozenset()

    def emit(self, buffers: Buffers) -> int:
        source, target = buffers.index[self.inputs[0]], buffers.target(self.node)
        return buffers.plan.activation(source, target, floats=buffers.floats(self.node), activation=self.activation)


@dataclass(eq=False)
class Sum(Op):
    """The sum of values of one shape, times ``scale``, then an activation: residual adds, the mean of the heads."""

    scale: float = 1.0
    activation: Activation = Activation.NONE

    def frames(self, shapes: Mapping[fx.Node, Shape]) -> frozenset[Frame]:
        return _elementwise(shapes[self.node])

    def emit(self, buffers: Buffers) -> int:
        sources = [buffers.index[each] for each in self.inputs]
        floats, target = buffers.floats(self.node), buffers.target(self.node)
        return buffers.plan.add(sources, target, floats=floats, scale=self.scale, activation=self.activation)


@dataclass(eq=False)
class Product(Op):
    """``activation(first) * second``, element by element: gated layers."""

    activation: Activation = Activation.NONE

    def frames(self, shapes: Mapping[fx.Node, Shape]) -> frozenset[Frame]:
        return _elementwise(shapes[self.node])

    def emit(self, buffers: Buffers) -> int:
        sources = [buffers.index[each] for each in self.inputs]
        floats, target = buffers.floats(self.node), buffers.target(self.node)
        return buffers.plan.multiply(sources, target, floats=floats, activation=self.activation)


@dataclass(eq=False)
class Pool(Op):
    """A maximum or average over windows of images."""

    kind: PoolKind
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    ceil_mode: bool = False
    count_include_pad: bool = True

    def frames(self, shapes: Mapping[fx.Node, Shape]) -> frozenset[Frame]:
        return _batch(shapes[self.node])

    def emit(self, buffers: Buffers) -> int:
        channels, height, width = buffers.sample(self.inputs[0])
        source, target = buffers.index[self.inputs[0]], buffers.target(self.node)
        return buffers.plan.pool2d(
            source,
            target,
            kind=self.kind,
            channels=channels,
            size=(height, width),
            kernel=self.kernel,
            stride=self.stride,
            padding=self.padding,
            ceil_mode=self.ceil_mode,
            count_include_pad=self.count_include_pad,
        )


@dataclass(eq=False)
class GlobalMean(Op):
    """The mean over height and width."""

    affine: Affine | None = None

    def frames(self, shapes: Mapping[fx.Node, Shape]) -> frozenset[Frame]:
        return _batch(shapes[self.node])

    def emit(self, buffers: Buffers) -> int:
        channels, height, width = buffers.sample(self.inputs[0])
        source, target = buffers.index[self.inputs[0]], buffers.target(self.node)
        return buffers.plan.global_mean(source, target, channels=channels, size=(height, width), affine=self.affine)


@dataclass(eq=False)
class Norm(Op):
    """LayerNorm or RMSNorm of the last dimension."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float
    centered: bool

    def frames(self, shapes: Mapping[fx.Node, Shape]) -> frozenset[Frame]:
        return _rows(shapes[self.node])

    def emit(self, buffers: Buffers) -> int:
        rows, features = buffers.rows(self.node), buffers.sample(self.node)[-1]
        source, target = buffers.index[self.inputs[0]], buffers.target(self.node)
        sizes: dict[str, Any] = {"rows": rows, "features": features, "weight": self.weight, "eps": self.eps}
        if self.centered:
            return buffers.plan.layer_norm(source, target, bias=self.bias, **sizes)
        return buffers.plan.rms_norm(source, target, **sizes)


@dataclass(eq=False)
class ChannelNorm(Op):
    """LayerNorm over the channels of images, pixel by pixel."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def frames(self, shapes: Mapping[fx.Node, Shape]) -> frozenset[Frame]:
        return _batch(shapes[self.node])

    def emit(self, buffers: Buffers) -> int:
        channels, *size = buffers.sample(self.node)
        source, target = buffers.index[self.inputs[0]], buffers.target(self.node)
        held = {"weight": self.weight, "bias": self.bias, "eps": self.eps}
        return buffers.plan.channel_norm(source, target, channels=channels, inner=math.prod(size), **held)


@dataclass(eq=False)
class Permute(Op):
    """Images as maps of feature vectors, ``[N, H, W, C]``, or back.

    Attributes:
        to_last: Whether channels become the last dimension; else the last dimension becomes channels.
    """

    to_last: bool

    def frames(self, shapes: Mapping[fx.Node, Shape]) -> frozenset[Frame]:
        return _batch(shapes[self.node])

    def emit(self, buffers: Buffers) -> int:
        sample = buffers.sample(self.inputs[0])
        rows = sample[0] if self.to_last else math.prod(sample[:-1])
        source, target = buffers.index[self.inputs[0]], buffers.target(self.node)
        return buffers.plan.transpose(source, target, rows=rows, columns=math.prod(sample) // rows)


def _batch(shape: Shape) -> frozenset[Frame]:
    return frozenset({("batch", shape[:1])})


def _rows(shape: Shape) -> frozenset[Frame]:
    # Vectors are both, and so are maps of feature vectors, which come from images.
    return _elementwise(shape) if len(shape) in (2, 4) else frozenset({("rows", shape[:-1])})


def _elementwise(shape: Shape) -> frozenset[Frame]:
    return frozenset({("batch", shape[:1]), ("rows", shape[:-1])}) if len(shape) > 1 else frozenset()


def same_shape(shapes: Mapping[fx.Node, Shape], nodes: Sequence[fx.Node]) -> bool:
    """Whether all are float32 tensors of one shape."""
    return all(node in shapes for node in nodes) and len({shapes[node] for node in nodes}) == 1


def chained(first: Affine, activation: Activation) -> Affine | None:
    """``first`` followed by ``activation`` as one affine, None if there is no such."""
    if activation is not Activation.RELU or first.relu:
        return None
    return Affine(first.scale, first.shift, True)


def applied(affine: Affine | None, x: Tensor, dim: int) -> Tensor:
    """Compute an affine in torch."""
    if affine is None:
        return x
    shape = [-1 if each == dim % x.ndim else 1 for each in range(x.ndim)]
    if affine.scale is not None:
        x = x * affine.scale.view(shape)
    if affine.shift is not None:
        x = x + affine.shift.view(shape)
    return torch.relu(x) if affine.relu else x

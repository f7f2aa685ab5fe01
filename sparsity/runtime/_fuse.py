"""Fusion: what follows a layer goes into its weights and epilogue, what comes before into how it reads its input."""

from __future__ import annotations

from sparsity.runtime._operands import SUPPORTED, Activation, Affine
from sparsity.runtime._ops import (
    Activate,
    ChannelAffine,
    Conv,
    GlobalMean,
    Layer,
    Op,
    Product,
    Sum,
    chained,
)
from sparsity.runtime._program import Ops


def fuse_after(ops: Ops) -> None:
    """Fold BatchNorm and scales behind a layer into it; fuse residual adds and activations into what makes their input.

    It is right and of use for dense layers too, whatever runs them.
    """
    for op in ops:
        # An operation may have been taken in by an earlier one.
        if op in ops:
            while _take_reader(ops, op):
                pass
    for op in ops:
        if isinstance(op, Product):
            _take_activation(ops, op)


def fuse_before(ops: Ops) -> None:
    """Let sparse layers and global means apply the BatchNorm or ReLU before them as they read their input.

    Only where nobody else needs its result, which is then never stored.
    """
    for op in ops:
        affine = _as_affine(op)
        readers = ops.readers(op.node)
        if affine is None or not readers or op.node in ops.outputs:
            continue
        if all(_can_apply(ops, op, reader) for reader in readers):
            source = op.inputs[0]
            for reader in readers:
                reader.affine = affine  # pyright: ignore
                reader.verbatim = False
            ops.redirect(op.node, source)
            ops.remove(op)


def _take_reader(ops: Ops, op: Op) -> bool:
    """Take the one reader of an operation into it, if that can be; whether it was."""
    reader = ops.only_reader(op)
    if isinstance(op, Layer) and reader is not None:
        return _take_into_layer(ops, op, reader)
    if isinstance(op, ChannelAffine) and isinstance(reader, Activate):
        affine = chained(op.affine, reader.activation)
        if affine is not None:
            op.affine = affine
            ops.moved(op, reader.node, op.inputs)
            return True
    if (
        isinstance(op, (Sum, Activate))
        and isinstance(reader, Activate)
        and op.activation is Activation.NONE
        and reader.activation in SUPPORTED
    ):
        op.activation = reader.activation
        ops.moved(op, reader.node, op.inputs)
        return True
    return False


def _take_into_layer(ops: Ops, layer: Layer, reader: Op) -> bool:
    if layer.activation is not Activation.NONE:
        return False
    if isinstance(reader, ChannelAffine):
        if layer.residual is not None or not _over_outputs(ops, layer, reader):
            return False
        layer.scale_outputs(reader.affine.scale, reader.affine.shift)
        layer.activation = Activation.RELU if reader.affine.relu else Activation.NONE
        ops.moved(layer, reader.node, layer.inputs)
        return True
    if isinstance(reader, Activate) and reader.activation in SUPPORTED:
        layer.activation = reader.activation
        ops.moved(layer, reader.node, layer.inputs)
        return True
    if isinstance(reader, Sum) and reader.scale == 1 and len(reader.inputs) == 2 and layer.residual is None:
        others = [each for each in reader.inputs if each is not layer.node]
        if len(others) != 1:
            return False
        layer.residual, layer.activation = others[0], reader.activation
        ops.moved(layer, reader.node, [layer.source, others[0]])
        return True
    return False


def _over_outputs(ops: Ops, layer: Layer, affine: ChannelAffine) -> bool:
    """Whether the channels of ``affine`` are the outputs of ``layer``."""
    dims = len(ops.source.shapes[affine.node])
    return affine.dim == (1 if isinstance(layer, Conv) else dims - 1)


def _as_affine(op: Op) -> Affine | None:
    if isinstance(op, ChannelAffine):
        return op.affine
    if isinstance(op, Activate) and op.activation is Activation.RELU:
        return Affine(None, None, True)
    return None


def _can_apply(ops: Ops, op: Op, reader: Op) -> bool:
    channels = op.dim if isinstance(op, ChannelAffine) else None
    if isinstance(reader, GlobalMean):
        return reader.affine is None and channels in (None, 1)
    if not isinstance(reader, Layer) or reader.affine is not None or op.node is reader.residual:
        return False
    if reader.choice is None or not reader.choice.sparse:
        return False
    features = 1 if isinstance(reader, Conv) else len(ops.source.shapes[op.node]) - 1
    return channels in (None, features)


def _take_activation(ops: Ops, op: Product) -> None:
    """Apply the activation of a gate while multiplying."""
    for place, source in enumerate(op.inputs):
        made = ops.of(source)
        gate = isinstance(made, Activate) and made.activation in SUPPORTED and ops.only_reader(made) is op
        if gate and op.activation is Activation.NONE and op.inputs[0] is not op.inputs[1]:
            op.activation = made.activation  # pyright: ignore
            other = op.inputs[1 - place]
            inner = made.inputs[0]
            renewed = Product(op.node, [inner, other], op.activation, verbatim=False)
            ops.replace(op, renewed)
            ops.remove(made)
            return

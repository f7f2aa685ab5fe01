"""An ONNX file as DeepSparse 1.8 takes it: of an older opset, and of operations that it runs itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.inference._errors import EngineError

OPSET, IR = 17, 8  # from opset 18 on it leaves everything to onnxruntime, and it reads IR versions up to 9


def downgrade(path: Path, shape: Sequence[int]) -> Path:
    """Convert a file, unless that was done before, and return the new one, which lies beside it.

    Args:
        path: An ONNX file with one input.
        shape: Of the input; free dimensions get its sizes.

    Raises:
        EngineError: An operation has no older form.
    """
    import onnx
    from onnx import version_converter

    target = path.with_suffix(f".{'x'.join(map(str, shape))}.opset{OPSET}.onnx")
    if target.exists():
        return target
    model = onnx.load(path)
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
        dim.dim_value = size
    _spell_out(model.graph.initializer)
    try:
        model = version_converter.convert_version(model, OPSET)
    except (RuntimeError, ValueError) as error:
        raise EngineError(f"no form of opset {OPSET}: {str(error).splitlines()[0]}") from error
    model.ir_version = IR
    rewrite(model)
    onnx.save(model, target)
    return target


def rewrite(model: Any) -> None:
    """Replace, in place, what DeepSparse would leave to onnxruntime by equal operations that it runs.

    The mean over height and width becomes GlobalAveragePool, and a sum of several tensors a chain of additions.

    Args:
        model: A ``ModelProto`` of opset 17.
    """
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.value_info}
    nodes = [new for node in model.graph.node for new in _replace(node, ranks)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _spell_out(tensors: Sequence[Any]) -> None:
    """Keep integers as such: as bytes the converter of onnx before 1.22 reads axes as none, and takes all instead."""
    from onnx import TensorProto, helper, numpy_helper

    for tensor in tensors:
        if tensor.data_type == TensorProto.INT64 and tensor.HasField("raw_data"):
            values = numpy_helper.to_array(tensor).ravel().tolist()
            tensor.CopyFrom(helper.make_tensor(tensor.name, tensor.data_type, list(tensor.dims), values))


def _replace(node: Any, ranks: Mapping[str, int]) -> Iterator[Any]:
    from onnx import helper

    if node.op_type == "Sum" and len(node.input) > 1:
        yield from _chain(node)
        return
    if node.op_type.startswith("Reduce"):
        # The converter keeps an attribute of the newer opset that the older one has not.
        kept = [attribute for attribute in node.attribute if attribute.name != "noop_with_empty_axes"]
        del node.attribute[:]
        node.attribute.extend(kept)
    if node.op_type == "ReduceMean":
        options = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        axes = sorted(axis % 4 for axis in options.get("axes", ()))
        if ranks.get(node.input[0]) == 4 and axes == [2, 3] and options.get("keepdims", 1):
            yield helper.make_node("GlobalAveragePool", list(node.input), list(node.output), name=node.name)
            return
    yield node


def _chain(node: Any) -> Iterator[Any]:
    from onnx import helper

    total, *others = node.input
    for number, other in enumerate(others, 1):
        result = node.output[0] if number == len(others) else f"{node.output[0]}_sum{number}"
        yield helper.make_node("Add", [total, other], [result], name=f"{node.name}_{number}")
        total = result

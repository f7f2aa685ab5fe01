"""Export to ONNX, checked against onnxruntime before anybody gets the file."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib.util
import io
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxsplit._errors import ExportError, TraceError
from fxsplit._io._spec import restore_example
from fxsplit._onnx._wrapper import TensorsOnly, fold_parametrizations, input_names, named_outputs
from fxsplit._split._model import SPEC, SplitModel
from fxsplit._trace import TracedModel
from fxsplit._trace._example import complete, infer_examples
from fxsplit._trace._fit import BATCH, Sizes
from fxsplit._trace._inputs import (
    Argument,
    Example,
    Inputs,
    as_example,
    bind,
    fixed,
    iterate_tensors,
    map_tensors,
    symbolic,
)

_LARGE = 2**31 - 2**20  # bytes; protobuf ends at 2 GiB


@dataclass(frozen=True)
class OnnxReport:
    """What was exported.

    Attributes:
        path: The file.
        bytes: Size of the file, with its external data if the model is too large for one file.
        inputs: Names of the inputs, in order.
        outputs: Names of the outputs, in order.
        dynamic: Dimensions by input that may have any size: ``{'x': {0: 'batch'}}``.
        error: Largest relative error max|a - b| / max|b| against the model; None if it was not checked.
        batch_sizes: Batch sizes it was checked at.
    """

    path: Path
    bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic: dict[str, dict[int, str]]
    error: float | None
    batch_sizes: tuple[int, ...]

    def __str__(self) -> str:
        checked = "not checked" if self.error is None else f"error {self.error:.1e} at batch sizes {self.batch_sizes}"
        return f"{self.path}: {self.bytes / 1e6:.1f} MB, {self.inputs} -> {self.outputs}, {checked}"


def export_onnx(
    net: nn.Module, path: str | os.PathLike[str], example: Any = None, *, check: bool = True, rtol: float = 1e-5
) -> OnnxReport:
    """Export a split model, a traced model or any other module to ONNX, in eval mode and with masks folded.

    Inputs and outputs keep the names they have in PyTorch; the batch size is dynamic, and so is the length of token
    sequences where the model allows it. The net is not changed.

    Args:
        net: The model, on any device; it is exported on the CPU.
        path: File to write. A model of more than 2 GB gets a second file beside it for its weights.
        example: Inputs: a tensor, a tuple of arguments, a dict of keyword arguments, or ``(args, kwargs)``. None takes
            those of the trace, or infers them for timm, torchvision and transformers models.
        check: Compare the file with the model in onnxruntime, at two batch sizes (and two lengths).
        rtol: Largest error max|a - b| / max|b| allowed by the check, for each output.

    Raises:
        ExportError: If the model can't be exported, or the file disagrees with it: no file is written then.

    Example:
        >>> report = fxsplit.export_onnx(net, "net.onnx", x)  # doctest: +SKIP
        >>> report.error, report.batch_sizes  # doctest: +SKIP
        (3.1e-07, (2, 3))
    """
    _require("onnx", "onnxscript", *(["onnxruntime"] if check else []))
    if not isinstance(net, nn.Module):
        raise ExportError(f"export_onnx takes an nn.Module, got {type(net).__name__}")
    model = copy.deepcopy(net).cpu().eval()
    fold_parametrizations(model)
    arguments = _arguments(model, example)
    wrapper = TensorsOnly(model, arguments).eval()
    reasons: list[Exception] = []
    for plan in _plans(wrapper, arguments):
        with tempfile.TemporaryDirectory(dir=Path(path).parent, prefix=".onnx") as folder:
            temporary = Path(folder, Path(path).name)
            try:
                report = _export(wrapper, plan, temporary)
                if check:
                    report = _check(wrapper, plan, report, rtol)
            except ExportError as error:
                reasons.append(error)
                continue
            # The weights first: a model without them would be half a file.
            for part in sorted(Path(folder).iterdir(), key=lambda part: part == temporary):
                shutil.move(part, Path(path).parent / part.name)
        return dataclasses.replace(report, path=Path(path))
    raise reasons[-1]


def _require(*packages: str) -> None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ExportError(f"export_onnx needs {', '.join(missing)}: pip install 'fxsplit[onnx]'")


def _arguments(model: nn.Module, example: Any) -> tuple[Argument, ...]:
    """The first of the known examples that the model accepts; the likeliest if there is none."""
    choices: list[tuple[Argument, ...]] = []
    try:
        for candidate in _known_examples(model) if example is None else [as_example(example)]:
            bound = complete(model, bind(model, candidate))
            choice = tuple(dataclasses.replace(a, value=map_tensors(a.value, _on_cpu)) for a in bound)
            if _accepts(TensorsOnly(model, choice), fixed(choice), {}):
                return choice
            choices.append(choice)
    except TraceError as error:
        raise ExportError(str(error)) from error
    return choices[0]


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu()


def _known_examples(model: nn.Module) -> Iterable[Example]:
    """Return inputs that the model may take, the likeliest first."""
    if isinstance(model, TracedModel):
        return [model.example]
    if isinstance(model, SplitModel):
        return [as_example(restore_example(model.meta[SPEC]["example"], torch.device("cpu")))]
    return infer_examples(model)


def _plans(wrapper: TensorsOnly, arguments: tuple[Argument, ...]) -> list[Inputs]:
    """Return which dimensions to make dynamic, the most first: those that the model itself takes in another size."""
    free = symbolic(arguments)
    candidates = [free, free.without_lengths(), symbolic(arguments, skip_vectors=True).without_lengths()]
    fitting = [plan for plan in candidates if all(_accepts(wrapper, plan, sizes) for sizes in _schedule(plan))]
    return [plan for index, plan in enumerate(fitting) if plan.dims not in [p.dims for p in fitting[:index]]] or [
        fixed(arguments)
    ]


def _schedule(plan: Inputs) -> list[Sizes]:
    """Return the sizes to check at: the example's, another batch size, other lengths."""
    if BATCH not in plan.sizes:
        return [{}]
    # torch.export takes a dimension of size 1 for a constant.
    base = {**plan.sizes, BATCH: max(plan.sizes[BATCH], 2)}
    shorter = {symbol: size if symbol == BATCH else size - 1 for symbol, size in base.items()}
    return [base, {**base, BATCH: base[BATCH] + 1}, *([shorter] if shorter != base else [])]


def _accepts(wrapper: TensorsOnly, plan: Inputs, sizes: Sizes) -> bool:
    try:
        _run(wrapper, plan, sizes)
    except Exception:  # a model may refuse sizes in any way
        return False
    return True


def _tensors(plan: Inputs, sizes: Sizes) -> list[Tensor]:
    _, _, inputs = plan.make(sizes)
    return [tensor for value in inputs.values() for tensor in iterate_tensors(value)]


def _run(wrapper: TensorsOnly, plan: Inputs, sizes: Sizes) -> list[tuple[str, Tensor]]:
    with torch.no_grad():
        return list(named_outputs(wrapper.call(_tensors(plan, sizes))))


def _export(wrapper: TensorsOnly, plan: Inputs, path: Path) -> OnnxReport:
    base = _schedule(plan)[0]
    try:
        results = _run(wrapper, plan, base)
    except Exception as error:
        raise ExportError(f"the model rejects the example with {type(error).__name__}: {error}") from error
    if not results:
        raise ExportError("the model returns no tensor")
    inputs = input_names(plan.arguments)
    outputs = [f"{name}_out" if name in inputs else name for name, _ in results]
    dims = tuple(plan.dims.get(position, {}) for position in range(len(inputs)))
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                wrapper,
                tuple(_tensors(plan, base)),
                dynamo=True,
                dynamic_shapes=(dims,),
                input_names=inputs,
                output_names=outputs,
                verbose=False,
            )
    except Exception as error:
        cause = error.__cause__ or error
        raise ExportError(f"torch.onnx can't export the model: {type(cause).__name__}: {cause}") from error
    if program is None:
        raise ExportError("torch.onnx.export returned no program; is torch.onnx patched?")
    size = sum(tensor.nbytes for tensor in (*wrapper.parameters(), *wrapper.buffers()))
    program.save(path, external_data=size > _LARGE)
    total = sum(part.stat().st_size for part in path.parent.iterdir())
    dynamic = {name: dict(found) for name, found in zip(inputs, dims, strict=True) if found}
    return OnnxReport(path, total, tuple(inputs), tuple(outputs), dynamic, None, ())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the exporter prints and two messages that say nothing to its user."""
    folding = logging.getLogger("onnxscript.optimizer._constant_folding")

    def is_news(record: logging.LogRecord) -> bool:
        # An attempt to compute a constant ahead of time; the node stays in the graph.
        return not record.getMessage().startswith("Evaluation failed")

    folding.addFilter(is_news)
    try:
        # Older versions print how many rewrite rules they applied, also if verbose is False.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            # Two inputs have one batch size, and it is called the same: as intended.
            same = r"# The axis name: (\w+) will not be used, since it shares .* with another axis: \1\."
            warnings.filterwarnings("ignore", same, UserWarning)
            # torch 2.10 uses what it deprecates.
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            yield
    finally:
        folding.removeFilter(is_news)


def _check(wrapper: TensorsOnly, plan: Inputs, report: OnnxReport, rtol: float) -> OnnxReport:
    import onnxruntime

    session = onnxruntime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
    worst, batches = 0.0, []
    for sizes in _schedule(plan):
        feed = {name: tensor.numpy() for name, tensor in zip(report.inputs, _tensors(plan, sizes), strict=True)}
        wanted = {entry.name for entry in session.get_inputs()}
        found = session.run(list(report.outputs), {name: value for name, value in feed.items() if name in wanted})
        for (name, expected), got in zip(_run(wrapper, plan, sizes), found, strict=True):
            error = relative_error(np.asarray(got), expected.numpy())
            if not error < rtol:
                raise ExportError(
                    f"output '{name}' in onnxruntime differs from the model by {error:.2e} (relative to its largest "
                    f"value) at sizes {sizes or 'of the example'}, allowed is {rtol:.0e}. Raise rtol if that is good "
                    "enough, for half precision for instance"
                )
            worst = max(worst, error)
        batches.append(sizes.get(BATCH, next(iter(feed.values())).shape[0]))
    return dataclasses.replace(report, error=worst, batch_sizes=tuple(dict.fromkeys(batches)))


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """Return max|got - expected| / max|expected|; inf if the shapes differ, 0 for equal arrays that hold only zeros."""
    if got.shape != expected.shape:
        return float("inf")
    if expected.size == 0 or np.array_equal(got, expected):
        return 0.0
    difference = np.abs(got.astype(np.float64) - expected.astype(np.float64)).max()
    scale = np.abs(expected.astype(np.float64)).max()
    return float(difference / scale) if scale > 0 else float("inf")

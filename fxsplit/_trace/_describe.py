"""Puts into words what a finished recording assumed."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence

from torch import nn

from fxsplit._trace._extents import named_tensors, shapes
from fxsplit._trace._inputs import Argument, Inputs, iterate_tensors
from fxsplit._trace._report import TraceReport
from fxsplit._trace._session import Recording


def describe(report: TraceReport, inputs: Inputs, recording: Recording, forced: Mapping[str, str]) -> None:
    """Add to a report what the finished recording shows."""
    program, base = recording.program, recording.base
    for argument in inputs.arguments:
        if not argument.is_input and argument.value is not None:
            report.specialised.append(f"argument {argument.name} = {argument.value!r}")
    fixed = [
        f"{name}.shape[{dim}] = {size}"
        for (name, _), shape in zip(named_tensors(inputs), shapes(inputs, base.sizes_read is None), strict=True)
        for dim, size in enumerate(shape)
        if isinstance(size, int)
    ]
    if fixed:
        free = ", ".join((*inputs.sizes, *inputs.extents)) or "nothing"
        read = f"sizes are read in {base.sizes_read}; " if base.sizes_read else ""
        report.specialised.append(f"{', '.join(fixed)} ({read}free are: {free})")
    for name, value in program.extras.items():
        if name in base.constants:
            where = next(record.path for record in program.records if record.target == name) or "the model itself"
            report.constants.append(f"{name} {tuple(value.shape)} {value.dtype} in {where}")
    report.coarse_leaves += forced.items()
    report.warnings += dict.fromkeys(base.deviations)
    # Checkpointing may be for train mode only.
    dropped = [line for run in (base, *(run for _, _, run in recording.checks)) for line in run.dropped]
    report.dropped += [line for line in dict.fromkeys(dropped) if line not in report.dropped]


def shapes_of(arguments: Sequence[Argument]) -> str:
    """The example's tensors: ``x: [2, 3, 8, 8]``."""
    return ", ".join(
        f"{argument.name}: {' '.join(str(list(tensor.shape)) for tensor in iterate_tensors(argument.value))}"
        for argument in arguments
        if argument.is_input
    )


def raised_in(model: nn.Module, error: BaseException) -> str:
    """The innermost module of ``model`` whose code an exception passed through."""
    paths = {id(module): path for path, module in model.named_modules()}
    owners = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    found = [paths[id(owner)] for owner in owners if id(owner) in paths]
    return repr(found[-1]) if found and found[-1] else "its forward"

"""From a flat graph to a program with its report: choices, the comparison with the dense network, measurements."""

from __future__ import annotations

import dataclasses
import time
import warnings
from dataclasses import dataclass

import torch
from torch import fx, nn

from sparsity._errors import BuildError, NoEffectWarning, SparsityWarning
from sparsity.runtime._assemble import Settings, assembled, dense_ops, look, sparse_ops
from sparsity.runtime._emit import Program
from sparsity.runtime._example import Arguments, few_samples, size_of_batch, tensors_of
from sparsity.runtime._fallback import without_kernels
from sparsity.runtime._measure import measure
from sparsity.runtime._program import Ops, Source
from sparsity.runtime._report import CompileReport, make_report
from sparsity.runtime._timing import one_thread, seconds

_WHOLE_NET_SECONDS = 1.5
_TOLERATED = 1.02
"""The compiled network may take this much longer than the dense one: the noise of two timings."""


@dataclass
class Built:
    """A program with its report."""

    program: Program
    report: CompileReport


def build(root: nn.Module, graph: fx.Graph, arguments: Arguments, settings: Settings) -> Built:
    """Compile a flat graph over ``root``.

    Raises:
        CompileError: The network does not run with these arguments.
    """
    started = time.perf_counter()
    source = look(root, graph, arguments)
    notes: list[str] = []
    try:
        ops = sparse_ops(source, arguments, settings)
        program = assembled(ops, settings.threads)
    except BuildError as error:
        ops = without_kernels(dense_ops(source))
        program = assembled(ops, settings.threads)
        notes.append(f"without sparse kernels: {error}")
        _warn(
            f"compile: the sparse kernels can't be built, so linear layers run as torch's CSR matrices where that is "
            f"faster, and convolutions dense. {error}",
            SparsityWarning,
        )
    else:
        notes += _gain(ops)
        if settings.tune and program.bodies:
            program = _not_slower(source, ops, program, arguments, settings, notes)
    times, counts = measure(program, arguments) if settings.tune else ({}, {})
    shapes = tuple(tuple(tensor.shape) for tensor in tensors_of(arguments))
    report = make_report(program, times, counts, notes, time.perf_counter() - started, shapes)
    return Built(program, report)


def _gain(ops: Ops) -> list[str]:
    """Warn if compiling gains nothing; the note for the report."""
    layers = ops.layers
    if any(layer.choice is not None and layer.choice.sparse for layer in layers):
        return []
    zeros = sum(layer.choice.reason != "no zeros" for layer in layers if layer.choice)
    if not layers:
        message = "the network has no convolution and no linear layer, so there is nothing to run sparse"
    elif zeros:
        message = f"none of the {zeros} layers with zeros is sparse enough to be faster than dense"
    else:
        message = "no weight is zero; sparsify or prune the network first"
    _warn(f"compile gained nothing: {message}. The network runs dense in torch.", NoEffectWarning)
    return [f"gained nothing: {message}"]


def _not_slower(
    source: Source, ops: Ops, program: Program, arguments: Arguments, settings: Settings, notes: list[str]
) -> Program:
    """Return ``program``, or the dense network if that is faster as a whole."""
    # The ratio is that of a few samples already.
    args, kwargs = few_samples(arguments) or arguments if size_of_batch(arguments) > 2 else arguments
    with torch.no_grad(), one_thread():
        alternative = dense_ops(source)
        for layer, chosen in zip(alternative.layers, ops.layers, strict=True):
            if chosen.choice is not None:
                reason = "the whole network is faster dense"
                layer.choice = dataclasses.replace(chosen.choice, sparse=False, reason=reason)
        dense = assembled(alternative, settings.threads)
        calls = [lambda: program.module(*args, **kwargs), lambda: dense.module(*args, **kwargs)]
        sparse_time, dense_time = seconds(calls, _WHOLE_NET_SECONDS)
    times = f"{1e3 * sparse_time:.2f} ms against {1e3 * dense_time:.2f} ms of the dense network in torch, on one thread"
    if sparse_time <= _TOLERATED * dense_time:
        notes.append(f"measured as a whole: {times}")
        return program
    notes.append(f"fell back to the dense network, which is faster: {times}")
    _warn(f"compile gained nothing: {times}. The network runs dense in torch.", NoEffectWarning)
    return dense


def _warn(message: str, category: type[Warning]) -> None:
    warnings.warn(category(message), stacklevel=4)

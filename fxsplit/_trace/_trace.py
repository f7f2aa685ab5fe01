"""The public entry point of tracing."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from fxsplit._arguments import CALL_KEY, TracedArgument
from fxsplit._errors import FxSplitWarning, TraceError
from fxsplit._exclusive import exclusive
from fxsplit._trace._check import check_leaves, check_model
from fxsplit._trace._describe import describe, raised_in, shapes_of
from fxsplit._trace._emit import emit
from fxsplit._trace._example import complete, infer_examples
from fxsplit._trace._extents import shapes
from fxsplit._trace._fit import BATCH
from fxsplit._trace._guards import InputGuard, attach, make_rule
from fxsplit._trace._inputs import Argument, Example, Inputs, as_example, bind, fixed, iterate_tensors, symbolic
from fxsplit._trace._model import META_KEY, Provenance, TracedModel
from fxsplit._trace._preserve import preserved
from fxsplit._trace._refusal import refusal
from fxsplit._trace._report import TraceReport
from fxsplit._trace._session import Recording, Session
from fxsplit._trace._values import prepared
from fxsplit._trace._verify import difference


def trace(model: nn.Module, example: Any = None, *, leaf: Sequence[str] = ()) -> TracedModel:
    """Record a model as a flat torch.fx graph.

    The model really runs, a few times: at three batch sizes in eval mode, for token inputs also at two shorter
    lengths, and once in train mode. What these runs have in common is the graph; integers that follow the sizes become
    arithmetic on them, values that follow the mode become switches on ``.training``. Submodules keep their paths and
    are SHARED with the model, as in torch.fx; copy the result with ``copy.deepcopy``. The model itself is left as it
    was: values, modes, gradients, random state. Threads that trace take turns; another thread that runs the model
    meanwhile, or draws random numbers, gets in the way.

    Args:
        model: any module; its forward may return tensors, containers, dataclasses or ModelOutputs.
        example: what forward is called with: a tensor, a tuple of arguments, a dict of keyword arguments, or
            ``(args, kwargs)``. Dimension 0 of its first tensor is the batch. Inferred for models of timm, torchvision
            and transformers. Where an attention mask hides nothing, one token is hidden while recording, because
            models skip masking altogether then. Arguments without tensors are baked in.
        leaf: paths of modules to keep whole, besides layers of torch.nn, their subclasses, modules without children
            and modules that own parameters while their children own none.

    Returns:
        A GraphModule whose ``.report`` lists every assumption. Its nodes carry ``meta['path']``, ``'modules'``,
        ``'shape'``, ``'dtype'`` and ``'flops'``, at the batch size ``traced.meta['batch']``.

    Raises:
        TraceError: the model cannot be recorded; the message names the module, the reason and the remedy.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> traced = trace(net, torch.randn(3, 4))
        >>> [node.target for node in traced.graph.nodes]
        ['input', '0', '1', '2', 'output']
    """
    check_model(model)
    leaves = check_leaves(model, leaf)
    with exclusive():
        traced = _record(model, example, leaves)
    for warning in traced.report.warnings:
        warnings.warn(warning, FxSplitWarning, stacklevel=2)
    return traced


def _record(model: nn.Module, example: Any, leaves: frozenset[str]) -> TracedModel:
    candidates = [as_example(example)] if example is not None else infer_examples(model)
    report = TraceReport()
    buffers = dict(model.named_buffers())
    with preserved(model):
        given, inputs = _rehearse_any(model, candidates, report)
        cached = frozenset(name for name, buffer in model.named_buffers() if buffers.get(name) is not buffer)
        session = Session(model, inputs, leaves, report, cached)
        recording = session.run()
    traced, problem = _emit(model, session, recording)
    if problem is not None and session.stateful:
        # The runs so far began with what the rehearsal had left behind, but the graph begins where the model is.
        with preserved(model):
            recording = session.run()
        traced, problem = _emit(model, session, recording)
    if problem is not None and recording.assumed_sizes:
        session.fix_sizes(problem)
        with preserved(model):
            refusal(model, session.inputs, session.inputs.largest(), attributes=False)
            recording = session.run()
        traced, problem = _emit(model, session, recording)
    if problem is not None:
        raise TraceError(
            f"the recorded graph of {type(model).__name__} does not reproduce the model in eval mode: {problem}. "
            "Name the modules whose forward does unusual things with leaf=[...]."
        )
    describe(report, session.inputs, recording, session.forced)
    attach(traced.graph, _guard(session.inputs, recording))
    traced.recompile()
    traced.meta[META_KEY] = Provenance(report, model, given)
    return traced


def _rehearse_any(model: nn.Module, candidates: Iterable[Example], report: TraceReport) -> tuple[Example, Inputs]:
    """The first candidate that the model accepts; what it says about the first one if there is none."""
    refusals: list[TraceError] = []
    for candidate in candidates:
        found = _rehearse(model, prepared(model, complete(model, bind(model, candidate))), report)
        if isinstance(found, Inputs):
            return candidate, found
        refusals.append(found)
    raise refusals[0]


def _rehearse(model: nn.Module, arguments: tuple[Argument, ...], report: TraceReport) -> Inputs | TraceError:
    """Run the model once at the largest sizes: does it let them vary? Caches that it builds lazily exist afterwards."""
    plan, without_vectors = symbolic(arguments), symbolic(arguments, skip_vectors=True)
    plans = [plan] if plan.dims == without_vectors.dims else [plan, without_vectors]
    refused: Exception | None = None
    for plan in plans:
        error = refusal(model, plan, plan.largest(), attributes=False)
        if error is None:
            return plan
        refused = refused or error
    plan = fixed(arguments)
    error = refusal(model, plan, plan.largest(), attributes=False)
    if error is not None:
        rejection = TraceError(
            f"{type(model).__name__} rejects the example ({shapes_of(arguments)}) in {raised_in(model, error)} with "
            f"{type(error).__name__}: {error}. Pass inputs that it accepts in eval mode."
        )
        rejection.__cause__ = error
        return rejection
    report.warnings.append(f"the graph holds for the example's batch size only: the model rejects others ({refused})")
    return plan


def _guard(inputs: Inputs, recording: Recording) -> InputGuard:
    """What the inputs of the graph have to be like."""
    found = iter(shapes(inputs, unread=recording.base.sizes_read is None))
    given = [argument for argument in inputs.arguments if argument.is_input]
    counted = [(argument, sum(1 for _ in iterate_tensors(argument.value))) for argument in given]
    return InputGuard([make_rule(a.name, a.value, list(itertools.islice(found, count))) for a, count in counted])


def _emit(model: nn.Module, session: Session, recording: Recording) -> tuple[TracedModel, str | None]:
    """Write the graph; also say what is wrong with it in eval mode, and warn of what is in train mode."""
    traced = emit(recording.program, model)
    first = recording.program.records[recording.program.inputs[0]].shape
    traced.meta["batch"] = session.inputs.schedule()[0].get(BATCH, first[0] if first else 1)
    traced.meta[CALL_KEY] = tuple(
        TracedArgument(argument.name, None if argument.is_input else (argument.value,), argument.keyword)
        for argument in session.inputs.arguments
    )
    for sizes, train, recorder in recording.checks:
        problem = difference(traced, session.inputs, sizes, train, recorder.returned)
        if problem is not None and not train:
            return traced, problem
        if problem is not None and session.exact_train:
            session.warn(f"in train mode, with the same seed, the graph deviates from the model: {problem}")
    return traced, None

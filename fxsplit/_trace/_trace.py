"""The public entry point of tracing."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn

from fxsplit._errors import FxSplitWarning, TraceError
from fxsplit._trace._align import BATCH
from fxsplit._trace._check import check_leaves, check_model
from fxsplit._trace._emit import emit
from fxsplit._trace._example import complete, infer_example
from fxsplit._trace._inputs import Argument, Inputs, as_example, bind, fixed, symbolic
from fxsplit._trace._model import META_KEY, Provenance, TracedModel
from fxsplit._trace._preserve import preserved
from fxsplit._trace._report import TraceReport
from fxsplit._trace._session import BATCHES, Session, warm_up


def trace(model: nn.Module, example: Any = None, *, leaf: Sequence[str] = ()) -> TracedModel:
    """Record a model as a flat torch.fx graph.

    The model really runs, a few times: at three batch sizes in eval mode and once in train mode. What these runs have
    in common is the graph; integers that follow the batch size become arithmetic on it, values that follow the mode
    become switches on ``.training``. Submodules keep their paths and are SHARED with the model, as in torch.fx; copy the
    result with ``copy.deepcopy``. The model itself is left as it was: values, modes, gradients, random state.

    Args:
        model: any module: its forward may return tensors, containers, dataclasses or ModelOutputs.
        example: what forward is called with: a tensor, a tuple of arguments, a dict of keyword arguments, or
            ``(args, kwargs)``. Dimension 0 of its first tensor is the batch. Inferred for models of timm, torchvision
            and transformers. Where an attention mask hides nothing, one token is hidden while recording.
        leaf: paths of modules to keep whole, besides those that torch and the layer classes call for.

    Returns:
        A GraphModule whose ``.report`` lists every assumption; its nodes carry ``meta['path' | 'modules' | 'shape' |
        'dtype' | 'flops']`` at the batch size ``meta['batch']``.

    Raises:
        TraceError: the model cannot be recorded; the message names the module, the reason and the remedy.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> traced = trace(net, torch.randn(3, 4))
        >>> [node.name for node in traced.graph.nodes]
        ['input_1', '_0', '_1', '_2', 'output']
    """
    check_model(model)
    leaves = check_leaves(model, leaf)
    given = as_example(example) if example is not None else infer_example(model)
    arguments = complete(model, bind(model, given))
    report = TraceReport()
    with preserved(model):
        inputs = _rehearse(model, arguments, report)
        session = Session(model, inputs, leaves, report)
        program, _ = session.run()
    _report_baked(session.inputs, report)
    traced = emit(program, model)
    first = program.records[program.inputs[0]]
    traced.meta["batch"] = session.sizes()[0].get(BATCH, first.shape[0] if first.shape else 1)
    traced.meta[META_KEY] = Provenance(report, model, given)
    for warning in report.warnings:
        warnings.warn(warning, FxSplitWarning, stacklevel=2)
    return traced


def _rehearse(model: nn.Module, arguments: tuple[Argument, ...], report: TraceReport) -> Inputs:
    """Find out which dimensions the model lets vary, by running it once at the largest batch size."""
    plans = [symbolic(arguments), symbolic(arguments, skip_vectors=True)]
    plans = [plan for n, plan in enumerate(plans) if BATCH in plan.sizes and plan.dims not in [p.dims for p in plans[:n]]]
    refused: Exception | None = None
    for plan in plans:
        try:
            warm_up(model, plan, {BATCH: BATCHES[-1]})
        except Exception as error:  # noqa: BLE001 - anything may come out of the user's model; it is reported below
            refused = refused or error
        else:
            return plan
    plan = fixed(arguments)
    try:
        warm_up(model, plan, {})
    except Exception as error:
        raise TraceError(
            f"{type(model).__name__} rejects the example: {type(error).__name__}: {error}. Pass inputs that the model runs "
            "on in eval mode."
        ) from error
    if refused is not None:
        report.warnings.append(
            f"the graph holds for the example's batch size only: the model rejects another one ({refused})"
        )
    return plan


def _report_baked(inputs: Inputs, report: TraceReport) -> None:
    for argument in inputs.arguments:
        if not argument.is_input and argument.value is not None:
            report.specialised.append(f"argument {argument.name} = {argument.value!r}")

"""Repeats a surgery on another instance of the model, as the spec of a saved file describes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fxsplit._batch_ensemble import _surgery as batch_ensemble
from fxsplit._cuts._find import recorded_cut
from fxsplit._errors import SpecError
from fxsplit._fission import _paths as fission
from fxsplit._mimo import _surgery as mimo
from fxsplit._split._model import SplitModel
from fxsplit._split._surgery import split
from fxsplit._trace import TracedModel
from fxsplit._vote import Vote

Spec = Mapping[str, Any]


def replay(model: TracedModel, surgery: Spec, vote: Vote) -> SplitModel:
    """Repeat a surgery, without drawing weights.

    Raises:
        SpecError: It is of a kind that this version doesn't know.
    """
    method = surgery.get("method", {"name": "split"})["name"]
    if method not in _METHODS:
        raise SpecError(f"the file was made by fxsplit.{method}, which this fxsplit doesn't know: install a newer one")
    return _METHODS[method](model, surgery, vote)


def _split(model: TracedModel, surgery: Spec, vote: Vote) -> SplitModel:
    cut = recorded_cut(model, surgery["split"] or "", surgery["node"])
    return split(model, cut, surgery["heads"], "copy", vote, share=surgery["share"], tied=surgery["tied"])


def _mimo(model: TracedModel, surgery: Spec, vote: Vote) -> SplitModel:
    method = surgery["method"]
    return mimo.operate(model, method["members"], "copy", vote, 0, method["dim"])


def _batch_ensemble(model: TracedModel, surgery: Spec, vote: Vote) -> SplitModel:
    method = surgery["method"]
    net, _ = batch_ensemble.operate(
        model, method["members"], method["layers"], batch_ensemble.make_draw("signs"), vote, 0
    )
    return net


def _fission(model: TracedModel, surgery: Spec, vote: Vote) -> SplitModel:
    method = surgery["method"]
    cuts = [recorded_cut(model, cut["path"], cut["node"]) for cut in method["cuts"]]
    return fission.build(model, cuts, method["members"], "copy", vote, 0)


_METHODS: dict[str, Callable[[TracedModel, Spec, Vote], SplitModel]] = {
    "split": _split,
    "mimo": _mimo,
    "batch_ensemble": _batch_ensemble,
    "fission": _fission,
}

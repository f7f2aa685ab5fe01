"""Turns what a user writes for ``split=`` (a path, a number of blocks, a share, 'auto', a Cut) into a cut."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from fxsplit._cuts._find import Cut, cut_at, empty_cut
from fxsplit._cuts._flow import BEFORE
from fxsplit._cuts._survey import Survey
from fxsplit._errors import CutError, near_matches

At = str | int | float | Cut
AUTO = "auto"
# NeuroTrails, section 5.1: "approximately one-third of the network serving as the shared backbone".
_AUTO_SHARE = 1 / 3


@dataclass(frozen=True)
class Place:
    """A cut and its moment in the flow of the graph."""

    cut: Cut
    moment: int


def locate(survey: Survey, at: At) -> Place:
    """Find the cut that ``at`` names.

    Args:
        survey: Of the graph to be split.
        at: Path of the last module of the trunk, number of blocks in the trunk (0: empty trunk), share of the
            blocks in the trunk (above 0, up to 1), ``'auto'``, or a Cut of this graph.

    Raises:
        CutError: There is no such place, or, unless it is a Cut, a skip connection is open there.
    """
    if isinstance(at, Cut):
        return _from_cut(survey, at)
    if at == AUTO:
        return _automatic(survey)
    if isinstance(at, str):
        return _from_path(survey, at)
    if isinstance(at, bool) or not isinstance(at, (int, float)):
        raise CutError(
            f"split must be a module path, 'auto', a number of blocks, a share of the blocks or a Cut, got {at!r} "
            f"({type(at).__name__})."
        )
    blocks = list(survey.blocks)
    if isinstance(at, float):
        if not 0 < at <= 1:
            raise CutError(
                f"split={at} as a share of the blocks must be above 0 and at most 1; an empty trunk is split=0."
            )
        if not blocks:
            raise CutError("This model has no blocks to share out; name the last module of the trunk by its path.")
        at = max(1, round(at * len(blocks)))
    if at == 0:
        return Place(empty_cut(survey), BEFORE)
    if not 0 < at <= len(blocks):
        raise CutError(
            f"split={at} blocks, but this model can be cut after 1 to {len(blocks)} blocks (0: empty trunk): "
            f"{_shorten(blocks)}."
        )
    return _from_path(survey, blocks[at - 1])


def _automatic(survey: Survey) -> Place:
    """The block cut whose trunk is nearest to the share that the paper found best."""
    cuts = [(cut_at(survey, path, moment), moment) for path, moment in survey.blocks.items()]
    if not cuts:
        raise CutError("split='auto' picks one of the model's blocks, but it has none; name a module by its path.")
    return Place(*min(cuts, key=lambda entry: abs(entry[0].share - _AUTO_SHARE)))


def _from_cut(survey: Survey, cut: Cut) -> Place:
    if not cut.path:
        return Place(empty_cut(survey), BEFORE)
    moment = survey.moments.get(cut.node, _exit(survey, cut.path))
    found = cut_at(survey, cut.path, moment)
    if found.node != cut.node or [c.name for c in found.crossing] != [c.name for c in cut.crossing]:
        raise CutError(
            f"This Cut ends at node {cut.node!r}, but {cut.path!r} ends at {found.node!r} in this graph, or passes on "
            "other tensors: it was found in another graph. Use the path, or find_cuts on this graph."
        )
    return Place(found, moment)


def _from_path(survey: Survey, path: str) -> Place:
    path = _recorded_name(survey, path)
    moment = _exit(survey, path)
    if not _is_legal(survey, path, moment):
        raise CutError(_illegal(survey, path, moment))
    return Place(cut_at(survey, path, moment), moment)


def _exit(survey: Survey, path: str) -> int:
    moment = survey.exit(path) if path else None
    if moment is None:
        raise CutError(_unknown(survey, path))
    if not survey.is_inside(moment):
        raise CutError(
            f"Nothing is left for the heads after {path!r}: no parameters are used behind it. "
            f"The last cut before it is {_nearest(survey, moment, before=True) or 'the empty trunk (split=0)'}."
        )
    return moment


def _is_legal(survey: Survey, path: str, moment: int) -> bool:
    """Whether a path is enough to ask for a cut: it is that of a block, or no skip connection is open."""
    return survey.judge(moment, path).complete or moment in survey.block_ends


def _recorded_name(survey: Survey, path: str) -> str:
    """The name under which a module was recorded that the model holds under several names."""
    if path in survey.members:
        return path
    modules = dict(getattr(survey.root, "source", survey.root).named_modules(remove_duplicate=False))
    names = (name for name in survey.members if path in modules and modules.get(name) is modules[path])
    return next(names, path)


def _unknown(survey: Survey, path: str) -> str:
    modules = dict(getattr(survey.root, "source", survey.root).named_modules())
    if not path:
        return "split='' is the model itself, which leaves nothing for the heads. An empty trunk is split=0."
    if path in modules:
        return f"{path!r} is part of the model but computes nothing when it runs, so there is no cut after it."
    return f"The model has no module {path!r}.{near_matches(path, survey.members)} find_cuts(model) lists the blocks."


def _illegal(survey: Survey, path: str, moment: int) -> str:
    verdict = survey.judge(moment, path)
    before, after = (_nearest(survey, moment, before=b) for b in (True, False))
    near = f"Nearest legal cuts: {before or 'the empty trunk (split=0)'} before it, {after or 'none'} after it."
    if not verdict.mains:
        return (
            f"No clean cut after {path!r}: nothing that depends on the model's inputs has been computed there. {near}"
        )
    crossing = [_tensor(node) for node in (*verdict.mains, *verdict.sides)]
    blocking = " and ".join(repr(node.name) for node in verdict.blocking)
    return (
        f"No clean cut after {path!r}: {len(crossing)} tensors cross there, {', '.join(crossing)}; and "
        f"{verdict.mains[0].name!r} does not stand alone, because {blocking} (a connection that skips it) is still "
        f"needed. {near} To cut there all the same, pass the Cut from find_cuts(model, every_module=True)."
    )


def _tensor(node: fx.Node) -> str:
    shape = "x".join(map(str, node.meta.get("shape") or ()))
    return f"{node.name!r} ({node.meta['path'] or 'the model itself'}, {shape})"


def _nearest(survey: Survey, moment: int, before: bool) -> str:
    """The nearest legal cut on one side; of several names for it the block's, or else the shortest."""
    exits = [(m, p) for p, m in survey.exits.items() if (m < moment if before else m > moment)]
    for found, path in sorted(exits, reverse=before):
        if _is_legal(survey, path, found):
            names = [p for m, p in exits if m == found]
            blocks = [p for p in names if p in survey.blocks]
            return repr(min(blocks or names, key=len))
    return ""


def _shorten(names: list[str]) -> str:
    shown = names if len(names) <= 6 else [*names[:3], "...", *names[-2:]]
    return ", ".join(shown) or "none"

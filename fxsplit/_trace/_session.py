"""Records a model under several sizes and modes until the recordings agree."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fxsplit._errors import TraceError
from fxsplit._trace._align import BATCH, Merger, Mismatch, Sizes, constants_agree, overlay, pair_loosely, pair_up
from fxsplit._trace._dce import live_records
from fxsplit._trace._emit import Program
from fxsplit._trace._flopcount import FlopCounter
from fxsplit._trace._inputs import Inputs, fixed
from fxsplit._trace._leaves import is_large, is_leaf
from fxsplit._trace._preserve import Snapshot, seed_everything
from fxsplit._trace._recorder import Recorder
from fxsplit._trace._records import Guard, Origin
from fxsplit._trace._report import TraceReport

BATCHES = (2, 3, 5)
_MAX_ROUNDS = 30
_SEED = 0


class _Retry(Exception):
    """The plan changed: record again."""


@dataclass
class Session:
    """The plan of a trace: which modules are leaves, which sizes vary, whether train mode has to agree exactly."""

    model: nn.Module
    inputs: Inputs
    leaves: frozenset[str]
    report: TraceReport
    exact_train: bool = True
    forced: dict[str, str] = field(default_factory=dict)
    opened: set[str] = field(default_factory=set)

    def run(self) -> tuple[Program, list[Recorder]]:
        """Record, align and merge; on disagreement change the plan and start again."""
        for _ in range(_MAX_ROUNDS):
            try:
                return self._attempt()
            except _Retry:
                continue
        raise TraceError(
            f"{type(self.model).__name__} still records differently from run to run after {_MAX_ROUNDS} attempts; "
            f"kept whole so far: {', '.join(self.forced) or 'nothing'}. Name larger modules with leaf=[...]."
        )

    def sizes(self) -> list[Sizes]:
        """The sizes to record at; the first is the base."""
        if BATCH not in self.inputs.sizes:
            return [{}]
        return [{BATCH: batch} for batch in BATCHES]

    def _attempt(self) -> tuple[Program, list[Recorder]]:
        counter = FlopCounter()
        base = self._record(self.sizes()[0], train=False, counter=counter)
        runs = [base, *(self._record(sizes, train=False) for sizes in self.sizes()[1:])]
        for run in runs[1:]:
            self._resolve(pair_up(base.records, run.records, "at another batch size"), batch=True)
        train = self._record(self.sizes()[0], train=True)
        if self.exact_train:
            self._resolve_train(pair_up(base.records, train.records, "in train mode"))
        return self._merge(runs, train), [*runs, train]

    def _record(self, sizes: Sizes, train: bool, counter: FlopCounter | None = None) -> Recorder:
        args, kwargs, named = self.inputs.make(sizes)
        snapshot = Snapshot(self.model)
        recorder = Recorder(self.model, self._keeps_whole, counter)
        recorder.opened |= self.opened
        self.model.train(train)
        seed_everything(_SEED)
        try:
            recorder.run(args, kwargs, named)
            rebound = {id(module) for module in snapshot.changed_buffers()}
        except Exception as error:
            self._give_up_on(recorder.raised_in or "", error)
        finally:
            snapshot.restore()
        self.opened |= recorder.opened
        problems = [Mismatch(path, why) for path, why in recorder.failures]
        seen = {path for record in recorder.records for path in record.modules if record.target != path}
        problems += [
            Mismatch(path, "it replaces a buffer in its forward")
            for path, module in self.model.named_modules()
            if id(module) in rebound and (path in seen or not path)
        ]
        self._resolve(problems, batch=False)
        return recorder

    def _keeps_whole(self, module: nn.Module, path: str) -> bool:
        return path in self.leaves or path in self.forced or is_leaf(module)

    # Deciding what to do about disagreement.

    def _resolve(self, problems: Iterable[Mismatch], *, batch: bool) -> None:
        """Keep the modules with problems whole and record again; where that would hide too much, assume and report."""
        changed = False
        for problem in problems:
            path = self._outside_leaves(problem.path)
            if not is_large(self.model, path):
                self._force(path, problem.why)
                changed = True
            elif batch:
                self._specialise_batch(problem)
            else:
                self._force_large(path, problem.why)
                changed = True
        if changed:
            raise _Retry

    def _resolve_train(self, problems: list[Mismatch]) -> None:
        large = [p for p in problems if is_large(self.model, self._outside_leaves(p.path))]
        if large:
            self.exact_train = False
            self.report.warnings.append(
                f"train mode differs from eval mode in {large[0].path or 'the model'}, which is too large to be kept "
                f"whole; what runs in train mode only is left out: {large[0].why}"
            )
            raise _Retry
        self._resolve(problems, batch=False)

    def _outside_leaves(self, path: str) -> str:
        """The innermost module at or around ``path`` that is not a leaf yet."""
        modules = dict(self.model.named_modules())
        while path and path not in self.opened and self._keeps_whole(modules[path], path):
            path = path.rpartition(".")[0]
        while path and type(modules[path]).forward is nn.Module.forward:
            path = path.rpartition(".")[0]  # a ModuleList is never called
        return path

    def _force(self, path: str, why: str) -> None:
        if path not in self.forced:
            self.forced[path] = why
            self.opened.discard(path)

    def _force_large(self, path: str, why: str) -> None:
        if not path:
            raise TraceError(
                f"{type(self.model).__name__} cannot be recorded: {why}. Move that code into a submodule, which can "
                "then be kept whole."
            )
        self._force(path, why)
        self.report.warnings.append(f"{path!r}, a large part of the model, is kept whole: {why}")

    def _specialise_batch(self, problem: Mismatch) -> None:
        self.inputs = fixed(self.inputs.arguments)
        self.report.warnings.append(
            f"the graph holds for the example's batch size only: {problem.path or 'the model'}, {problem.why}"
        )
        raise _Retry

    def _give_up_on(self, raised_in: str, error: Exception) -> None:
        path = self._outside_leaves(raised_in)
        why = f"recording it raises {type(error).__name__}: {error}"
        if not path:
            raise TraceError(f"{type(self.model).__name__} cannot be recorded: {why}") from error
        if is_large(self.model, path):
            self._force_large(path, why)
        self._force(path, why)
        raise _Retry from error

    # Merging.

    def _merge(self, runs: list[Recorder], train: Recorder) -> Program:
        base = runs[0]
        merger = Merger(self.sizes())
        partners = {n: n for n in range(len(base.records))} if self.exact_train else {}
        aligned = [train] if self.exact_train else []
        values = [
            merger.merge(
                [(run.records[index].args, run.records[index].kwargs) for run in runs],
                [(other.records[index].args, other.records[index].kwargs) for other in aligned],
                record.owner,
            )
            for index, record in enumerate(base.records)
        ]
        output = merger.merge([run.output for run in runs], [other.output for other in aligned], "")
        self._resolve_values(merger.mismatches)
        if not self.exact_train:
            partners = pair_loosely(base.records, train.records)
            values = self._overlay(base, train, values, partners)
        self._check_constants(base, [*runs, *aligned])
        self._check_guards([*base.guards, *train.guards])
        stateful = {
            index
            for index, record in enumerate(base.records)
            if record.stateful or (index in partners and train.records[partners[index]].stateful)
        }
        live = live_records(base.records, values, output, stateful)
        return Program(base.records, values, output, live, base.inputs, self._sources(base), self._extras(base, live))

    def _resolve_values(self, mismatches: list[Mismatch]) -> None:
        small = [m for m in mismatches if not is_large(self.model, self._outside_leaves(m.path))]
        self._resolve(small, batch=False)
        for mismatch in mismatches:
            line = f"{mismatch.path or 'the model'}: {mismatch.why}"
            if line not in self.report.specialised:
                self.report.specialised.append(line)

    def _overlay(self, base: Recorder, train: Recorder, values: list[Any], partners: dict[int, int]) -> list[Any]:
        matched = set(partners.values())
        only_train = [r for n, r in enumerate(train.records) if n not in matched and r.op != "get_attr"]
        self.report.dropped += sorted(
            {f"{record.key[1]} in {record.path or 'the model'} runs in train mode only" for record in only_train}
        )
        merged = list(values)
        for index, partner in partners.items():
            one, other = base.records[index], train.records[partner]
            merged[index] = overlay(values[index], (one.args, one.kwargs), (other.args, other.kwargs))
        return merged

    def _check_constants(self, base: Recorder, runs: list[Recorder]) -> None:
        differing = [
            Mismatch(record.owner, "it uses a tensor that no recorded operation made")
            for record in base.records
            if record.target in base.constants and not constants_agree([run.constants for run in runs], record.target)
        ]
        self._resolve(differing, batch=False)

    def _check_guards(self, guards: list[Guard]) -> None:
        unsafe = [g for g in guards if g.origin != Origin.STATE]
        small = [g for g in unsafe if not is_large(self.model, self._outside_leaves(g.path))]
        self._resolve([Mismatch(g.path, f"control flow follows data: {g}") for g in small], batch=False)
        for guard in unsafe:
            if guard.follows_data and not guard.path:
                raise TraceError(
                    f"{type(self.model).__name__}.forward itself branches on data: {guard}. A graph cannot follow it. Move "
                    "the branch into a submodule, which is then kept whole, or write it with torch.where."
                )
            if guard.follows_data or guard.origin & Origin.RANDOM:
                self._warn_once(f"control flow follows data: {guard}; the graph always takes the way of the example")
        for guard in guards:
            if str(guard) not in self.report.guards:
                self.report.guards.append(str(guard))

    def _warn_once(self, warning: str) -> None:
        if warning not in self.report.warnings:
            self.report.warnings.append(warning)

    def _sources(self, base: Recorder) -> dict[str, tuple[int, int]]:
        sources: dict[str, tuple[int, int]] = {}
        for position, dims in self.inputs.dims.items():
            for dim, symbol in dims.items():
                sources.setdefault(symbol, (base.inputs[position], dim))
        return sources

    def _extras(self, base: Recorder, live: list[bool]) -> dict[str, Any]:
        used = {record.target for record, needed in zip(base.records, live, strict=True) if needed}
        constants = {name: tensor for name, tensor in base.constants.items() if name in used}
        functions = {name: function for name, function in base.functions.items() if name in used}
        self.report.constants = [
            f"{name}: {tuple(t.shape)} {t.dtype}, first used in {self._first_use(base, name)}"
            for name, t in constants.items()
        ]
        self.report.coarse_leaves = list(self.forced.items())
        return {**constants, **functions}

    def _first_use(self, base: Recorder, name: str) -> str:
        return next((record.path for record in base.records if record.target == name), "") or "the model"


def warm_up(model: nn.Module, inputs: Inputs, sizes: Sizes) -> None:
    """Run once in eval mode, so that lazily built caches exist before recording."""
    args, kwargs, _ = inputs.make(sizes)
    model.eval()
    seed_everything(_SEED)
    with torch.no_grad():
        model(*args, **kwargs)

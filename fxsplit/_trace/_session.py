"""Records a model under several sizes and modes until the recordings agree."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from fxsplit._errors import TraceError
from fxsplit._random import seed_everything
from fxsplit._trace._align import Mismatch, pair_loosely, pair_up
from fxsplit._trace._dce import live_records, updated_state
from fxsplit._trace._dtypes import add_dtypes, main_dtype, record_as_other_dtype
from fxsplit._trace._emit import Program
from fxsplit._trace._extents import experiments
from fxsplit._trace._fit import BATCH, Sizes
from fxsplit._trace._flopcount import FlopCounter
from fxsplit._trace._inputs import Inputs, fixed
from fxsplit._trace._leaves import holds_blocks, is_large, is_leaf
from fxsplit._trace._merge import Merged, add_train_loosely, add_train_mode, differing_constants, merge_sizes
from fxsplit._trace._preserve import preserved
from fxsplit._trace._ragged import baked_sizes
from fxsplit._trace._recorder import Recorder
from fxsplit._trace._records import Guard, Origin
from fxsplit._trace._refusal import refusal
from fxsplit._trace._repeat import differences
from fxsplit._trace._report import TraceReport
from fxsplit._trace._shadow import is_on_meta

_MAX_ROUNDS = 40


class _Retry(Exception):
    """The plan changed: record again."""


@dataclass(frozen=True)
class Recording:
    """The merged program, the run it is based on, and one run in each mode to check it against."""

    program: Program
    base: Recorder
    checks: list[tuple[Sizes, bool, Recorder]]
    assumed_sizes: bool


@dataclass
class Session:
    """The plan of a trace: which modules are leaves, which sizes vary, whether train mode has to agree exactly.

    ``cached`` names the buffers that the model replaced when it first saw the example. ``stateful`` says that what the
    model keeps in attributes changes what it returns.
    """

    model: nn.Module
    inputs: Inputs
    leaves: frozenset[str]
    report: TraceReport
    cached: frozenset[str] = frozenset()
    exact_train: bool = True
    stateful: bool = False
    forced: dict[str, str] = field(default_factory=dict)
    opened: set[str] = field(default_factory=set)

    def run(self) -> Recording:
        """Record, align and merge; on disagreement change the plan and start again."""
        for _ in range(_MAX_ROUNDS):
            with suppress(_Retry):
                return self._attempt()
        raise TraceError(
            f"{type(self.model).__name__} still records differently from run to run after {_MAX_ROUNDS} attempts; "
            f"kept whole so far: {', '.join(self.forced) or 'nothing'}. Name larger modules with leaf=[...]."
        )

    def fix_sizes(self, why: str) -> None:
        """Give up on other batch sizes than the example's."""
        self.inputs = fixed(self.inputs.arguments)
        self.warn(f"the graph holds for the example's batch size only: {why}")

    def warn(self, warning: str) -> None:
        """Add a warning to the report, once."""
        if warning not in self.report.warnings:
            self.report.warnings.append(warning)

    # Recording.

    def _attempt(self) -> Recording:
        schedule = self.inputs.schedule()
        base = self._record(schedule[0], train=False, counter=FlopCounter())
        runs = [base, *self._other_sizes(base, schedule[1:])]
        train = self._record(schedule[0], train=True)
        if self.exact_train:
            self._settle_train(pair_up(base.records, train.records, "in train mode"))
        program, assumed = self._merge(runs, train)
        checks = [(schedule[min(1, len(schedule) - 1)], False, runs[min(1, len(runs) - 1)])]
        if not is_on_meta(self.model):  # where shapes are all there is to compare, one run will do
            checks.append((schedule[0], True, train))
        return Recording(program, base, checks, assumed)

    def _other_sizes(self, base: Recorder, schedule: Sequence[Sizes]) -> list[Recorder]:
        runs: list[Recorder] = []
        for sizes in schedule:
            resized = any(size != self.inputs.sizes[symbol] for symbol, size in sizes.items() if symbol != BATCH)
            run = self._record(sizes, train=False, droppable=resized)
            problems = pair_up(base.records, run.records, "at other sizes")
            large = [problem for problem in problems if self._hides_much(problem.path)]
            if large and resized:
                self._fix_lengths(str(large[0]))
            if large:
                self.fix_sizes(str(large[0]))
                raise _Retry
            self._keep_whole(problems)
            runs.append(run)
        return runs

    def _record(
        self, sizes: Sizes, *, train: bool, counter: FlopCounter | None = None, droppable: bool = False
    ) -> Recorder:
        recorder = self._recorder(counter, watch_random=train)
        try:
            problems = self._run(recorder, self.inputs, sizes, train=train, again=counter is not None)
        except Exception as error:
            if droppable:
                self._fix_lengths(f"{type(error).__name__}: {error}")
            if not train and BATCH in self.inputs.sizes and refusal(self.model, self.inputs, sizes, attributes=True):
                self.fix_sizes(f"at {BATCH} = {sizes[BATCH]} the model raises {type(error).__name__}: {error}")
                raise _Retry from error
            self._keep_whole_after(recorder.raised_in or "", error, "train" if train else "eval")
            raise _Retry from error
        self.opened |= recorder.opened
        self._keep_whole(problems)
        self._settle_autocast(recorder.idle_switches)
        if not train:
            self._keep_whole(recorder.draws)
        elif self.exact_train:
            self._settle_train(recorder.draws)
        if not recorder.returned and not train:
            raise TraceError(
                f"{type(self.model).__name__} returns no tensor, so there is nothing to record. Let its forward return "
                "what it computes."
            )
        return recorder

    def _run(
        self, recorder: Recorder, inputs: Inputs, sizes: Sizes, *, train: bool, again: bool = False
    ) -> list[Mismatch]:
        """Record one run, leaving the model as it was; return what could not be recorded.

        With ``again``, a model that has changed its attributes is called once more, to see whether they matter.
        """
        args, kwargs, named = inputs.make(sizes)
        with preserved(self.model) as snapshot:
            self.model.train(train)
            seed_everything()
            recorder.run(args, kwargs, named)
            modules = dict(self.model.named_modules())
            rebound = [path for path, module in modules.items() if snapshot.has_other_buffers(module)]
            changed = again and snapshot.changed() & {id(modules[path]) for path in recorder.entered}
            snapshot.restore_values()  # of parameters and buffers, whose changes are part of the graph
            repeated = self._repeat(recorder, inputs, sizes) if changed and not recorder.failures else []
            self.stateful |= bool(repeated)
        replaced = [Mismatch(path, "its forward replaces a buffer") for path in rebound if path in recorder.entered]
        return [*recorder.failures, *replaced, *repeated]

    def _repeat(self, recorder: Recorder, inputs: Inputs, sizes: Sizes) -> list[Mismatch]:
        args, kwargs, named = inputs.make(sizes)
        again = self._recorder()
        seed_everything()
        try:
            again.run(args, kwargs, named)
        except Exception as error:
            why = f"when it is called again it raises {type(error).__name__}: {error}"
            return [Mismatch(again.raised_in or "", why)]
        return differences(recorder, again)

    def _recorder(self, counter: FlopCounter | None = None, *, watch_random: bool = False) -> Recorder:
        return Recorder(
            self.model, self._is_leaf, counter, opened=self.opened, cached=self.cached, watch_random=watch_random
        )

    def _is_leaf(self, module: nn.Module, path: str) -> bool:
        return path in self.leaves or path in self.forced or is_leaf(module)

    # What to do about disagreement.

    def _keep_whole(self, problems: Iterable[Mismatch]) -> None:
        """Make the modules with problems leaves, and record again if there are any."""
        reasons: dict[str, str] = {}
        for problem in problems:
            reasons.setdefault(self._around_leaves(problem.path), problem.why)
        if "" in reasons:
            raise TraceError(
                f"{type(self.model).__name__} cannot be recorded: {reasons['']}. Move that code into a "
                "module of its own, which can then be kept whole."
            )
        for path, why in reasons.items():
            if is_large(self.model, path):
                self.warn(f"{path!r}, a large part of the model, is kept whole: {why}")
            self.forced[path] = why
            self.opened.discard(path)
        if reasons:
            raise _Retry

    def _keep_whole_after(self, raised_in: str, error: Exception, mode: str) -> None:
        path = self._around_leaves(raised_in)
        why = f"in {mode} mode it raises {type(error).__name__}: {error}"
        if not path:
            raise TraceError(
                f"{type(self.model).__name__} cannot be recorded: {why}. The example has to run in both modes."
            ) from error
        self._keep_whole([Mismatch(path, why)])

    def _fix_lengths(self, why: str) -> None:
        lengths = {symbol: size for symbol, size in self.inputs.sizes.items() if symbol != BATCH}
        self.inputs = self.inputs.without_lengths()
        self.report.specialised.append(f"{', '.join(f'{s} = {n}' for s, n in lengths.items())} ({why})")
        raise _Retry

    def _settle_train(self, problems: list[Mismatch]) -> None:
        large = [problem for problem in problems if self._hides_much(problem.path)]
        if large:
            self.exact_train = False
            self.warn(
                f"train mode is not eval mode with other rates: {large[0]}. What runs in train mode only is left out"
            )
            raise _Retry
        self._keep_whole(problems)

    def _settle_autocast(self, switches: list[Mismatch]) -> None:
        self._keep_whole(switch for switch in switches if not self._hides_much(switch.path))
        for switch in switches:
            line = f"{switch}, which the graph leaves as it is"
            if line not in self.report.specialised:
                self.report.specialised.append(line)

    def _hides_much(self, path: str) -> bool:
        return is_large(self.model, self._around_leaves(path))

    def _holds_blocks(self, path: str) -> bool:
        """Whether the module is a tower, however small; that Python read a mask is no reason to hide its blocks."""
        return holds_blocks(self.model.get_submodule(self._around_leaves(path)))

    def _around_leaves(self, path: str) -> str:
        """The innermost module at or around ``path`` that is not a leaf yet and gets called."""
        while path:
            module = self.model.get_submodule(path)
            leaf = path not in self.opened and self._is_leaf(module, path)
            if not leaf and type(module).forward is not nn.Module.forward:
                break
            path = path.rpartition(".")[0]
        return path

    # Merging.

    def _merge(self, runs: list[Recorder], train: Recorder) -> tuple[Program, bool]:
        base = runs[0]
        merged = self._merged(runs, self.inputs.schedule())
        self._keep_whole(baked_sizes([run.records for run in runs], [run.size_reads for run in runs]))
        assumed = self._settle_sizes(merged.mismatches)
        if self.exact_train:
            self._settle_train(self._add_train(merged, base, train))
            partners = {index: index for index in range(len(base.records))}
        else:
            partners = pair_loosely(base.records, train.records)
            add_train_loosely(merged, base.records, train.records, partners)
            self._report_train_only(train, partners)
        compared = [*runs, train] if self.exact_train else runs
        self._keep_whole(differing_constants(base.records, [run.constants for run in compared]))
        self._settle_guards([*base.guards, *(train.guards if self.exact_train else [])])
        if base.sizes_read and not assumed:
            merged = self._free_extents(runs, train, merged, partners)
        return self._program(base, train, merged, partners), assumed

    def _merged(self, runs: Sequence[Recorder], schedule: Sequence[Sizes]) -> Merged:
        return merge_sizes([run.records for run in runs], [run.output for run in runs], schedule)

    def _add_train(self, merged: Merged, base: Recorder, train: Recorder) -> list[Mismatch]:
        return add_train_mode(merged, base.records, train.records, (base.output, train.output))

    def _free_extents(self, runs: list[Recorder], train: Recorder, merged: Merged, partners: dict[int, int]) -> Merged:
        """Let go of sizes that the program does not depend on, or follows: it is the same when they are others."""
        base, schedule = runs[0], self.inputs.schedule()
        for experiment in experiments(self.inputs):
            inputs = self.inputs.with_extents(experiment.dims, experiment.sizes)
            extra, others = [], [{**inputs.extents, **schedule[0], **other} for other in experiment.others]
            for sizes in others:
                run = self._record_quietly(inputs, sizes)
                if run is None or pair_up(base.records, run.records, "at another extent"):
                    break
                extra.append(run)
            if len(extra) < len(others):
                continue
            together, constants = [*runs, *extra], [run.constants for run in (base, *extra)]
            plan = [*({**inputs.extents, **sizes} for sizes in schedule), *others]
            found = self._merged(together, plan)
            if found.mismatches or differing_constants(base.records, constants):
                continue
            if not self.exact_train:
                add_train_loosely(found, base.records, train.records, partners)
            elif self._add_train(found, base, train):
                continue
            self.inputs, runs, schedule, merged = inputs, together, plan, found
        return merged

    def _record_quietly(self, inputs: Inputs, sizes: Sizes) -> Recorder | None:
        """Record at sizes that the model may refuse: None if it does, or if it does something else then."""
        recorder = self._recorder()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                problems = self._run(recorder, inputs, sizes, train=False)
            except Exception:
                return None
        return recorder if not problems and recorder.opened <= self.opened else None

    def _follow_dtype(self, base: Recorder, merged: Merged, live: list[bool]) -> None:
        try:
            other = record_as_other_dtype(self.model, base, self.inputs, self._recorder)
        except Exception as error:
            self.report.specialised.append(f"{main_dtype(self.model)}: in another dtype it raises {error}")
            return
        if other is None:
            return
        problems = pair_up(base.records, other.records, "in another dtype")
        if problems:
            self.report.specialised.append(f"{main_dtype(self.model)}: {problems[0]}")
        else:
            self.report.specialised += add_dtypes(merged.values, base.records, other.records, live)

    def _settle_sizes(self, mismatches: list[Mismatch]) -> bool:
        self._keep_whole(mismatch for mismatch in mismatches if not self._hides_much(mismatch.path))
        if mismatches and len(self.inputs.sizes) > 1:
            self._fix_lengths(str(mismatches[0]))
        for line in map(str, mismatches):
            if line not in self.report.specialised:
                self.report.specialised.append(line)
        return bool(mismatches)

    def _settle_guards(self, guards: list[Guard]) -> None:
        on_inputs = [guard for guard in guards if guard.origin != Origin.STATE]
        self._keep_whole(
            Mismatch(guard.path, f"its control flow follows data: {guard}")
            for guard in on_inputs
            if not self._hides_much(guard.path) and (guard.follows_data or not self._holds_blocks(guard.path))
        )
        for guard in on_inputs:
            if guard.follows_data and not guard.path:
                raise TraceError(
                    f"{type(self.model).__name__}.forward itself branches on data, which no graph can follow: {guard}. "
                    "Move the branch into a module of its own, which is then kept whole, or write it with torch.where."
                )
            if guard.follows_data or guard.origin & Origin.RANDOM:
                self.warn(
                    f"control flow follows data: {guard}, and so it is in the graph. leaf=[...] keeps modules whole"
                )
        for line in map(str, guards):
            if line not in self.report.guards:
                self.report.guards.append(line)

    def _report_train_only(self, train: Recorder, partners: dict[int, int]) -> None:
        matched = set(partners.values())
        extra = [
            record for index, record in enumerate(train.records) if index not in matched and record.op != "get_attr"
        ]
        lines = {f"{r.key[1]} in {r.path or 'the model itself'}, which runs in train mode only" for r in extra}
        self.report.dropped += sorted(lines - set(self.report.dropped))
        updated = updated_state(self.model, extra)
        if updated:
            self.warn(f"no longer updated: {', '.join(updated)} (what train mode alone writes is left out)")

    def _program(self, base: Recorder, train: Recorder, merged: Merged, partners: dict[int, int]) -> Program:
        records = base.records
        lasting = {
            index
            for index, record in enumerate(records)
            if record.lasting or (index in partners and train.records[partners[index]].lasting)
        }
        live = live_records(records, merged.values, merged.output, lasting)
        self._follow_dtype(base, merged, live)
        sources: dict[str, tuple[int, int]] = {}
        for position, dims in self.inputs.dims.items():
            for dim, symbol in dims.items():
                sources.setdefault(symbol, (base.inputs[position], dim))
        used = {record.target for record, needed in zip(records, live, strict=True) if needed}
        extras: dict[str, Any] = {**base.constants, **base.functions}
        return Program(
            records=records,
            values=merged.values,
            output=merged.output,
            live=live,
            inputs=base.inputs,
            sources=sources,
            extras={name: value for name, value in extras.items() if name in used},
        )

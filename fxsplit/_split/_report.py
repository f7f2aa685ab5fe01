"""What the surgery did that a user should know of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fxsplit._cuts._find import Crossing


@dataclass(frozen=True)
class SplitReport:
    """Everything about a split that does not follow from its arguments; ``print`` shows it.

    Attributes:
        side_inputs: Tensors handed to every head besides the main one.
        cloned: Crossing values that each head copies because it writes to them in place.
        tied: Weights used on both sides of the cut, ``(path in the heads, path in the trunk)``.
        tied_rule: ``'untie'``: each head has its own; ``'share'``: the heads use the trunk's.
        both_sides: Modules that run in the trunk and in the heads; each side has its own copy.
        shared: Modules that one instance serves in all heads, as requested.
        passed: Outputs that the trunk computes and that are returned as they are.
        init: Rule by which each tensor of the heads was drawn, by path; empty for ``init='copy'``.
        trace: Report of the tracing.
    """

    side_inputs: tuple[Crossing, ...] = ()
    cloned: tuple[str, ...] = ()
    tied: tuple[tuple[str, str], ...] = ()
    tied_rule: str = "untie"
    both_sides: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    passed: tuple[str, ...] = ()
    init: Mapping[str, str] = field(default_factory=dict)
    trace: Any = None

    @property
    def not_redrawn(self) -> dict[str, str]:
        """Tensors that could not be drawn anew, so that all heads start with the same values, and why."""
        return {path: rule for path, rule in self.init.items() if rule.startswith("NOT")}

    def __str__(self) -> str:
        owner = "each head has its own" if self.tied_rule == "untie" else "the heads use the trunk's"
        lines = [
            _line("side inputs", [str(c) for c in self.side_inputs]),
            _line("copied before a head writes to it", self.cloned),
            _line(f"tied across the cut ({owner})", [f"{head} = {trunk}" for head, trunk in self.tied]),
            _line("modules on both sides", self.both_sides),
            _line("shared by all heads", self.shared),
            _line("outputs of the trunk", self.passed),
            _line("heads drawn by", [f"{rule}: {count}" for rule, count in Counter(self.init.values()).items()]),
            _line("NOT drawn anew", self.not_redrawn),
        ]
        text = "\n".join(line for line in lines if line) or "nothing to report"
        return text if self.trace is None else f"{text}\n{self.trace}"


def _line(title: str, items: Any) -> str:
    return f"{title}: {', '.join(items)}" if items else ""

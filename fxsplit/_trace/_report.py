"""What a trace assumed about the model, in readable form."""

from __future__ import annotations

import html
from dataclasses import dataclass, field

_TITLES = {
    "guards": "holds only while Python reads the same values",
    "specialised": "baked in at the values of the example",
    "constants": "tensors captured as constants",
    "coarse_leaves": "modules kept whole",
    "dropped": "left out",
    "warnings": "warnings",
}


@dataclass
class TraceReport:
    """Everything that a traced model assumes; empty lists mean nothing was assumed.

    Attributes:
        guards: tensor values that Python read, and where.
        specialised: sizes and values that the graph holds as constants.
        constants: tensors found in no parameter or buffer of the model, with their shapes.
        coarse_leaves: ``(path, why)`` of modules kept whole because their inside could not be recorded.
        dropped: operations that run only in train mode, and outputs that a graph cannot rebuild.
        warnings: what else deviates from the model.
    """

    guards: list[str] = field(default_factory=list)
    specialised: list[str] = field(default_factory=list)
    constants: list[str] = field(default_factory=list)
    coarse_leaves: list[tuple[str, str]] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def sections(self) -> list[tuple[str, str, list[str]]]:
        """``(name, meaning, lines)`` of everything that is not empty."""
        found: list[tuple[str, str, list[str]]] = []
        for name, title in _TITLES.items():
            lines = [": ".join(item) if isinstance(item, tuple) else item for item in getattr(self, name)]
            if lines:
                found.append((name, title, lines))
        return found

    def __str__(self) -> str:
        sections = self.sections()
        if not sections:
            return "trace report: nothing was assumed"
        parts = ["trace report"]
        for name, title, lines in sections:
            parts.append(f"  {name} ({title}):")
            parts += [f"    {line}" for line in lines]
        return "\n".join(parts)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td><b>{name}</b><br>{title}</td><td>{'<br>'.join(html.escape(line) for line in lines)}</td></tr>"
            for name, title, lines in self.sections()
        )
        return f"<table>{rows}</table>" if rows else "<p>trace report: nothing was assumed</p>"

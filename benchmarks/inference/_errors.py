"""What can stop a comparison, or a single engine in it."""

from __future__ import annotations


class BenchmarkError(Exception):
    """The comparison can't run as asked."""


class EngineError(Exception):
    """One engine can't run one network; the others go on."""

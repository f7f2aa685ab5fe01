"""The decision for one layer: which kernel runs it, and why."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """Which kernel runs a layer.

    Attributes:
        sparse: Whether the sparse kernel does; else the dense one of torch.
        reason: Why, in a few words.
        nonzeros: Number of weights that are not zero.
        predicted: Seconds that the model of costs expects of the chosen kernel, on one thread.
        sparse_seconds: Measured in the sparse kernel on one thread; None if it was not measured.
        dense_seconds: Measured in torch on one thread; None if it was not measured.
        csr: Whether torch runs it with a CSR matrix, for want of a compiler.
    """

    sparse: bool
    reason: str
    nonzeros: int
    predicted: float
    sparse_seconds: float | None = None
    dense_seconds: float | None = None
    csr: bool = False

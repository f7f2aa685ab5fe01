"""Instruction sets: what this processor offers, and the compiler's flags for each."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

import torch

from sparsity._errors import BuildError

# Best first. "portable" is what every processor of an architecture has: SSE2 on x86-64, NEON on arm64.
ISA_FLAGS: dict[str, tuple[str, ...]] = {
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma"),
    "avx2": ("-mavx2", "-mfma"),
    "portable": (),
}
_NEEDS = {"avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx2", "fma"}, "avx2": {"avx2", "fma"}}


def known_isas() -> tuple[str, ...]:
    """Return the instruction sets of this processor's architecture, best first, whether or not it has them."""
    return tuple(ISA_FLAGS) if _is_x86() else ("portable",)


@functools.cache
def supported_isas() -> tuple[str, ...]:
    """Return the instruction sets that this processor can run, best first."""
    flags = _cpu_flags()
    return tuple(name for name in ISA_FLAGS if _NEEDS.get(name, set()) <= flags)


def isa() -> str:
    """Return the instruction set to use: the environment's ``SPARSITY_ISA``, else the best one supported.

    Raises:
        BuildError: ``SPARSITY_ISA`` names an instruction set that is unknown or that this processor lacks.
    """
    wanted = os.environ.get("SPARSITY_ISA", "")
    if not wanted:
        return supported_isas()[0]
    if wanted not in supported_isas():
        raise BuildError(
            f"SPARSITY_ISA is {wanted!r}, but this processor runs {', '.join(supported_isas())}; "
            "unset it or name one of these"
        )
    return wanted


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def _cpu_flags() -> set[str]:
    if not _is_x86():
        return set()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux: torch knows, in coarser steps
        capability = torch.backends.cpu.get_cpu_capability().lower()
        return (
            _NEEDS["avx2"] | (_NEEDS["avx512"] if capability == "avx512" else set()) if "avx" in capability else set()
        )
    return set(next((line.split(":", 1)[1] for line in lines if line.startswith("flags")), "").split())

"""Where and with what rows were measured, in a line."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from benchmarks.inference._rows import Row


def describe(rows: Sequence[Row]) -> str:
    """Name the date, the processor, its cores and the engines' versions."""
    versions = {row["engine"]: row["version"] for row in rows}
    engines = ", ".join(f"{engine} {version}" for engine, version in versions.items())
    return f"{date.today()}, {_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}; {engines}"


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    vector = next((name for name in ("avx512f", "avx2") if f" {name} " in f"{flags} "), "")
    return " ".join(filter(None, [names[0] if names else platform.machine(), vector]))

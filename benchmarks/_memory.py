"""The resident memory of this process, on Linux.

Not from ``getrusage``, whose high-water mark a process inherits from the one that started it.
"""

from __future__ import annotations

from pathlib import Path


def resident(key: str) -> int:
    """Bytes of resident memory: ``VmRSS`` now, ``VmHWM`` at its highest."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024

"""What the command line says when a signal ends it."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Sequence


def interrupted(arguments: Sequence[str], error: KeyboardInterrupt) -> int:
    """Say which command goes on, and return the exit status that shells give to the signal.

    Args:
        arguments: Of the command that was ended.
        error: What ended it: `Interrupted`, or Python's own for Ctrl-C.
    """
    number = getattr(error, "number", int(signal.SIGINT))
    if os.environ.get("RANK", "0") == "0":
        how = f" Go on with: {resuming(arguments)}" if arguments[:1] == ["run"] else ""
        print(f"python -m recipes: ended by {signal.Signals(number).name}.{how}", file=sys.stderr)
    return 128 + number


def resuming(arguments: Sequence[str]) -> str:
    """Return the command line that goes on with a run.

    Example:
        >>> resuming(["run", "table2/treenet-m3", "--set", "drops=(.5, .75)"])
        "python -m recipes run table2/treenet-m3 --set 'drops=(.5, .75)' --resume"
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    start = ["torchrun", "--nproc-per-node", str(world)] if world > 1 else ["python"]
    last = [] if "--resume" in arguments else ["--resume"]
    return shlex.join([*start, "-m", "recipes", *arguments, *last])

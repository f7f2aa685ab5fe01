"""Command line of the recipes: `python -m recipes demo`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fxsplit._errors import near_matches
from recipes._errors import RecipeError
from recipes._settings import Settings

COMMANDS = ("demo",)


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    defaults = Settings()
    top = argparse.ArgumentParser(prog="python -m recipes", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="train four systems on handwritten digits and compare them on one page",
        description="Train a single dense network, a full ensemble, a TreeNet and NeuroTrails on scikit-learn's "
        "handwritten digits, and write tables and a results page.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--out", type=Path, default=defaults.out, help="folder for the results")
    demo.add_argument("--seeds", type=int, default=defaults.seeds, help="number of training seeds")
    demo.add_argument("--epochs", type=int, default=defaults.epochs, help="epochs of a dense network")
    demo.add_argument("--heads", type=int, default=defaults.heads, help="heads of every ensemble, M")
    demo.add_argument("--sparsity", type=float, default=defaults.sparsity, help="sparsity of NeuroTrails, S")
    demo.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 8), help="runs trained side by side")
    demo.add_argument("--quick", action="store_true", help="a smoke test of seconds, whose numbers mean nothing")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status: 0, 1 if a check failed, 2 for bad arguments."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and not given[0].startswith("-") and given[0] not in COMMANDS:
        hint = near_matches(given[0], COMMANDS) or f" Commands: {', '.join(COMMANDS)}."
        print(f"python -m recipes: unknown command {given[0]!r}.{hint}", file=sys.stderr)
        return 2
    options = parser().parse_args(given)
    try:
        settings = Settings(
            out=options.out,
            seeds=options.seeds,
            epochs=options.epochs,
            heads=options.heads,
            sparsity=options.sparsity,
            workers=options.workers,
        )
        from recipes._demo import demo  # imports every library there is: not before the arguments are fine

        return 0 if demo(settings.quick() if options.quick else settings) else 1
    except RecipeError as error:
        print(f"python -m recipes: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

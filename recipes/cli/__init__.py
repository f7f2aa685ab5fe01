"""The command line of the recipes: `python -m recipes COMMAND`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from fxsplit._errors import FxSplitError, near_matches
from recipes._errors import RecipeError
from recipes.cli._commands import COMMANDS
from recipes.cli._interrupted import interrupted
from recipes.cli._parser import parser, unknown
from sparsity import SparsityError

__all__ = ["COMMANDS", "main", "parser"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status.

    It is 0, 1 if a check failed, 2 for bad arguments, 130 after Ctrl-C and 143 after SIGTERM.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and not given[0].startswith("-") and given[0] not in COMMANDS:
        hint = near_matches(given[0], COMMANDS) or f" Commands: {', '.join(COMMANDS)}."
        print(f"python -m recipes: unknown command {given[0]!r}.{hint}", file=sys.stderr)
        return 2
    options, rest = parser().parse_known_args(given)
    if rest:
        print(f"python -m recipes: {unknown(options, rest)}", file=sys.stderr)
        return 2
    try:
        status = COMMANDS[options.command](options)
        sys.stdout.flush()
        return status
    except (RecipeError, FxSplitError, SparsityError) as error:
        print(f"python -m recipes: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        return interrupted(given, interrupt)
    except BrokenPipeError:  # of `... | head`, which has seen enough
        # Python writes what is left in the buffer when it ends, and would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0

"""Command line of the recipes: `python -m recipes list`, `show`, `run`, `table`, `plot`, `demo`."""

from __future__ import annotations

import sys

from recipes.cli import main

if __name__ == "__main__":
    sys.exit(main())

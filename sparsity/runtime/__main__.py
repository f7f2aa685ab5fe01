"""``python -m sparsity.runtime build|info``: build the sparse kernels ahead of time, or say what would be used."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from sparsity._errors import BuildError
from sparsity.runtime import _build, _cpu


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m sparsity.runtime", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser(
        "build", help="compile the kernels into the package, for wheels and machines without a compiler"
    )
    build.add_argument(
        "--isa",
        action="append",
        choices=[*_cpu.ISA_FLAGS],
        help="instruction set, repeatable; default: all of this architecture",
    )
    build.add_argument("--to", type=Path, default=_build.PREBUILT, metavar="DIR", help="default: inside the package")
    commands.add_parser("info", help="print the instruction set, the compiler and where the built kernels lie")
    chosen = parser.parse_args(arguments)
    try:
        return _info() if chosen.command == "info" else _build_all(chosen.isa or _cpu.known_isas(), chosen.to)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _build_all(isas: Sequence[str], directory: Path) -> int:
    for isa in isas:
        for source in (_build.KERNELS, *_build.TRAINING):
            path = _build.build_ahead(isa, directory, source)
            print(f"{isa}: {path} ({path.stat().st_size / 1024:.0f} KiB)")
    return 0


def _info() -> int:
    isa = _cpu.isa()
    print(f"instruction set: {isa} (this processor runs {', '.join(_cpu.supported_isas())})")
    try:
        print(f"compiler: {shlex.join(_build.find_compiler())}")
    except BuildError as error:
        print(f"compiler: {error}")
    try:
        print(f"cache: {_build.cache_directory()}")
    except OSError as error:
        print(f"cache: {error}")
    print(f"built: {_build.built(isa) or 'not yet'}")
    for source in _build.TRAINING:
        print(f"{source} for sparse training built: {_build.built(isa, source) or 'not yet'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

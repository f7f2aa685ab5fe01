"""The kernels under other compilers and on another architecture: a program of their own, which needs no Python."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sparsity.runtime._build import FLAGS, SOURCES
from sparsity.runtime._cpu import ISA_FLAGS, known_isas, supported_isas

pytestmark = pytest.mark.slow

CHECK = Path(__file__).with_name("_kernels_check.cpp")
TRAINING_CHECKS = {
    Path(__file__).with_name("_selection_check.cpp"): 72,
    Path(__file__).with_name("_masking_check.cpp"): 60,
}
PROGRAM_FLAGS = tuple(flag for flag in FLAGS if flag not in ("-fPIC", "-shared"))
VECTOR_BYTES = {"avx512": 64, "avx2": 32, "portable": 16}


def tool(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (apt install {package})")
    return found


def say(source: Path, compiler: str, flags: tuple[str, ...], program: Path, *runner: str) -> str:
    """Compile without a warning and run; what is printed."""
    command = [compiler, *PROGRAM_FLAGS, "-Wall", "-Wextra", "-Werror", *flags, f"-I{SOURCES}", str(source)]
    subprocess.run([*command, "-o", str(program)], check=True)
    return subprocess.run([*runner, str(program)], check=True, capture_output=True, text=True).stdout


def check(compiler: str, flags: tuple[str, ...], program: Path, *runner: str) -> int:
    """Check all sources; the width of vectors in bytes."""
    for source, cases in TRAINING_CHECKS.items():
        assert say(source, compiler, flags, program, *runner) == f"{cases} cases equal\n"
    said = say(CHECK, compiler, flags, program, *runner)
    found = re.fullmatch(r"(\d+)-byte vectors, 72 cases, largest relative error \S+\n", said)
    assert found, said
    return int(found[1])


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
@pytest.mark.parametrize("isa", known_isas())
def test_compilers(compiler: str, isa: str, tmp_path: Path) -> None:
    found = tool(compiler, {"g++": "g++", "clang++": "clang"}[compiler])
    if isa not in supported_isas():
        pytest.skip(f"this processor has no {isa}")
    assert check(found, ISA_FLAGS[isa], tmp_path / "check") == VECTOR_BYTES[isa]


def test_arm64(tmp_path: Path) -> None:
    """NEON, in an emulator."""
    compiler = tool("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu")
    emulator = tool("qemu-aarch64", "qemu-user")
    assert check(compiler, ("-static", *ISA_FLAGS["portable"]), tmp_path / "check", emulator) == 16

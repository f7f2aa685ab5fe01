"""Build the kernels once for a machine: compiled at first use and cached, or taken from the package if built there."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from sparsity._errors import BuildError, SparsityWarning
from sparsity.runtime._cpu import ISA_FLAGS

SOURCES = Path(__file__).parent / "kernels"
PREBUILT = Path(__file__).parent / "prebuilt"
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-pthread", "-fno-math-errno", "-fno-trapping-math")
KERNELS, TRAINING = "kernels", ("selection", "masking")  # source files, each a library of its own
_DIGEST_BYTES = 32  # a file ends with the SHA-256 of what comes before: a damaged one is never loaded


def library_path(isa: str, source: str = KERNELS) -> Path:
    """Return the shared library of a source file for an instruction set, from the package, the cache or a fresh build.

    The cache is ``SPARSITY_CACHE_DIR``, else ``XDG_CACHE_HOME/fxsplit``, else ``~/.cache/fxsplit``. A file's name
    holds a hash of the sources, the compiler and the flags; it is replaced atomically, so processes may build at once.

    Raises:
        BuildError: there is no C++ compiler, or it fails.
    """
    prebuilt = PREBUILT / _prebuilt_name(isa, source)
    if _intact(prebuilt):
        return prebuilt
    compiler = find_compiler()
    name = _cached_name(isa, source, compiler)
    with contextlib.suppress(OSError):
        cached = cache_directory() / name
        if not _intact(cached):
            cached.parent.mkdir(parents=True, exist_ok=True)
            _compile(compiler, isa, source, cached)
        return cached
    spare = _spare_dir() / name
    if not _intact(spare):
        _compile(compiler, isa, source, spare)
    return spare


def built(isa: str, source: str = KERNELS) -> Path | None:
    """Return the library that lies ready for an instruction set, in the package or the cache; None if there is none."""
    ready = [PREBUILT / _prebuilt_name(isa, source)]
    with contextlib.suppress(BuildError, OSError):
        ready.append(cache_directory() / _cached_name(isa, source, find_compiler()))
    return next((path for path in ready if _intact(path)), None)


def build_ahead(isa: str, directory: Path = PREBUILT, source: str = KERNELS) -> Path:
    """Build a library for an instruction set into a directory, by default the package's own, and return its path.

    What lies in the package is preferred to the cache, needs no compiler, and goes into wheels built from then on.

    Raises:
        BuildError: there is no C++ compiler, or it fails.
        OSError: the directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / _prebuilt_name(isa, source)
    _compile(find_compiler(), isa, source, target)
    return target


def find_compiler() -> tuple[str, ...]:
    """Return the command of the C++ compiler that ``torch.compile`` would use too: ``CXX``, else g++ or clang++.

    Raises:
        BuildError: there is none.
    """
    try:
        wanted = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise BuildError(f"CXX is {os.environ['CXX']!r}, which is no command: {error}") from error
    for command in [wanted] if wanted else (["g++"], ["clang++"], ["c++"]):
        if found := shutil.which(command[0]):
            return (found, *command[1:])
    raise BuildError(
        f"no C++ compiler: {f'CXX is {wanted[0]!r}, which' if wanted else 'g++ and clang++'} cannot be found; install "
        "one (it serves torch.compile too), set CXX, or install a wheel made after `python -m sparsity.runtime build`"
    )


def cache_directory() -> Path:
    """Return the directory in which built libraries are kept.

    Raises:
        OSError: No variable names one, and the user has no home.
    """
    if explicit := os.environ.get("SPARSITY_CACHE_DIR"):
        return Path(explicit)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fxsplit"
    except RuntimeError as error:
        raise OSError("there is no cache directory: HOME is not set, and the user is unknown") from error


def library_key(isa: str) -> str:
    """Return a hash of the kernels' sources and flags for an instruction set: what results and timings depend on."""
    return _hash(_sources(), _flags_key(isa))


def _compile(compiler: tuple[str, ...], isa: str, source: str, target: Path) -> None:
    with _temporary_file(target.parent) as out:
        flags = (*FLAGS, *ISA_FLAGS[isa])
        command = [*compiler, *flags, str(SOURCES / f"{source}.cpp"), "-o", str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise BuildError(f"the C++ compiler failed ({shlex.join(command)}):\n{done.stderr[-2000:]}")
        content = out.read_bytes()
        out.write_bytes(content + hashlib.sha256(content).digest())
        os.replace(out, target)


@contextlib.contextmanager
def _temporary_file(directory: Path) -> Iterator[Path]:
    handle, name = tempfile.mkstemp(suffix=".tmp", dir=directory)
    os.close(handle)
    try:
        os.chmod(name, 0o755)
        yield Path(name)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


@functools.cache
def _spare_dir() -> Path:
    directory = tempfile.mkdtemp(prefix="fxsplit-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    try:
        reason = f"the cache directory {cache_directory()} cannot be written"
    except OSError as error:
        reason = str(error)
    warnings.warn(
        f"{reason}: the sparse kernels are built anew for each process; set SPARSITY_CACHE_DIR to a directory that can "
        "be written",
        SparsityWarning,
        stacklevel=4,
    )
    return Path(directory)


def _intact(path: Path) -> bool:
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-_DIGEST_BYTES]).digest() == content[-_DIGEST_BYTES:]


@functools.cache
def _sources() -> bytes:
    return b"\0".join(path.read_bytes() for path in sorted(SOURCES.iterdir()) if path.suffix in (".h", ".cpp"))


@functools.cache
def _identity(compiler: tuple[str, ...]) -> str:
    try:
        done = subprocess.run([*compiler, "--version"], capture_output=True, text=True)
    except OSError as error:
        raise BuildError(f"the C++ compiler {compiler[0]} cannot be run: {error}") from error
    return f"{os.path.realpath(compiler[0])}\0{' '.join(compiler[1:])}\0{done.stdout}"


def _flags_key(isa: str) -> bytes:
    return "\0".join((*FLAGS, *ISA_FLAGS[isa], platform.machine(), platform.system())).encode()


def _prebuilt_name(isa: str, source: str) -> str:
    return f"{source}-{isa}-{library_key(isa)}.so"


def _cached_name(isa: str, source: str, compiler: tuple[str, ...]) -> str:
    return f"{source}-{isa}-{_hash(_sources(), _identity(compiler).encode(), _flags_key(isa))}.so"


def _hash(*parts: bytes) -> str:
    return hashlib.sha256(b"\1".join(parts)).hexdigest()[:16]

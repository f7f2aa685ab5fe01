"""The kernels are built once, by any number of processes, into any directory, from damaged caches too."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from sparsity import _errors
from sparsity.runtime import __main__ as command_line
from sparsity.runtime import _build, _cpu, _library

LOAD = """
import ctypes
from sparsity.runtime._build import library_path
print(ctypes.CDLL(str(library_path("portable"))).sparsity_version())
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSITY_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that is called like one, counts its calls and gives a tiny library."""
    source = tmp_path / "tiny.cpp"
    source.write_text('extern "C" int sparsity_version() { return 1; }')
    log = tmp_path / "calls"
    script = tmp_path / "c++"
    script.write_text(
        f'#!/bin/sh\necho "$@" >> {log}\nfor last; do :; done\n'
        f'[ "$1" = --version ] && exec g++ --version\nexec g++ -shared -fPIC {source} -o "$last"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    log.touch()
    return log


def builds(log: Path) -> int:
    return sum("--version" not in line for line in log.read_text().splitlines())


def test_second_use_takes_the_cached_file(cache: Path, quick: Path) -> None:
    first = _build.library_path("portable")
    assert first.parent == cache
    assert _build.library_path("portable") == first
    assert builds(quick) == 1
    assert list(cache.iterdir()) == [first]  # no temporary file stays
    assert ctypes.CDLL(str(first)).sparsity_version() == 1  # the checksum at the end does no harm


def test_cache_default_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SPARSITY_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert _build.cache_directory() == tmp_path / "fxsplit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert _build.cache_directory() == Path.home() / ".cache" / "fxsplit"


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_damaged_cache_is_built_anew(cache: Path, quick: Path, damage: str) -> None:
    path = _build.library_path("portable")
    whole = path.read_bytes()
    content = {"truncated": whole[: len(whole) // 2], "flipped": bytes([whole[0] ^ 1]) + whole[1:], "empty": b""}
    path.write_bytes(content[damage])
    assert _build.library_path("portable") == path
    assert builds(quick) == 2
    assert ctypes.CDLL(str(path)).sparsity_version() == 1


def test_name_depends_on_isa_sources_flags_and_compiler(
    cache: Path, quick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {_build.library_path("portable").name, _build.library_path("avx2").name}
    monkeypatch.setattr(_build, "FLAGS", (*_build.FLAGS, "-g"))
    names.add(_build.library_path("portable").name)
    monkeypatch.setattr(_build, "_sources", lambda: b"other")
    names.add(_build.library_path("portable").name)
    monkeypatch.setenv("CXX", "g++ -DOTHER")
    monkeypatch.setattr(_build, "_compile", lambda compiler, isa, source, target: target.touch())
    names.add(_build.library_path("portable").name)
    names.update(_build.library_path("portable", source).name for source in _build.TRAINING)
    assert len(names) == 7


def test_unwritable_cache_warns_once_and_builds_elsewhere(
    tmp_path: Path, quick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPARSITY_CACHE_DIR", str(tmp_path / "file" / "cache"))  # even root cannot make that
    _build._spare_dir.cache_clear()
    with pytest.warns(_errors.SparsityWarning, match="cannot be written"):
        path = _build.library_path("portable")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _build.library_path("portable") == path
    assert builds(quick) == 1
    _build._spare_dir.cache_clear()
    shutil.rmtree(path.parent)


def test_no_compiler(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(_errors.BuildError, match="CXX is 'no-such-compiler', which cannot be found"):
        _build.library_path("portable")
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(cache))
    with pytest.raises(_errors.BuildError, match=r"g\+\+ and clang\+\+ cannot be found; install one"):
        _build.library_path("portable")


def test_failing_compiler(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "g++ -no-such-option")
    with pytest.raises(_errors.BuildError, match="unrecognized command-line option"):
        _build.library_path("portable")
    assert not list(cache.iterdir())


def test_isa_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARSITY_ISA", raising=False)
    assert _cpu.isa() == _cpu.supported_isas()[0]
    monkeypatch.setenv("SPARSITY_ISA", "portable")
    assert _cpu.isa() == "portable"
    monkeypatch.setenv("SPARSITY_ISA", "mmx")
    with pytest.raises(_errors.BuildError, match=r"SPARSITY_ISA is 'mmx', but this processor runs .*portable"):
        _cpu.isa()


@pytest.mark.parametrize(
    ("flags", "isas"),
    [
        ("fpu sse2", ("portable",)),
        ("fpu avx2 fma", ("avx2", "portable")),
        ("avx2 fma avx512f avx512bw avx512vl avx512dq", ("avx512", "avx2", "portable")),
        ("avx2 fma avx512f", ("avx2", "portable")),
    ],
)
def test_isas_of_processors(monkeypatch: pytest.MonkeyPatch, flags: str, isas: tuple[str, ...]) -> None:
    monkeypatch.setattr(_cpu, "_cpu_flags", lambda: set(flags.split()))
    assert _cpu.supported_isas.__wrapped__() == isas


def test_prebuilt_library_needs_no_compiler(
    cache: Path, quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "prebuilt"
    assert command_line.main(["build", "--isa", "portable", "--to", str(directory)]) == 0
    assert "portable:" in capsys.readouterr().out
    monkeypatch.setattr(_build, "PREBUILT", directory)
    monkeypatch.setenv("CXX", "no-such-compiler")
    for source in (_build.KERNELS, *_build.TRAINING):
        path = _build.library_path("portable", source)
        assert path.parent == directory
        assert path.name.startswith(f"{source}-portable")
    assert not cache.exists()


def test_info(cache: Path, quick: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SPARSITY_ISA", "portable")
    assert command_line.main(["info"]) == 0
    out = capsys.readouterr().out
    assert "instruction set: portable" in out
    assert "built: not yet" in out
    path = _build.library_path("portable")
    assert command_line.main(["info"]) == 0
    assert f"built: {path}" in capsys.readouterr().out
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert command_line.main(["info"]) == 0
    assert "compiler: no C++ compiler" in capsys.readouterr().out
    assert command_line.main(["build", "--to", str(cache)]) == 1
    assert "error: no C++ compiler" in capsys.readouterr().err


def test_library_that_cannot_be_loaded(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.so").write_text("no library")
    monkeypatch.setattr(_library, "library_path", lambda isa: tmp_path / "text.so")
    with pytest.raises(_errors.BuildError, match="delete the file to build them anew"):
        _library._load.__wrapped__("portable")


def test_two_processes_build_at_once(cache: Path, quick: Path) -> None:
    both = [subprocess.Popen([sys.executable, "-c", LOAD], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in both] == ["1\n", "1\n"]
    assert len(list(cache.iterdir())) == 1
    assert builds(quick) in (1, 2)

"""Engines on models that FSDP2 has sharded over real processes: masks are those of one process with everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparsity import EngineError
from tests.unit._fsdp import METHODS, STOP, Run, assert_like_one_process
from tests.unit._ranks import run

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")  # of DCP in one process
VARIANTS: dict[str, dict[str, Any]] = {
    "accumulated": {"micro": 3},
    "synchronised each time": {"micro": 3, "late": False},
    "clipped": {"clip": 0.05},
    "kept whole": {"micro": 3, "keep": True},
    "zeroed": {"micro": 2, "late": False, "zero": False},
    "discarded": {"micro": 2, "late": False, "discard": True},
    "discarded by zeros": {"micro": 2, "late": False, "zero": False, "discard": True},
}
RESUMED = ("rigl", "snfs", "deep_r")


def everything(rank: int, folder: Path) -> dict[str, Any]:
    """What the tests look at, all in one start of processes, because that takes longer than training."""
    results: dict[str, Any] = {method: Run(method, rank, 2).steps().result() for method in METHODS}
    for name, options in VARIANTS.items():
        results[name] = Run("rigl", rank, 2).steps(**options).result()
    for method in RESUMED:
        results[f"saved {method}"] = Run(method, rank, 2).steps(STOP).save(folder / f"two {method}").steps().result()
        results[f"resumed {method}"] = Run(method, rank, 2).load(folder / f"two {method}").steps().result()
        results[f"from one {method}"] = Run(method, rank, 2).load(folder / f"one {method}").steps().result()
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    for method in RESUMED:
        Run(method).steps(STOP).save(folder / f"one {method}")
    return folder


@pytest.fixture(scope="module")
def pair(folder: Path) -> list[dict[str, Any]]:
    """The results of two processes."""
    return run(everything, 2, folder, folder)


@pytest.mark.parametrize("method", METHODS)
def test_masks_are_those_of_one_process(method: str, pair: list[dict[str, Any]]) -> None:
    one = Run(method).steps().result()
    assert_like_one_process([results[method] for results in pair], one)
    if method != "static":
        assert any(one["last"].grown.values()) or any(one["last"].dropped.values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_accumulation_and_clipping(variant: str, pair: list[dict[str, Any]]) -> None:
    one = Run("rigl").steps(clip=VARIANTS[variant].get("clip")).result()
    assert_like_one_process([results[variant] for results in pair], one)


@pytest.mark.parametrize("method", RESUMED)
def test_checkpoints(method: str, pair: list[dict[str, Any]], folder: Path) -> None:
    one = Run(method).steps().result()
    for start in ("saved", "resumed", "from one"):
        assert_like_one_process([results[f"{start} {method}"] for results in pair], one)
    assert_like_one_process([Run(method).load(folder / f"two {method}").steps().result()], one)


def in_three(rank: int, folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = {method: Run(method, rank, 3).steps().result() for method in METHODS}
    for method in RESUMED:
        results[f"resumed {method}"] = Run(method, rank, 3).load(folder / f"two {method}").steps().result()
    return results


@pytest.mark.slow
def test_three_processes(pair: list[dict[str, Any]], folder: Path, tmp_path: Path) -> None:
    """Also checkpoints of two processes; one of the three holds no row of a weight with one row."""
    results = run(in_three, 3, tmp_path, folder)
    for method in METHODS:
        assert_like_one_process([each[method] for each in results], Run(method).steps().result())
    for method in RESUMED:
        assert_like_one_process([each[f"resumed {method}"] for each in results], Run(method).steps().result())


def with_replicas(rank: int, folder: Path) -> dict[str, Any]:
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    results: dict[str, Any] = {method: Run(method, rank, 4, mesh).steps().result() for method in METHODS}
    results["accumulated"] = Run("rigl", rank, 4, mesh).steps(micro=3).result()
    results["resumed"] = Run("rigl", rank, 4, mesh).load(folder / "two rigl").steps().result()
    trained = Run("rigl", rank, 4, mesh).steps(STOP)
    if rank == 3:
        part: Any = trained.engine.masks["1.0.weight"]
        part._local_tensor[0, 0] ^= True
    try:
        trained.engine.check_processes()
    except EngineError as error:
        results["edited"] = str(error)
    return results


@pytest.mark.slow
def test_replicas_of_shards(pair: list[dict[str, Any]], folder: Path, tmp_path: Path) -> None:
    results = run(with_replicas, 4, tmp_path, folder)
    for method in METHODS:
        assert_like_one_process([each[method] for each in results], Run(method).steps().result())
    for name in ("accumulated", "resumed"):
        assert_like_one_process([each[name] for each in results], Run("rigl").steps().result())
    for each in results:
        assert each["edited"].startswith("The 4 processes have different masks, of '1.0.weight'.")

# pyright: reportPrivateImportUsage=false
"""Engines under FSDP2 on GPUs, one process on each: masks are those of one process with the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparsity
from tests.unit._fsdp import METHODS, Run, assert_like_one_process, batch, network
from tests.unit._ranks import run

pytestmark = pytest.mark.gpu


def cuda_mesh(rank: int, ranks: int) -> Any:
    """Return a mesh over NCCL, beside the gloo processes that the tests start in."""
    from torch.distributed import new_group
    from torch.distributed.device_mesh import DeviceMesh

    torch.cuda.set_device(rank)
    group: Any = new_group(list(range(ranks)), backend="nccl")
    return DeviceMesh.from_group(group, "cuda")


def low_precision(mesh: Any, rank: int) -> tuple[dict[str, int], dict[str, int], int]:
    """Return nonzeros before and after training with mixed precision, a fused optimizer and clipping."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    net = network().float().cuda()
    before = {layer.path: layer.nonzeros for layer in sparsity.masks_of(net).layers}
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in net:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(net, mesh=mesh, mp_policy=policy)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, fused=True)
    engine = sparsity.rigl(net, optimizer, every=2)
    for step in range(5):
        images, labels = (each.chunk(mesh.size())[rank].cuda() for each in batch(step))
        nn.functional.cross_entropy(net(images.float()).float(), labels).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert engine.last is not None
    return before, {layer.path: layer.nonzeros for layer in engine.masks.layers}, engine.last.step


def everything(rank: int, ranks: int, folder: Path) -> dict[str, Any]:
    mesh = cuda_mesh(rank, ranks)
    results: dict[str, Any] = {}
    for method in METHODS:
        results[method] = Run(method, rank, ranks, mesh, device="cuda").steps().result()
    results["accumulated"] = Run("rigl", rank, ranks, mesh, device="cuda").steps(micro=3).result()
    Run("rigl", rank, ranks, mesh, device="cuda").steps(3).save(folder)
    results["resumed"] = Run("rigl", rank, ranks, mesh, device="cuda").load(folder).steps().result()
    results["low precision"] = low_precision(mesh, rank)
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of as many processes as there are GPUs, at most two; one shards over itself alone."""
    folder, ranks = tmp_path_factory.mktemp("gpus"), min(torch.cuda.device_count(), 2)
    return run(everything, ranks, folder, ranks, folder / "checkpoint")


@pytest.mark.parametrize("method", METHODS)
def test_masks_are_those_of_one_process(method: str, results: list[dict[str, Any]]) -> None:
    assert_like_one_process([each[method] for each in results], Run(method, device="cuda").steps().result())


@pytest.mark.parametrize("name", ["accumulated", "resumed"])
def test_accumulation_and_checkpoints(name: str, results: list[dict[str, Any]]) -> None:
    assert_like_one_process([each[name] for each in results], Run("rigl", device="cuda").steps().result())


def test_mixed_precision(results: list[dict[str, Any]]) -> None:
    for each in results:
        before, after, step = each["low precision"]
        assert before == after
        assert step == 4

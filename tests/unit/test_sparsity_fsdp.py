# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportPrivateImportUsage=false
"""Engines on models that FSDP2 has sharded over real processes: masks are those of one process with everything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsity
from sparsity import Layer, Rule
from tests.unit._ranks import run

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")  # of DCP in one process
BATCH, STEPS, STOP = 12, 7, 3


def by_row(layer: Layer) -> Tensor:
    """A score of a user's own that looks at whole columns."""
    return layer.weight.abs() * layer.weight.abs().mean(0)


def noisy(layer: Layer) -> Tensor:
    """A score of a user's own that draws for the whole weight."""
    return torch.rand(layer.mask.shape, generator=layer.generator) + (layer.mask.shape[0] > 1)


def own(net: nn.Module, optimizer: Any) -> sparsity.Engine:
    values = {path: torch.full(tuple(mask.shape), 0.01) for path, mask in sparsity.masks_of(net).items()}
    rule = Rule(
        2,
        None,
        sparsity.constant(0.3),
        by_row,
        noisy,
        scope=sparsity.over_layers,
        initial=sparsity.original(values),
        regrow=True,
    )
    return sparsity.Engine(net, optimizer, rule)


def trails(net: nn.Module, optimizer: Any) -> sparsity.Engine:
    return sparsity.trails(net, optimizer, 20, "paper-language", every=2)


PATHS = ("0.0.weight", "1.0.weight", "2.0.weight", "2.1.weight")
METHODS: dict[str, Callable[..., sparsity.Engine]] = {
    "rigl": lambda net, optimizer: sparsity.rigl(net, optimizer, every=2),
    "regrow": lambda net, optimizer: sparsity.rigl(net, optimizer, every=2, regrow=True),
    "set": lambda net, optimizer: sparsity.set_(net, optimizer, every=2),
    "snfs": lambda net, optimizer: sparsity.snfs(net, optimizer, every=2, decay=0.5),
    "mest": lambda net, optimizer: sparsity.mest(net, optimizer, every=2, share=0.1),
    "deep_r": lambda net, optimizer: sparsity.deep_r(net, optimizer),
    "gradual": lambda net, optimizer: sparsity.gradual(net, optimizer, 0.9, begin=1, until=5, every=2),
    "static": lambda net, optimizer: sparsity.static(net, optimizer),
    "trails": trails,
    "own": own,
}


def network() -> nn.Sequential:
    """Blocks whose weights have 7, 16, 1 and 5 rows: also uneven parts, and fewer rows than processes."""
    torch.manual_seed(0)
    blocks = (
        nn.Sequential(nn.Conv2d(2, 7, 3), nn.ReLU(), nn.Flatten()),
        nn.Sequential(nn.Linear(63, 16), nn.ReLU()),
        nn.Sequential(nn.Linear(16, 1), nn.Linear(1, 5, bias=False)),
    )
    net = nn.Sequential(*blocks).double()
    sparsity.sparsify(net, 0.6, "uniform")
    return net


def shard(net: nn.Sequential, mesh: Any = None, **options: Any) -> Any:
    from torch.distributed import get_world_size, init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (get_world_size(),)) if mesh is None else mesh
    for block in net:
        fully_shard(block, mesh=mesh, **options)
    return fully_shard(net, mesh=mesh, **options)


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(BATCH, 2, 5, 5, generator=generator, dtype=torch.double)
    return images, torch.randint(5, (BATCH,), generator=generator)


def whole(tensor: Any) -> Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


class Run:
    """Trains one model, in one process or as one of several; ``micro`` and ``clip`` say how."""

    def __init__(self, method: str, rank: int = 0, ranks: int = 1, mesh: Any = None, momentum: float | None = None):
        self.net: Any = network()
        self.rank, self.ranks = rank, ranks
        if ranks > 1:
            shard(self.net, mesh)
        parameters = self.net.parameters()
        self.optimizer: Any = (
            torch.optim.AdamW(parameters, lr=0.01)
            if momentum is None
            else torch.optim.SGD(parameters, lr=0.05, momentum=momentum)
        )
        self.engine = METHODS[method](self.net, self.optimizer)

    def steps(
        self,
        stop: int = STEPS,
        micro: int = 1,
        late: bool = True,
        clip: float | None = None,
        zero: bool = True,
        discard: bool = False,
    ) -> Run:
        for step in range(self.engine.step, stop):
            images, labels = (each.chunk(self.ranks)[self.rank] for each in batch(step))
            if discard:
                self.net(images.square()).exp().sum().backward()
                self.optimizer.zero_grad(set_to_none=zero)
            for number, (x, y) in enumerate(zip(images.chunk(micro), labels.chunk(micro), strict=True)):
                if self.ranks > 1:
                    self.net.set_requires_gradient_sync(not late or number == micro - 1)
                (nn.functional.cross_entropy(self.net(x), y) / micro).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(self.net.parameters(), clip)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=zero)
        return self

    def result(self) -> dict[str, Any]:
        self.check()
        return {
            "masks": {path: whole(mask) for path, mask in self.engine.masks.items()},
            "weights": {name: whole(parameter) for name, parameter in self.net.named_parameters()},
            "layers": {layer.path: (layer.shape, layer.nonzeros) for layer in self.engine.masks.layers},
            "last": self.engine.last,
        }

    def check(self) -> None:
        """Masked weights, gradients and states are zero, in the parts of this process."""
        for path, weight in self.engine.masks.weights.items():
            off = ~whole(self.engine.masks[path])
            for each in (weight.parameter, weight.parameter.grad, *self.optimizer.state[weight.parameter].values()):
                if isinstance(each, Tensor) and each.shape == off.shape:
                    assert not whole(each)[off].any(), path

    def states(self) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import get_state_dict

        model, optimizer = get_state_dict(self.net, self.optimizer)
        return {"model": model, "optimizer": optimizer, "engine": self.engine.state_dict()}

    def save(self, folder: str | Path) -> Run:
        from torch.distributed import checkpoint

        checkpoint.save(self.states(), checkpoint_id=str(folder))
        return self

    def load(self, folder: str | Path) -> Run:
        from torch.distributed import checkpoint
        from torch.distributed.checkpoint.state_dict import set_state_dict

        states = self.states()
        checkpoint.load(states, checkpoint_id=str(folder))
        model, optimizer = states["model"], states["optimizer"]
        set_state_dict(self.net, self.optimizer, model_state_dict=model, optim_state_dict=optimizer)
        self.engine.load_state_dict(states["engine"])
        return self


VARIANTS: dict[str, dict[str, Any]] = {
    "accumulated": {"micro": 3},
    "synchronised each time": {"micro": 3, "late": False},
    "clipped": {"clip": 0.05},
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


def assert_like_one_process(results: list[dict[str, Any]], one: dict[str, Any]) -> None:
    """In double precision the sum over processes is that of the whole batch far below any tie."""
    for each in results:
        assert list(each["masks"]) == list(PATHS)
        for path, mask in one["masks"].items():
            assert torch.equal(each["masks"][path], mask), path
        for name, value in one["weights"].items():
            torch.testing.assert_close(each["weights"][name], value, rtol=1e-9, atol=1e-11)
        assert each["layers"] == one["layers"]
        assert each["last"] == one["last"]


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

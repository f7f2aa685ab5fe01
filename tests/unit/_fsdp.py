# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportPrivateImportUsage=false
"""Trains one small model, in one process or sharded by FSDP2 over several, and returns what tests compare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sparsity
from sparsity import Layer, Rule

BATCH, STEPS, STOP = 12, 7, 3


def by_row(layer: Layer) -> Tensor:
    """A score of a user's own that looks at whole columns."""
    return layer.weight.abs() * layer.weight.abs().mean(0)


def noisy(layer: Layer) -> Tensor:
    """A score of a user's own that draws for the whole weight."""
    drawn = torch.rand(layer.mask.shape, generator=layer.generator, device=layer.mask.device)
    return drawn + (layer.mask.shape[0] > 1)


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
    from torch.distributed import get_world_size
    from torch.distributed.device_mesh import init_device_mesh
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
    """Return a copy of all of a tensor, on the CPU."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone().cpu()


class Run:
    """Trains one model, in one process or as one of several."""

    def __init__(
        self,
        method: str,
        rank: int = 0,
        ranks: int = 1,
        mesh: Any = None,
        momentum: float | None = None,
        device: str = "cpu",
    ):
        self.net: Any = network().to(device)
        self.rank, self.ranks, self.device = rank, ranks, device
        if ranks > 1 or mesh is not None:
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
        keep: bool = False,
    ) -> Run:
        for step in range(self.engine.step, stop):
            images, labels = (each.chunk(self.ranks)[self.rank].to(self.device) for each in batch(step))
            if discard:
                self.net(images.square()).exp().sum().backward()
                self.optimizer.zero_grad(set_to_none=zero)
            for number, (x, y) in enumerate(zip(images.chunk(micro), labels.chunk(micro), strict=True)):
                if keep and hasattr(self.net, "set_reshard_after_backward"):  # weights stay whole until the last one
                    self.net.set_reshard_after_forward(False)
                    self.net.set_reshard_after_backward(number == micro - 1)
                if micro > 1 and hasattr(self.net, "set_requires_gradient_sync"):
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

"""The BatchEnsemble: a split model whose trunk runs all members at once, as one large batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fxsplit._batch_ensemble._fast import Factor
from fxsplit._ensemble._layers import features_of
from fxsplit._errors import SplitError
from fxsplit._graph import fetch
from fxsplit._parametrized import parametrized_tensors
from fxsplit._split._model import SplitModel


class BatchEnsembleModel(SplitModel):
    """A BatchEnsemble, made by `fxsplit.batch_ensemble`; each head is one member's rows of the trunk's large batch.

    The shared weights keep their paths under ``trunk``; the factors and biases of the members are under ``trunk.fast``.
    """

    def fast_parameters(self) -> Iterator[nn.Parameter]:
        """The members' own parameters: factors r and s, and biases. Wen et al. train them with half the learning rate.

        Example:
            >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
            >>> net = fxsplit.batch_ensemble(model, example=torch.zeros(1, 4))
            >>> slow, fast = net.slow_parameters(), net.fast_parameters()
            >>> groups = [{"params": slow}, {"params": fast, "lr": 0.05, "weight_decay": 0.0}]
            >>> optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=3e-4)
        """
        yield from self.trunk.get_submodule(self._fast).parameters()

    def slow_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that all members share."""
        fast = {id(parameter) for parameter in self.fast_parameters()}
        return (parameter for parameter in self.parameters() if id(parameter) not in fast)

    @torch.no_grad()
    def member_state_dict(self, index: int) -> dict[str, Tensor]:
        """The weights of one member as the original model has them: W s r^T, and its biases.

        Args:
            index: Of the member, from 0.

        Returns:
            A state dict for ``original.load_state_dict``, which makes the original that member. Names of the original
            that its graph doesn't use are missing. Layers that normalise their weight in every call (weight
            standardisation) don't become that member: they undo the factors.

        Raises:
            SplitError: There is no such member, or a weight with factors is tied to another one in the original.

        Example:
            >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
            >>> net = fxsplit.batch_ensemble(model, example=torch.zeros(1, 4))
            >>> model.load_state_dict(net.member_state_dict(1))
            <All keys matched successfully>
            >>> x = torch.randn(2, 4)
            >>> torch.allclose(model(x), net.head_outputs(x)[1], atol=1e-6)
            True
        """
        if not 0 <= index < self.num_heads:
            raise SplitError(f"member_state_dict: members are 0 to {self.num_heads - 1}, got {index!r}.")
        self._check_ties()
        state = {
            name: value.clone()
            for name, value in self.trunk.state_dict().items()
            if not name.startswith(f"{self._fast}.")
        }
        for path in parametrized_tensors(self.trunk):  # masks are part of a weight
            state[path] = fetch(self.trunk, path).clone()
        for path in self.meta["batch_ensemble"]["layers"]:
            before, after = self._factor(path, "r"), self._factor(path, "s")
            layer = self.trunk.get_submodule(path)
            state[f"{path}.weight"] = _scaled(layer, before.weight[index], after.weight[index])
            if isinstance(after.bias, Tensor):
                state[f"{path}.bias"] = after.bias[index].clone()
        known = self.source.names
        return {name: value for name, value in state.items() if name in known} | {
            name: state[first] for name, first in known.items() if first in state and name not in state
        }

    def _check_ties(self) -> None:
        names = self.source.names
        for path in self.meta["batch_ensemble"]["layers"]:
            weight = f"{path}.weight"
            tied = [name for name, first in names.items() if first == names.get(weight) and name != weight]
            if tied:
                raise SplitError(
                    f"member_state_dict: the original ties {weight!r} to {tied[0]!r}, but in a member they differ by "
                    f"factors. Untie them before the surgery, or leave {path!r} out of layers=."
                )

    @property
    def _fast(self) -> str:
        return self.meta["batch_ensemble"]["fast"]

    def _factor(self, path: str, side: str) -> Factor:
        return self.trunk.get_submodule(f"{self._fast}.{side}.{path}")  # type: ignore[return-value]


def _scaled(layer: nn.Module, before: Tensor, after: Tensor) -> Tensor:
    """W with each input feature times its factor, and each output feature times its own."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    features = features_of(layer)
    assert features is not None  # only such layers get factors
    groups, ins, outs = features.groups, features.weight_inputs, features.weight_outputs
    # In groups: one of the weight's dimensions counts the features of one group, the other one those of all.
    split = weight.unflatten(0, (groups, -1))
    view_in, view_out = [groups, *[1] * weight.ndim], [groups, *[1] * weight.ndim]
    view_in[ins + 1] = view_out[outs + 1] = -1
    return (split * before.view(view_in) * after.view(view_out)).flatten(0, 1)

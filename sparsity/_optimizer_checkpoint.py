"""The state of engines as a part of their optimizer's state dict, so that whatever saves optimizers saves them."""

from __future__ import annotations

import warnings
import weakref
from typing import Any

from torch.optim import Optimizer

from sparsity._engine import Engine
from sparsity._errors import EngineError, SparsityWarning

KEY = "sparsity"


def save_with_optimizer(engine: Engine) -> Engine:
    """Put the engine's state into the state dict of its optimizer, and take it from there when one is loaded.

    Then every loop that saves model and optimizer saves the engine too, and resumes it bit for bit: the checkpoints of
    transformers' ``Trainer``, Lightning and accelerate, and scripts of one's own. Such a state dict can be loaded into
    optimizers without an engine. Attach the engine before the checkpoint is loaded; in ``Trainer`` that is to
    ``trainer.create_optimizer()``.

    Loading a state that was saved without an engine gives a warning, and the engine goes on at its own step. States of
    torch.distributed.checkpoint (``get_state_dict``) are of that kind, as they hold what torch knows of an optimizer
    and no more: save ``engine.state_dict()`` beside them.

    Returns:
        The same engine.

    Raises:
        EngineError: The engine is not attached. In loading: the numbers of engines differ, or see
            `Engine.load_state_dict`; model and optimizer are unchanged then.

    Example:
        >>> import torch, sparsity
        >>> net = torch.nn.Linear(8, 4)
        >>> masks = sparsity.sparsify(net, 0.5)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> engine = sparsity.save_with_optimizer(sparsity.set_(net, optimizer, every=100))
        >>> sorted(optimizer.state_dict())
        ['param_groups', 'sparsity', 'state']
    """
    optimizer = engine.optimizer
    if optimizer is None or not engine.attached:
        raise EngineError("The engine is not attached to an optimizer any more, so no state dict can hold its state.")
    engines = _saved.get(optimizer)
    if engines is None:
        engines = _saved[optimizer] = []
        optimizer.register_state_dict_post_hook(_save)
        optimizer.register_load_state_dict_pre_hook(_load)
    if engine not in _attached(optimizer):
        engines.append(weakref.ref(engine))
    return engine


# Beside the optimizers, whose copies have no engine.
_saved: weakref.WeakKeyDictionary[Optimizer, list[weakref.ref[Engine]]] = weakref.WeakKeyDictionary()


def _attached(optimizer: Optimizer) -> list[Engine]:
    engines = [reference() for reference in _saved[optimizer]]
    return [engine for engine in engines if engine is not None and engine.attached]


def _save(optimizer: Optimizer, state: dict[str, Any]) -> None:
    engines = _attached(optimizer)
    if engines:
        state[KEY] = [engine.state_dict() for engine in engines]


def _load(optimizer: Optimizer, state: dict[str, Any]) -> None:
    engines, states = _attached(optimizer), state.get(KEY)
    if not engines:
        return
    if states is None:
        warnings.warn(
            "The optimizer's state was saved without the state of an engine, so the engine goes on at step "
            f"{engines[0].step}. If it has a state of its own, call its load_state_dict.",
            SparsityWarning,
            stacklevel=3,
        )
    elif len(states) != len(engines):
        raise EngineError(
            f"The optimizer's state holds {len(states)} engines, but {len(engines)} are attached to it and saved with "
            "it. Attach the same ones in the same order, or detach them to load the optimizer alone."
        )
    for engine, each in zip(engines, states or (), strict=False):
        engine.load_state_dict(each)

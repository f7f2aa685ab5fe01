"""A callback that hands the numbers of every update to a writer of scalars, such as tensorboard's."""

from __future__ import annotations

from typing import Protocol

from sparsity._errors import RecordError
from sparsity._history import History
from sparsity._report import Rewiring


class ScalarWriter(Protocol):
    """What `ScalarLog` writes to, such as ``SummaryWriter`` of ``torch.utils.tensorboard``."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int, /) -> object:
        """Take one number of one step."""
        ...


class ScalarLog:
    """Gives the numbers of each update to a writer of scalars, for example tensorboard's ``SummaryWriter``.

    To be an engine's ``callback``; in several processes of one of them only. Tags are ``topology/fraction``,
    ``topology/dropped/<component>`` and ``topology/grown/<component>``; with a history also
    ``topology/density/<component>`` and ``topology/explored/<component>``.

    Args:
        writer: Anything with ``add_scalar(tag, value, step)``.
        history: Adds what it knows. It has to be a callback of the engine too, named before this one.
        prefix: The first part of the tags.

    Example:
        >>> import torch, sparsity
        >>> class Printer:
        ...     def add_scalar(self, tag, value, step):
        ...         print(step, tag, value)
        >>> net = torch.nn.Linear(8, 4)
        >>> history = sparsity.History(sparsity.sparsify(net, 0.5))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> callbacks = [history, sparsity.ScalarLog(Printer(), history)]
        >>> engine = sparsity.set_(net, optimizer, every=1, fraction=0.25, callback=callbacks)
        >>> for _ in range(2):
        ...     net(torch.randn(5, 8)).square().mean().backward()
        ...     optimizer.step()
        1 topology/fraction 0.25
        1 topology/dropped/model 4
        1 topology/grown/model 4
        1 topology/density/model 0.5
    """

    def __init__(self, writer: ScalarWriter, history: History | None = None, prefix: str = "topology") -> None:
        self._writer = writer
        self._history = history
        self._prefix = prefix

    def __call__(self, update: Rewiring) -> None:
        """Write an update; the engine calls this.

        Raises:
            RecordError: The history does not know the update.
        """
        values: dict[str, float] = {"fraction": update.fraction}
        values.update({f"dropped/{name}": count for name, count in update.components_dropped.items()})
        values.update({f"grown/{name}": count for name, count in update.components.items()})
        if self._history is not None:
            values.update(_known(self._history, update.step))
        for tag, value in values.items():
            self._writer.add_scalar(f"{self._prefix}/{tag}", value, update.step)


def _known(history: History, step: int) -> dict[str, float]:
    if history.last is None or history.last.step != step:
        raise RecordError(
            f"The history has not heard of the update at step {step}: name it before this log, "
            "callback=[history, ScalarLog(writer, history)]."
        )
    latest = history.latest_rows()
    shares = ("density", "explored")
    return {f"{name}/{row['component']}": row[name] for name in shares for row in latest if name in row}

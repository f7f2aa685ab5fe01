"""The weights that have been active at any time."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sparsity._errors import RecordError, listed
from sparsity._sharded import aligned, group_of, host, local


class Explored:
    """The union of masks over time. Takes one byte for each masked weight, on the device of its mask.

    Attributes:
        seen: By path a bool tensor, True where the weight has been active.

    Args:
        masks: Bool masks by path, a live view.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        self._masks = masks
        self.seen = {path: mask.clone() for path, mask in masks.items()}

    def add(self) -> None:
        """Take the present masks in."""
        for path, mask in self._masks.items():
            # The model may have moved to another device in the meantime, or been sharded.
            self.seen[path] = aligned(self.seen[path], mask)
            local(self.seen[path]).logical_or_(local(mask))

    def counts(self) -> list[int]:
        """Return the number of weights that have been active, for each mask, in one transfer."""
        seen = self.seen.values()
        return host([local(each).count_nonzero() for each in seen], [group_of(each) for each in seen])

    def state(self) -> dict[str, Tensor]:
        """Return a copy of ``seen``."""
        return {path: seen.clone() for path, seen in self.seen.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state`.

        Raises:
            RecordError: It is of other masks.
        """
        wrong = [
            path
            for path in {**self.seen, **state}
            if path not in state or path not in self.seen or state[path].shape != self.seen[path].shape
        ]
        if wrong:
            raise RecordError(f"The state is of other masks: {listed(wrong)} are missing or have other shapes.")
        self.seen = {path: aligned(state[path].clone(), self._masks[path]) for path in self.seen}

"""Finds the records that the result depends on, counting writes into memory that is read later, and what is lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fxsplit._trace._nested import refs_in
from fxsplit._trace._records import Record, storage_id


def live_records(records: Sequence[Record], values: Sequence[Any], output: Any, lasting: set[int]) -> list[bool]:
    """Mark what is needed for ``output`` or for the model's state; ``lasting`` are the records that change state.

    ``values[i]`` are the merged arguments of record i. A write is needed when its memory belongs to a live value or to
    the caller or the model (an input, a buffer); torch.fx's own elimination drops such writes.
    """
    live = [False] * len(records)
    memory: set[int] = set()
    for index, record in enumerate(records):
        if record.op == "placeholder" or index in lasting:
            live[index] = True
        if record.op in ("placeholder", "get_attr") and record.storage is not None:
            memory.add(record.storage)
    for ref in refs_in(output):
        live[ref.index] = True
        storage = records[ref.index].storage
        if storage is not None:
            memory.add(storage)
    for index in reversed(range(len(records))):
        record = records[index]
        live[index] = live[index] or any(storage in memory for storage in record.mutates)
        if not live[index]:
            continue
        if record.storage is not None:
            memory.add(record.storage)
        for ref in refs_in(values[index]):
            live[ref.index] = True
            storage = records[ref.index].storage
            if storage is not None:
                memory.add(storage)
    return live


def updated_state(model: nn.Module, records: Sequence[Record]) -> list[str]:
    """The parameters and buffers that records write: by path, or by the leaf that updates its own."""
    written = {storage for record in records for storage in record.mutates}
    named = [*model.named_parameters(), *model.named_buffers()]
    tensors = [repr(name) for name, tensor in named if storage_id(tensor) in written]
    return [*tensors, *dict.fromkeys(f"the buffers of {record.target!r}" for record in records if record.updates)]

"""Finds sizes that follow data, like the number of selected rows, where a program uses them as numbers.

A graph would hold such a number as a constant, or take it for a multiple of the batch size.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.nn.utils.rnn import pad_packed_sequence

from fxsplit._trace._align import Mismatch
from fxsplit._trace._nested import combine, refs_in
from fxsplit._trace._records import Origin, Record

_SELECTING = frozenset(
    [
        "nonzero",
        "argwhere",
        "masked_select",
        "unique",
        "unique_consecutive",
        "_unique2",
        "bincount",
        "repeat_interleave",
        "getitem",
        "__getitem__",
        "_pack_padded_sequence",
    ]
)
_FROM_INPUTS = Origin.INDEX | Origin.VALUE


@dataclass(frozen=True, slots=True)
class SizeRead:
    """Python read the sizes ``sizes`` of the tensor of record ``index``, in the module at ``path``."""

    path: str
    index: int
    sizes: tuple[int, ...]


def pads_to_the_longest() -> bool:
    """Whether the call that is being recorded is made by a ``pad_packed_sequence`` without ``total_length``."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not pad_packed_sequence.__code__:
        frame = frame.f_back
    return frame is not None and frame.f_locals["total_length"] is None


def baked_sizes(runs: Sequence[Sequence[Record]], reads: Sequence[Sequence[SizeRead]]) -> list[Mismatch]:
    """The modules in which, in every run, an operation takes a size as a number that depends on data.

    A number that is a size of an input too is taken for that.
    """
    known = [_sizes_by_module(records, run_reads) for records, run_reads in zip(runs, reads, strict=True)]
    if not all(known):
        return []
    found: list[Mismatch] = []
    for aligned in zip(*runs, strict=True):
        here = [sizes.get(record.owner, set()) for record, sizes in zip(aligned, known, strict=True)]
        if not all(here):
            continue

        def leaf(*values: Any, here: list[set[int]] = here, record: Record = aligned[0]) -> Any:
            if all(type(value) is int and value in sizes for value, sizes in zip(values, here, strict=True)):
                listed = ", ".join(map(str, values))
                found.append(Mismatch(record.owner, f"it uses a size that follows data as a number, {listed}"))
            return values[0]

        combine([(record.args, record.kwargs) for record in aligned], leaf, lambda: None)
    return found


def _sizes_by_module(records: Sequence[Record], reads: Sequence[SizeRead]) -> dict[str, set[int]]:
    """Sizes that follow data and that Python read, by the module that read them."""
    ragged = _ragged_sizes(records) if reads else {}
    common = {0, 1, *(size for record in records if record.op == "placeholder" for size in record.shape or ())}
    found: dict[str, set[int]] = {}
    for read in reads:
        sizes = {size for size in read.sizes if size in ragged.get(read.index, ())} - common
        if sizes:
            found.setdefault(read.path, set()).update(sizes)
    return found


def _ragged_sizes(records: Sequence[Record]) -> dict[int, set[int]]:
    """The sizes of each record's tensor that follow data; in what is computed from it, dimensions of equal size."""
    ragged: dict[int, set[int]] = {}
    selected: set[int] = set()
    for index, record in enumerate(records):
        sources = {ref.index for ref in refs_in((record.args, record.kwargs))}
        if record.op == "call_function" and sources & selected and record.key[1] == "getitem":
            ragged[index] = set((record.shape or ())[:1])
        elif _selects(record, records):
            selected.add(index)
            given = {size for source in sources for size in records[source].shape or ()}
            shape = record.shape or ()
            ragged[index] = {*shape[:1], *(size for size in shape if size not in given)}
        else:
            before = {size for source in sources for size in ragged.get(source, ())}
            if record.shape is None:
                ragged[index] = before  # a container, whose parts come next
            else:
                ragged[index] = before & set(record.shape)
    return ragged


def _selects(record: Record, records: Sequence[Record]) -> bool:
    """Whether the number of results depends on the model's inputs, and not on their sizes alone."""
    name = record.key[1]
    if record.op == "call_module" or name not in _SELECTING or not record.origin & _FROM_INPUTS:
        return name == "where" and len(record.args) == 1
    if name in ("getitem", "__getitem__"):
        masks = [records[ref.index] for ref in refs_in(record.args[1:])]
        return any(str(mask.dtype) in ("torch.bool", "torch.uint8") and mask.origin & _FROM_INPUTS for mask in masks)
    if name == "repeat_interleave":
        return any(True for _ in refs_in((record.args[1:], record.kwargs)))
    return True

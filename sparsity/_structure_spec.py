"""Structures of masks as plain values, to be written into files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sparsity._blocks import Blocks
from sparsity._errors import MaskError, listed
from sparsity._nm import NM
from sparsity._structure import Structure

_KINDS: dict[str, type[NM] | type[Blocks]] = {"NM": NM, "Blocks": Blocks}


def structure_to_spec(structure: Structure) -> dict[str, Any]:
    """Return a structure as a dict that JSON can hold.

    Raises:
        MaskError: It is of a kind that this package does not know.

    Example:
        >>> structure_to_spec(NM(2, 4))
        {'kind': 'NM', 'n': 2, 'm': 4}
    """
    kind = type(structure).__name__
    if _KINDS.get(kind) is not type(structure):
        raise MaskError(
            f"Masks of the structure {kind} can't be described in a file; those of {listed(_KINDS)} can. Set "
            "weight.holder.structure = None for the weights of Masks.weights to go without."
        )
    return {"kind": kind, **asdict(structure)}  # pyright: ignore[reportArgumentType]


def structure_from_spec(description: Mapping[str, Any]) -> Structure:
    """Return the structure that `structure_to_spec` described.

    Raises:
        MaskError: It describes none.
    """
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in description.items()
    }
    kind = _KINDS.get(fields.pop("kind", ""))
    if kind is None:
        raise MaskError(f"{dict(description)} describes no structure of masks; known are {listed(_KINDS)}.")
    return kind(**fields)

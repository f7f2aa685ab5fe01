"""The description stored beside the tensors: how to repeat the surgery, and inputs to trace a model with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from fxsplit._errors import SpecError

FORMAT = "fxsplit"
FORMAT_VERSION = 1
_LIBRARIES = ("fxsplit", "torch", "timm", "torchvision", "transformers")


def versions() -> dict[str, str]:
    """Return the versions of the installed libraries on which a graph may depend."""
    return {library: found for library in _LIBRARIES if (found := _version(library))}


def describe_example(value: Any) -> Any:
    """Return plain data from which `restore_example` makes inputs that trace alike.

    Integer and bool tensors are kept exactly, because they choose rows and positions; of floating ones only shape and
    dtype matter. Objects that JSON can't hold are named, so that restoring can say what is missing.
    """
    if isinstance(value, Tensor):
        entry: dict[str, Any] = {"tensor": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        if not (value.is_floating_point() or value.is_complex() or value.is_meta):
            entry["values"] = value.flatten().tolist()
        return entry
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    if type(value) in (list, tuple):
        return {type(value).__name__: [describe_example(item) for item in value]}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {"dict": {key: describe_example(item) for key, item in value.items()}}
    return {"unknown": f"{type(value).__module__}.{type(value).__qualname__}"}


def restore_example(entry: Any, device: torch.device) -> Any:
    """Return inputs as `describe_example` saw them; floating tensors hold fixed random numbers.

    Raises:
        SpecError: If the example held an object that could not be stored.
    """
    if "tensor" in entry:
        dtype = getattr(torch, entry["dtype"])
        if "values" in entry:
            return torch.tensor(entry["values"], dtype=dtype, device=device).view(entry["tensor"])
        drawn = torch.randn(entry["tensor"], generator=torch.Generator().manual_seed(0))
        return drawn.to(device=device, dtype=dtype)
    if "value" in entry:
        return entry["value"]
    if "dict" in entry:
        return {key: restore_example(item, device) for key, item in entry["dict"].items()}
    if "unknown" in entry:
        raise SpecError(
            f"the inputs that the model was traced with held a {entry['unknown']}, which the file can't store: pass "
            "the same kind of inputs as load(path, model, example=...)"
        )
    kind, items = next(iter(entry.items()))
    restored = [restore_example(item, device) for item in items]
    return tuple(restored) if kind == "tuple" else restored


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def encode(spec: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata of the safetensors file; one entry, because their order in the file is not defined."""
    return {FORMAT: json.dumps({"format_version": FORMAT_VERSION, **spec})}


def decode(header: Mapping[str, str] | None, path: str) -> dict[str, Any]:
    """Return the spec from the metadata of a safetensors file.

    Raises:
        SpecError: If the file was not written by `fxsplit.save`, or by a newer version of it.
    """
    if not header or FORMAT not in header:
        raise SpecError(
            f"'{path}' is a safetensors file, but not one written by fxsplit.save: its metadata holds "
            f"{sorted(header or {})}, expected '{FORMAT}'"
        )
    spec = json.loads(header[FORMAT])
    if spec["format_version"] > FORMAT_VERSION:
        raise SpecError(
            f"'{path}' has format version {spec['format_version']}, this fxsplit reads up to {FORMAT_VERSION}: "
            "install a newer fxsplit"
        )
    return spec


def check_nodes(saved: Sequence[str], found: Sequence[str], model: str, saved_versions: Mapping[str, str]) -> None:
    """Compare the graph of the model with the one that was saved.

    Raises:
        SpecError: If they differ; the message names the first difference.
    """
    if list(saved) == list(found):
        return
    index = next((i for i, (a, b) in enumerate(zip(saved, found, strict=False)) if a != b), min(len(saved), len(found)))
    expected = repr(saved[index]) if index < len(saved) else "the end"
    got = repr(found[index]) if index < len(found) else "the end"
    here = versions()
    changed = [f"{k} {v} (now {here.get(k, 'missing')})" for k, v in saved_versions.items() if here.get(k) != v]
    raise SpecError(
        f"the graph of {model} is not the saved one: node {index} is {got}, expected {expected}. Pass a new instance "
        "of the architecture that was split, made with the same arguments."
        + (f" The file was written with {', '.join(changed)}." if changed else "")
    )

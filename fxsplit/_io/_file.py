"""Saving a split model to one safetensors file, and loading it into a new instance of the original model."""

from __future__ import annotations

import contextlib
import copy
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fxsplit._errors import SpecError, near_matches
from fxsplit._init._replica import Slot, slots_of
from fxsplit._io._packing import MaskedSite, masked_sites, pack, unpack
from fxsplit._io._replay import replay
from fxsplit._io._spec import check_nodes, decode, encode, restore_example, versions
from fxsplit._split._model import SPEC, SplitModel
from fxsplit._trace import TracedModel, trace

_MASK = "#mask"
StrPath = str | os.PathLike[str]


def save(net: SplitModel, path: StrPath) -> None:
    """Write a split model to one safetensors file: tensors, masks, and how to repeat the surgery.

    A mask takes one bit per weight, a masked weight stores its active values only, tied tensors are stored once.
    Buffers that state dicts leave out are stored too. A save that fails leaves the file that was there before.

    Args:
        net: From `fxsplit.split` or `fxsplit.neurotrailify`, with or without masks.
        path: File to write, usually ``*.safetensors``.

    Raises:
        SpecError: If ``net`` is no split model, is on the meta device, or holds parametrizations on top of masks.

    Example:
        >>> fxsplit.save(net, "net.safetensors")  # doctest: +SKIP
        >>> net = fxsplit.load("net.safetensors", timm.create_model("resnet50"))  # doctest: +SKIP
    """
    if not isinstance(net, SplitModel):
        raise SpecError(
            f"save takes a SplitModel (from split or neurotrailify), got {type(net).__name__}. For other models use "
            "torch.save(model.state_dict(), path)"
        )
    tensors, spec = _collect(net)
    with _replacing(Path(path)) as temporary:
        save_file(tensors, temporary, encode(spec))


def load(
    path: StrPath,
    model: nn.Module,
    example: Any = None,
    *,
    vote: Callable[[Tensor], Tensor] | None = None,
) -> SplitModel:
    """Repeat the surgery of a saved file on ``model`` and fill in the saved tensors.

    The model is traced again, so the file holds no code. It is not changed, and no initial weights are drawn.

    Args:
        path: File from `save`.
        model: New instance of the architecture that was split (its weights don't matter), or an `fxsplit.trace` of it.
        example: Inputs to trace with; None means inputs like those of the first tracing.
        vote: The function given to ``split(vote=...)``, which a file can't hold.

    Returns:
        The split model on the device of ``model``, with parameters, buffers and masks bit for bit as saved.

    Raises:
        SpecError: If the file is damaged, of another kind or newer, or belongs to another architecture.
        TraceError: If the model can't be traced.
    """
    tensors, header = _read(Path(path))
    spec = decode(header, str(path))
    surgery = spec["surgery"]
    if (surgery["vote"] == "callable") != (vote is not None):
        raise SpecError(
            f"'{path}' was saved with vote={surgery['vote']!r}: "
            + ("pass the function as load(..., vote=fn)" if vote is None else "leave out vote=")
        )
    device = next((tensor.device for _, tensor in slots_of(model)), torch.device("cpu"))
    if not isinstance(model, TracedModel):
        model = trace(model, restore_example(surgery["example"], device) if example is None else example)
    check_nodes(
        surgery["nodes"], [node.name for node in model.graph.nodes], type(model.source).__name__, spec["versions"]
    )
    net = replay(
        _without_values(model),
        surgery,
        copy.deepcopy(vote) if isinstance(vote, nn.Module) else vote or surgery["vote"],
    )
    net.meta[SPEC] = surgery
    if spec["masked_paths"]:
        _attach_masks(net, spec["masked_paths"], spec.get("structures", {}))
    _fill(net, _unpacked(tensors, spec["masked"]), spec, device)
    return net


def _collect(net: SplitModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
    sites: dict[str, MaskedSite] = {}
    masked: dict[str, dict[str, Any]] = {}
    for site in masked_sites(net, _parametrized(net)):
        sites[site.original] = sites[site.mask] = site
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    frozen: list[str] = []
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()
    held = {slot.path: tensor for slot, tensor in slots_of(net)}
    for path, tensor in held.items():
        if tensor.is_meta:
            raise SpecError(f"'{path}' is on the meta device and has no values to save")
        if id(tensor) in first:
            aliases[path] = first[id(tensor)]
            continue
        first[id(tensor)] = path
        if isinstance(tensor, nn.Parameter) and not tensor.requires_grad:
            frozen.append(path)
        site = sites.get(path)
        if site is None:
            tensors[path] = _own(tensor, storages)
        elif path == site.original:
            bits, values = pack(tensor, held[site.mask])
            tensors[site.path], tensors[site.path + _MASK] = _own(values, storages), bits
            masked[site.path] = {"original": site.original, "mask": site.mask, "shape": list(tensor.shape)}
    spec = {
        "surgery": net.meta[SPEC],
        "versions": versions(),
        "masked": masked,
        "masked_paths": sorted({site.path for site in sites.values()}),
        "structures": _structures(net) if sites else {},
        "aliases": aliases,
        "frozen": frozen,
    }
    return tensors, spec


def _structures(net: SplitModel) -> dict[str, dict[str, Any]]:
    from sparsity import masks_of, structure_to_spec

    return {path: structure_to_spec(structure) for path, structure in masks_of(net).structures.items()}


def _parametrized(net: SplitModel) -> list[str]:
    return net.meta[SPEC].get("parametrized", [])


def _own(tensor: Tensor, storages: set[int]) -> Tensor:
    """Return a contiguous CPU tensor that shares no storage with the ones before it, as safetensors wants."""
    stored = tensor.detach().cpu().contiguous()
    storage = stored.untyped_storage()
    if storage.data_ptr() in storages or storage.nbytes() != stored.nbytes:
        stored = stored.clone()
    storages.add(stored.untyped_storage().data_ptr())
    return stored


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside ``path`` that takes its place if the body succeeds and is removed if it fails."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = Path(folder, path.name)
        temporary.touch()
        permissions = temporary.stat().st_mode
        yield temporary
        # safetensors makes files that only their owner may read.
        temporary.chmod(permissions)
        os.replace(temporary, path)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    try:
        with safe_open(path, framework="pt") as file:
            # Cloned, so that the result does not depend on the file any longer: safetensors maps it into memory.
            return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata()  # noqa: SIM118
    except SafetensorError as error:
        raise SpecError(f"'{path}' is not a safetensors file, or was cut short: {error}") from error


def _without_values(traced: TracedModel) -> TracedModel:
    """Return a copy of the traced model on the meta device: splitting it copies no values."""
    memo: dict[int, Any] = {}
    for _, tensor in slots_of(traced):
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(traced, memo)


def _attach_masks(net: SplitModel, paths: list[str], structures: Mapping[str, Mapping[str, Any]]) -> None:
    from sparsity import SparsityWarning, sparsify, structure_from_spec

    wanted = set(paths)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SparsityWarning)  # of weights without a mask, as they were saved
        masks = sparsify(
            net,
            0.0,
            skip=lambda path, module, parameter: path not in wanted,
            include=lambda path, module, parameter: path in wanted,
        )
    missing = wanted - {site.path for site in masked_sites(net, _parametrized(net))}
    if missing:
        raise SpecError(f"the file has masks for weights that can't have one here: {sorted(missing)}")
    for path, description in structures.items():
        masks.weights[masks.tied.get(path, path)].holder.structure = structure_from_spec(description)


def _unpacked(tensors: dict[str, Tensor], masked: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """Return the tensors under the names they have in the net, masked weights and their masks unpacked."""
    for path, entry in masked.items():
        values, bits = tensors.pop(path), tensors.pop(path + _MASK)
        tensors[entry["original"]], tensors[entry["mask"]] = unpack(bits, values, torch.Size(entry["shape"]))
    return tensors


def _fill(net: SplitModel, tensors: dict[str, Tensor], spec: Mapping[str, Any], device: torch.device) -> None:
    modules = dict(net.named_modules(remove_duplicate=False))
    aliases, frozen = spec["aliases"], set(spec["frozen"])
    made: dict[str, Tensor] = {}
    for slot, empty in list(slots_of(net)):
        path = aliases.get(slot.path, slot.path)
        if path not in made:
            made[path] = _made(slot, path, empty, tensors, device, path not in frozen)
        owner = modules[slot.owner]
        (owner._parameters if slot.is_parameter else owner._buffers)[slot.name] = made[path]  # type: ignore[assignment]
    unused = sorted(tensors.keys() - made.keys())
    if unused:
        raise SpecError(f"the model has no place for the saved '{unused[0]}'.{near_matches(unused[0], made)}")


def _made(
    slot: Slot, path: str, empty: Tensor, tensors: Mapping[str, Tensor], device: torch.device, trainable: bool
) -> Tensor:
    if path not in tensors:
        raise SpecError(f"the file holds no '{path}', which the model has.{near_matches(path, tensors)}")
    value = tensors[path]
    if value.shape != empty.shape:
        raise SpecError(
            f"'{path}' has shape {tuple(value.shape)} in the file, {tuple(empty.shape)} in the model: pass a model "
            "made with the same arguments as the one that was split"
        )
    if not empty.is_contiguous():
        value = torch.empty_like(empty, dtype=value.dtype, device="cpu").copy_(value)
    value = value.to(device)
    return nn.Parameter(value, trainable and value.is_floating_point()) if slot.is_parameter else value

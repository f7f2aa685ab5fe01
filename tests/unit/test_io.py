"""Saved files: every bit comes back, masks are small, and files that don't fit are refused."""

from __future__ import annotations

import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxsplit._io._file
from fxsplit import SpecError, SplitModel, load, neurotrailify, save, split, trace
from fxsplit._io._packing import pack, unpack
from sparsity import NM, Blocks, MaskError, masks_of, sparsify


class Net(nn.Module):
    """Convolutions, BatchNorm, a non-persistent buffer and a bare parameter."""

    def __init__(self, width: int = 8, blocks: int = 3, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
                for _ in range(blocks)
            )
        )
        self.scale = nn.Parameter(torch.randn(width, 1, 1))
        self.register_buffer("offset", torch.randn(width, 1, 1), persistent=False)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.stem(x)) * self.scale + self.offset
        return self.fc(x.mean((2, 3)))


X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def make(sparsity: float = 0.8, **kwargs: Any) -> SplitModel:
    net = neurotrailify(Net(), "blocks.0", 3, sparsity, X, **kwargs)
    net(X)  # BatchNorm statistics
    return net


def assert_same(net: nn.Module, again: nn.Module) -> None:
    names = [[n for n, _ in [*m.named_parameters(), *m.named_buffers()]] for m in (net, again)]
    assert names[0] == names[1]
    assert list(net.state_dict()) == list(again.state_dict())
    values = [dict([*m.named_parameters(), *m.named_buffers()]) for m in (net, again)]
    for name, tensor in values[0].items():
        other = values[1][name]
        assert type(tensor) is type(other), name
        assert tensor.dtype == other.dtype, name
        assert tensor.requires_grad == other.requires_grad, name
        assert tensor.detach().contiguous().numpy().tobytes() == other.detach().contiguous().numpy().tobytes(), name


@pytest.mark.parametrize("sparsity", [0.0, 0.8, 0.99])
@pytest.mark.parametrize("vote", ["mean", "prob"])
def test_everything_comes_back_bit_for_bit(tmp_path, sparsity, vote):
    net: Any = make(sparsity, vote=vote)
    save(net, tmp_path / "net.safetensors")
    target = Net()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    again: Any = load(tmp_path / "net.safetensors", target)
    assert_same(net, again)
    assert isinstance(again, SplitModel)
    assert again.num_heads == 3
    assert type(again.vote) is type(net.vote)
    for mode in (True, False):
        assert torch.equal(net.train(mode)(X), again.train(mode)(X))
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    own = {p.data_ptr() for p in target.parameters()}
    assert not own & {p.data_ptr() for p in again.parameters()}


def test_loading_draws_no_random_numbers(tmp_path):
    save(make(0.5), tmp_path / "net.safetensors")
    target = Net()
    state = torch.get_rng_state()
    load(tmp_path / "net.safetensors", target)
    assert torch.equal(state, torch.get_rng_state())


def test_masks_and_masked_weights_are_stored_compactly(tmp_path):
    net = neurotrailify(Net(width=64), "blocks.0", 3, 0.9, X)
    save(net, tmp_path / "net.safetensors")
    masks = masks_of(net)
    dense = sum(t.nbytes for name, t in net.state_dict().items() if "parametrizations" not in name)
    bits = sum(-(-mask.numel() // 8) for mask in masks.values())
    size = (tmp_path / "net.safetensors").stat().st_size
    tensors = 4 * masks.nonzeros + bits + dense + 64 * 4  # and the buffer that the state dict leaves out
    assert tensors <= size < tensors + 40_000


def test_masks_keep_working_after_loading(tmp_path):
    net: Any = make(0.8)
    save(net, tmp_path / "net.safetensors")
    again: Any = load(tmp_path / "net.safetensors", Net())
    masks, saved = masks_of(again), masks_of(net)
    assert list(masks) == list(saved)
    assert masks.nonzeros == saved.nonzeros
    again(X).sum().backward()
    for path, mask in masks.items():
        owner, _, name = path.rpartition(".")
        weight = again.get_parameter(f"{owner}.parametrizations.{name}.original")
        assert weight.grad is not None
        assert not weight.grad[~mask].any(), path


def test_saved_loaded_and_saved_again(tmp_path):
    save(make(0.8), tmp_path / "a")
    save(load(tmp_path / "a", Net()), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_tied_and_shared_tensors_are_stored_once(tmp_path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(11, 8)
            self.body = nn.Linear(8, 8)
            self.norm = nn.LayerNorm(8)
            self.out = nn.Linear(8, 11, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.out(self.norm(self.body(self.embed(tokens))))

    tokens = torch.tensor([[1, 2, 10], [4, 5, 6]])
    net: Any = split(trace(Tied(), tokens), "body", 2, share=["norm"], tied="share")
    assert net.heads[0].out.weight is net.trunk.embed.weight
    save(net, tmp_path / "net")
    again: Any = load(tmp_path / "net", Tied())
    assert again.heads[0].out.weight is again.heads[1].out.weight is again.trunk.embed.weight
    assert again.heads[0].norm is again.heads[1].norm
    assert_same(net, again)
    from safetensors import safe_open

    with safe_open(tmp_path / "net", "pt") as file:
        assert sorted(file.keys()) == sorted(name for name, _ in net.named_parameters())


def test_dtype_layout_and_frozen_parameters_come_back(tmp_path):
    net: Any = make(0.5).to(torch.bfloat16)
    net.trunk.requires_grad_(False)
    save(net, tmp_path / "net")
    target = Net().to(memory_format=torch.channels_last)
    again: Any = load(tmp_path / "net", target)
    for (name, a), (_, b) in zip(net.named_parameters(), again.named_parameters(), strict=True):
        assert a.dtype == b.dtype
        assert a.requires_grad == b.requires_grad
        assert torch.equal(a, b), name
    weight = again.heads[0].blocks.get_submodule("1.0").parametrizations.weight.original
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_values_under_a_mask_are_not_lost(tmp_path):
    net: Any = make(0.5)
    weight, mask = net.trunk.stem.parametrizations.weight.original, masks_of(net)["trunk.stem.weight"]
    with torch.no_grad():
        weight[~mask] = -0.0
    save(net, tmp_path / "net")
    assert_same(net, load(tmp_path / "net", Net()))


def test_own_votes_are_given_again(tmp_path):
    def best(stack: torch.Tensor) -> torch.Tensor:
        return stack.amax(0)

    net: Any = make(0.0, vote=best)
    save(net, tmp_path / "net")
    again: Any = load(tmp_path / "net", Net(), vote=best)
    assert torch.equal(again.eval()(X), net.eval()(X))
    with pytest.raises(SpecError, match=r"pass the function as load\(\.\.\., vote=fn\)"):
        load(tmp_path / "net", Net())
    save(make(0.0), tmp_path / "plain")
    with pytest.raises(SpecError, match="leave out vote="):
        load(tmp_path / "plain", Net(), vote=best)


def test_votes_with_weights(tmp_path):
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.Parameter(torch.randn(3))

        def forward(self, stack: torch.Tensor) -> torch.Tensor:
            return (stack * self.weights.view(-1, 1, 1)).sum(0)

    net: Any = make(0.0, vote=Weighted())
    save(net, tmp_path / "net")
    given = Weighted()
    kept = given.weights.detach().clone()
    again: Any = load(tmp_path / "net", Net(), vote=given)
    assert_same(net, again)
    assert torch.equal(given.weights, kept)


def test_inputs_of_the_trace_are_repeated(tmp_path):
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.fc, self.out = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, tokens: torch.Tensor, options: dict[str, Any], twice: bool = False) -> torch.Tensor:
            x = self.fc(self.embed(tokens)) * options["scale"][0] + options["shift"]
            return self.out(x + x if twice else x)

    options = {"scale": [torch.randn(2, 1, 4)], "shift": 0.5}
    example = {"tokens": torch.tensor([[6, 1, 2], [3, 4, 5]]), "options": options, "twice": True}
    net: Any = split(trace(Text(), example), "fc", 2)
    save(net, tmp_path / "net")
    again: Any = load(tmp_path / "net", Text())
    assert torch.equal(net(example["tokens"], options), again(example["tokens"], options))
    again: Any = load(tmp_path / "net", Text(), example)
    assert torch.equal(net(example["tokens"], options), again(example["tokens"], options))
    again: Any = load(tmp_path / "net", trace(Text(), example))  # type: ignore[arg-type]
    assert torch.equal(net(example["tokens"], options), again(example["tokens"], options))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Net(blocks=4), r"graph of Net is not the saved one: node \d+ is 'blocks_3_0', expected"),
        (Net(blocks=2), r"graph of Net is not the saved one: node \d+ is .*, expected 'blocks_2_0'"),
        (Net(classes=6), r"'heads\.0\.fc\.(weight|bias)' has shape \(5,.*\) in the file, \(6,.*\) in the model"),
        (Net(width=4), r"has shape \(8,.*\) in the file, \(4,.*\) in the model"),
    ],
    ids=["deeper", "shallower", "classes", "width"],
)
def test_other_architectures_are_refused(tmp_path, other, message):
    save(make(0.5), tmp_path / "net")
    with pytest.raises(SpecError, match=message):
        load(tmp_path / "net", other)


def edit_spec(path: Path, key: str, value: Any) -> None:
    """Change an entry of the spec: a safetensors file is 8 bytes of length, JSON, tensors."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    spec = json.loads(header["__metadata__"]["fxsplit"])
    spec[key] = value
    header["__metadata__"]["fxsplit"] = json.dumps(spec)
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + length :])


def test_newer_versions_and_other_files_are_refused(tmp_path):
    path = tmp_path / "net"
    save(make(0.5), path)
    content = path.read_bytes()
    edit_spec(path, "format_version", 2)
    with pytest.raises(SpecError, match="format version 2, this fxsplit reads up to 1"):
        load(path, Net())
    for end in (len(content) - 1, len(content) // 2, 100, 3, 0):
        path.write_bytes(content[:end])
        with pytest.raises(SpecError, match="not a safetensors file, or was cut short"):
            load(path, Net())
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(SpecError, match=r"not one written by fxsplit\.save"):
        load(path, Net())
    torch.save({}, path)
    with pytest.raises(SpecError, match="not a safetensors file"):
        load(path, Net())
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing", Net())


def test_changed_library_versions_are_named(tmp_path):
    path = tmp_path / "net"
    save(make(0.5), path)
    edit_spec(path, "versions", {"timm": "0.1"})
    with pytest.raises(SpecError, match=r"written with timm 0\.1 \(now "):
        load(path, Net(blocks=4))


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "net"
    save(make(0.5), path)
    content = path.read_bytes()

    def fail(tensors: Any, file: Any, metadata: Any) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(fxsplit._io._file, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save(make(0.5), path)
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["net"]


def test_a_file_may_be_overwritten_while_the_loaded_net_lives(tmp_path):
    path = tmp_path / "net"
    net: Any = make(0.5)
    save(net, path)
    again: Any = load(path, Net())
    path.write_bytes(b"")
    assert_same(net, again)


def test_others_may_read_the_file_as_any_other(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    save(make(0.5), tmp_path / "net")
    assert (tmp_path / "net").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(SpecError, match=r"save takes a SplitModel .*, got Net"):
        save(Net(), tmp_path / "net")  # type: ignore[arg-type]
    net: Any = make(0.0)
    nn.utils.parametrizations.weight_norm(net.trunk.stem)
    with pytest.raises(
        SpecError,
        match=r"'trunk\.stem\.weight' is parametrized by _WeightNorm: only masks can be saved, and what the model",
    ):
        save(net, tmp_path / "net")
    with pytest.raises(SpecError, match="is on the meta device"):
        save(make(0.0).to("meta"), tmp_path / "net")
    assert os.listdir(tmp_path) == []


def test_unstorable_examples_ask_for_one(tmp_path):
    class Options(dict):
        pass

    class WithOptions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor, options: Any) -> torch.Tensor:
            return self.b(self.a(x) * options["scale"])

    example = (torch.zeros(2, 4), Options(scale=2.0))
    save(split(trace(WithOptions(), example), "a", 2), tmp_path / "net")
    with pytest.raises(SpecError, match=r"Options, which the file can't store: pass .* load\(path, model, example="):
        load(tmp_path / "net", WithOptions())
    load(tmp_path / "net", WithOptions(), example)


def test_plain_split_models_need_no_sparsity(tmp_path, monkeypatch):
    save(make(0.0), tmp_path / "net")
    monkeypatch.setitem(sys.modules, "sparsity", None)  # an import would raise ImportError
    load(tmp_path / "net", Net())


def test_masks_on_some_weights_only(tmp_path):
    net: Any = make(0.0)
    sparsify(net, 0.7, skip=["trunk", "heads.1"])
    save(net, tmp_path / "net")
    again: Any = load(tmp_path / "net", Net())
    assert_same(net, again)
    assert all(path.startswith(("heads.0", "heads.2")) for path in masks_of(again))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (7,), (8, 3), (5, 3, 3, 3)])
def test_packing(dtype, shape):
    generator = torch.Generator().manual_seed(len(shape))
    mask = torch.rand(shape, generator=generator) < 0.4
    weight = torch.randn(shape, generator=generator).to(dtype) * mask
    weight = torch.where(mask, weight, torch.zeros((), dtype=dtype))
    bits, values = pack(weight, mask)
    assert bits.numel() == int(np.ceil(mask.numel() / 8))
    assert values.shape == (int(mask.sum()),)
    again, again_mask = unpack(bits, values, weight.shape)
    assert torch.equal(mask, again_mask)
    assert torch.equal(weight, again)


def test_packing_of_full_masks_is_not_taken_for_a_dense_weight():
    weight, mask = torch.randn(4), torch.tensor([True, True, True, True])
    again, again_mask = unpack(*pack(weight, mask), weight.shape)
    assert torch.equal(weight, again)
    assert bool(again_mask.all())


def test_structures_and_included_weights_come_back(tmp_path):
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.first, self.last = nn.Embedding(12, 8), nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(self.words(x)).relu())

    for structure in (NM(2, 4), Blocks((2, 4))):
        example = torch.zeros(2, 3, dtype=torch.long)
        net = neurotrailify(Words(), "first", sparsity=0.5, example=example, include=nn.Embedding, structure=structure)
        save(net, tmp_path / "net.safetensors")
        loaded = load(tmp_path / "net.safetensors", Words())
        masks = masks_of(net)
        assert "trunk.words.weight" in masks
        assert masks_of(loaded).structures == dict.fromkeys(masks, structure)
        assert all(torch.equal(masks_of(loaded)[path], mask) for path, mask in masks.items())


def test_structures_of_ones_own_cannot_be_saved(tmp_path):
    class Mine(NM):
        pass

    net = neurotrailify(
        Net(), "blocks.0", sparsity=0.5, example=torch.zeros(2, 3, 8, 8), structure=Mine(2, 4), skip="trunk.stem"
    )
    with pytest.raises(MaskError, match=r"structure Mine can't be described.*'NM', 'Blocks' can"):
        save(net, tmp_path / "net.safetensors")
    assert not (tmp_path / "net.safetensors").exists()

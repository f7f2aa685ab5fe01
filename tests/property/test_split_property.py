"""What holds for the split of any model: shared trunk, independent heads, the outputs of the original."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import fxsplit
from tests.checks import (
    assert_same,
    assert_unchanged,
    bits,
    scalar,
    seeded,
    snapshot,
    state_storages,
    tensors,
)
from tests.strategies import Case, TokenCase, call, conv_cases, holds_for, split_cases

HEADS = 3


def head_names(case: Case, path: str, model: nn.Module) -> set[str]:
    """Names of the parameters that a head owns, tied ones under the name that it uses them by."""
    prefixes = case.trunk_prefixes(path)
    names = {name for name, _ in model.named_parameters(remove_duplicate=False) if not name.startswith(prefixes)}
    if isinstance(case, TokenCase) and case.decoder == "functional":
        names.add("embed.weight")
    return names


def trunk_names(case: Case, path: str, model: nn.Module) -> set[str]:
    prefixes = case.trunk_prefixes(path)
    return {name for name, _ in model.named_parameters() if name.startswith(prefixes)}


@holds_for(draw=split_cases())
def test_trunk_and_vote_run_once_and_every_node_has_one_place(draw: tuple[Case, str]) -> None:
    case, path = draw
    model = case.build()
    traced = fxsplit.trace(model, case.example())
    net = fxsplit.split(traced, path, heads=HEADS)
    calls: Counter[str] = Counter()
    names = ["trunk", *(f"heads.{i}" for i in range(HEADS)), "vote"]
    for name in names:
        net.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.update([name]))
    call(net, case.example(3))
    assert calls == Counter(names)
    assert Counter(str(node.target) for node in net.graph.nodes if node.op == "call_module") == Counter(names)
    heads = [head for head in net.heads if isinstance(head, fx.GraphModule)]
    assert len(heads) == HEADS
    of_trunk, *of_heads = (
        Counter(str(node.target) for node in part.graph.nodes if node.op == "call_module")
        for part in (net.trunk, *heads)
    )
    whole = Counter(str(node.target) for node in traced.graph.nodes if node.op == "call_module")
    assert all(of_trunk + of_head == whole for of_head in of_heads)
    for name, original in net.origin.items():
        assert name.startswith(tuple(f"{part}." for part in names))
        assert type(net.get_submodule(name)) is type(model.get_submodule(original))


@holds_for(draw=split_cases())
def test_one_copied_head_is_the_model(draw: tuple[Case, str]) -> None:
    """In both modes, at several batch sizes, with gradients and buffers."""
    case, path = draw
    model = case.build()
    net = fxsplit.split(fxsplit.trace(model, case.example()), path, heads=1, init="copy")
    for batch in (2, 1, 5):
        assert_same(call(net, case.example(batch)), call(model, case.example(batch)))
    model.train()
    net.train()
    for batch in (2, 4):
        results = []
        for module in (model, net):
            outputs = seeded(lambda module=module, batch=batch: call(module, case.example(batch)))
            module.zero_grad()
            scalar(outputs).backward()
            results.append(outputs)
        assert_same(results[1], results[0])
        for name, parameter in net.named_parameters():
            original = model.get_parameter(name.removeprefix("trunk.").removeprefix("heads.0."))
            if not (isinstance(case, TokenCase) and case.tied):  # untied: each owns its share of the gradient
                assert_same(parameter.grad, original.grad)
        for name, buffer in net.named_buffers():
            original = name.removeprefix("trunk.").removeprefix("heads.0.")
            if not original.split(".")[-1].startswith("_"):
                assert bits(buffer) == bits(model.get_buffer(original)), name


@holds_for(draw=split_cases())
def test_copied_heads_each_equal_the_model_and_the_vote_is_their_mean(draw: tuple[Case, str]) -> None:
    case, path = draw
    model = case.build()
    net = fxsplit.split(fxsplit.trace(model, case.example()), path, heads=HEADS, init="copy")
    assert net.num_heads == HEADS
    for batch in (2, 3):
        expected = call(model, case.example(batch))
        outputs = call(net.head_outputs, case.example(batch))
        assert len(outputs) == HEADS
        for output in outputs:
            assert_same(output, expected)
        voted = call(net, case.example(batch))
        for actual, wanted in zip(tensors(voted), tensors(expected), strict=True):
            torch.testing.assert_close(actual, wanted, rtol=3e-7, atol=0)


@holds_for(draw=split_cases())
def test_the_vote_is_the_mean_of_different_heads(draw: tuple[Case, str]) -> None:
    case, path = draw
    net = fxsplit.split(fxsplit.trace(case.build(), case.example()), path, heads=HEADS, init="copy")
    perturb_heads(net)
    outputs = [tensors(output) for output in call(net.head_outputs, case.example(3))]
    voted = tensors(call(net, case.example(3)))
    assert len(voted) == len(outputs[0])
    for position, actual in enumerate(voted):
        leaves = [output[position] for output in outputs]
        if actual.is_floating_point():
            torch.testing.assert_close(actual, torch.stack(leaves).mean(0), rtol=1e-5, atol=1e-6)
        else:
            assert_same(actual, leaves[0])


def perturb_heads(net: fxsplit.SplitModel) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.startswith("heads."):
                parameter += torch.randn(parameter.shape, generator=generator) * 0.2


@holds_for(draw=split_cases(), heads=st.sampled_from([1, 2, 4]), init=st.sampled_from(["fresh", "copy"]))
def test_parameters_are_the_trunks_plus_heads_times_a_heads(draw: tuple[Case, str], heads: int, init: str) -> None:
    case, path = draw
    model = case.build()
    net = fxsplit.split(fxsplit.trace(model, case.example()), path, heads=heads, init=init)
    expected = {f"trunk.{name}" for name in trunk_names(case, path, model)}
    expected |= {f"heads.{i}.{name}" for i in range(heads) for name in head_names(case, path, model)}
    assert {name for name, _ in net.named_parameters()} == expected
    named = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in net.named_parameters():
        original = named[name.removeprefix("trunk.") if name.startswith("trunk.") else name.split(".", 2)[2]]
        assert (parameter.shape, parameter.dtype) == (original.shape, original.dtype)
        if init == "copy" or name.startswith("trunk."):
            assert bits(parameter) == bits(original), name


@holds_for(draw=split_cases())
def test_nothing_is_shared(draw: tuple[Case, str]) -> None:
    """No memory and no gradient: neither between heads, nor with the trunk, nor with the user's model."""
    case, path = draw
    model = case.build()
    before = snapshot(model)
    net = fxsplit.split(fxsplit.trace(model, case.example()), path, heads=HEADS)
    assert_unchanged(before, model)
    parts = [net.get_submodule(name) for name in ("trunk", "heads.0", "heads.1", "heads.2")]
    owned = [state_storages(part) for part in [*parts, model]]
    assert sum(map(len, owned)) == len(set().union(*owned))
    outputs = call(net.head_outputs, case.example(3))
    for one in range(HEADS):
        net.zero_grad()
        if any(leaf.requires_grad for leaf in tensors(outputs[one])):
            scalar(outputs[one]).backward(retain_graph=True)
        for other in set(range(HEADS)) - {one}:
            assert all(parameter.grad is None for parameter in net.get_submodule(f"heads.{other}").parameters())
        assert any(p.grad is not None for p in net.get_submodule(f"heads.{one}").parameters())


@holds_for(draw=split_cases())
def test_fresh_heads_differ_in_every_random_parameter(draw: tuple[Case, str]) -> None:
    case, path = draw
    model, again = case.fresh(0), case.fresh(1)
    random_names = {
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if bits(parameter) != bits(dict(again.named_parameters(remove_duplicate=False))[name])
    }
    generator = torch.get_rng_state()
    net = fxsplit.split(fxsplit.trace(model, case.example()), path, heads=HEADS, init="fresh", seed=3)
    assert torch.equal(generator, torch.get_rng_state())
    for name in head_names(case, path, model):
        original = dict(model.named_parameters(remove_duplicate=False))[name]
        values = [bits(original), *(bits(net.get_parameter(f"heads.{i}.{name}")) for i in range(HEADS))]
        assert len(set(values)) == (len(values) if name in random_names else 1), name
    for name in trunk_names(case, path, model):
        assert bits(net.get_parameter(f"trunk.{name}")) == bits(model.get_parameter(name))
    twin = fxsplit.split(fxsplit.trace(model, case.example()), path, heads=HEADS, init="fresh", seed=3)
    assert_same(twin.state_dict(), net.state_dict())
    other = fxsplit.split(fxsplit.trace(model, case.example()), path, heads=HEADS, init="fresh", seed=4)
    drawn = [f"heads.0.{name}" for name in head_names(case, path, model) & random_names]
    assert all(bits(other.get_parameter(name)) != bits(net.get_parameter(name)) for name in drawn)


# A block that overwrites its input makes the value that skips it, too: then both come out of the block.
@holds_for(case=conv_cases(min_blocks=2).filter(lambda case: case.long_skip and "inplace" not in case.blocks))
def test_across_a_living_skip_connection_only_blocks_are_cut_by_path(case: Case) -> None:
    model = case.build()
    traced = fxsplit.trace(model, case.example())
    blocks = {cut.path: cut for cut in fxsplit.find_cuts(traced)}
    before = snapshot(model)
    for path in case.illegal:
        if path in blocks:
            assert len([item for item in blocks[path].crossing if item.main]) > 1
            net = fxsplit.split(traced, path, heads=2, init="copy")
            for output in call(net.head_outputs, case.example(3)):
                assert_same(output, call(model, case.example(3)))
        else:
            with pytest.raises(fxsplit.CutError, match=path):
                fxsplit.split(traced, path, heads=2)
    assert_unchanged(before, model)


@holds_for(draw=split_cases())
def test_copies_and_state_dicts_carry_the_whole_state(draw: tuple[Case, str]) -> None:
    case, path = draw
    net = fxsplit.split(fxsplit.trace(case.build(), case.example()), path, heads=2)
    expected = call(net, case.example(3))
    twin = copy.deepcopy(net)
    assert isinstance(twin, fxsplit.SplitModel)
    assert not state_storages(twin) & state_storages(net)
    assert_same(call(twin, case.example(3)), expected)
    other = fxsplit.split(fxsplit.trace(case.build(5), case.example()), path, heads=2, seed=9)
    other.load_state_dict(net.state_dict())
    assert_same(call(other, case.example(3)), expected)
    assert_same(call(other.head_outputs, case.example(3)), call(net.head_outputs, case.example(3)))


@holds_for(draw=split_cases(min_blocks=2), training=st.booleans())
def test_modes_and_frozen_parameters_are_kept(draw: tuple[Case, str], training: bool) -> None:
    case, path = draw
    model = case.build().train(training)
    model.get_submodule("blocks.0").train(not training)
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 2 == 0)
    for init in ("copy", "fresh"):
        net = fxsplit.split(fxsplit.trace(model, case.example()), path, heads=2, init=init)
        assert net.training is training
        assert all(net.get_submodule(f"heads.{i}").training is training for i in range(2))
        for new, original in net.origin.items():
            assert net.get_submodule(new).training is model.get_submodule(original).training, new
        named = dict(model.named_parameters(remove_duplicate=False))
        for name, parameter in net.named_parameters():
            original = named[name.removeprefix("trunk.") if name.startswith("trunk.") else name.split(".", 2)[2]]
            assert parameter.requires_grad is original.requires_grad, name


@holds_for(draw=split_cases())
def test_head_loss_is_the_mean_of_the_heads_losses(draw: tuple[Case, str]) -> None:
    case, path = draw
    net = fxsplit.split(fxsplit.trace(case.build(), case.example()), path, heads=HEADS, init="copy")
    perturb_heads(net)
    example = case.example(3)
    target = torch.tensor(0.5)

    def criterion(output: Any, target: Tensor) -> Tensor:
        return (scalar(output) - target) ** 2

    expected = torch.stack([criterion(output, target) for output in call(net.head_outputs, example)]).mean()
    if not isinstance(example, dict):
        torch.testing.assert_close(fxsplit.head_loss(net, criterion, *example, target), expected)

from __future__ import annotations

import pytest
import torch
from hypothesis import find, given, settings
from torch import nn

from tests.checks import tensors
from tests.nets import conv, token
from tests.strategies import Case, ConvCase, TokenCase, call, cases, split_cases

MANY = settings(max_examples=2000)


@settings(max_examples=40)
@given(case=cases())
def test_every_draw_runs_and_trains(case: Case) -> None:
    model = case.build()
    for training in (False, True):
        for batch in (2, 3):
            model.train(training)
            total = torch.stack(
                [leaf.sum() for leaf in tensors(call(model, case.example(batch))) if leaf.is_floating_point()]
            )
            gradients = torch.autograd.grad(total.sum(), list(model.parameters()))
            assert all(torch.isfinite(gradient).all() for gradient in gradients)


@settings(max_examples=40)
@given(case=cases())
def test_a_draw_is_reproducible_from_its_repr(case: Case) -> None:
    again = eval(repr(case), {"ConvCase": ConvCase, "TokenCase": TokenCase})
    assert again == case
    first, second = call(case.build(3), case.example()), call(again.build(3), again.example())
    assert all(torch.equal(a, b) for a, b in zip(tensors(first), tensors(second), strict=True))


@settings(max_examples=40)
@given(case=cases())
def test_building_leaves_the_global_generator_alone(case: Case) -> None:
    before = torch.get_rng_state()
    case.build()
    case.example()
    assert torch.equal(before, torch.get_rng_state())


@settings(max_examples=40)
@given(draw=split_cases())
def test_paths_exist_and_prefixes_part_the_parameters(draw: tuple[Case, str]) -> None:
    case, path = draw
    model = case.build()
    assert isinstance(model.get_submodule(path), nn.Module)
    names = [name for name, _ in model.named_parameters()]
    trunk = [name for name in names if name.startswith(case.trunk_prefixes(path))]
    assert 0 < len(trunk) < len(names) or (isinstance(case, TokenCase) and case.tied and path == "norm")


@settings(max_examples=40)
@given(draw=split_cases())
def test_prefixes_agree_with_the_order_of_use(draw: tuple[Case, str]) -> None:
    """Parameters of modules that ran before the cut module exited are exactly those that the case calls the trunk's."""
    case, path = draw
    model, used, closed = case.build(), [], []
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for module in model.modules():
        module.register_forward_pre_hook(
            lambda module, _: used.extend(
                names[id(p)]
                for p in module.parameters(recurse=isinstance(module, nn.MultiheadAttention))
                if not closed and module is not model
            )
        )
    model.get_submodule(path).register_forward_hook(lambda *_: closed.append(path))
    call(model, case.example())
    claimed = {
        name
        for name in names.values()
        if name.startswith(case.trunk_prefixes(path)) and name not in ("cls", "position")
    }
    assert set(used) == claimed


def test_every_kind_of_block_is_drawn() -> None:
    drawn: set[str] = set()

    @settings(max_examples=400)
    @given(case=cases())
    def collect(case: Case) -> None:
        drawn.update(case.blocks)

    collect()
    assert drawn == {*conv.BLOCKS, *token.BLOCKS}


@pytest.mark.parametrize("kind", ["residual", "shuffle"])
def test_conv_nets_shrink_to_one_block(kind: str) -> None:
    found = find(cases(), lambda case: isinstance(case, ConvCase) and kind in case.blocks, settings=MANY)
    assert found == ConvCase(blocks=(kind,))


@pytest.mark.parametrize("kind", ["fused", "postnorm"])
def test_token_nets_shrink_to_one_block(kind: str) -> None:
    found = find(cases(), lambda case: isinstance(case, TokenCase) and kind in case.blocks, settings=MANY)
    assert found == TokenCase(blocks=(kind,))


def test_repr_shows_what_differs_from_the_plainest_net() -> None:
    assert (
        repr(ConvCase(blocks=("concat", "inplace"), long_skip=True))
        == "ConvCase(blocks=('concat', 'inplace'), long_skip=True)"
    )
    assert repr(TokenCase()) == "TokenCase()"


def test_tied_weights_are_one_tensor() -> None:
    model = TokenCase(decoder="tied").build()
    assert model.get_parameter("decoder.weight") is model.get_parameter("embed.weight")
    assert "decoder.weight" not in dict(model.named_parameters())

"""What holds for the trace of any model: it computes the same, bit for bit, and leaves the model alone."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import fxsplit
from tests.checks import assert_same, assert_unchanged, bits, scalar, seeded, snapshot, tensors
from tests.strategies import KINDS, Case, call, cases, holds_for

BATCHES = (2, 3, 1, 6)


def run_and_backward(model: nn.Module, example: Any) -> tuple[Any, dict[str, Tensor | None]]:
    """Outputs and gradients of one training step from a fixed seed."""
    model.zero_grad()
    outputs = seeded(lambda: call(model, example))
    scalar(outputs).backward()
    return outputs, {name: parameter.grad for name, parameter in model.named_parameters()}


@holds_for(case=cases())
def test_the_trace_equals_the_model_in_eval_mode_at_any_batch_size(case: Case) -> None:
    check_eval(case)


def check_eval(case: Case) -> None:
    model = case.build()
    traced = fxsplit.trace(model, case.example())
    for seed, batch in enumerate(BATCHES):
        example = case.example(batch, seed=seed)
        assert_same(call(traced, example), call(model, example))


@pytest.mark.parametrize("case", KINDS, ids=lambda case: case.blocks[1])
def test_every_kind_of_block(case: Case) -> None:
    check_eval(case)
    check_train(case)


@holds_for(case=cases())
def test_the_trace_equals_the_model_in_train_mode(case: Case) -> None:
    check_train(case)


def check_train(case: Case) -> None:
    """Outputs, gradients and buffers, from the same state of the generator, at several batch sizes."""
    model = case.build()
    traced = fxsplit.trace(copy.deepcopy(model), case.example())
    model.train()
    traced.train()
    for batch in BATCHES[:2] + BATCHES[3:]:
        example = case.example(batch, seed=batch)
        outputs, gradients = run_and_backward(model, example)
        traced_outputs, traced_gradients = run_and_backward(traced, example)
        assert_same(traced_outputs, outputs)
        assert_same(traced_gradients, {name: gradients[name] for name in traced_gradients})
        unused = gradients.keys() - traced_gradients.keys()
        assert all(gradients[name] is None for name in unused)
        assert_same(dict(traced.named_buffers()), {name: model.get_buffer(name) for name, _ in traced.named_buffers()})


@holds_for(case=cases(max_blocks=2))
def test_gradients_reach_the_inputs(case: Case) -> None:
    model = case.build()
    traced = fxsplit.trace(model, case.example())
    found = []
    for module in (model, traced):
        example = case.example(3)
        floating = [leaf.requires_grad_() for leaf in tensors(example) if leaf.is_floating_point()]
        found.append([*torch.autograd.grad(scalar(call(module, example)), floating)] if floating else [])
    assert_same(found[1], found[0])


@holds_for(case=cases(max_blocks=3))
def test_tracing_leaves_the_model_alone(case: Case) -> None:
    model = case.build().train()
    model.get_submodule("blocks").eval()
    next(model.parameters()).requires_grad_(False)
    scalar(call(model, case.example())).backward()
    before = snapshot(model)
    traced = fxsplit.trace(model, case.example())
    assert_unchanged(before, model)
    assert traced.source is model
    assert traced.training


@holds_for(case=cases(max_blocks=3))
def test_modules_keep_their_paths_and_nodes_say_where_they_come_from(case: Case) -> None:
    model = case.build()
    traced = fxsplit.trace(model, case.example())
    for node in traced.graph.nodes:
        if node.op == "output":
            continue
        path, modules = node.meta["path"], node.meta["modules"]
        assert isinstance(model.get_submodule(path), nn.Module)
        assert all(inner.startswith(f"{outer}.") for outer, inner in itertools.pairwise(modules))
        if node.op == "call_module" and not str(node.target).startswith("_"):
            assert path == node.target
            assert modules[-1] == path
            assert traced.get_submodule(path) is model.get_submodule(path)
    names = dict(model.named_parameters(remove_duplicate=False))
    assert all(parameter is names[name] for name, parameter in traced.named_parameters(remove_duplicate=False))


class Shapes(fx.Interpreter):
    """Compares what every node makes with what its meta promises."""

    checked = 0

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and n.op != "output":
            assert n.meta["shape"] == tuple(value.shape), n.format_node()
            assert n.meta["dtype"] == value.dtype, n.format_node()
            self.checked += 1
        elif n.op != "output":
            assert (n.meta["shape"], n.meta["dtype"]) == (None, None), n.format_node()
        return value


@holds_for(case=cases(max_blocks=3))
def test_nodes_know_their_shapes_and_flops(case: Case) -> None:
    model = case.build()
    traced = fxsplit.trace(model, case.example())
    example = case.example(traced.meta["batch"])
    placeholders = [node for node in traced.graph.nodes if node.op == "placeholder"]
    named = case.data(traced.meta["batch"])
    assert [node.target for node in placeholders] == list(named)
    shapes = Shapes(traced)
    shapes.run(*named.values())
    assert shapes.checked > len(placeholders)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call(model, example)  # the counter knows matrix products, but not torch's fused attention on the CPU
    assert sum(node.meta["flops"] for node in traced.graph.nodes if node.op != "output") == counter.get_total_flops()


@holds_for(case=cases(max_blocks=2))
def test_a_trace_can_be_copied_moved_and_saved(case: Case) -> None:
    model = case.build()
    traced = fxsplit.trace(model, case.example())
    twin = copy.deepcopy(traced)
    expected = call(model, case.example(3))
    assert_same(call(twin, case.example(3)), expected)
    assert twin.source is model
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert_same(call(traced, case.example(3)), expected)
    twin.load_state_dict(traced.state_dict())
    assert_same(call(twin, case.example(3)), expected)


@holds_for(case=cases(max_blocks=2))
def test_tracing_twice_gives_the_same_graph(case: Case) -> None:
    first, second = (fxsplit.trace(case.build(), case.example()) for _ in range(2))
    assert first.code == second.code
    assert [bits(t) for t in first.state_dict().values()] == [bits(t) for t in second.state_dict().values()]

"""What users do with a model: copies, casts, state dicts, compilers, exporters, hooks, several processes."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers as tf
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed import HashStore  # pyright: ignore
from torch.export import Dim, export
from torch.func import functional_call, grad, vmap
from torch.nn.parallel import DistributedDataParallel

import fxsplit
import sparsity
from fxsplit import NoEffectWarning, SplitError, hook_block
from tests.checks import assert_same, assert_unchanged, snapshot, state_storages, tensors

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
WORDS: dict[str, Any] = {"vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
T5_SIZES: dict[str, Any] = {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
Feed = dict[str, Tensor]


def image(batch: int) -> Feed:
    return {"x": torch.randn(batch, 3, 32, 32)}


def text(batch: int) -> Feed:
    ids = torch.randint(3, 20, (batch, 9))
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def two_texts(batch: int) -> Feed:
    return {**text(batch), "decoder_input_ids": torch.randint(3, 20, (batch, 6))}


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Feed]]] = {
    "resnet18": (lambda: timm.create_model("resnet18", num_classes=5), image),
    "vit": (lambda: timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=32, depth=4), image),
    "llama": (lambda: tf.LlamaForCausalLM(tf.LlamaConfig(use_cache=False, **SIZES, **WORDS)), text),
    "t5": (
        lambda: tf.T5ForConditionalGeneration(tf.T5Config(**T5_SIZES, **WORDS)),
        two_texts,
    ),
}
KINDS = ("traced", "split", "masked")
both = pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in MODELS for kind in KINDS])
compilers = pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=() if (name, kind) == ("vit", "masked") else pytest.mark.slow)
        for name in MODELS
        for kind in KINDS
    ],
)


@cache
def made(name: str, kind: str) -> Any:
    """The net in eval mode; tests take copies of it."""
    torch.manual_seed(0)
    build, feed = MODELS[name]
    traced = fxsplit.trace(build().eval(), positional(feed(2)))
    if kind == "traced":
        return copy.deepcopy(traced)
    net = fxsplit.split(traced, 0.4, heads=2)
    if kind == "masked":
        sparsity.sparsify(net, 0.5)
    return net.eval()


def positional(feed: Feed) -> Any:
    return (feed["x"],) if "x" in feed else feed


def call(net: Callable[..., Any], feed: Feed) -> Any:
    return net(feed["x"]) if "x" in feed else net(**feed)


def first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits


def result(net: Callable[..., Any], feed: Feed) -> Any:
    with torch.no_grad():
        return call(net, feed)


@both
def test_deep_copies(name: str, kind: str) -> None:
    net, feed = made(name, kind), MODELS[name][1](3)
    before = snapshot(net)
    copied = copy.deepcopy(copy.deepcopy(net))
    assert type(copied).__name__ == type(net).__name__
    assert list(copied.state_dict()) == list(net.state_dict())
    assert not state_storages(copied) & state_storages(net)
    assert_same(result(copied, feed), result(net, feed))
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert_unchanged(before, net)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@both
def test_casts(name: str, kind: str, dtype: torch.dtype) -> None:
    net, feed = made(name, kind), MODELS[name][1](3)
    cast = copy.deepcopy(net).to(dtype)
    found = first(result(cast, {k: v.to(dtype) if v.is_floating_point() else v for k, v in feed.items()}))
    assert found.dtype == dtype
    expected = first(result(net, feed))
    rounding = {torch.float64: 1e-5, torch.float16: 2e-2, torch.bfloat16: 0.1}[dtype]
    assert (found.to(expected.dtype) - expected).abs().max() < rounding * expected.abs().max()


@both
def test_other_devices(name: str, kind: str) -> None:
    net, feed = made(name, kind), MODELS[name][1](3)
    away = result(copy.deepcopy(net).to("meta"), {key: value.to("meta") for key, value in feed.items()})
    assert [(t.device.type, t.shape) for t in tensors(away)] == [("meta", t.shape) for t in tensors(result(net, feed))]


@both
def test_state_dicts(name: str, kind: str) -> None:
    net, feed = made(name, kind), MODELS[name][1](3)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    assert other.load_state_dict(net.state_dict(), strict=True) == ([], [])
    assert_same(result(other, feed), result(net, feed))
    assert dict(other.named_parameters()).keys() == dict(net.named_parameters()).keys()


@pytest.mark.parametrize("name", MODELS)
def test_files(name: str, tmp_path: Path) -> None:
    net, feed = made(name, "masked"), MODELS[name][1](3)
    fxsplit.save(net, tmp_path / "net.safetensors")
    again = fxsplit.load(tmp_path / "net.safetensors", MODELS[name][0]())
    assert_same(result(again.eval(), feed), result(net, feed))
    assert again.origin == net.origin
    assert again.source.names == net.source.names


@compilers
def test_one_graph_for_all_batches(name: str, kind: str) -> None:
    net, feed = made(name, kind), MODELS[name][1]
    torch.compiler.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend=counter)
    for batch in (2, 3, 5):
        inputs = feed(batch)
        assert_same(result(compiled, inputs), result(net, inputs))
    assert counter.frame_count == 1


@pytest.mark.slow
@both
def test_inductor(name: str, kind: str) -> None:
    net, feed = made(name, kind), MODELS[name][1]
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, dynamic=True)
    for batch in (2, 3):
        inputs = feed(batch)
        torch.testing.assert_close(first(result(compiled, inputs)), first(result(net, inputs)), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@both
def test_compiled_training(name: str, kind: str) -> None:
    net, feed = copy.deepcopy(made(name, kind)), MODELS[name][1](3)
    torch.compiler.reset()
    first(call(torch.compile(net, fullgraph=True, backend="aot_eager"), feed)).square().sum().backward()
    found = {key: parameter.grad for key, parameter in net.named_parameters()}
    net.zero_grad()
    first(call(net, feed)).square().sum().backward()
    for key, parameter in net.named_parameters():
        torch.testing.assert_close(found[key], parameter.grad, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@compilers
def test_torch_export(name: str, kind: str, dynamic: bool) -> None:
    net, feed = made(name, kind), MODELS[name][1]
    inputs = feed(3)
    args, kwargs = ((inputs["x"],), {}) if "x" in inputs else ((), inputs)
    batch = {0: Dim("batch", min=2, max=64)}
    shapes: Any = ({"x": batch} if args else dict.fromkeys(kwargs, batch)) if dynamic else None
    program = export(net, args, kwargs, dynamic_shapes=shapes).module()
    for size in (3, 5) if dynamic else (3,):
        inputs = feed(size)
        assert_same(first(result(program, inputs)), first(result(net, inputs)))


@both
def test_functional_calls(name: str, kind: str) -> None:
    net, feed = copy.deepcopy(made(name, kind)), MODELS[name][1](2)
    values, buffers = dict(net.named_parameters()), dict(net.named_buffers())
    args, kwargs = ((feed["x"],), {}) if "x" in feed else ((), feed)

    def loss(parameters: Any) -> Tensor:
        return first(functional_call(net, (parameters, buffers), args, kwargs)).square().sum()

    assert_same(loss(values), first(call(net, feed)).square().sum())
    found = grad(loss)(values)
    first(call(net, feed)).square().sum().backward()
    for key, parameter in values.items():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found[key], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented the batching rule")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["vit", "llama"])
def test_vmap_over_parameters_and_samples(name: str, kind: str) -> None:
    net, feed = copy.deepcopy(made(name, kind)), MODELS[name][1](3)
    values, buffers = dict(net.named_parameters()), dict(net.named_buffers())
    args, kwargs = ((feed["x"],), {}) if "x" in feed else ((), feed)
    stacked = {key: torch.stack([value, value * 0.5]).detach() for key, value in values.items()}
    found = vmap(lambda p: first(functional_call(net, (p, buffers), args, kwargs)))(stacked)
    torch.testing.assert_close(found[0], first(call(net, feed)), atol=1e-5, rtol=1e-4)

    def loss(parameters: Any, args: Any, kwargs: Any) -> Tensor:
        one = tuple(a[None] for a in args), {key: value[None] for key, value in kwargs.items()}
        return first(functional_call(net, (parameters, buffers), *one)).square().sum()

    per_sample = vmap(grad(loss), (None, 0, 0))(values, args, kwargs)
    first(call(net, feed)).square().sum().backward()
    for key, parameter in net.named_parameters():
        torch.testing.assert_close(per_sample[key].sum(0), parameter.grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["resnet18", "llama"])
def test_one_process_in_parallel(name: str, kind: str) -> None:
    net, feed = copy.deepcopy(made(name, kind)), MODELS[name][1](3)
    expected = copy.deepcopy(net)
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=HashStore())
    try:
        parallel = DistributedDataParallel(net)
        module: Any
        for module in (parallel, expected):
            first(call(module.train(), feed)).square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert_same([p.grad for p in net.parameters()], [p.grad for p in expected.parameters()])
    assert_same(net.state_dict(), expected.state_dict())


_RANK = """
import os, sys, torch
from torch.nn.parallel import DistributedDataParallel
from tests.unit.test_living import made, image
rank, folder = int(sys.argv[1]), sys.argv[2]
store = torch.distributed.FileStore(os.path.join(folder, "store"), 2)
torch.distributed.init_process_group("gloo", rank=rank, world_size=2, store=store)
net = made("vit", "masked")
torch.manual_seed(1)
x = image(4)["x"]
parallel = DistributedDataParallel(net)
parallel(x[2 * rank : 2 * rank + 2]).square().mean().backward()
torch.save([p.grad for p in net.parameters()], os.path.join(folder, f"{rank}.pt"))
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_in_parallel(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _RANK]
    ranks = [subprocess.Popen([*command, str(rank), str(tmp_path)], env={**os.environ}) for rank in range(2)]
    assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    net = copy.deepcopy(made("vit", "masked"))
    torch.manual_seed(1)
    net(image(4)["x"]).square().mean().backward()
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert_same(one, other)
    for found, parameter in zip(one, net.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad, atol=1e-6, rtol=1e-4)


# Paths.


@pytest.mark.parametrize("name", MODELS)
def test_every_module_of_the_net_is_one_of_the_original(name: str) -> None:
    build, feed = MODELS[name]
    model = build().eval()
    net = fxsplit.split(fxsplit.trace(model, positional(feed(2))), 0.4, heads=2, init="copy")
    assert {path.split(".")[0] for path in net.origin} == {"trunk", "heads"}
    for path, old in net.origin.items():
        found, original = net.get_submodule(path), model.get_submodule(old)
        assert type(found) is type(original)
        assert_same(found.state_dict(), original.state_dict())


def test_hooks_on_layers_run() -> None:
    net, feed = copy.deepcopy(made("resnet18", "split")), image(3)
    seen: list[Any] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        handle = net.get_submodule("heads.1.fc").register_forward_hook(lambda module, args, out: seen.append(out))
        result(net, feed)
        handle.remove()
        (found,) = seen
        assert_same(found, result(net.head_outputs, feed)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_on_containers_warn(kind: str) -> None:
    net = made("resnet18", kind)
    path = "layer4.1" if kind == "traced" else "heads.1.layer4.1"
    for each in (net, copy.deepcopy(net)):
        container = each.get_submodule(path)
        for register in (
            container.register_forward_hook,
            container.register_forward_pre_hook,
            container.register_full_backward_hook,
            container.register_full_backward_pre_hook,
        ):
            with pytest.warns(NoEffectWarning, match=r"container of \['conv1'.*will never run.*hook_block"):
                register(print).remove()
        with pytest.raises(SplitError, match="only holds"):
            container(torch.zeros(1))  # type: ignore[operator]


def test_the_modules_of_the_user_are_not_marked() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain = nn.Module()
            self.plain.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.plain.layer(x)  # type: ignore[operator]

    model = Model()
    fxsplit.trace(model, torch.zeros(1, 3))
    assert type(model.plain) is nn.Module


@pytest.mark.parametrize(("name", "path"), [("resnet18", "layer4.0"), ("vit", "blocks.2"), ("llama", "model.layers.2")])
def test_hooks_on_blocks_see_what_the_original_block_returns(name: str, path: str) -> None:
    build, make = MODELS[name]
    model, feed = build().eval(), make(3)
    traced = fxsplit.trace(model, positional(make(2)))
    net: Any = fxsplit.split(traced, 0.4, heads=2, init="copy").eval()
    wanted: list[Any] = []
    model.get_submodule(path).register_forward_hook(lambda module, args, out: wanted.append(out))
    expected = result(model, feed)
    before = [node.name for node in net.get_submodule("heads.1").graph.nodes]
    for each, where in ((traced, path), (net, f"heads.1.{path}")):
        seen: list[Any] = []
        with hook_block(each, where, lambda module, out: seen.append((module, out))):  # noqa: B023
            found = result(each, feed)
        assert seen[0][0] is each.get_submodule(where)
        assert_same([out for _, out in seen], wanted)
        assert_same(found if each is traced else result(net.head_outputs, feed)[0], expected)
        result(each, feed)
        assert len(seen) == 1
    assert [node.name for node in net.get_submodule("heads.1").graph.nodes] == before


def test_hooks_on_blocks_replace_outputs_of_one_head_only() -> None:
    net, feed = copy.deepcopy(made("vit", "split")), image(2)
    one, other = result(net.head_outputs, feed)
    handle = hook_block(net, "heads.1.blocks.3", lambda module, out: torch.zeros_like(out))
    again = hook_block(net, "heads.1.blocks.3.mlp.fc1", lambda module, out: None)
    changed = result(net.head_outputs, feed)
    assert_same(changed[0], one)
    assert not torch.equal(changed[1], other)
    assert_same(result(copy.deepcopy(net).head_outputs, feed), changed)
    handle.remove()
    handle.remove()
    again.remove()
    assert_same(result(net.head_outputs, feed), [one, other])


@pytest.mark.parametrize(
    ("net", "path", "message"),
    [
        ("split", "heads.1.layer5", "no module 'heads.1.layer5'. Did you mean 'heads.1.layer4'"),
        ("split", "layer4.0", "no module 'layer4.0'"),
        ("split", "heads", "No tensor of the graph leaves 'heads'"),
        ("linear", "weight", "takes a traced or split model, got Linear"),
    ],
)
def test_blocks_that_are_not_there(net: str, path: str, message: str) -> None:
    with pytest.raises(SplitError, match=message):
        hook_block(made("resnet18", net) if net in KINDS else nn.Linear(1, 1), path, print)  # type: ignore[arg-type]

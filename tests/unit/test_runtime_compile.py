"""`sparsity.compile` as a user meets it: calls, copies, files, reports, shapes, and what it refuses."""

from __future__ import annotations

import copy
import io
import math
import pickle
import subprocess
import sys
import warnings
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, fx, nn

import fxsplit
import sparsity
from recipes.wide_resnet import WRN
from sparsity.runtime import _assemble, _build_net, _cost, _region, _tuned
from tests.checks import assert_unchanged, snapshot


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected.double()).abs().max() / expected.double().abs().max())


def in_double(net: fx.GraphModule, x: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(net).double()(x.double())


def wide(share: float = 0.8, heads: int = 3) -> Any:
    """WRN10-1 with three heads, as if it had been trained."""
    net = fxsplit.neurotrailify(
        WRN(10, 1).eval(), split=1, heads=heads, example=torch.zeros(2, 3, 32, 32), sparsity=share
    )
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
            ):
                assert isinstance(value, Tensor)
                nn.init.uniform_(value, low, high)
    return net.eval()


def perceptron(share: float = 0.9) -> fx.GraphModule:
    net = fx.symbolic_trace(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8)).eval())
    if share:
        sparsity.sparsify(net, share)
    return net


def test_hooks_are_left_out_with_a_warning() -> None:
    net, x, seen = perceptron(), torch.randn(3, 32), []
    net.get_submodule("2").register_forward_hook(lambda module, args, output: seen.append(output) or output + 1)
    with pytest.warns(sparsity.SparsityWarning, match="forward hooks of '2' are left out"):
        fast = sparsity.compile(net, x, tune=False)
    seen.clear()
    assert relative_error(fast(x), net(x).detach() - 1) < 1e-5
    assert len(seen) == 1  # of the call of net


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_hooks_that_compute_a_weight_are_folded() -> None:
    layer = nn.utils.weight_norm(nn.Linear(32, 16))
    net, x = fx.symbolic_trace(nn.Sequential(layer, nn.ReLU()).eval()), torch.randn(3, 32)
    net.get_submodule("0").weight_g.data.mul_(2)  # pyright: ignore
    with pytest.warns(sparsity.NoEffectWarning, match="no weight is zero"):
        fast = sparsity.compile(net, x, tune=False)
    assert relative_error(fast(x), net(x).detach()) < 1e-5


@pytest.mark.parametrize("share", [0.8, 0.95])
def test_wide_resnet_at_every_batch(share: float) -> None:
    net, example = wide(share), torch.randn(2, 3, 32, 32)
    before = snapshot(net)
    fast = sparsity.compile(net, example, tune=False)
    assert_unchanged(before, net)
    for batch in (1, 2, 3, 5):
        x = torch.randn(batch, 3, 32, 32)
        assert relative_error(fast(x), in_double(net, x)) < 1e-5
        heads = fast.head_outputs(x)
        for got, expected in zip(heads, net.head_outputs(x), strict=True):
            assert relative_error(got, expected.detach()) < 1e-5


def test_a_whole_network_is_one_region() -> None:
    with mock.patch.object(_cost, "sparse_seconds", return_value=1e-9):
        report = sparsity.compile(wide(), torch.randn(1, 3, 32, 32), tune=False).report()
    assert report.regions == 1
    assert report.others == {}
    assert report.fallbacks == ()
    # Trunk: stem, two convolutions; each head: three in each of two blocks, and the classifier.
    assert len(report.layers) == 3 + 3 * 7
    assert [layer.path for layer in report.layers][:2] == ["trunk.conv1", "trunk.stages.0.0.conv1"]


def test_report_counts_what_the_masks_say() -> None:
    net = wide()
    masks = sparsity.masks_of(net)
    fast = sparsity.compile(net, torch.randn(1, 3, 32, 32), tune=False)
    report = fast.report()
    counted = {layer.path: layer.nonzeros for layer in report.layers}
    for layer in masks.layers:
        assert counted[layer.path.removesuffix(".weight")] == layer.nonzeros
    assert report.nonzeros >= masks.nonzeros
    assert report.bytes <= 8 * report.nonzeros + 4096 * len(report.layers)
    text = str(report)
    assert "trunk.stages.0.0.conv1" in text
    assert "predicted" in text
    html = report._repr_html_()
    assert html.count("<tr>") == len(report.layers) + 2


def test_report_measures_on_request() -> None:
    fast = sparsity.compile(wide(), torch.randn(1, 3, 32, 32), tune=False)
    assert all(layer.measured is None for layer in fast.report().layers)
    x = torch.randn(4, 3, 32, 32)
    measured = fast.report(x)
    assert measured.shapes == ((4, 3, 32, 32),)
    for layer in measured.layers:
        assert layer.measured is not None
        assert layer.measured > 0
    stem = next(layer for layer in measured.layers if layer.path == "trunk.conv1")
    assert stem.flops == 2 * stem.nonzeros * 4 * 32 * 32


def test_channels_last_and_strided_inputs() -> None:
    net = wide()
    fast = sparsity.compile(net, torch.randn(2, 3, 32, 32), tune=False)
    x = torch.randn(2, 3, 32, 32)
    expected = fast(x)
    assert torch.equal(fast(x.contiguous(memory_format=torch.channels_last)), expected)
    wider = torch.randn(2, 3, 32, 64)
    wider[..., ::2] = x
    assert torch.equal(fast(wider[..., ::2]), expected)
    assert torch.equal(fast(x.transpose(2, 3).contiguous().transpose(2, 3)), expected)


def test_nan_in_the_input_reaches_the_output() -> None:
    net = perceptron(0.5)
    fast = sparsity.compile(net, torch.randn(2, 32), tune=False)
    x = torch.randn(2, 32)
    x[1] = math.nan
    y = fast(x)
    assert not y[0].isnan().any()
    assert y[1].isnan().all()


def test_large_batches_run_in_parts() -> None:
    net = wide()
    fast = sparsity.compile(net, torch.randn(2, 3, 32, 32), tune=False)
    x = torch.randn(7, 3, 32, 32)
    whole = fast(x)
    with mock.patch.object(_region, "_CACHE_FLOATS", 1):
        parts = fast(x)
    # Rows are summed up in another order where there are fewer.
    assert relative_error(parts, whole) < 1e-6
    tokens, rows = perceptron(), torch.randn(600, 32)
    fast = sparsity.compile(tokens, rows[:2], tune=False)
    with mock.patch.object(_region, "_CACHE_FLOATS", 1):
        assert relative_error(fast(rows), in_double(tokens, rows)) < 1e-5


def test_empty_batches() -> None:
    fast = sparsity.compile(wide(), torch.randn(2, 3, 32, 32), tune=False)
    assert fast(torch.empty(0, 3, 32, 32)).shape == (0, 10)


def test_other_sizes_compile_again_once() -> None:
    net = wide()
    fast = sparsity.compile(net, torch.randn(2, 3, 32, 32), tune=False)
    before = fast.nbytes
    x = torch.randn(2, 3, 24, 40)
    assert relative_error(fast(x), in_double(net, x)) < 1e-5
    kept = fast.nbytes
    assert kept > before
    with mock.patch.object(_build_net, "look", side_effect=AssertionError("compiled again")):
        y = torch.randn(3, 3, 24, 40)
        assert relative_error(fast(y), in_double(net, y)) < 1e-5
        z = torch.randn(3, 3, 32, 32)
        assert relative_error(fast(z), in_double(net, z)) < 1e-5
    assert "compiled again for inputs [2, 3, 24, 40]" in str(fast.report())


def test_tokens_of_any_length_need_no_new_compilation() -> None:
    net = perceptron()
    fast = sparsity.compile(net, torch.randn(2, 32), tune=False)
    with mock.patch.object(_build_net, "look", side_effect=AssertionError("compiled again")):
        for shape in ((1, 32), (7, 32), (2, 3, 32), (1, 1, 32)):
            x = torch.randn(*shape)
            assert relative_error(fast(x), in_double(net, x)) < 1e-5


def test_pickle_and_copy() -> None:
    net = wide()
    fast = sparsity.compile(net, torch.randn(2, 3, 32, 32), tune=False)
    x = torch.randn(3, 3, 32, 32)
    copied = copy.deepcopy(fast)
    assert torch.equal(copied(x), fast(x))
    stored = pickle.dumps(fast)
    # The values and one bit per weight, where zeros prevail.
    assert len(stored) < 8 * fast.report().nonzeros + 300_000
    loaded = pickle.loads(stored)
    assert torch.equal(loaded(x), fast(x))
    for got, expected in zip(loaded.head_outputs(x), fast.head_outputs(x), strict=True):
        assert torch.equal(got, expected)
    buffer = io.BytesIO()
    torch.save(fast, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), fast(x))


def test_what_is_trained_later_does_not_show() -> None:
    net = perceptron()
    x = torch.randn(2, 32)
    fast = sparsity.compile(net, x, tune=False)
    before = fast(x)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)
    assert torch.equal(fast(x), before)


def test_state_and_modes() -> None:
    fast = sparsity.compile(perceptron(), torch.randn(2, 32), tune=False)
    outer = nn.Sequential(fast, nn.Linear(8, 2))
    assert list(fast.state_dict()) == []
    assert list(outer.state_dict()) == ["1.weight", "1.bias"]
    outer.load_state_dict(outer.state_dict())
    assert fast.eval() is fast
    assert fast.cpu() is fast
    assert fast.float() is fast
    with pytest.raises(sparsity.CompileError, match="inference only"):
        fast.train()
    with pytest.raises(sparsity.CompileError, match="float32"):
        fast.double()
    with pytest.raises(sparsity.CompileError, match="compile again"):
        fast.load_state_dict({"weight": torch.zeros(1)})
    with pytest.raises(sparsity.CompileError, match="no heads"):
        fast.head_outputs(torch.zeros(2, 32))


def test_gradients_are_refused() -> None:
    fast = sparsity.compile(perceptron(), torch.randn(2, 32), tune=False)
    x = torch.randn(2, 32, requires_grad=True)
    with pytest.raises(sparsity.CompileError, match="inference only"):
        fast(x)
    with torch.no_grad():
        assert not fast(x).requires_grad
    assert not fast(x.detach()).requires_grad


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.zeros(2, 32, dtype=torch.float64), "convert it with .float"),
        (torch.zeros(2, 32, dtype=torch.bfloat16), "convert it with .float"),
        (torch.zeros(2, 32, dtype=torch.complex64), "convert it with .float"),
        (torch.zeros(2, 32, device="meta"), "move it with .cpu"),
        (torch.zeros(2, 32).to_sparse(), "to_dense"),
    ],
    ids=["float64", "bfloat16", "complex", "meta", "sparse"],
)
def test_inputs_that_no_kernel_reads(x: Tensor, said: str) -> None:
    fast = sparsity.compile(perceptron(), torch.randn(2, 32), tune=False)
    with pytest.raises(sparsity.CompileError, match=said):
        fast(x)
    with pytest.raises(sparsity.CompileError, match=said):
        sparsity.compile(perceptron(), x)


def test_networks_that_cannot_be_compiled() -> None:
    x = torch.randn(2, 32)
    with pytest.raises(sparsity.CompileError, match=r"fxsplit.trace\(model, example\)"):
        sparsity.compile(nn.Linear(32, 8), x)
    with pytest.raises(sparsity.CompileError, match="GraphModule"):
        sparsity.compile("net", x)
    with pytest.raises(sparsity.CompileError, match=r"net.eval\(\)"):
        sparsity.compile(perceptron().train(), x)
    with pytest.raises(sparsity.CompileError, match="float32"):
        sparsity.compile(perceptron().double(), x)
    with pytest.raises(sparsity.CompileError, match="on meta"):
        sparsity.compile(perceptron().to("meta"), x)


@pytest.mark.parametrize(
    ("example", "said"),
    [
        (torch.zeros(0, 32), "empty"),
        ((), "no tensor"),
        ("x", "must be a tensor"),
        (torch.zeros(2, 31), "does not run with this example"),
        ({"y": torch.zeros(2, 32)}, "does not run with this example"),
        ((torch.zeros(2, 32), torch.zeros(2, 32)), "does not run with this example"),
    ],
    ids=["empty", "nothing", "text", "shape", "name", "count"],
)
def test_examples_that_do_not_fit(example: Any, said: str) -> None:
    with pytest.raises(sparsity.CompileError, match=said):
        sparsity.compile(perceptron(), example, tune=False)


def test_examples_by_name_and_position() -> None:
    net, x = perceptron(), torch.randn(2, 32)
    for example in (x, (x,), {"input": x}, ((x,), {}), ((), {"input": x})):
        assert relative_error(sparsity.compile(net, example, tune=False)(input=x), in_double(net, x)) < 1e-5


def test_threads_are_checked() -> None:
    with pytest.raises(sparsity.CompileError, match="threads"):
        sparsity.compile(perceptron(), torch.zeros(1, 32), threads=0)
    net, x = perceptron(), torch.randn(2, 32)
    one, two = (sparsity.compile(net, x, threads=count, tune=False)(x) for count in (1, 2))
    assert torch.equal(one, two)


def test_a_dense_network_runs_and_says_so() -> None:
    net, x = perceptron(share=0), torch.randn(64, 32)
    with pytest.warns(sparsity.NoEffectWarning, match="no weight is zero"):
        fast = sparsity.compile(net, x, tune=False)
    assert relative_error(fast(x), in_double(net, x)) < 1e-5
    assert "gained nothing" in str(fast.report())


def test_tuning_falls_back_to_the_faster_network() -> None:
    net, x = wide(), torch.randn(1, 3, 32, 32)
    with (
        mock.patch.object(_build_net, "seconds", lambda calls, *rest: [2.0, 1.0][: len(calls)]),
        pytest.warns(sparsity.NoEffectWarning, match=r"2000.00 ms against 1000.00 ms of the dense network"),
    ):
        fast = sparsity.compile(net, x)
    report = fast.report()
    assert report.regions == 0
    assert {layer.kernel for layer in report.layers} == {"dense"}
    assert "fell back to the dense network" in str(report)
    assert relative_error(fast(x), in_double(net, x)) < 1e-5


def test_tuning_measures_and_remembers(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tuned, "cache_directory", lambda: tmp_path)
    _tuned.forget()
    net, x = wide(), torch.randn(1, 3, 32, 32)
    with mock.patch.object(_cost, "_CLEAR", 1e9):
        first = sparsity.compile(net, x)
        assert all(layer.reason.startswith("measured") for layer in first.report().layers)
        assert all(layer.measured for layer in first.report().layers)
        (file,) = tmp_path.glob("tuned-*.json")
        _tuned.forget()
        with mock.patch.object(_cost, "_measure", side_effect=AssertionError("measured again")):
            sparsity.compile(net, x)
        file.write_text("{broken")
        _tuned.forget()
        again = sparsity.compile(net, x)
    assert relative_error(again(x), in_double(net, x)) < 1e-5
    _tuned.forget()


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_plan(*args: Any, **kwargs: Any) -> Any:
        raise sparsity.BuildError("no C++ compiler was found")

    net, x = perceptron(0.95), torch.randn(2, 32)
    monkeypatch.setattr(_assemble, "choose", no_plan)
    with pytest.warns(sparsity.SparsityWarning, match="can't be built") as caught:
        fast = sparsity.compile(net, x)
    assert len(caught) == 1
    report = fast.report()
    assert {layer.reason for layer in report.layers} == {"no sparse kernels, CSR in torch"}
    assert any("no C++ compiler was found" in note for note in report.notes)
    assert relative_error(fast(x), in_double(net, x)) < 1e-5
    assert relative_error(pickle.loads(pickle.dumps(fast))(x), in_double(net, x)) < 1e-5


def test_inside_torch_compile_and_export() -> None:
    net = wide()
    fast = sparsity.compile(net, torch.randn(2, 3, 32, 32), tune=False)
    x = torch.randn(2, 3, 32, 32)
    doubled = torch.compile(lambda x: fast(x) * 2, backend="aot_eager", fullgraph=True)
    assert torch.equal(doubled(x), fast(x) * 2)

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fast = fast

        def forward(self, x: Tensor) -> Tensor:
            return self.fast(x).softmax(1)

    exported = torch.export.export(Wrapper(), (x,))
    assert torch.equal(exported.module()(x), fast(x).softmax(1))
    calls = [node for node in exported.graph.nodes if "sparsity.run" in str(node.target)]
    assert len(calls) >= 1


def test_the_operator_passes_torchs_own_checks() -> None:
    with mock.patch.object(_cost, "sparse_seconds", return_value=1e-9):
        fast = sparsity.compile(perceptron(), torch.randn(2, 32), tune=False)
    (region,) = fast.program.children()
    torch.library.opcheck(torch.ops.sparsity.run.default, ([torch.randn(3, 32)], region.handle))


def test_a_graph_whose_network_is_gone() -> None:
    with pytest.raises(sparsity.CompileError, match="no longer exists"):
        torch.ops.sparsity.run([torch.zeros(1)], -1)


def test_importing_works_without_a_compiler() -> None:
    code = "import sparsity, sys; print(sparsity.compile.__name__, 'sparsity.runtime._net' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env={"PATH": "/nowhere", "HOME": "/nowhere", "CXX": "/nowhere/c++"},
        check=True,
    )
    assert done.stdout.split() == ["compile", "False"]


def test_nothing_warns_on_a_plain_compilation() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparsity.compile(wide(), torch.randn(1, 3, 32, 32))

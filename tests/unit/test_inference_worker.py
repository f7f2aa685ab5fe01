"""The worker process that holds DeepSparse: its messages, its failures, and the files it is given."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from benchmarks.inference._case import Case
from benchmarks.inference._deepsparse import DeepSparse
from benchmarks.inference._downgrade import downgrade, rewrite
from benchmarks.inference._errors import EngineError
from benchmarks.inference._nets import catalogue, choose
from benchmarks.inference._remote import Remote

# As DeepSparse is used: an engine that returns twice its input, and does as the name of the file says.
FAKE = """
import os, time
import numpy as np
__version__ = "7.8.9"
print("a banner on standard output")

class Engine:
    def __init__(self, path, batch_size, num_cores, input_shapes):
        self.path, self.batch, self.cores, self.shapes = path, batch_size, num_cores, input_shapes
        self.fraction_of_supported_ops = 0.75 if "partly" in path else 1.0
        if "slowly" in path:
            time.sleep(60)
        if "refused" in path:
            raise ValueError("an operation of a kind unknown")
        if "deadly" in path:
            os.write(2, b"planner: out of bounds\\n")
            os.abort()

    def run(self, inputs):
        assert [list(x.shape) for x in inputs] == self.shapes
        return [2 * inputs[0], np.array([self.batch, self.cores])]
"""


@pytest.fixture
def remote(tmp_path: Path) -> Any:
    (tmp_path / "fakesparse.py").write_text(FAKE)
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    worker = "benchmarks.inference._deepsparse_worker"
    one = Remote([sys.executable, "-m", worker, "fakesparse"], {"PYTHONPATH": paths}, str(tmp_path))
    yield one
    one.close()


def _compile(remote: Remote, path: str, array: np.ndarray, **options: Any) -> dict[str, Any]:
    message = {"do": "compile", "path": path, "batch": 4, "threads": 2}
    answer, _ = remote.ask(message, [array], **options)
    return answer


def test_a_network_is_compiled_run_timed_and_dropped(remote: Remote) -> None:
    assert remote.ask({"do": "hello"}) == ({"version": "7.8.9"}, [])
    array = np.arange(8, dtype=np.float32).reshape(4, 2)
    first, second = _compile(remote, "a.onnx", array), _compile(remote, "partly.onnx", array + 1)
    assert (first["id"], first["coverage"], second["id"], second["coverage"]) == (1, 1.0, 2, 0.75)
    _, (doubled, settings) = remote.ask({"do": "run", "id": 1})
    assert doubled.dtype == np.float32
    np.testing.assert_array_equal(doubled, 2 * array)
    assert settings.tolist() == [4, 2]
    np.testing.assert_array_equal(remote.ask({"do": "run", "id": 2})[1][0], 2 * array + 2)
    answer, _ = remote.ask({"do": "time", "id": 1, "runs": 5})
    assert len(answer["seconds"]) == 5
    assert all(0 < seconds < 1 for seconds in answer["seconds"])
    remote.ask({"do": "drop", "id": 1})
    with pytest.raises(EngineError, match="KeyError: 1"):
        remote.ask({"do": "run", "id": 1})


def test_large_arrays_pass_whole(remote: Remote) -> None:
    array = np.random.default_rng(0).standard_normal((4, 1 << 18))  # 8 MB, more than a pipe holds
    _compile(remote, "a.onnx", array)
    np.testing.assert_array_equal(remote.ask({"do": "run", "id": 1})[1][0], 2 * array)


def test_a_refusal_is_told_and_the_worker_goes_on(remote: Remote) -> None:
    with pytest.raises(EngineError, match="ValueError: an operation of a kind unknown"):
        _compile(remote, "refused.onnx", np.zeros((4, 2)))
    assert remote.ask({"do": "hello"})[0]["version"] == "7.8.9"


def test_a_crash_is_told_with_the_last_words(remote: Remote) -> None:
    with pytest.raises(EngineError, match="its process ended: signal 6; planner: out of bounds"):
        _compile(remote, "deadly.onnx", np.zeros((4, 2)))
    assert not remote.alive
    with pytest.raises(EngineError, match="its process ended"):
        remote.ask({"do": "hello"})


def test_patience_has_an_end(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.inference._remote._TICK", 0.1)
    remote.ask({"do": "hello"})
    waited: list[float] = []
    start = time.monotonic()
    with pytest.raises(EngineError, match=r"no answer after 1 s"):
        _compile(remote, "slowly.onnx", np.zeros((4, 2)), limit=0.6, waiting=waited.append)
    assert time.monotonic() - start < 20
    assert len(waited) >= 3
    assert waited == sorted(waited)


def _case(folder: Path) -> Case:
    (net,) = choose(catalogue(folder, quick=True), ["wrn-erk-.8"])
    return Case(net, 2, net.build(), net.inputs(2), folder)


def _engine(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> DeepSparse:
    (folder / "fakesparse.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return DeepSparse(Path(sys.executable), "fakesparse")


def test_the_engine_restarts_a_worker_that_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = _engine(tmp_path, monkeypatch, FAKE.replace('"deadly" in path', "num_cores == 3"))
    case = _case(tmp_path)
    with pytest.raises(EngineError, match="its process ended: signal 6"):
        engine.prepare(case, threads=3)
    runner = engine.prepare(case, threads=1)
    np.testing.assert_array_equal(runner.output(), 2 * case.inputs.numpy())
    assert len(runner.time(3)) == 3
    assert len(engine.pids()) == 1
    engine.close()
    assert engine.pids() == ()


def test_an_engine_that_leaves_work_to_another_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = _engine(tmp_path, monkeypatch, FAKE.replace('"partly" in path', "True"))
    with pytest.raises(EngineError, match=r"runs only 75\.0% of the operations itself"):
        engine.prepare(_case(tmp_path), threads=1)
    engine.close()


def test_a_package_that_can_not_be_loaded_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = _engine(tmp_path, monkeypatch, "raise ImportError('built for another numpy')")
    with pytest.raises(EngineError, match="exit status 1; ImportError: built for another numpy"):
        engine.version()
    engine.close()


def test_the_file_for_deepsparse_computes_the_same(tmp_path: Path) -> None:
    case = _case(tmp_path)
    path = downgrade(case.onnx(), tuple(case.inputs.shape))
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert (model.ir_version, [opset.version for opset in model.opset_import]) == (8, [17])
    kinds = [node.op_type for node in model.graph.node]
    assert "ReduceMean" not in kinds
    assert kinds.count("GlobalAveragePool") == 3  # one per head
    assert "Sum" not in kinds
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": case.inputs.numpy()})
    np.testing.assert_allclose(np.asarray(found), case.expected, rtol=0, atol=1e-5 * np.abs(case.expected).max())
    assert session.get_inputs()[0].shape == [2, 3, 32, 32]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_sum_becomes_a_chain_of_additions(count: int) -> None:
    names = [f"x{i}" for i in range(count)]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in names]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    graph = helper.make_graph([helper.make_node("Sum", names, ["y"], name="vote")], "g", values, [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    rewrite(model)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Add"] * (count - 1)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {name: np.array([10.0**i, 1.0], np.float32) for i, name in enumerate(names)}
    (found,) = session.run(None, feed)
    assert np.asarray(found).tolist() == [sum(10.0**i for i in range(count)), count]


@pytest.mark.parametrize(("axes", "keepdims", "rank"), [([1, 2], 1, 4), ([2, 3], 0, 4), ([-1], 1, 3), ([2, 3], 1, 5)])
def test_other_means_stay(axes: list[int], keepdims: int, rank: int) -> None:
    node = helper.make_node("ReduceMean", ["a"], ["y"], axes=axes, keepdims=keepdims)
    shape = list(range(2, 2 + rank))
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["a"]), node], "g", values, [result])
    model = onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    rewrite(model)
    assert [node.op_type for node in model.graph.node] == ["Relu", "ReduceMean"]


def test_tokens_are_passed_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = _engine(tmp_path, monkeypatch, FAKE)
    (net,) = choose(catalogue(tmp_path, quick=True), ["llama-decode-.9"])
    case = Case(net, 2, torch.nn.Identity(), net.inputs(2), tmp_path)
    monkeypatch.setattr(Case, "onnx", lambda self: self.folder / "a.onnx")
    monkeypatch.setattr("benchmarks.inference._deepsparse.downgrade", lambda path, shape: path)
    runner = engine.prepare(case, threads=1)
    assert runner.output().dtype == np.int64
    engine.close()

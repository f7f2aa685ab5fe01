"""onnxruntime, on the file that fxsplit.export_onnx writes."""

from __future__ import annotations

from typing import Any

from benchmarks.inference._case import Case
from benchmarks.inference._engine import InProcess, Runner, ready
from benchmarks.inference._errors import EngineError


class OnnxRuntime(InProcess):
    """onnxruntime with all its graph optimisations, every dimension fixed to that of the inputs."""

    key, label, licence = "onnxruntime", "onnxruntime", "MIT"

    def version(self) -> str:
        """Return onnxruntime's version.

        Raises:
            EngineError: It isn't installed.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise EngineError("not installed: pip install 'fxsplit[onnx]'") from error
        return onnxruntime.__version__

    def prepare(self, case: Case, threads: int) -> Runner:
        """Load the network.

        Raises:
            EngineError: It can't be exported or loaded.
        """
        import onnxruntime

        path = case.onnx()
        feed = case.inputs.numpy()

        def make():  # noqa: ANN202 (a callable without arguments)
            session = onnxruntime.InferenceSession(
                str(path), _options(onnxruntime, path, feed.shape, threads), providers=["CPUExecutionProvider"]
            )
            inputs = {session.get_inputs()[0].name: feed}
            outputs = [session.get_outputs()[0].name]
            return lambda: session.run(outputs, inputs)

        try:
            return ready(make, threads, array=lambda outputs: outputs[0])
        except Exception as error:  # pybind's exceptions have no common class
            raise EngineError(f"{type(error).__name__}: {error}") from error


def _options(onnxruntime: Any, path: Any, shape: tuple[int, ...], threads: int) -> Any:
    import onnx

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Its threads wait in a loop for the next run; the next one is another engine's, and would share its cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    (declared,) = onnx.load(path, load_external_data=False).graph.input
    for dim, size in zip(declared.type.tensor_type.shape.dim, shape, strict=True):
        if dim.dim_param:
            options.add_free_dimension_override_by_name(dim.dim_param, size)
    return options

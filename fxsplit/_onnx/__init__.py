"""Export to ONNX, checked against onnxruntime."""

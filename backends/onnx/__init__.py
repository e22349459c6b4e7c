"""Emits ONNX models: of the standard operators, or with ONNX Runtime's own."""

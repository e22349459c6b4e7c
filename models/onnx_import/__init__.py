"""ONNX models as a source: a graph that some exporter made comes back to the captured level."""

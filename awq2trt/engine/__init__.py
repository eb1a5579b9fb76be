"""ONNX model -> TensorRT-RTX engine: the builder, its session, optimization profiles, and predictions of memory."""

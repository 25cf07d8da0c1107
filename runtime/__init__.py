"""Recommends from a bundle with numpy and ONNX Runtime alone."""

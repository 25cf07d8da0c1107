"""Stages to ONNX, the bundle, and the checks that the exported graphs compute what torch computes."""

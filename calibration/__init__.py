"""Quantized bundles that keep their recommendations."""

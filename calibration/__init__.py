"""Quantized bundles that keep their recommendations (to come)."""

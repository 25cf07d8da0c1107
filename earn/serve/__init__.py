"""Bundles behind HTTP: dynamic batching, sessions, swaps of the catalog, metrics (`earn serve`)."""

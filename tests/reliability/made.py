"""The bundles that are tried: untrained, as only their forms and their speed matter here."""

from __future__ import annotations

from pathlib import Path


def make(folder: Path, items: int, seed: int, sizes: dict[str, int]) -> None:
    """Writes a bundle of a tiny model over so many items; run it in a process of its own, as it loads torch."""
    from earn.catalog import Catalog
    from earn.export.bundle import export_bundle
    from earn.model.backbones import load_backbone
    from earn.model.earn_model import EarnModel

    base = next(base for base in range(2, 1000) if base**3 >= items)
    codes = [(number // base**2, number // base % base, number % base) for number in range(items)]
    identifiers = tuple((f"<a_{one}>", f"<b_{two}>", f"<c_{three}>") for one, two, three in codes)
    ids = tuple(map(str, range(items)))
    catalog = Catalog(ids, identifiers, tuple(f"title {number}" for number in ids))
    backbone = load_backbone("tiny-qwen3", seed, sizes)
    model = EarnModel.from_backbone(backbone, catalog, sizes["num_hidden_layers"] // 2, max_history=20)
    export_bundle(model.eval(), folder, [["1", "2", "3"], ["4"]])

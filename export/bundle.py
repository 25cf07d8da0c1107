"""Writes a bundle: exports both stages, checks them, and only then puts it in place.

The stages are held to Hugging Face's own forward pass (`earn.model.family_check`), and the graphs, on real histories,
to the stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from torch import nn

from earn.bundle_edit import bundle_locked
from earn.catalog import CATALOG_FILE
from earn.config import SET
from earn.export.onnx_stages import export_stages
from earn.export.parity import check_parity
from earn.export.stages import MAX_BATCH, MAX_BEAMS, TorchEngine, bundle_model
from earn.export.weights import EXTERNAL_DATA_BYTES
from earn.files import folder_written_whole
from earn.manifest import Manifest, check_graphs, refuse_foreign_folder
from earn.model.earn_model import EarnModel
from earn.model.family_check import check_family, check_stages
from earn.model.stage import EarlyStage, LateStage
from earn.runtime.engine import load_engine


def export_bundle(
    model: EarnModel,
    out: str | Path,
    histories: Sequence[Sequence[str]],
    scoring: str = "trie",
    max_batch: int = MAX_BATCH,
    max_beams: int = MAX_BEAMS,
    external_data_bytes: int = EXTERNAL_DATA_BYTES,
) -> Manifest:
    """Exports a trained model.

    Args:
        model: the trained model; it is moved to the CPU.
        out: folder of the bundle; a bundle that stands there is replaced, any other folder is refused.
        histories: real histories (item ids) that the graphs are checked with.
        scoring: the rule that scores are normalised by, see `bundle_model`.
        max_batch: histories of one pass.
        max_beams: the widest search, and so the longest list.
        external_data_bytes: weights beyond this stand in a file beside the graph.

    Raises:
        EarnError: the stages differ from Hugging Face's own code or the graphs from torch (nothing is written then), or
            `out` is something else than a bundle, or another process is changing the bundle there.
    """
    out = Path(out)
    refuse_foreign_folder(out)
    nn.Module.to(model, "cpu")  # where the example is that gets traced
    bundle = bundle_model(model, scoring, max_batch, max_beams)
    early, late = cast(EarlyStage, bundle.stages["early"]), cast(LateStage, bundle.stages["late"])
    if model.earn.method == SET:  # whose tables the backbone does not have; the layers are the same
        check_family(model.backbone, "The model")
    else:
        check_stages(model.backbone, early, late, bundle.embedded, bundle.predicted)
    with bundle_locked(out), folder_written_whole(out) as folder:
        export_stages(bundle, model.config, folder, external_data_bytes)
        model.catalog.save(folder / CATALOG_FILE, with_trie=model.earn.method != SET)
        manifest = bundle.manifest.with_files(folder)
        check_graphs(folder, manifest)
        reference, candidate = TorchEngine(bundle.stages), load_engine("cpu", folder, manifest)
        parity = check_parity(reference, candidate, manifest, model.catalog, histories)
        manifest = replace(manifest, parity=parity)
        manifest.save(folder)
    return manifest

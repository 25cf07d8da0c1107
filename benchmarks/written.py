"""What the sides of `benchmarks/peers.py` read: bundles, and the dense model for CTranslate2.

folder/bundles/<split>/fp32         exported with all rows of the head
folder/bundles/<split>/<precision>  calibrated, without asking the gate
folder/ctranslate2                  the dense weights in fp32
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.engines import CTranslate2
from benchmarks.sides import Contender, Task, Tokens
from earn.calibration.calibrate import CalibrationSettings, calibrate
from earn.calibration.gate import HeldOut
from earn.calibration.refine import LEVELS
from earn.calibration.variants import MixedPrecision
from earn.console import note
from earn.errors import EarnError
from earn.export.bundle import export_bundle
from earn.model.earn_model import EarnModel

CALIBRATED = {  # a bundle's name: the precision, and what is not plainly quantized
    "int8": ("int8", MixedPrecision()),
    "int8-refined": ("int8", MixedPrecision(refined_kinds=LEVELS[0])),
    "int8-dynamic": ("int8-dynamic", MixedPrecision()),
    "int8-int4": ("int8-int4", MixedPrecision()),
}
NEAR = {"float32": 0.001, "int8": 0.3}  # mean difference of log-probabilities from torch's, beside their spread
# A backbone's model_type -> the class that reads it in ctranslate2.converters.transformers.
LOADERS: Mapping[str, str] = {
    "llama": "LlamaLoader",
    "mistral": "MistralLoader",
    "qwen2": "Qwen2Loader",
    "qwen3": "Qwen3Loader",
}


def write(
    task: Task,
    folder: Path,
    items: Sequence[Sequence[int]],
    chosen: Mapping[str, Contender],
    int8: Path | None = None,
) -> bool:
    """Writes bundles, and the model for CTranslate2 if it is installed; says whether it is.

    Args:
        items: histories as item indices, of which graphs are checked and calibrated.
        int8: the bundle of EARN in int8; None: one is made.
    """
    if has_ctranslate2 := find_spec("ctranslate2") is not None:
        note("converting for ctranslate2")
        backbone = task.backbone("dense")
        convert(backbone, folder / "ctranslate2")
        sequences = [[*task.prompt(history), *task.identifiers[history[0]]] for history in items]
        want = log_probabilities(backbone, sequences)
        check_ctranslate2(folder / "ctranslate2", task, sequences, want)
    else:
        note("without ctranslate2_int8, which is not installed: pip install ctranslate2")
    histories = list(map(task.item_ids, items))
    for split, config in task.splits.items():
        given = {"int8": int8} if int8 and split == "earn" else {}
        model = EarnModel(task.backbone(split), config, task.catalog).eval()
        precisions = {side.precision for side in chosen.values() if side.split == split} - given.keys()
        own = folder / "bundles" / split
        write_bundles(model, own, histories, [name for name in CALIBRATED if name in precisions])
        for name, bundle in given.items():
            (own / name).symlink_to(bundle.resolve(), target_is_directory=True)
    return has_ctranslate2


def write_bundles(
    model: EarnModel,
    folder: Path,
    histories: Sequence[Sequence[str]],
    calibrated: Sequence[str],
    scoring: str = "vocab",
) -> None:
    """Exports to folder/fp32 and calibrates to folder/<name>.

    No gate is asked: calibration only gives the graphs their form and ranges, for which few histories serve.
    """
    note(f"exporting {folder.name}")
    export_bundle(model, folder / "fp32", histories[:1], scoring)
    gc.collect()  # the exporter leaves copies of the weights in cycles
    users = HeldOut((tuple(histories[0]),), (histories[0][0],))
    for name in calibrated:
        note(f"calibrating {folder.name} to {name}")
        precision, mixed = CALIBRATED[name]
        settings = CalibrationSettings(least_overlap=0, mixed=mixed, explain=False, compare=False, requests=0)
        calibrate(folder / "fp32", folder / name, histories, users, precision, settings)
        gc.collect()


def check_ctranslate2(folder: Path, task: Task, sequences: Sequence[Sequence[int]], want: Any) -> None:
    """Stops where it computes other log-probabilities than torch."""
    for kind, near in NEAR.items():
        got = CTranslate2(folder, task.threads, kind).log_probabilities(sequences)
        error = float(np.abs(got - want).mean() / want.std())
        note(f"ctranslate2 in {kind}: log-probabilities differ from torch's by {error:.2g} of their spread")
        if error > near:
            sys.exit("CTranslate2 does not compute the same model, so its times say nothing.")


def convert(backbone: PreTrainedModel, folder: Path) -> None:
    """Writes the weights for CTranslate2, which makes int8 of them when they are loaded.

    Raises:
        EarnError: they are of a family without a row in LOADERS.
    """
    family = backbone.config.model_type
    if family not in LOADERS:
        raise EarnError(
            f"CTranslate2 is asked for models of {', '.join(LOADERS)}, not of {family!r}. Take one of these."
        )
    loader = getattr(import_module("ctranslate2.converters.transformers"), LOADERS[family])()
    spec = loader.get_model_spec(deepcopy(backbone))  # which it takes apart
    # Token 0 is in no identifier; as the end it is held back until `min_length`, and more is never asked for.
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = "0"
    spec.register_vocabulary([str(token) for token in range(backbone.config.vocab_size)])
    spec.validate()
    spec.optimize(quantization="float32")
    folder.mkdir(parents=True)
    spec.save(str(folder))


@torch.no_grad()
def log_probabilities(backbone: PreTrainedModel, sequences: Sequence[Tokens]) -> Any:  # [sequences, tokens - 1]
    """Torch's log-probability of every token of equally long sequences but the first."""
    tokens = torch.tensor(sequences)
    scores: Tensor = backbone(tokens).logits[:, :-1].log_softmax(-1)
    return scores.gather(2, tokens[:, 1:, None])[..., 0].numpy()

from __future__ import annotations

import os

# Before any library reads them: small arrays are slower on many threads, and no test may ask the Hugging Face hub.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # as the command sets it
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import gc
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime
import pytest

if TYPE_CHECKING:
    from earn.model.earn_model import EarnModel


class OneThread(onnxruntime.SessionOptions):  # type: ignore[misc]
    """ONNX Runtime's options with one thread, where the test does not say how many: more wait for each other, at full
    speed, longer than they work on a tiny model."""

    def __init__(self) -> None:
        super().__init__()
        self.intra_op_num_threads = 1


onnxruntime.SessionOptions = OneThread


def pytest_sessionstart() -> None:
    """While libraries and tests are imported, garbage is not looked for: next to nothing of them is ever freed."""
    gc.disable()


def pytest_collection_finish() -> None:
    """From here on it is, but not among the libraries."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def toy_model() -> EarnModel:
    """A model over the toy catalog: two early and two late layers, a history of at most 6 items."""
    from tests.support import small_model  # not at the top: the process that only hands out tests needs no torch

    return small_model("tiny-qwen3", early_layers=2, max_history=6)


@pytest.fixture(scope="session")
def toy_bundle(toy_model: EarnModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported toy model; not to be changed."""
    from earn.export.bundle import export_bundle

    folder = tmp_path_factory.mktemp("toy") / "bundle"
    export_bundle(toy_model, folder, [["1", "2", "3"], ["4"]], max_batch=4, max_beams=24)
    return folder


@pytest.fixture
def bundle(toy_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the toy bundle, to be changed."""
    return Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))

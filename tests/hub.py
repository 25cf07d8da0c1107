"""A repository of the Hugging Face Hub as it lies in the cache, for no test has a network."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def hub_of(bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Puts a bundle into a cache, as main and v1 of the repository whose place is returned."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    repository = cache / "models--org--movies"
    for folder in ("refs", "blobs", f"snapshots/{COMMIT}"):
        (repository / folder).mkdir(parents=True)
    for name in ("main", "v1"):
        (repository / "refs" / name).write_text(COMMIT)
    for path in bundle.iterdir():
        shutil.copy(path, repository / "blobs" / path.name)
        (repository / "snapshots" / COMMIT / path.name).symlink_to(Path("../../blobs", path.name))
    return "hf://org/movies"

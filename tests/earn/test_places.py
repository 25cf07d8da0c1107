"""Where a bundle may be: one file, and a repository of the Hugging Face Hub (its cache, as no test has a network)."""

from __future__ import annotations

import io
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest

from earn.errors import EarnError
from earn.manifest import Manifest
from earn.places import bundle_at, pack
from earn.runtime.recommender import Recommender
from tests.hub import COMMIT, hub_of


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_a_packed_bundle_answers_as_its_folder_does_and_leaves_nothing(
    bundle: Path, tmp_path: Path, temporary: Path
) -> None:
    (bundle / "engines").mkdir()
    (bundle / "engines/cache").write_text("of this machine")
    manifest = pack(bundle, tmp_path / "one.zip")
    assert manifest == Manifest.load(bundle)
    want = Recommender.load(bundle, threads=1).recommend(["1", "2"])
    assert Recommender.load(tmp_path / "one.zip", threads=1).recommend(["1", "2"]) == want
    assert [*temporary.iterdir()] == []
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert archive.namelist() == ["manifest.json", *sorted(manifest.files)]
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}


def test_the_same_bundle_gives_the_same_bytes(toy_bundle: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        pack(Path(shutil.copytree(toy_bundle, tmp_path / name)), tmp_path / f"{name}.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def archive(*members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", compression) as file:
        for name, content in members:
            file.writestr(name, content)
    return memory.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a packed bundle"),
        (b"PK\x03\x04 and no more", "not a packed bundle"),
        (archive(("../outside", b"")), "lies outside"),
        (archive(("/outside", b"")), "lies outside"),
        (archive(("manifest.json", bytes(1 << 20)), compression=zipfile.ZIP_DEFLATED), "claim more than"),
        (archive(*((f"{number}", b"") for number in range(1001))), "1001 members"),
        (archive(("manifest.json", b"{}")), "one.zip: manifest.json: not a manifest"),
    ],
)
def test_what_is_no_packed_bundle_is_refused(tmp_path: Path, temporary: Path, content: bytes, says: str) -> None:
    (tmp_path / "one.zip").write_bytes(content)
    with pytest.raises(EarnError, match=says):
        Recommender.load(tmp_path / "one.zip")
    assert [*temporary.iterdir()] == []
    assert not (tmp_path / "outside").exists()


def test_a_cut_or_changed_packed_bundle_is_refused_or_holds_the_same_bundle(toy_bundle: Path, tmp_path: Path) -> None:
    pack(toy_bundle, tmp_path / "one.zip")
    whole = (tmp_path / "one.zip").read_bytes()
    want = Recommender.load(toy_bundle, threads=1)
    history = want.catalog.item_ids[:2]
    for place in range(0, len(whole), len(whole) // 25):
        (tmp_path / "one.zip").write_bytes(whole[:place])
        with pytest.raises(EarnError):
            Recommender.load(tmp_path / "one.zip", threads=1)
        (tmp_path / "one.zip").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with suppress(EarnError):  # a date in a zip's table says nothing about the bundle
            got = Recommender.load(tmp_path / "one.zip", threads=1)
            assert got.recommend(history, k=3) == want.recommend(history, k=3)


def test_a_damaged_bundle_is_not_packed(bundle: Path, tmp_path: Path) -> None:
    (bundle / "catalog.npz").write_bytes(b"")
    with pytest.raises(EarnError, match=r"catalog\.npz: has 0 bytes"):
        pack(bundle, tmp_path / "one.zip")
    assert not (tmp_path / "one.zip").exists()


@pytest.mark.parametrize("revision", ["", "@main", "@v1", f"@{COMMIT}"])
def test_a_repository_is_a_bundle(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str
) -> None:
    place = hub_of(toy_bundle, tmp_path, monkeypatch) + revision
    want = Recommender.load(toy_bundle, threads=1).recommend(["1", "2"])
    assert Recommender.load(place, threads=1).recommend(["1", "2"]) == want


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("hf://movies", "names no repository"),
        ("hf://org/movies/../..", "names no repository"),
        ("hf://org/absent", "cannot be fetched"),
    ],
)
def test_a_repository_that_cannot_be_had_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, says: str
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EarnError, match=f"{place}.*{says}"), bundle_at(place):
        pass

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from earn.catalog import Catalog
from earn.errors import EarnError
from earn.exchange import only_writer
from earn.export.bundle import export_bundle
from earn.manifest import Manifest
from earn.model.earn_model import EarnModel
from earn.model.reference import reference_search
from earn.runtime.engine import load_engine
from earn.runtime.memory import HOST, Array
from earn.runtime.recommender import Recommender
from earn.specs import STAGES
from tests.support import RULES, Agreement, pairs, small_model

HISTORIES = [["1", "2", "3"], ["4"]]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_bundle_holds_graphs_catalog_and_manifest(toy_bundle: Path, toy_model: EarnModel) -> None:
    assert names(toy_bundle) == ["catalog.npz", "early.onnx", "late.onnx", "manifest.json"]
    assert names(toy_bundle.parent) == ["bundle"]
    assert Catalog.load(toy_bundle / "catalog.npz") == toy_model.catalog


@pytest.mark.parametrize("scoring", RULES)
def test_the_rule_decides_the_rows_of_the_head(toy_model: EarnModel, tmp_path: Path, scoring: str) -> None:
    (tmp_path / "bundle").mkdir()  # an empty folder is taken
    manifest = export_bundle(toy_model, tmp_path / "bundle", HISTORIES, scoring)
    known = len(toy_model.catalog.tokens)
    assert manifest.sizes.logits == known + (3 if scoring == "vocab" else 0)  # BOS and two registers
    agreement = Agreement()
    want = reference_search(toy_model, [1, 2], scoring=scoring)
    agreement.add(scoring, want, pairs(Recommender.load(tmp_path / "bundle").recommend([1, 2])))
    agreement.check()


def test_large_weights_are_listed_and_checked_too(toy_model: EarnModel, tmp_path: Path) -> None:
    out = tmp_path / "missing" / "bundle"
    manifest = export_bundle(toy_model, out, HISTORIES, external_data_bytes=1)
    assert set(manifest.files) == {"catalog.npz", *(f"{stage}.onnx{end}" for stage in STAGES for end in ("", ".data"))}
    assert Manifest.load(out) == manifest
    agreement = Agreement()
    agreement.add("search", reference_search(toy_model, [1, 2]), pairs(Recommender.load(out).recommend([1, 2])))
    agreement.check()
    data = bytearray((out / "late.onnx.data").read_bytes())
    data[0] ^= 1
    (out / "late.onnx.data").write_bytes(bytes(data))
    with pytest.raises(EarnError, match=r"late\.onnx\.data: its SHA-256"):
        Recommender.load(out)


class Off:
    """An engine that answers a little off."""

    device = HOST

    def __init__(self, *arguments: Any) -> None:
        self._engine = load_engine(*arguments)

    def run(self, stage: str, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        self._engine.run(stage, feeds, outputs)
        for array in outputs.values():
            array += 0.1


@pytest.fixture
def graphs_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("earn.export.bundle.load_engine", Off)


@pytest.mark.parametrize("path", ["photos/cat.jpg", "manifest.json", "file"])
def test_what_is_no_bundle_is_not_replaced(toy_model: EarnModel, tmp_path: Path, path: str) -> None:
    out = tmp_path / "out"
    mine = out if path == "file" else out / path
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text('{"name": "a web app"}')
    with pytest.raises(EarnError, match="exists and is not a bundle"):
        export_bundle(toy_model, out, HISTORIES)
    assert mine.read_text() == '{"name": "a web app"}'
    assert names(tmp_path) == ["out"]


@pytest.mark.usefixtures("graphs_are_off")
def test_a_bundle_that_stands_there_stays_when_the_export_fails(toy_model: EarnModel, bundle: Path) -> None:
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    for out in (bundle, bundle.parent / "new"):
        with pytest.raises(
            EarnError, match=r"do not compute what torch computes.*differs by 0\.1.*Nothing was written"
        ):
            export_bundle(toy_model, out, HISTORIES)
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    assert names(bundle.parent) == ["bundle"]


def test_a_bundle_that_another_process_is_changing_is_not_replaced(toy_model: EarnModel, bundle: Path) -> None:
    before = (bundle / "manifest.json").read_bytes()
    with only_writer(bundle), pytest.raises(EarnError, match="another process is changing it"):
        export_bundle(toy_model, bundle, HISTORIES)
    assert (bundle / "manifest.json").read_bytes() == before
    assert names(bundle.parent) == ["bundle"]


def test_a_bundle_is_replaced_whole(bundle: Path) -> None:
    model = small_model("tiny-llama", max_history=3)
    with pytest.raises(EarnError, match="no history to check"):
        export_bundle(model, bundle, [])
    assert Manifest.load(bundle).sizes.family == "qwen3"
    export_bundle(model, bundle, HISTORIES)
    assert names(bundle) == ["catalog.npz", "early.onnx", "late.onnx", "manifest.json"]
    assert Manifest.load(bundle).sizes.family == "llama"
    assert names(bundle.parent) == ["bundle"]


def test_a_file_that_a_user_put_into_a_bundle_is_not_lost(bundle: Path, toy_model: EarnModel) -> None:
    (bundle / "notes.txt").write_text("mine")
    with pytest.raises(EarnError, match=r"notes\.txt, which is no part of the bundle"):
        export_bundle(toy_model, bundle, HISTORIES)
    assert (bundle / "notes.txt").read_text() == "mine"

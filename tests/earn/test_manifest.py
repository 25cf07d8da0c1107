from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from earn.errors import EarnError
from earn.export.stages import bundle_model
from earn.files import sha256
from earn.manifest import FileEntry, Manifest
from earn.model.earn_model import EarnModel
from earn.runtime.recommender import Recommender

Change = Callable[[dict[str, Any]], Any]


def edit(folder: Path, change: Change) -> None:
    """Changes manifest.json in place."""
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def seal(folder: Path) -> None:
    """Lists the bundle's files as they now are."""
    edit(
        folder, lambda value: value.update(files={name: asdict(FileEntry.of(folder / name)) for name in value["files"]})
    )


def test_every_file_is_listed_with_its_size_and_sum(toy_bundle: Path) -> None:
    files = Manifest.load(toy_bundle).files
    there = {path.relative_to(toy_bundle).as_posix() for path in toy_bundle.rglob("*") if path.is_file()}
    assert files.keys() == there - {"manifest.json"} == {"early.onnx", "late.onnx", "catalog.npz"}
    for name, entry in files.items():
        assert entry == FileEntry((toy_bundle / name).stat().st_size, sha256(toy_bundle / name))
    assert Manifest.load(toy_bundle).bundle_bytes == sum(entry.bytes for entry in files.values())


def test_what_was_saved_is_loaded_with_its_fingerprint(toy_bundle: Path, toy_model: EarnModel, bundle: Path) -> None:
    loaded = Manifest.load(toy_bundle)
    assert replace(loaded, files={}, parity=None) == bundle_model(toy_model, max_batch=4, max_beams=24).manifest
    assert (loaded.scoring, loaded.precision) == ("trie", "fp32")
    assert Recommender.load(toy_bundle).manifest.fingerprint == loaded.fingerprint
    measure = {"before": 0.25, "after": 0.25}
    judged = {"passed": True, "users": 9, "beam_set": 20, "beam_set_overlap": 1.0, "top10_overlap": 1.0}
    measured = replace(loaded, accuracy={**judged, "recall@10": measure, "ndcg@10": measure, "limits": {}})
    measured.save(bundle)
    (bundle.parent / "link").symlink_to(bundle)
    for folder in (bundle, bundle.parent / "link"):
        assert Manifest.load(folder) == measured
        assert Manifest.load(folder).fingerprint == measured.fingerprint != loaded.fingerprint


def test_bundles_differ_in_their_fingerprints(toy_bundle: Path) -> None:
    manifest = Manifest.load(toy_bundle)
    graph = manifest.files["late.onnx"]
    others = [
        manifest,
        replace(manifest, scoring="level"),
        replace(manifest, precision="int8"),
        replace(manifest, limits=replace(manifest.limits, beams=23)),
        replace(manifest, sizes=replace(manifest.sizes, heads=2)),
        replace(manifest, model=replace(manifest.model, max_history=5)),
        replace(manifest, files={**manifest.files, "late.onnx": replace(graph, sha256=graph.sha256[::-1])}),
        replace(manifest, parity=None),
        replace(manifest, tools={**manifest.tools, "torch": "0"}),
    ]
    assert len({one.fingerprint for one in others}) == len(others)
    shuffled = replace(manifest, files=dict(reversed(list(manifest.files.items()))))
    assert shuffled.fingerprint == manifest.fingerprint


def test_the_tensor_table_stands_in_it_for_other_languages(toy_bundle: Path) -> None:
    value = json.loads((toy_bundle / "manifest.json").read_text())
    assert value["schema"] == 2
    first = value["tensors"]["early"]["inputs"][0]
    assert first == {"name": "input_ids", "dtype": "int64", "axes": [["b", 1, 1, 4], ["m", 1, 24, 48]]}


@pytest.mark.parametrize("text", ["[]", '"bundle"', "{", "null", '{"schema": 2, "schema": 2}'])
def test_what_is_no_manifest_is_refused(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(EarnError, match=r"manifest\.json"):
        Manifest.load(bundle)


CHANGES: list[tuple[Change, str]] = [
    (lambda value: value.update(colour="red"), "unknown key 'colour'"),
    (lambda value: value["sizes"].update(experts=8), "unknown key 'experts'"),
    (lambda value: value["limits"].update(users=8), "unknown key 'users'"),
    (lambda value: value["model"].update(r=2), "unknown key 'r'"),
    (lambda value: value["model"]["prompt"].update(middle=[]), "unknown key 'middle'"),
    (lambda value: value["files"]["late.onnx"].update(md5=""), "unknown key 'md5'"),
    (lambda value: value.pop("sizes"), r"incomplete \('sizes'\)"),
    (lambda value: value.update(scoring="best"), "no scoring rule 'best'"),
    (lambda value: value.update(files=[]), "incomplete"),
    (lambda value: value["sizes"].pop("heads"), "heads"),
    (lambda value: value["sizes"].update(layers="4"), "manifest.json"),
    (lambda value: value.update(schema=1), "not a manifest of schema 2"),
    (lambda value: value["limits"].update(batch=9), "does not follow from sizes and limits"),
    (lambda value: value.pop("tensors"), "does not follow from sizes and limits"),
    (lambda value: value["files"].pop("late.onnx"), "lists no late.onnx"),
    (lambda value: value["files"].pop("catalog.npz"), "lists no catalog.npz"),
    (lambda value: value["model"].update(prefix_ids=[]), "limits follow from the prompt"),
    (lambda value: value["model"].update(prefix_ids=[9999]), "tokens have rows in the embedding"),
    (lambda value: value["model"].update(prefix_ids=5), "'prefix_ids' is 5"),
    (lambda value: value["model"].update(token_ids=[0]), "Export the checkpoint again"),
    (lambda value: value["model"]["prompt"].update(tail="ab"), "'tail' is 'ab'"),
    (lambda value: value.update(precision="int3"), "precision 'int3' is known"),
    (lambda value: value.update(tools=None), "tools is not an object"),
    (lambda value: value.update(accuracy={}), "accuracy lacks"),
    (lambda value: value.update(files={"early.onnx": 3}), "where FileEntry belongs"),
]


@pytest.mark.parametrize(("change", "says"), CHANGES)
def test_a_manifest_that_is_not_right_is_refused(bundle: Path, change: Change, says: str) -> None:
    edit(bundle, change)
    with pytest.raises(EarnError, match=says):
        Recommender.load(bundle)


def test_missing_and_changed_files_are_refused(bundle: Path) -> None:
    path = bundle / "early.onnx"
    data = path.read_bytes()
    path.write_bytes(data[::-1])
    with pytest.raises(EarnError, match=r"early\.onnx: its SHA-256 is not the manifest's.*Copy the bundle again"):
        Manifest.load(bundle)
    Manifest.load(bundle, verify=False)
    path.write_bytes(data + b"\0")
    with pytest.raises(EarnError, match=r"early\.onnx: has \d+ bytes, the manifest says"):
        Manifest.load(bundle, verify=False)
    path.unlink()
    with pytest.raises(EarnError, match=r"early\.onnx: missing\. Copy the bundle again"):
        Manifest.load(bundle)


@pytest.mark.parametrize(
    "name", ["../secret", "sub/../../secret", "/etc/hostname", "..\\secret", "..", ".", "sub/../late.onnx"]
)
def test_a_path_that_leaves_the_folder_is_refused(bundle: Path, name: str) -> None:
    secret = bundle.parent / "secret"
    secret.write_bytes(b"1")
    (bundle / "sub").mkdir()
    edit(bundle, lambda value: value["files"].update({name: {"bytes": 1, "sha256": sha256(secret)}}))
    with pytest.raises(EarnError, match=r"lies outside the bundle\. Do not use this bundle\."):
        Manifest.load(bundle)


def test_the_remedy_for_a_missing_manifest_fits_what_is_there(bundle: Path, tmp_path: Path) -> None:
    (bundle / "manifest.json").unlink()
    other, empty = tmp_path / "README.md", tmp_path / "empty"
    other.write_text("no bundle")
    empty.mkdir()
    for path, says in (
        (bundle, r"no manifest\.json.*copy the bundle again"),
        (other, r"README\.md: not a packed bundle"),
        (empty, "Write one: earn export CKPT --out"),
    ):
        with pytest.raises(EarnError, match=says):
            Recommender.load(path)


def test_a_link_leads_only_to_what_the_manifest_says(bundle: Path) -> None:
    outside = bundle.parent / "late.onnx"
    os.replace(bundle / "late.onnx", outside)
    (bundle / "late.onnx").symlink_to(outside)
    assert Recommender.load(bundle).recommend(["1"])
    data = bytearray(outside.read_bytes())
    data[len(data) // 2] ^= 1
    outside.write_bytes(bytes(data))
    with pytest.raises(EarnError, match=r"late\.onnx: its SHA-256 is not the manifest's"):
        Manifest.load(bundle, verify=False)

"""Manifests, catalogs, graphs and saved sessions with arbitrary changes are read or refused by an EarnError.

The examples are the same in every run. `EARN_FUZZ=20000 pytest tests/earn/test_fuzz.py` tries so many new ones of each.
"""

from __future__ import annotations

import io
import json
import os
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from earn.catalog import CATALOG_FILE, Catalog
from earn.errors import EarnError
from earn.graph_files import check_graph_file
from earn.manifest import MANIFEST_FILE, Manifest
from earn.runtime.recommender import Recommender

LONG = int(os.environ.get("EARN_FUZZ", "0"))
bounded = settings(
    max_examples=LONG or 25,
    derandomize=not LONG,
    database=None,
    deadline=None,
    suppress_health_check=[*HealthCheck],
)

NUMBERS = st.integers() | st.sampled_from([-1, 0, 2**31, 2**63, 10**9, 10**400]) | st.floats()
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
CHANGES = st.lists(  # of bytes: where, as a share; how many are replaced; by what
    st.tuples(st.floats(0, 1), st.integers(0, 64), st.binary(max_size=16)), min_size=1, max_size=4
)
SEEDS = st.integers(0, 2**32 - 1)


def changed_bytes(data: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
    for share, count, new in changes:
        start = int(share * len(data))
        data = data[:start] + new + data[start + count :]
    return data


def arrays_of(content: bytes) -> dict[str, Any]:
    with np.load(io.BytesIO(content)) as file:
        return dict(file)


def bytes_of(arrays: dict[str, Any]) -> bytes:
    memory = io.BytesIO()
    np.savez(memory, **arrays)
    return memory.getvalue()


def changed_value(value: Any, new: Any, chance: random.Random) -> Any:
    """The value with another one at a place inside it, or as a whole."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(sorted(value))
        return {**value, key: changed_value(value[key], new, chance)}
    if isinstance(value, list) and value and chance.random() < 0.7:
        index = chance.randrange(len(value))
        return [*value[:index], changed_value(value[index], new, chance), *value[index + 1 :]]
    return new


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what is being read; hypothesis has one for all examples."""
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def linked(toy_bundle: Path, place: Path) -> Path:
    """A bundle whose manifest is to be changed."""
    folder = place / "bundle"
    folder.mkdir()
    for path in toy_bundle.iterdir():
        if path.name != MANIFEST_FILE:
            os.link(path, folder / path.name)
    return folder


def read_manifest(folder: Path, content: bytes) -> None:
    """Reads it; what was read has a fingerprint."""
    (folder / MANIFEST_FILE).write_bytes(content)
    try:
        manifest = Manifest.load(folder, verify=False)
    except EarnError:
        return
    assert len(manifest.fingerprint) == 64


@bounded
@given(VALUES, SEEDS)
def test_a_manifest_of_other_values(linked: Path, toy_bundle: Path, new: Any, seed: int) -> None:
    value = json.loads((toy_bundle / MANIFEST_FILE).read_text())
    read_manifest(linked, json.dumps(changed_value(value, new, random.Random(seed))).encode())


@bounded
@given(CHANGES)
def test_a_manifest_of_other_bytes(linked: Path, toy_bundle: Path, changes: list[tuple[float, int, bytes]]) -> None:
    read_manifest(linked, changed_bytes((toy_bundle / MANIFEST_FILE).read_bytes(), changes))


def read_catalog(path: Path, content: bytes) -> Catalog | None:
    """Reads it; what was read makes a trie."""
    path.write_bytes(content)
    try:
        catalog = Catalog.load(path)
    except EarnError:
        return None
    assert len(catalog.trie) > 0
    return catalog


@bounded
@given(CHANGES)
def test_a_catalog_of_other_bytes(toy_bundle: Path, place: Path, changes: list[tuple[float, int, bytes]]) -> None:
    content = (toy_bundle / CATALOG_FILE).read_bytes()
    loaded = read_catalog(place / CATALOG_FILE, changed_bytes(content, changes))
    assert loaded is None or loaded == Catalog.load(toy_bundle / CATALOG_FILE)


@bounded
@given(CHANGES, SEEDS)
def test_a_catalog_of_other_arrays(
    toy_bundle: Path, place: Path, changes: list[tuple[float, int, bytes]], seed: int
) -> None:
    arrays = arrays_of((toy_bundle / CATALOG_FILE).read_bytes())
    name = random.Random(seed).choice(sorted(arrays))
    array = arrays[name]
    data = changed_bytes(array.tobytes(), changes)
    rows = len(data) // (array.strides[0] or 1)
    arrays[name] = np.frombuffer(data[: rows * array.strides[0]], array.dtype).reshape(rows, *array.shape[1:])
    read_catalog(place / CATALOG_FILE, bytes_of(arrays))


@bounded
@given(CHANGES)
def test_a_graph_of_other_bytes(toy_bundle: Path, place: Path, changes: list[tuple[float, int, bytes]]) -> None:
    path = place / "late.onnx"
    path.write_bytes(changed_bytes((toy_bundle / path.name).read_bytes(), changes))
    with suppress(EarnError):
        check_graph_file(path, ())


@pytest.fixture(scope="module")
def saved(toy_bundle: Path) -> tuple[Recommender, bytes]:
    recommender = Recommender.load(toy_bundle, threads=1)
    return recommender, recommender.session(["1", "2", "3"]).to_bytes()


def restore(recommender: Recommender, content: bytes) -> None:
    """Restores a session; a restored one answers, unless its cache holds no numbers."""
    try:
        assert len(recommender.restore_session(content).recommend(3)) == 3
    except EarnError:
        return


@bounded
@given(CHANGES)
def test_a_session_of_other_bytes(saved: tuple[Recommender, bytes], changes: list[tuple[float, int, bytes]]) -> None:
    restore(saved[0], changed_bytes(saved[1], changes))


@bounded
@given(VALUES, SEEDS)
def test_a_session_of_another_header(saved: tuple[Recommender, bytes], new: Any, seed: int) -> None:
    arrays = arrays_of(saved[1])
    header = changed_value(json.loads(arrays["header"].tobytes()), new, random.Random(seed))
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    restore(saved[0], bytes_of(arrays))


@bounded
@given(st.lists(st.tuples(SEEDS, st.floats(width=32)), min_size=1, max_size=5))
def test_a_session_of_other_numbers(saved: tuple[Recommender, bytes], numbers: list[tuple[int, float]]) -> None:
    arrays = arrays_of(saved[1])
    for place, number in numbers:
        arrays["cache"].flat[place % arrays["cache"].size] = number
    restore(saved[0], bytes_of(arrays))

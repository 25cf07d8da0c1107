"""The JSON Schema of manifests, judged by somebody else's validator."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from earn.files import read_json
from earn.manifest import RANGES
from earn.manifest_schema import SCHEMA_FILE, manifest_schema


def test_the_file_in_the_package_is_what_the_dataclasses_say() -> None:
    assert read_json(SCHEMA_FILE) == json.loads(json.dumps(manifest_schema())), "python -m earn.manifest_schema"


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = manifest_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all keys of an object's objects."""
    inner = (
        [found for key, part in value.items() for found in leaves(part, (*path, key))] if type(value) is dict else []
    )
    return [*([path] if path else []), *inner]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy in which another value, or none, stands at a path."""
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    if new is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return value


def test_it_takes_what_an_export_writes_and_no_other_types(toy_bundle: Path, validator: Any) -> None:
    manifest = read_json(toy_bundle / "manifest.json")
    assert [*validator.iter_errors(manifest)] == []
    for path in leaves(manifest):
        assert not validator.is_valid(changed(manifest, path, b"no JSON type"))
        assert not validator.is_valid(changed(manifest, (*path[:-1], "unknown"), 1)) or path[0] == "tools"


@pytest.mark.parametrize("name", sorted(RANGES))
def test_it_knows_the_ranges(toy_bundle: Path, validator: Any, name: str) -> None:
    manifest = read_json(toy_bundle / "manifest.json")
    part = "sizes" if name in manifest["sizes"] else "limits"
    least, most = RANGES[name]
    for value, is_good in ((least, True), (most, True), (least - 1, False), (most + 1, False)):
        assert validator.is_valid(changed(manifest, (part, name), value)) is is_good
    assert not validator.is_valid(changed(manifest, (part, name), None))

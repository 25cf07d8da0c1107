"""The JSON Schema of `manifest.json`, for readers and writers in other languages: `earn/manifest.schema.json`.

It follows from the dataclasses that read a manifest, and `python -m earn.manifest_schema` writes it. It says which
fields there are, of which types and in which ranges. That parts agree with each other (earn.manifest) it cannot say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from earn.config import BEAMS, SCORING_RULES, SET, EarnConfig, Prompt
from earn.files import write_json
from earn.manifest import PRECISIONS, RANGES, SCHEMA, SCHEMAS, CatalogVersions, FileEntry, Manifest
from earn.specs import STAGES, Limits, Sizes

SCHEMA_FILE = Path(__file__).with_name("manifest.schema.json")

_TYPES: Mapping[str, Any] = {
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "str": {"type": "string"},
    "tuple[int, ...]": {"type": "array", "items": {"type": "integer"}},
    "float | None": {"type": ["number", "null"]},
    "Mapping[str, str]": {"type": "object", "additionalProperties": {"type": "string"}},
    "Mapping[str, Any] | None": {"type": ["object", "null"]},
}
_OWN: Mapping[str, Any] = {  # what a field's type does not say
    "scoring": {"enum": [*SCORING_RULES]},
    "precision": {"enum": [*PRECISIONS]},
    "method": {"enum": [BEAMS, SET]},
    "positions": {"const": "original"},
    "bytes": {"type": "integer", "minimum": 0},
    "version": {"type": "integer", "minimum": 1},
    "kept": {"type": "array", "items": {"type": "integer", "minimum": 0}},
    "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
}


def manifest_schema() -> dict[str, Any]:
    """The schema as JSON values."""
    parts = {"Sizes": _object(Sizes, RANGES), "Limits": _object(Limits, RANGES), "Prompt": _object(Prompt)}
    parts["EarnConfig"] = _object(EarnConfig, parts=parts)
    parts["CatalogVersions | None"] = _object(CatalogVersions)  # or no such key
    parts["Mapping[str, FileEntry]"] = {"type": "object", "additionalProperties": _object(FileEntry)}
    whole = _object(Manifest, parts=parts)
    whole["properties"] |= {
        "schema": {"enum": [*SCHEMAS]},
        "tensors": _object_of(dict.fromkeys(STAGES, _stage())),
    }
    whole["required"] += ["schema", "tensors"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"manifest.json of an earn-edge bundle, schema {SCHEMA} to {SCHEMAS[-1]}",
        **whole,
    }


def _object(
    cls: Any, ranges: Mapping[str, tuple[int, int]] | None = None, parts: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A dataclass: its fields with their types and ranges, and no others; those without a default must be there."""
    properties = {}
    for field in fields(cls):
        value = _OWN.get(field.name) or {**_TYPES, **(parts or {})}[str(field.type)]
        if field.name in (ranges or {}):
            least, most = (ranges or {})[field.name]
            value = {**value, "minimum": least, "maximum": most}
        properties[field.name] = value
    needed = [field.name for field in fields(cls) if field.default is MISSING]
    return {**_object_of(properties), "required": needed}


def _object_of(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": [*properties],
        "additionalProperties": False,
    }


def _stage() -> dict[str, Any]:
    """A stage of the tensor table."""
    axis = {
        "type": "array",
        "prefixItems": [_TYPES["str"], *[_TYPES["int"]] * 3],
        "items": False,
        "minItems": 4,
    }
    tensor = _object_of(
        {"name": _TYPES["str"], "dtype": {"enum": ["int64", "float32"]}, "axes": {"type": "array", "items": axis}}
    )
    tensors = {"type": "array", "items": tensor}
    return _object_of({"inputs": tensors, "outputs": tensors})


if __name__ == "__main__":
    write_json(SCHEMA_FILE, manifest_schema())

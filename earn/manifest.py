"""The manifest of a bundle: what the graphs compute, which tensors they take, and which files must be there.

A bundle is a folder:
    manifest.json   this module's `Manifest`
    early.onnx      layers 1..k with the token embedding     (early.onnx.data beside it where weights are large)
    late.onnx       layers k+1..N with the item head         (late.onnx.data likewise)
    catalog.npz     items, identifiers, titles (see catalog)
    quantizer.npz   what makes digits of new items, where items have digits (see quantizer)
    tags.npz        tags of the items (see tags), where there are any
    neighbours.npz  what is like each item, where lists are blended with that (see item_neighbours)
    constant_head.npz  keys and values of the prompt's constant head, of a calibrated bundle (see constant_head)
    catalogs/3.npz  version 3 of the catalog, of one that was changed since (see bundle_edit)
    recommend.onnx  the whole search as one graph, where it was asked for (see earn.export.one_graph)
    items.json      {"form": "loop", "beams": 20, "item_ids": [...], "titles": [...],
                    "example": {"history": [...], "items": [...]}} beside it, for readers in other languages; the
                    example is a list that the graph must give
    recommend.ort   the same graph in ONNX Runtime's own format, with its weights; beside it
                    recommend.required_operators.config, the operators of a reduced build (see earn.export.mobile)
    engines/        what the machine that runs it has built from the graphs; no part of the bundle as it is delivered

A bundle has its own token numbers: the identifier tokens first, in the catalog's order, so that token j is also row j
of the item head; then the prompt's and the registers' tokens. Embedding rows that no prompt can hold are left out.
Where all codes are named at once (`model.method` is "set") the first numbers are the items', one row each, and the
item head's rows are the catalog's tokens, digit after digit (see earn.digits).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from earn.catalog import CATALOG_FILE, MOST_DEPTH
from earn.config import BEAMS, MOST_REGISTERS, SET, EarnConfig, Prompt, check_scoring, from_json, to_json
from earn.errors import EarnError, refuse
from earn.files import check_writable, read_json, sha256, write_json
from earn.graph_files import check_graph_file
from earn.prompts import constant_head, prompt_end, prompt_rows, readout_rows
from earn.quantizer import QUANTIZER_FILE
from earn.specs import Limits, Sizes, all_specs
from earn.tags import TAGS_FILE

# Of a bundle whose lists are the graphs' alone; 1 more with HEAD_FILE, 2 more with NEIGHBOURS_FILE: without them the
# lists would be others, and readers that know no use for them must refuse the bundle.
SCHEMA, WITH_HEAD, WITH_NEIGHBOURS = 2, 1, 2
SCHEMAS = range(SCHEMA, SCHEMA + WITH_HEAD + WITH_NEIGHBOURS + 1)
PRECISIONS = ("fp32", "fp16", "int8-dynamic", "int8", "int8-weights", "int4", "int8-int4")
_OF_STAGES = {"int8-int4": {"early": "int8", "late": "int4"}}  # precisions that have another one's graph in each stage
MANIFEST_FILE = "manifest.json"
_JUDGED = {  # what must stand in a calibrated bundle's parts
    "accuracy": {"passed", "users", "beam_set", "beam_set_overlap", "top10_overlap", "recall@10", "ndcg@10", "limits"},
    "calibration": {"engine", "method", "samples", "seed", "fine_products", "float_layers"},
}
SET_FIELDS = ("method", "temperature")  # of the model, which say nothing where it searches with beams
ENGINES_FOLDER = "engines"
GRAPH_FILES = {"early": "early.onnx", "late": "late.onnx"}
ONE_GRAPH_FILE = "recommend.onnx"
ITEMS_FILE = "items.json"
HEAD_FILE = "constant_head.npz"
NEIGHBOURS_FILE = "neighbours.npz"
MOBILE_FILES = ("recommend.ort", "recommend.required_operators.config")
MOST_MANIFEST = 64 << 20  # bytes
# Files that follow from the catalog.
NO_MODEL = {CATALOG_FILE, TAGS_FILE, NEIGHBOURS_FILE, ONE_GRAPH_FILE, ITEMS_FILE, *MOBILE_FILES}

# What no bundle goes beyond, whatever its manifest says: least and most of each of its sizes and limits.
RANGES: Mapping[str, tuple[int, int]] = {
    "layers": (1, 1024),
    "early_layers": (1, 1024),
    "hidden": (1, 1 << 16),
    "intermediate": (1, 1 << 20),
    "heads": (1, 1024),
    "key_value_heads": (1, 1024),
    "head_size": (1, 4096),
    "embedding_rows": (1, 1 << 24),
    "logits": (1, 1 << 24),
    "batch": (1, 1 << 12),
    "beams": (1, 1 << 16),
    "history": (1, 1 << 16),
    "prompt": (1, 1 << 17),
    "head": (0, 1 << 17),
    "prefix": (0, MOST_REGISTERS),
    "readout": (1, MOST_REGISTERS),
    "depth": (1, MOST_DEPTH),
}
MOST_CACHE = 1 << 35  # bytes of one user's caches with the longest prompt and the widest search


def stage_precision(precision: str, stage: str) -> str:
    """The precision of a stage's graph, by that of the bundle: of "int8-int4" the late stage is in "int4"."""
    return _OF_STAGES.get(precision, {}).get(stage, precision)


@dataclass(frozen=True)
class FileEntry:
    """One file of the bundle."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileEntry:
        """The entry of a file as it stands."""
        return cls(path.stat().st_size, sha256(path))


@dataclass(frozen=True)
class CatalogVersions:
    """Which version the catalog is, in a bundle whose catalog was changed, and what it can be rolled back to."""

    version: int  # how often the catalog was changed since the export, rollbacks included
    kept: tuple[int, ...]  # earlier versions whose catalogs the bundle holds, the newest first

    @staticmethod
    def file(version: int) -> str:
        """The path below the bundle of a version that is kept."""
        return f"catalogs/{version}.npz"

    @property
    def files(self) -> list[str]:
        """The paths of those that are kept."""
        return [self.file(version) for version in self.kept]


@dataclass(frozen=True)
class Manifest:
    """Everything that the runtime must know beside the graphs and the catalog."""

    sizes: Sizes
    limits: Limits
    model: EarnConfig  # split, registers and prompt, in the bundle's token numbers
    scoring: str  # one of SCORING_RULES; the item head has the rows that it needs
    precision: str  # one of PRECISIONS
    files: Mapping[str, FileEntry]  # by path relative to the bundle
    tools: Mapping[str, str]  # versions that wrote the bundle
    parity: float | None = None  # largest relative difference from torch, on real histories, when it was exported
    accuracy: Mapping[str, Any] | None = None  # the gate's figures, where another precision was judged by it
    calibration: Mapping[str, Any] | None = None  # how that precision was reached: engine, samples, float layers
    catalog: CatalogVersions | None = None  # None, and no key in the file: as it was exported

    def save(self, folder: Path) -> None:
        """Writes manifest.json, with the tensor table for readers in other languages.

        Raises:
            EarnError: a size or a limit is beyond what any bundle may have.
        """
        refuse(f"{folder / MANIFEST_FILE}: {problem}. Export with smaller limits." for problem in _beyond(self))
        value = {name: part for name, part in to_json(self).items() if name != "catalog" or part is not None}
        write_json(folder / MANIFEST_FILE, {"schema": self.schema, **value, "tensors": self._tensors()})

    @classmethod
    def load(cls, folder: Path, verify: bool | Collection[str] = True) -> Manifest:
        """Reads manifest.json and checks the bundle's files against it.

        Args:
            folder: the bundle.
            verify: compare SHA-256 sums too, not sizes alone: of every file, which is read once, or of those named.

        Raises:
            EarnError: no bundle, another schema, unknown keys, or a file that is missing, changed or outside.
        """
        path = folder / MANIFEST_FILE
        if not path.is_file():
            raise EarnError(f"{folder}: there is no bundle (no {MANIFEST_FILE}). {_remedy(folder)}")
        if (size := path.stat().st_size) > MOST_MANIFEST:
            raise EarnError(f"{path}: has {size} bytes, no manifest has more than {MOST_MANIFEST}. Check the path.")
        value = read_json(path)
        schema = value.pop("schema", None) if isinstance(value, dict) else None
        if schema not in SCHEMAS:
            raise EarnError(
                f"{path}: not a manifest of schema {SCHEMA} to {SCHEMAS[-1]}. Export the checkpoint again with this "
                "earn-edge."
            )
        tensors = value.pop("tensors", None)
        manifest = _from_json(value, str(path))
        if manifest.schema != schema:
            raise EarnError(
                f"{path}: of schema {schema}, but the files that it lists are of schema {manifest.schema}. Copy the "
                "bundle again."
            )
        if tensors != manifest._tensors():
            raise EarnError(
                f"{path}: the tensor table does not follow from sizes and limits. Export the checkpoint again."
            )
        _check_files(folder, manifest.files, verify)
        return manifest

    def with_files(self, folder: Path) -> Manifest:
        """The manifest with every file of the folder but itself listed, sizes and sums measured now."""
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST_FILE]
        paths = [path for path in paths if not _is_built(path, folder)]
        entries = {path.relative_to(folder).as_posix(): FileEntry.of(path) for path in paths}
        catalog = self.catalog
        if catalog:
            catalog = replace(catalog, kept=tuple(kept for kept in catalog.kept if catalog.file(kept) in entries))
        return replace(self, files=entries, catalog=catalog)

    @property
    def schema(self) -> int:
        """The number that tells readers which files the bundle's lists depend on."""
        return SCHEMA + WITH_HEAD * self.brings_head + WITH_NEIGHBOURS * (NEIGHBOURS_FILE in self.files)

    @property
    def brings_head(self) -> bool:
        """Whether keys and values of the prompt's constant head are there, which the graphs cannot compute."""
        return HEAD_FILE in self.files

    @property
    def fingerprint(self) -> str:
        """What tells this bundle from every other: a SHA-256 of the manifest with the sums of all files but the tags.

        Nor do earlier catalogs count, and the number of this one: a catalog that was rolled back is what it was before.
        A model that is no bundle yet lists no files, and shares its fingerprint with others of its shape.
        """
        return self._fingerprint({TAGS_FILE})

    @property
    def model_fingerprint(self) -> str:
        """What tells this bundle's model from every other: `fingerprint` without what follows from the catalog."""
        return self._fingerprint(NO_MODEL)

    def _fingerprint(self, left_out: Collection[str]) -> str:
        names = set(self.files) - {*left_out, *(self.catalog.files if self.catalog else ())}
        value = to_json(replace(self, files={name: self.files[name] for name in self.files if name in names}))
        del value["catalog"]
        if self.model.method == BEAMS:  # which older manifests leave unsaid; their saved sessions stay good
            value["model"] = {name: part for name, part in value["model"].items() if name not in SET_FIELDS}
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

    @property
    def bundle_bytes(self) -> int:
        """The size of the files that are deployed."""
        return sum(entry.bytes for entry in self.files.values())

    def _tensors(self) -> dict[str, Any]:
        """The tensor table as JSON: per stage the inputs and outputs; an axis is [name, least, usual, most]."""
        return {
            stage: {
                side: [
                    {
                        "name": spec.name,
                        "dtype": spec.dtype,
                        "axes": [[axis.name, axis.least, axis.usual, axis.most] for axis in spec.axes],
                    }
                    for spec in getattr(specs, side)
                ]
                for side in ("inputs", "outputs")
            }
            for stage, specs in all_specs(self.sizes, self.limits).items()
        }


def limits_of(model: EarnConfig, depth: int, batch: int, beams: int) -> Limits:
    """The limits that follow from a model's prompt and the catalog's depth."""
    return Limits(
        batch=batch,
        beams=beams,
        history=model.max_history,
        prompt=prompt_rows(model, depth),
        head=len(constant_head(model)),
        prefix=len(model.prefix_ids),
        readout=readout_rows(model),
        depth=depth,
    )


def refuse_foreign_folder(out: Path) -> None:
    """Raises EarnError where a bundle cannot be written, or would destroy something else than a bundle's own files."""
    check_writable(out)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    remedy = "Choose another folder, or remove it first."
    try:
        manifest = Manifest.load(out, verify=False)
    except EarnError as error:
        raise EarnError(f"{out}: exists and is not a bundle of this version. {remedy}") from error
    own = {*manifest.files, MANIFEST_FILE}
    files = [path for path in out.rglob("*") if path.is_file() and not _is_built(path, out)]
    foreign = [path for path in files if path.relative_to(out).as_posix() not in own]
    if foreign:
        raise EarnError(f"{out}: holds {foreign[0].relative_to(out)}, which is no part of the bundle. {remedy}")


def _remedy(folder: Path) -> str:
    """What to do about a folder without a manifest."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return f"Write one: earn export CKPT --out {folder}"
    if any((folder / name).exists() for name in GRAPH_FILES.values()):
        return "The manifest was not copied: copy the bundle again."
    return "Check the path."


def _is_built(path: Path, folder: Path) -> bool:
    return path.relative_to(folder).parts[0] == ENGINES_FOLDER


def _from_json(value: dict[str, Any], where: str) -> Manifest:
    parts = {"sizes": Sizes, "limits": Limits}
    try:
        ready: dict[str, Any] = {name: from_json(cls, value.pop(name), where) for name, cls in parts.items()}
        model = value.pop("model")
        ready["model"] = from_json(EarnConfig, {**model, "prompt": from_json(Prompt, model["prompt"], where)}, where)
        ready["files"] = {name: from_json(FileEntry, entry, where) for name, entry in value.pop("files").items()}
        if "catalog" in value:
            ready["catalog"] = from_json(CatalogVersions, value.pop("catalog"), where)
    except (KeyError, AttributeError, TypeError) as error:
        raise EarnError(f"{where}: incomplete ({error}). Export the checkpoint again.") from error
    manifest = from_json(Manifest, {**value, **ready}, where)
    for name in ("tools", "accuracy", "calibration"):
        part = getattr(manifest, name)
        if not isinstance(part, Mapping) and (part is not None or name == "tools"):
            raise EarnError(f"{where}: {name} is not an object. Export the checkpoint again.")
    for name, needed in _JUDGED.items():
        part = getattr(manifest, name)
        if part is not None and not needed <= part.keys():
            raise EarnError(f"{where}: {name} lacks {min(needed - part.keys())!r}. Calibrate the bundle again.")
    _check_consistent(manifest, where)
    return manifest


def _check_consistent(manifest: Manifest, where: str) -> None:
    """Refuses a manifest whose parts contradict each other: the runtime would compute something else without a word."""
    check_scoring(manifest.scoring)
    model, sizes, limits = manifest.model, manifest.sizes, manifest.limits
    changes = manifest.catalog or CatalogVersions(1, ())
    tokens = {*constant_head(model), *prompt_end(model), *model.prompt.separator, *model.token_ids}
    facts = {
        f"precision {manifest.precision!r} is known": manifest.precision in PRECISIONS,
        "identifier tokens come first": model.token_ids == tuple(range(len(model.token_ids))),
        "tokens have rows in the embedding": min(tokens) >= 0 and max(tokens) < sizes.embedding_rows,
        "identifier tokens have rows in the item head": model.method == SET or len(model.token_ids) <= sizes.logits,
        "early layers agree": model.early_layers == sizes.early_layers <= sizes.layers,
        "earlier catalogs are older and listed": changes.version > max((*changes.kept, 0))
        and [*changes.kept] == sorted({*changes.kept}, reverse=True)
        and {*changes.files} <= {*manifest.files},
        "limits follow from the prompt": limits == limits_of(model, limits.depth, limits.batch, limits.beams),
    }
    if broken := [fact for fact, holds in facts.items() if not holds]:
        raise EarnError(f"{where}: it does not hold that {broken[0]}. Export the checkpoint again.")
    refuse(f"{where}: {problem}. Do not use this bundle." for problem in _beyond(manifest))


def _beyond(manifest: Manifest) -> Iterator[str]:
    """Sizes and limits that no bundle may have: they would take memory without bound."""
    sizes, limits = manifest.sizes, manifest.limits
    values = {**asdict(sizes), **asdict(limits)}
    for name, (least, most) in RANGES.items():
        if not least <= values[name] <= most:
            yield f"{name!r} is {values[name]}; a bundle may have {least} to {most}"
    rows = limits.prompt + limits.prefix + limits.readout + 2 * limits.generated
    caches = rows * sizes.layers * 2 * sizes.key_value_heads * sizes.head_size * 4
    if caches > MOST_CACHE:
        yield f"the caches of one user would take {caches} bytes; a bundle may ask for {MOST_CACHE}"


def _check_files(folder: Path, files: Mapping[str, FileEntry], verify: bool | Collection[str]) -> None:
    remedy = "Copy the bundle again, or export the checkpoint again."
    if missing := {*GRAPH_FILES.values(), CATALOG_FILE} - set(files):
        raise EarnError(f"{folder / MANIFEST_FILE}: lists no {min(missing)}. {remedy}")
    if QUANTIZER_FILE not in files and (folder / QUANTIZER_FILE).exists():
        raise EarnError(f"{folder / MANIFEST_FILE}: does not list {QUANTIZER_FILE}, which is there. {remedy}")
    for name, entry in files.items():
        path = folder / name
        if not is_inside(name):
            raise EarnError(
                f"{folder / MANIFEST_FILE}: the file {name!r} lies outside the bundle. Do not use this bundle."
            )
        try:
            if not path.is_file():
                raise EarnError(f"{path}: missing. {remedy}")
            if path.stat().st_size != entry.bytes:
                raise EarnError(f"{path}: has {path.stat().st_size} bytes, the manifest says {entry.bytes}. {remedy}")
            # a link may lead elsewhere, as in the Hugging Face cache, but only to what the manifest says
            is_wanted = verify if isinstance(verify, bool) else name in verify
            is_certain = not is_wanted and path.resolve() == folder.resolve().joinpath(*PurePosixPath(name).parts)
            if not is_certain and sha256(path) != entry.sha256:
                raise EarnError(f"{path}: its SHA-256 is not the manifest's, so it was changed. {remedy}")
        except (OSError, RuntimeError) as error:  # a RuntimeError where links go round in a circle
            raise EarnError(f"{path}: cannot be read ({error}). {remedy}") from error


def is_inside(name: str) -> bool:
    """Whether a file's name in the manifest is a plain path below the bundle."""
    path = PurePosixPath(name)
    is_plain = path.as_posix() == name and not any(mark in name for mark in "\\:\0")
    return is_plain and name != "." and not path.is_absolute() and ".." not in path.parts


def check_graphs(folder: Path, manifest: Manifest) -> None:
    """Checks that the bundle's graphs hold nothing but what this package writes; see earn.graph_files.

    Raises:
        EarnError: one holds something else.
    """
    for name in (*GRAPH_FILES.values(), ONE_GRAPH_FILE):
        if name in manifest.files:
            check_graph_file(folder / name, manifest.files)

"""Built TensorRT engines in a bundle, and whether they fit this machine.

    engines/tensorrt/early.engine, late.engine        serialized by TensorRT
    engines/tensorrt/engines.json                     this module's `EngineRecord`
    engines/tensorrt-one-graph/recommend.engine       the whole search as one engine
    engines/tensorrt-one-graph/engines.json           likewise

They are made from the bundle on the machine that runs them, so the bundle's manifest does not list them and stays as it
was delivered; the record says which graphs, limits and machine they are for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earn.config import BEAMS, SET, from_json, to_json
from earn.errors import EarnError
from earn.files import read_json, sha256, write_json
from earn.manifest import ENGINES_FOLDER, GRAPH_FILES, ITEMS_FILE, ONE_GRAPH_FILE, FileEntry, Manifest
from earn.runtime.cuda import Gpu
from earn.shape_ranges import OptimizationProfile, one_graph_profiles, profile_hash, profiles
from earn.specs import STAGES

TENSORRT, TENSORRT_ONE_GRAPH = "tensorrt", "tensorrt-one-graph"  # the engines that run these files
FIXED_FORMS = {BEAMS: "unrolled", SET: "fixed"}  # by method: the form of recommend.onnx that TensorRT takes
RECORD_FILE = "engines.json"


@dataclass(frozen=True)
class EngineKind:
    """Engines that are built and used together."""

    name: str  # of the engine that runs them
    graphs: Mapping[str, str]  # the graph that each is built from
    sources: tuple[str, ...]  # what these graphs are made of: starts of names of the bundle's files
    ranges: Callable[[Manifest], Mapping[str, Sequence[OptimizationProfile]]]  # of each one's inputs
    option: str = ""  # of `earn engine build`

    @property
    def folder(self) -> str:
        """Where they stand in a bundle."""
        return f"{ENGINES_FOLDER}/{self.name}"

    @property
    def files(self) -> dict[str, str]:
        """Their files by name."""
        return {name: f"{name}.engine" for name in self.graphs}


STAGE_ENGINES = EngineKind(
    TENSORRT,
    GRAPH_FILES,
    tuple(GRAPH_FILES.values()),
    lambda manifest: {stage: profiles(stage, manifest.sizes, manifest.limits) for stage in STAGES},
)
ONE_ENGINE = EngineKind(
    TENSORRT_ONE_GRAPH,
    {"recommend": ONE_GRAPH_FILE},
    (ONE_GRAPH_FILE, *GRAPH_FILES.values()),  # large weights stand beside the stages
    lambda manifest: {"recommend": one_graph_profiles(manifest.limits)},
    " --one-graph",
)
TENSORRT_FOLDER = STAGE_ENGINES.folder


@dataclass(frozen=True)
class Target:
    """Where engines are built or run."""

    tensorrt: str  # version
    gpu: Gpu


@dataclass(frozen=True)
class EngineRecord:
    """What built engines are for."""

    tensorrt: str  # version that built them
    gpu: str  # name of the GPU that they were built on
    architecture: str  # its compute capability
    driver: str  # the newest CUDA that its driver knew
    hardware: str  # one of HARDWARE
    version_compatible: bool  # whether later TensorRTs of the same major version run them
    precision: str  # that of the bundle
    graphs: str  # hash of the bundle's graphs
    profiles: str  # hash of the ranges of shapes
    files: Mapping[str, FileEntry]  # of the engines, by name

    def save(self, folder: Path) -> None:
        """Writes engines.json into the folder of the engines."""
        write_json(folder / RECORD_FILE, to_json(self))


@dataclass(frozen=True)
class Hardware:
    """Which GPUs an engine file runs on: a setting of the build."""

    meaning: str  # the GPUs in words
    level: str  # its name in TensorRT's HardwareCompatibilityLevel
    runs_on: Callable[[EngineRecord, Gpu], bool]


HARDWARE: Mapping[str, Hardware] = {
    "none": Hardware(
        "the GPU model that it was built on",
        "NONE",
        lambda record, gpu: (record.gpu, record.architecture) == (gpu.name, gpu.architecture),
    ),
    "same": Hardware(
        "GPUs of the same architecture",
        "SAME_COMPUTE_CAPABILITY",
        lambda record, gpu: record.architecture == gpu.architecture,
    ),
    "ampere+": Hardware(
        "GPUs of architecture 8.0 and later", "AMPERE_PLUS", lambda record, gpu: float(gpu.architecture) >= 8.0
    ),
}


def graph_hash(manifest: Manifest, kind: EngineKind = STAGE_ENGINES) -> str:
    """What the engines are made of: a hash of the graphs' sums in the manifest, weights included."""
    sums = {name: entry.sha256 for name, entry in manifest.files.items() if name.startswith(kind.sources)}
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


def ranges_hash(manifest: Manifest, kind: EngineKind = STAGE_ENGINES) -> str:
    """A hash of the profiles of all engines."""
    return profile_hash(kind.ranges(manifest))


def cache_folder(folder: Path, engine: str) -> Path:
    """Where a provider of ONNX Runtime keeps what it has built for a bundle; made where it is missing.

    Raises:
        EarnError: the bundle cannot be written to.
    """
    cache = folder / ENGINES_FOLDER / engine
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EarnError(
            f"{cache}: {error.strerror}. The engine {engine!r} keeps what it builds in the bundle."
        ) from error
    return cache


def check_form(manifest: Manifest, where: Path) -> None:
    """Raises EarnError where a bundle's graphs are in a form that TensorRT does not take."""
    how = manifest.calibration or {}
    is_for_cpus = manifest.precision in ("int8-dynamic", "int8-weights", "int8-int4")
    if is_for_cpus or how.get("engine", "tensorrt") != "tensorrt":
        precision = "int8" if is_for_cpus else manifest.precision
        raise EarnError(
            f"{where}: its {manifest.precision} graphs are in the CPU's form. Calibrate the fp32 bundle for TensorRT: "
            f"earn calibrate BUNDLE DATA --precision {precision} --engine tensorrt --out BUNDLE-TENSORRT"
        )


def check_one_graph(folder: Path, manifest: Manifest) -> None:
    """Raises EarnError where a bundle has no one graph in the form that TensorRT takes."""
    form = FIXED_FORMS[manifest.model.method]
    if ITEMS_FILE not in manifest.files or read_json(folder / ITEMS_FILE).get("form") != form:
        raise EarnError(
            f"{folder}: has no {ONE_GRAPH_FILE} for TensorRT. Write it: earn compose {folder} --form {form}"
        )


def build_command(folder: Path, kind: EngineKind = STAGE_ENGINES) -> str:
    """What to type for engines that fit this machine."""
    return f"earn engine build {folder}{kind.option}"


def has_engines(folder: Path, kind: EngineKind = STAGE_ENGINES) -> bool:
    """Whether somebody built engines for this bundle."""
    return (folder / kind.folder / RECORD_FILE).is_file()


def load_record(folder: Path, kind: EngineKind = STAGE_ENGINES) -> EngineRecord:
    """The record of a bundle's engines.

    Raises:
        EarnError: there are none, or the record is damaged.
    """
    path = folder / kind.folder / RECORD_FILE
    remedy = f"Build them: {build_command(folder, kind)}"
    if not has_engines(folder, kind):
        raise EarnError(f"{folder}: there are no TensorRT engines in this bundle. {remedy}")
    value: Any = read_json(path)
    try:
        files = {name: from_json(FileEntry, entry, str(path)) for name, entry in value.pop("files").items()}
    except (KeyError, AttributeError, TypeError) as error:
        raise EarnError(f"{path}: incomplete ({error!r}). {remedy}") from error
    record = from_json(EngineRecord, {**value, "files": files}, str(path))
    if record.hardware not in HARDWARE or set(files) != set(kind.files.values()):
        raise EarnError(f"{path}: damaged. {remedy}")
    return record


def differences(record: EngineRecord, manifest: Manifest, here: Target, kind: EngineKind = STAGE_ENGINES) -> list[str]:
    """Why engines of this record cannot run this bundle on this machine; [] if they can."""
    reasons = []
    if record.graphs != graph_hash(manifest, kind) or record.precision != manifest.precision:
        reasons.append("they were built from other graphs")
    if record.profiles != ranges_hash(manifest, kind):
        reasons.append("they were built for other limits")
    if not _is_version_right(record, here):
        reasons.append(f"they were built by TensorRT {record.tensorrt}, here is {here.tensorrt}")
    hardware = HARDWARE[record.hardware]
    if not hardware.runs_on(record, here.gpu):
        reasons.append(
            f"they were built on {record.gpu} (architecture {record.architecture}) for {hardware.meaning}, "
            f"here is {here.gpu.name} ({here.gpu.architecture})"
        )
    return reasons


def _is_version_right(record: EngineRecord, here: Target) -> bool:
    if record.tensorrt == here.tensorrt:
        return True
    built, own = (tuple(map(int, version.split(".")[:2])) for version in (record.tensorrt, here.tensorrt))
    return record.version_compatible and built[0] == own[0] and built <= own


def engine_paths(
    folder: Path, manifest: Manifest, here: Target, verify: bool = True, kind: EngineKind = STAGE_ENGINES
) -> tuple[EngineRecord, dict[str, Path]]:
    """The record and the engine files by name, if they are for this bundle and this machine.

    Raises:
        EarnError: there are none, they are for something else, or a file was changed; says what differs and what to do.
    """
    record = load_record(folder, kind)
    remedy = f"Build them anew: {build_command(folder, kind)}"
    if wrong := differences(record, manifest, here, kind):
        raise EarnError(f"{folder}: its TensorRT engines do not fit: {'; '.join(wrong)}. {remedy}")
    paths = {name: folder / kind.folder / file for name, file in kind.files.items()}
    for path in paths.values():
        entry = record.files[path.name]
        if not path.is_file() or path.stat().st_size != entry.bytes or (verify and sha256(path) != entry.sha256):
            raise EarnError(f"{path}: missing or changed since it was built. {remedy}")
    return record, paths

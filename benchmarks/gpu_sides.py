"""What `benchmarks/gpu.py` compares: bundles with random weights, Hugging Face's generate, and lists of the CPU.

`benchmarks/gpu_bundles.py` prepares, where onnx is installed, what a bundle is but its large weights (a few hundred
kilobytes), in a folder

    earn/fp32  earn/fp16  dense/fp32  dense/fp16      each with
        early.onnx, late.onnx   the graphs; their large weights stand in *.onnx.data, which is not there yet
        weights.json            what belongs there: this module's `Weight`
        manifest.json           with the sizes of all files, and without the sums of those that are not there
        catalog.npz

`write_bundle` makes a bundle of one of these with nothing but numpy: a 7B model's takes the memory of a few blocks of
its weights. `random_model` is Hugging Face's model with the same weights, in the bundle's token numbers.

Every weight is drawn in blocks of 256 rows, each from a generator of its own that is seeded with the weight's name:

    layers.3.q_proj [rows in, columns out]   layers counted through both stages; a bundle has weights as they multiply
    layers.3.q_proj.bias, layers.3.input_layernorm, norm
    embedding [tokens, hidden], head [hidden, tokens]

The values are normally distributed (2^16 levels) and rounded to fp16, so a bundle in fp32 has the very weights of one
in fp16. What rounding a trained model's weights costs, they do not say.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.sides import ITEMS, History, Lists, backbone_config, item_ids, overlap, same_order
from earn.catalog import CATALOG_FILE, Catalog
from earn.config import from_json
from earn.console import note
from earn.data.dataset import Dataset
from earn.errors import EarnError
from earn.files import read_json, write_json
from earn.manifest import ENGINES_FOLDER, GRAPH_FILES, MANIFEST_FILE, Manifest
from earn.runtime.cuda import Cuda
from earn.runtime.engine import ENGINES, load_engine
from earn.runtime.engine_files import TENSORRT
from earn.runtime.recommender import Recommendation, Recommender
from earn.specs import Sizes

BEAMS = 20
PER_REPEAT = 4  # requests of this runtime beside each of generate
CHECKED = 24  # histories whose lists are compared

WEIGHTS_FILE = "weights.json"
BLOCK = 256  # rows that are drawn at once
LEVELS = 1 << 16  # of a drawn value

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}

# Standard deviation by kind; of a product it is divided by the root of its rows, so that what goes through keeps its
# size, far below fp16's largest number. The head's makes scores lie apart: the best ten lists differ between histories,
# and fp16 keeps 99 % of each at the 0.5B shape. Larger ones before attention would make layers amplify rounding.
SPREAD = {"head": 3.0, "bias": 0.1, "norm": 0.1}  # others 1

_PARAMETER = re.compile(r"(?:model\.)?(?:(layers\.\d+)\.)?(?:self_attn\.|mlp\.)?(\w+)\.(weight|bias)")
_OWN_NAMES = {"embed_tokens": "embedding", "lm_head": "head"}

Half = NDArray[np.float16]


@dataclass(frozen=True)
class Weight:
    """A large weight of a graph: where it stands, and the drawn weights whose columns it has side by side."""

    file: str
    offset: int  # bytes
    dtype: str  # numpy's name
    rows: int
    names: tuple[str, ...]
    columns: tuple[int, ...]  # of each of them

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.rows * sum(self.columns) * np.dtype(self.dtype).itemsize


def save_weights(folder: Path, weights: list[Weight]) -> None:
    """Writes weights.json."""
    write_json(folder / WEIGHTS_FILE, [asdict(weight) for weight in weights])


def load_weights(folder: Path) -> list[Weight]:
    """Reads weights.json."""
    where = folder / WEIGHTS_FILE
    return [from_json(Weight, value, str(where)) for value in read_json(where)]


def write_bundle(prepared: Path, out: Path, sums: bool = True) -> Manifest:
    """Writes the bundle that was prepared in a folder.

    Args:
        sums: whether the manifest is to have the weights' SHA-256 too. All is read once more for it; engines are built
            from no other bundle.
    """
    out.mkdir(parents=True)
    for name in (*GRAPH_FILES.values(), CATALOG_FILE, MANIFEST_FILE):
        shutil.copy(prepared / name, out / name)
    weights = load_weights(prepared)
    for name in {weight.file for weight in weights}:
        end = max(weight.offset + weight.bytes for weight in weights if weight.file == name)
        with (out / name).open("wb") as file:
            file.truncate(end)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(partial(_write, out), weights))
    manifest = Manifest.load(out, verify=False)
    if sums:
        manifest = manifest.with_files(out)
        manifest.save(out)
    return manifest


def _write(folder: Path, weight: Weight) -> None:
    drawn = [blocks(name, weight.rows, columns) for name, columns in zip(weight.names, weight.columns, strict=True)]
    with (folder / weight.file).open("r+b") as file:
        file.seek(weight.offset)
        for parts in zip(*drawn, strict=True):
            rows = np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
            file.write(np.ascontiguousarray(rows, np.dtype(weight.dtype)).data)


def blocks(name: str, rows: int, columns: int) -> Iterator[Half]:
    """A drawn weight [rows, columns], block by block."""
    centre, spread = _distribution(name, rows)
    values = _levels(centre, spread)
    for start in range(0, rows, BLOCK):
        seed = hashlib.sha256(f"{name} {start}".encode()).digest()[:16]
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(seed, "little")))
        yield values[generator.integers(0, LEVELS, (min(BLOCK, rows - start), columns), np.uint16)]


def vector(name: str, size: int) -> Half:
    """A drawn bias or the scale of a norm."""
    values: Half = next(blocks(name, 1, size))[0]
    return values


def _distribution(name: str, rows: int) -> tuple[float, float]:
    """Mean and standard deviation of a weight's values."""
    kind = name.rpartition(".")[2]
    kind = "norm" if kind.endswith("norm") else kind
    divisor = 1.0 if kind in ("embedding", "bias", "norm") else math.sqrt(rows)
    return float(kind == "norm"), SPREAD.get(kind, 1.0) / divisor


@cache
def _levels(centre: float, spread: float) -> Half:
    """The values that a weight may have, all equally likely."""
    normal = NormalDist(centre, spread)
    values: Half = np.array([normal.inv_cdf((level + 0.5) / LEVELS) for level in range(LEVELS)]).astype(np.float16)
    return values


def drawn_name(parameter: str) -> str:
    """model.layers.3.self_attn.q_proj.weight -> layers.3.q_proj"""
    match = _PARAMETER.fullmatch(parameter)
    if match is None:
        raise ValueError(f"There is no weight for the parameter {parameter!r}.")
    layer, kind, what = match.groups()
    name = _OWN_NAMES.get(kind, kind)
    return ".".join(part for part in (layer, name, "bias" if what == "bias" else None) if part)


def random_model(sizes: Sizes, precision: str, device: str) -> PreTrainedModel:
    """Hugging Face's dense model with the weights of the bundles of these sizes."""
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            backbone_config(sizes), dtype=DTYPES[precision], attn_implementation="sdpa"
        )
    model.eval()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_fill, *zip(*model.named_parameters(), strict=True)))
    return model


def _fill(parameter: str, target: Tensor) -> None:
    name = drawn_name(parameter)
    with torch.no_grad():  # which counts for one thread
        if target.dim() == 1:
            target.copy_(torch.from_numpy(vector(name, len(target))))
            return
        if name != "embedding":  # Hugging Face has [columns, rows]
            target = target.T
        for number, rows in enumerate(blocks(name, *target.shape)):
            start = number * BLOCK
            target[start : start + len(rows)] = torch.from_numpy(rows).to(target.device)


class Clock:
    """How much time is left, and progress with the time that has passed."""

    def __init__(self, minutes: float) -> None:
        self._started = time.perf_counter()
        self._seconds = 60 * minutes

    @property
    def left(self) -> float:
        """Seconds."""
        return self._seconds - (time.perf_counter() - self._started)

    def note(self, text: str) -> None:
        """Progress, beside the results."""
        note(f"[{time.perf_counter() - self._started:6.1f} s] {text}")


def one_line(error: Exception) -> str:
    """An error for a line of progress."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"


@dataclass
class Row:
    """What was measured of a shape on an engine in a precision with a batch."""

    shape: str
    engine: str
    precision: str
    batch: int
    earn_ms: float | None = None
    dense_ms: float | None = None
    hf_generate_ms: float | None = None
    hf_unconstrained_ms: float | None = None
    top10_overlap_with_cpu: float | None = None  # of EARN
    same_order_as_cpu: float | None = None  # share of EARN's lists, but for near ties
    dense_overlap_with_hf: float | None = None


def why_not(engine: str) -> str:
    """What this machine lacks for an engine; "" if nothing is known to be missing."""
    try:
        ENGINES[engine].check_machine()
    except (EarnError, ImportError) as error:
        return one_line(error)
    return ""


def load(engine: str, folder: Path) -> Recommender:
    """A bundle on an engine; what the engine has built in the bundle is removed once it is loaded.

    Raises:
        EarnError: the engine does not take it.
        ModuleNotFoundError: a package is missing.
    """
    if engine == TENSORRT:
        from earn.export.engines import build_engines  # a machine without it has the other engines

        build_engines(folder)
    manifest = Manifest.load(folder, verify=False)
    recommender = Recommender(load_engine(engine, folder, manifest), manifest, Catalog.load(folder / CATALOG_FILE))
    if engine != "cpu":
        shutil.rmtree(folder / ENGINES_FOLDER, ignore_errors=True)
    return recommender


def unload(recommenders: dict[str, Recommender]) -> None:
    """Forgets recommenders and gives the GPU its memory back."""
    devices = [recommender.decoder.device for recommender in recommenders.values()]
    recommenders.clear()
    gc.collect()
    for device in devices:
        if isinstance(device, Cuda):
            device.release()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# Reads a JSON list of histories and prints as many lists of item ids; in a process of its own, which can be ended.
ASK_CPU = """
import json, sys
from earn.errors import EarnError
from earn.runtime.recommender import Recommender
try:
    recommender = Recommender.load(sys.argv[1], verify=False)
    lists = [recommender.recommend(history, int(sys.argv[2]), int(sys.argv[3])) for history in json.load(sys.stdin)]
except EarnError as error:
    sys.exit(str(error))
print(json.dumps([[item.item_id for item in own] for own in lists]))
"""


def real_histories(data: Dataset | None, catalog: Catalog, what: str) -> list[list[str]]:
    """Those of some users of the data set; [] without one.

    Raises:
        EarnError: `what` recommends other items.
    """
    if data is None:
        return []
    data.check_items(catalog, what)
    return data.histories(data.examples(users=CHECKED))


def random_histories(catalog: Catalog, count: int, length: int) -> list[list[str]]:
    """Histories of random items."""
    drawn = np.random.default_rng(0).integers(0, len(catalog), (count, length)).tolist()
    return [[catalog.item_ids[item] for item in history] for history in drawn]


def in_batches(recommender: Recommender, histories: Sequence[History], batch: int) -> list[list[Recommendation]]:
    """The lists of many histories, so many at a time."""
    return [
        items
        for start in range(0, len(histories), batch)
        for items in recommender.recommend_batch(histories[start : start + batch], ITEMS, BEAMS)
    ]


def cpu_lists(folder: Path, histories: Sequence[History], seconds: float) -> list[list[str]] | str:
    """The lists of a bundle on the CPU, from a process that has so much time; or why there are none."""
    command = [sys.executable, "-c", ASK_CPU, str(folder), str(ITEMS), str(BEAMS)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    try:
        done = subprocess.run(
            command, input=json.dumps(histories), capture_output=True, text=True, timeout=seconds, env=environment
        )
    except subprocess.TimeoutExpired:
        return f"the CPU was not done after {seconds:.1f} s"
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["perhaps memory was short"]
        return f"the process ended with {done.returncode}: {last[0]}"
    found: list[list[str]] = json.loads(done.stdout)
    return found


@dataclass
class Check:
    """Lists of EARN at one shape: those of the CPU, and those that rows are to be compared by."""

    name: str  # of the shape
    folder: Path  # of the bundle
    histories: Sequence[History]
    on_cpu: list[list[str]] | None = None
    rows: list[tuple[Row, Lists]] = field(default_factory=list)

    def ask_cpu(self, count: int, clock: Clock, seconds: float = math.inf) -> None:
        """Asks the CPU about the first histories, for so long at the most."""
        clock.note(f"{self.name}: asking the CPU for {min(count, len(self.histories))} lists")
        found = cpu_lists(self.folder, self.histories[:count], max(0.0, min(seconds, clock.left)))
        if isinstance(found, str):
            clock.note(f"{self.name}: no lists of the CPU: {found}")
        else:
            self.on_cpu = found

    def compare(self) -> None:
        """Fills the rows in."""
        if self.on_cpu is None:
            return
        for row, lists in self.rows:
            some = lists[: len(self.on_cpu)]
            row.top10_overlap_with_cpu = overlap(self.on_cpu, item_ids(some))
            row.same_order_as_cpu = same_order(self.on_cpu, some)

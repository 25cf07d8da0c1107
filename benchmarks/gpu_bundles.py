"""Bundles with random weights for `benchmarks/gpu.py`: prepared where onnx is installed, written with numpy alone.

`prepare` writes what a bundle is but its large weights (a few hundred kilobytes), in a folder

    earn/fp32  earn/fp16  dense/fp32  dense/fp16      each with
        early.onnx, late.onnx   the graphs; their large weights stand in *.onnx.data, which is not there yet
        weights.json            what belongs there: this module's `Weight`
        manifest.json           with the sizes of all files, and without the sums of those that are not there
        catalog.npz

`write_bundle` makes a bundle of one of these: a 7B model's takes the memory of a few blocks of its weights.
`random_model` is Hugging Face's model with the same weights, in the bundle's token numbers.

Weights are drawn in blocks of 256 rows, each from a generator of its own that is seeded with the weight's name:

    layers.3.q_proj [rows in, columns out]   layers counted through both stages; a bundle has weights as they multiply
    layers.3.q_proj.bias, layers.3.input_layernorm, norm
    embedding [tokens, hidden], head [hidden, tokens]

Values are normally distributed (2^16 levels) and rounded to fp16, so a bundle in fp32 has the very weights of one in
fp16: what rounding a trained model's weights costs, they do not say.

The graphs are those of an export that never holds the weights. All layers of the model that is traced share one layer's
products, so a 7B model takes a few gigabytes. From then on a large weight (norms and biases are small, and drawn at
once) is its size alone, in the form that each step can read:

    simplify       a reference to a file that is not there
    fuse           one row of zeros: weights are joined by their columns
    quantize       a node ConstantOfShape, whose type follows where fp16 is wanted
    written        a reference to the place where `write_bundle` will write it
"""

from __future__ import annotations

import gc
import hashlib
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.costs import distinct_catalog
from benchmarks.sides import Shape, backbone_config, check_depth, make_splits
from earn.catalog import CATALOG_FILE, Catalog
from earn.config import from_json
from earn.errors import EarnError
from earn.files import read_json, write_json
from earn.manifest import GRAPH_FILES, MANIFEST_FILE, FileEntry, Manifest
from earn.model.earn_model import EarnModel
from earn.specs import STAGES, Sizes

if has_exporter := bool(find_spec("onnx") and find_spec("optimum")):  # a machine with a GPU may lack both
    import onnx
    from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper
    from onnx.external_data_helper import uses_external_data

    from earn.calibration.precisions import PRECISIONS, find_form
    from earn.calibration.quantize import quantize
    from earn.export.onnx_stages import trace_stage
    from earn.export.simplify import LAYER_LINEARS, check_fused, drop_dead, fuse_projections, simplify
    from earn.export.stages import BundleModel, bundle_model

RULE = "vocab"
MAX_BATCH, MAX_BEAMS = 32, 20
INSTRUCTION = TAIL = (0, 0)  # tokens before and behind the history
ALIGNMENT = 4096  # of a weight's place in its file
_FUSED = re.compile(r"(layers\.\d+)\.([qkv]{2,})_proj\.weight")
NOT_THERE = "not written yet"  # in place of a sum

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
    for name, end in _ends(weights).items():
        with (out / name).open("wb") as file:
            file.truncate(end)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(partial(_write_weight, out), weights))
    manifest = Manifest.load(out, verify=False)
    if sums:
        manifest = manifest.with_files(out)
        manifest.save(out)
    return manifest


def _ends(weights: Sequence[Weight]) -> dict[str, int]:
    """The bytes of each file: where its last weight ends."""
    return {weight.file: weight.offset + weight.bytes for weight in weights}


def _write_weight(folder: Path, weight: Weight) -> None:
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
            target[number * BLOCK :][: len(rows)] = torch.from_numpy(rows).to(target.device)


def prepare(shape: Shape, folder: Path, precisions: Sequence[str], catalog: Catalog | None = None) -> None:
    """Writes folder/<split>/<precision> for both splits of a shape.

    Args:
        catalog: whose items are recommended; random ones if None.

    Raises:
        EarnError: the catalog has identifiers of other lengths than DEPTH, or onnx is missing.
    """
    if not has_exporter:
        raise EarnError("Preparing needs the extra export. Prepare elsewhere, and give --prepared here.")
    catalog = check_depth(catalog or distinct_catalog(shape.items, shape.codebook))
    tokens = len(catalog.tokens)
    for split, config in make_splits(shape, tokens, INSTRUCTION, TAIL, shape.history).items():
        backbone = hollow_backbone(shape.sizes(tokens))
        bundle = bundle_model(EarnModel(backbone, config, catalog), RULE, MAX_BATCH, MAX_BEAMS)
        graphs = trace(bundle)
        for precision in precisions:
            _write(graphs, bundle.manifest, catalog, precision, folder / split / precision)
        gc.collect()  # the exporter leaves copies of the weights in cycles


@dataclass(frozen=True)
class Hollow:
    """A stage's graph with a node ConstantOfShape in place of every large weight."""

    graph: ModelProto
    columns: Mapping[str, tuple[int, ...]]  # by weight, of each of the products that it was joined from


class SharedLinear(nn.Module):
    """A linear layer whose weight [in, out] lies as graphs have it, so that the exporter copies nothing."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.out_features = weight.shape[1]

    def forward(self, rows: Tensor) -> Tensor:
        """rows [..., in] -> [..., out]"""
        product = torch.matmul(rows, self.weight)
        return product if self.bias is None else self.bias + product


def hollow_backbone(sizes: Sizes) -> PreTrainedModel:
    """A backbone with its own norms and biases, and zeros that all layers share in place of its products."""
    config = backbone_config(sizes)
    with torch.device("meta"):
        backbone: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    for name, parameter in list(backbone.named_parameters()):
        if parameter.dim() == 1:
            value = torch.from_numpy(vector(drawn_name(name), len(parameter)).astype(np.float32))
        elif "layers." not in name:
            value = torch.zeros(parameter.shape)
        else:
            continue
        _put(backbone, name, nn.Parameter(value, requires_grad=False))
    # One parameter per kind of product. Kinds of one size must not share: the exporter would take the products of keys
    # and values, which read the same rows, for one.
    shared: dict[str, nn.Parameter] = {}
    for name, module in list(backbone.named_modules()):
        kind = name.rpartition(".")[2]
        if isinstance(module, nn.Linear) and kind in LAYER_LINEARS:
            if kind not in shared:
                size = (module.in_features, module.out_features)
                shared[kind] = nn.Parameter(torch.zeros(size), requires_grad=False)
            _put(backbone, name, SharedLinear(shared[kind], module.bias))
    backbone.model.rotary_emb = type(backbone.model.rotary_emb)(config)
    backbone.eval()
    return backbone


def _put(backbone: nn.Module, name: str, value: nn.Module | nn.Parameter) -> None:
    """Puts a module or parameter in its place."""
    place, _, own = name.rpartition(".")
    setattr(backbone.get_submodule(place), own, value)


def trace(bundle: BundleModel) -> dict[str, Hollow]:
    """Both stages' graphs as an export leaves them."""
    with tempfile.TemporaryDirectory() as name:
        config = backbone_config(bundle.manifest.sizes)
        return {stage: _finished(onnx.load(str(trace_stage(bundle, stage, config, Path(name))))) for stage in STAGES}


def _finished(traced: ModelProto) -> Hollow:
    """What an export does with what the exporter wrote."""
    for tensor in traced.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2:
            _refer(tensor, TensorProto.FLOAT, "nowhere", 0)
    graph = simplify(traced)
    size: dict[str, tuple[int, int]] = {}
    for tensor in filter(uses_external_data, graph.graph.initializer):
        size[tensor.name] = (tensor.dims[0], tensor.dims[1])
        tensor.CopyFrom(numpy_helper.from_array(np.zeros((1, tensor.dims[1]), np.float32), tensor.name))
    fuse_projections(graph)
    check_fused(graph)
    columns: dict[str, tuple[int, ...]] = {}
    for tensor in list(graph.graph.initializer):
        parts = _joined(tensor.name)
        if parts[0] in size:
            columns[tensor.name] = tuple(size[part][1] for part in parts)
            _hollow(graph.graph, tensor, size[parts[0]][0])
    return Hollow(graph, columns)


def _joined(weight: str) -> list[str]:
    """layers.0.qkv_proj.weight -> layers.0.q_proj.weight, ...: what it was joined from, else itself."""
    match = _FUSED.fullmatch(weight)
    return [f"{match[1]}.{letter}_proj.weight" for letter in match[2]] if match else [weight]


def _hollow(graph: GraphProto, tensor: TensorProto, rows: int) -> None:
    """Puts a node in place of a weight."""
    name = tensor.name
    size = numpy_helper.from_array(np.array([rows, tensor.dims[1]]), f"{name}.size")
    graph.initializer.remove(tensor)
    graph.initializer.append(size)
    zero = numpy_helper.from_array(np.zeros(1, np.float32))
    graph.node.insert(0, helper.make_node("ConstantOfShape", [size.name], [name], name, value=zero))


def _write(stages: Mapping[str, Hollow], manifest: Manifest, catalog: Catalog, precision: str, folder: Path) -> None:
    """Writes what `write_bundle` makes a bundle of."""
    folder.mkdir(parents=True)
    weights: list[Weight] = []
    for stage, hollow in stages.items():
        graph = ModelProto()
        graph.CopyFrom(hollow.graph)
        row = PRECISIONS[precision]
        if row.method != "none":
            graph = quantize(graph, row, find_form(row, None), {})
        first = 0 if stage == "early" else manifest.sizes.early_layers
        weights += _lay_out(graph, hollow.columns, f"{GRAPH_FILES[stage]}.data", first)
        (folder / GRAPH_FILES[stage]).write_bytes(graph.SerializeToString())
    catalog.save(folder / CATALOG_FILE)
    manifest = replace(manifest, precision=precision).with_files(folder)
    missing = {file: FileEntry(end, NOT_THERE) for file, end in _ends(weights).items()}
    replace(manifest, files={**manifest.files, **missing}).save(folder)
    write_json(folder / WEIGHTS_FILE, [asdict(weight) for weight in weights])


def _lay_out(graph: ModelProto, columns: Mapping[str, tuple[int, ...]], file: str, first: int) -> list[Weight]:
    """Refers to a file in place of the hollow weights; `first` is the stage's first layer."""
    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    weights: list[Weight] = []
    offset = 0
    for node in [node for node in graph.graph.node if node.op_type == "ConstantOfShape"]:
        name = node.output[0]
        size = numpy_helper.to_array(constants[node.input[0]]).tolist()
        tensor = graph.graph.initializer.add(name=name, dims=size)
        _refer(tensor, helper.get_node_attr_value(node, "value").data_type, file, offset)
        graph.graph.node.remove(node)
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type).name
        weights.append(Weight(file, offset, dtype, size[0], tuple(_drawn(name, first)), columns[name]))
        offset += -(-weights[-1].bytes // ALIGNMENT) * ALIGNMENT
    drop_dead(graph.graph)
    return weights


def _drawn(weight: str, first: int) -> list[str]:
    """The drawn weights that a graph's weight is made of; a stage counts its layers from 0."""
    names = [part.removesuffix(".weight") for part in _joined(weight)]
    return [re.sub(r"layers\.(\d+)", lambda match: f"layers.{int(match[1]) + first}", name) for name in names]


def _refer(tensor: TensorProto, kind: int, file: str, offset: int) -> None:
    """Makes a tensor a reference to its place in another file."""
    length = math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(kind).itemsize
    tensor.ClearField("raw_data")
    tensor.data_type, tensor.data_location = kind, TensorProto.EXTERNAL
    for key, value in {"location": file, "offset": offset, "length": length}.items():
        tensor.external_data.add(key=key, value=str(value))

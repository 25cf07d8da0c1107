"""What a checkpoint folder or GGUF file holds, read from config.json and headers before any weight is used.

A folder that holds something else than plain weights of a known family is refused by name: quantized weights, an
adapter, weights that the model has no place for, or none where it needs one. No code of a folder is ever run. What
transformers would read wrongly of a GGUF file, llama.cpp's format, is refused as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from earn.errors import EarnError

CONFIG_FILE = "config.json"
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
ADAPTER_FILE = "adapter_config.json"

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"  # a row per token each; one table where they are tied

# Types of numbers that are weights; others are codes that need scales to become weights.
FLOAT_TYPES = ("F64", "F32", "F16", "BF16")
_TORCH_TYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}

# Buffers that older versions saved with the weights; models compute them.
COMPUTED = (".rotary_emb.inv_freq", ".self_attn.bias", ".self_attn.masked_bias")

QUANTIZED_REMEDY = (
    "Take the folder that was not quantized, or dequantize it (in transformers: model.dequantize(), then "
    "save_pretrained); earn calibrate quantizes the exported bundle."
)


@dataclass(frozen=True)
class StoredTensor:
    """A weight in a file."""

    shape: tuple[int, ...]
    dtype: str  # as safetensors names it: F32, BF16, F8_E4M3, ...
    file: Path


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json.

    Raises:
        EarnError: it is missing, or no JSON object; or the folder holds an adapter beside it.
    """
    path = folder / CONFIG_FILE
    if (folder / ADAPTER_FILE).is_file():
        raise EarnError(
            f"{folder}: holds an adapter (LoRA) beside a model, whose answers it would change. If the adapter is not "
            f"wanted, remove {ADAPTER_FILE}. If it is, move its files to a folder of their own and name the model's "
            "there as base_model_name_or_path."
        )
    return read_object(path)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a folder that others have written.

    Raises:
        EarnError: it cannot be read, or is no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EarnError(f"{path}: cannot be read ({error}). Copy the folder again.") from error
    if not isinstance(value, dict):
        raise EarnError(f"{path}: holds no JSON object. Copy the folder again.")
    return value


def quantization_of(folder: Path, config: Mapping[str, Any]) -> str | None:
    """By which method the folder says that its weights are quantized."""
    for name in ("quantization_config", "compression_config"):
        if settings := config.get(name):
            return str(settings.get("quant_method", name)) if isinstance(settings, Mapping) else name
    other = folder / "hf_quant_config.json"  # of NVIDIA's ModelOpt
    return other.name if other.is_file() else None


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The weights in the folder's files by name, from their headers.

    Raises:
        EarnError: there are none, or a file is missing or damaged.
    """
    found: dict[str, StoredTensor] = {}
    for path in _weight_files(folder):
        try:
            rows = _safetensors_header(path) if path.suffix == ".safetensors" else _torch_header(path)
        except Exception as error:  # safetensors and torch raise classes of their own
            raise EarnError(f"{path}: cannot be read ({error}). Copy it again.") from error
        found |= {name: StoredTensor(tuple(shape), dtype, path) for name, (shape, dtype) in rows.items()}
    return found


def load_tensor(tensor: StoredTensor, name: str) -> Any:
    """The weight itself, in torch."""
    if tensor.file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(tensor.file, framework="pt") as file:
            return file.get_tensor(name)
    import torch

    return torch.load(tensor.file, weights_only=True, mmap=True)[name]


def stored_problems(
    folder: Path, stored: Mapping[str, StoredTensor], expected: Mapping[str, tuple[int, ...]], is_tied: bool
) -> Iterator[str]:
    """In what a folder's weights are not exactly those that its model has places for.

    Args:
        stored: of `stored_tensors`.
        expected: the model's own weights and their shapes.
        is_tied: whether embedding and head share a table, so that one of them is enough.

    Returns:
        For each kind of difference, which weights, how many, and what to do.
    """
    if codes := [name for name, tensor in stored.items() if tensor.dtype not in FLOAT_TYPES]:
        kinds = ", ".join(sorted({stored[name].dtype for name in codes}))
        yield f"{folder}: {len(codes)} weights are quantized codes ({kinds}), such as {codes[0]}. {QUANTIZED_REMEDY}"
    spare = {EMBEDDING, HEAD} if is_tied and {EMBEDDING, HEAD} & stored.keys() else set()
    if missing := sorted(expected.keys() - stored.keys() - spare):
        yield (
            f"{folder}: {_listed(missing)} missing that config.json asks for. Copy the folder again, or mend "
            "config.json if it is another model's."
        )
    if unexpected := sorted(name for name in stored.keys() - expected.keys() if not name.endswith(COMPUTED)):
        yield (
            f"{folder}: {_listed(unexpected)} in its files that config.json has no place for: they would be left "
            "out, and the model would compute something else. Mend config.json, or take the folder as it was written."
        )
    others = [name for name, shape in expected.items() if name in stored and stored[name].shape != shape]
    tables = [name for name in (EMBEDDING, HEAD) if name in others]
    for name in [*tables, *[name for name in others if name not in tables][:1]]:  # one setting is wrong of all layers
        rows, *width = stored[name].shape
        is_longer = width == list(expected[name][1:]) and {stored[table].shape[0] for table in tables} == {rows}
        remedy = (
            f"Set vocab_size to {rows} in config.json." if is_longer else "Mend config.json, or copy the folder again."
        )
        has, wants = list(stored[name].shape), list(expected[name])
        yield f"{folder}: {name} has the shape {has}, config.json asks for {wants}. {remedy}"


def _listed(names: list[str]) -> str:
    few = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} weights ({few}) are" if len(names) > 1 else f"the weight {names[0]} is"


def _weight_files(folder: Path) -> list[Path]:
    for name in INDEX_FILES:
        if (folder / name).is_file():
            try:
                files = sorted(set(json.loads((folder / name).read_text(encoding="utf-8"))["weight_map"].values()))
            except (OSError, ValueError, KeyError, AttributeError) as error:
                raise EarnError(f"{folder / name}: cannot be read ({error!r}). Copy the folder again.") from error
            if lost := [file for file in files if not (folder / file).is_file()]:
                raise EarnError(f"{folder}: {lost[0]} is missing, which {name} names. Copy the folder again.")
            return [folder / file for file in files]
    if whole := [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]:
        return whole[:1]
    raise EarnError(
        f"{folder}: there are no weights ({' or '.join(WEIGHT_FILES)}, or parts with an index). Copy the folder again."
    )


def _safetensors_header(path: Path) -> dict[str, tuple[list[int], str]]:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
        return {name: (part.get_shape(), part.get_dtype()) for name, part in slices.items()}


def _torch_header(path: Path) -> dict[str, tuple[list[int], str]]:
    import torch

    tensors = torch.load(path, map_location="meta", weights_only=True, mmap=True)
    kinds = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
    return {name: (list(tensor.shape), _TORCH_TYPES.get(kinds[name], kinds[name])) for name, tensor in tensors.items()}


def is_gguf(source: str | Path) -> bool:
    """Whether the source is a file in llama.cpp's format."""
    return Path(source).suffix == ".gguf" and Path(source).is_file()


@contextmanager
def header_read_once() -> Iterator[None]:
    """Keeps what the library gguf reads, while transformers loads one file.

    transformers parses the header, with every word of the vocabulary, for each of its questions, and builds the table
    of all weights' names for each weight: for SmolLM2-135M that is most of the time that loading takes.
    """
    import gguf  # where transformers looks these two up whenever it needs them

    reader, names = cache(gguf.GGUFReader), cache(gguf.get_tensor_name_map)
    with patch.object(gguf, "GGUFReader", reader), patch.object(gguf, "get_tensor_name_map", names):
        yield


def check_gguf(path: Path) -> None:
    """Refuses what transformers would read wrongly or with an error that leads astray.

    That is a file that is none or not whole, and RoPE frequencies that are scaled: it would compute without scaling.
    """
    import gguf  # transformers would blame the file where this is missing

    try:
        reader = gguf.GGUFReader(str(path))  # as transformers names it
    except Exception as error:  # of many kinds, by where the file ends
        raise EarnError(f"{path}: is no GGUF file, or not whole ({error}). Fetch it again.") from error
    scaling = {name: field for name, field in reader.fields.items() if ".rope.scaling." in name}
    if any(name.endswith(".type") and bytes(field.parts[-1]) == b"none" for name, field in scaling.items()):
        scaling = {}
    tensors = [tensor.name for tensor in reader.tensors if tensor.name == "rope_freqs.weight"]
    if scalings := sorted([*scaling, *tensors]):
        raise EarnError(
            f"{path}: scales its RoPE ({scalings[0]}), which is not read of GGUF files. Take the Hugging Face folder."
        )

"""Backbones in llama.cpp's format: what transformers would read wrongly of them is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from unittest.mock import patch

from earn.errors import EarnError


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

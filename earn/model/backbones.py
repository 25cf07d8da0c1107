"""Backbones: the Hugging Face decoders that EARN runs on, built small from scratch or loaded from a folder or file.

A folder is read as the newest transformers reads it, or refused: its files are held to its config.json before any
weight is used, and the loaded model to the family's own code afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from earn.errors import EarnError, refuse
from earn.model.adapters import base_folder, is_adapter, merge_adapter
from earn.model.checkpoint_files import (
    CONFIG_FILE,
    EMBEDDING,
    HEAD,
    QUANTIZED_REMEDY,
    StoredTensor,
    check_gguf,
    header_read_once,
    is_gguf,
    load_tensor,
    quantization_of,
    read_config,
    stored_problems,
    stored_tensors,
)
from earn.model.families import FAMILIES, TINY_BACKBONES, check_backbone, family_of
from earn.model.family_check import check_family
from earn.model.rope import correct_yarn, in_dialect_of_version_4, rope_problems
from earn.model.transformers_versions import IS_5, float32_weights


def load_backbone(source: str | Path, seed: int = 0, sizes: Mapping[str, Any] | None = None) -> PreTrainedModel:
    """The backbone that `source` names: a tiny one (new weights from `seed`), a Hugging Face folder or a GGUF file.

    Args:
        source: a name of TINY_BACKBONES, a folder with config.json and weights, or an *.gguf file, whose weights are
            taken as what they stand for: float32 of a few bits' precision. A folder with a LoRA adapter alone is
            merged into the folder that it names.
        seed: of the new weights.
        sizes: settings of the family's configuration that replace a tiny backbone's.

    Raises:
        EarnError: no such name or folder, or a family that is not supported.
    """
    tiny = TINY_BACKBONES.get(str(source))
    if tiny is not None:
        config = tiny.config(**{"vocab_size": 1, **tiny.tiny_sizes, **(sizes or {})})
        check_backbone(config)
        torch.manual_seed(seed)
        backbone: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        return backbone
    path = Path(source)
    if is_gguf(path):
        return _load_gguf(path)
    if (path / CONFIG_FILE).is_file() or is_adapter(path):
        return _load_folder(path)
    raise EarnError(
        f"There is no backbone {str(source)!r}. Give one of {', '.join(TINY_BACKBONES)}, "
        "a folder in Hugging Face format that holds config.json and the weights, or a GGUF file."
    )


def gguf_config(path: Path) -> PretrainedConfig:
    """The configuration of a GGUF file, read from its header.

    Raises:
        EarnError: it is no such file, or holds another model than can be read.
    """
    with header_read_once(), _loading(path, "Fetch it again."):
        check_gguf(path)
        config: PretrainedConfig = AutoConfig.from_pretrained(**_in_gguf(path))
    check_backbone(config, str(path))
    if family_of(config).has_partial_rotary:
        raise EarnError(
            f"{path}: transformers does not read of GGUF files which part of each head a {config.model_type!r} "
            "model turns by position. Take the Hugging Face folder."
        )
    return config


def _in_gguf(path: Path) -> dict[str, Any]:
    """The arguments of from_pretrained for a GGUF file."""
    return {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name, "local_files_only": True}


def _load_gguf(path: Path) -> PreTrainedModel:
    with header_read_once(), _loading(path, "Fetch it again."):
        settings = {"config": gguf_config(path), "attn_implementation": "eager", **float32_weights(from_gguf=True)}
        backbone: PreTrainedModel = AutoModelForCausalLM.from_pretrained(**_in_gguf(path), **settings)
    return backbone


@contextmanager
def _loading(path: Path, remedy: str = "Copy or write it again.") -> Iterator[None]:
    """Errors of transformers, safetensors, gguf and json, which raise classes of their own, as an EarnError."""
    try:
        yield
    except EarnError:
        raise
    except Exception as error:
        raise EarnError(f"{path}: cannot be loaded as a model ({error}). {remedy}") from error


def _load_folder(folder: Path) -> PreTrainedModel:
    """A Hugging Face folder, whose files are held to its config.json before any weight is used."""
    if is_adapter(folder):
        backbone = merge_adapter(folder, _load_folder(base_folder(folder)))
    else:
        written = read_config(folder)
        refuse(written_problems(folder, written))
        backbone = _from_folder(folder, written)
        correct_yarn(backbone, written)
    if wrong := [name for name, weight in backbone.named_parameters() if not bool(torch.isfinite(weight).all())]:
        raise EarnError(f"{folder}: {len(wrong)} weights hold NaN or infinity, such as {wrong[0]}. Train it again.")
    check_family(backbone, str(folder))
    return backbone


def written_problems(folder: Path, written: Mapping[str, Any]) -> Iterator[str]:
    """Why a folder is refused by what its config.json says of it."""
    if method := quantization_of(folder, written):
        yield f"{folder}: its weights are quantized ({method}). {QUANTIZED_REMEDY}"
    if written.get("model_type") not in FAMILIES:
        yield (
            f"{folder}: holds a {written.get('model_type')!r} model. Supported are: {', '.join(FAMILIES)}. "
            "Code that a folder brings is never run."
        )
    yield from rope_problems(written, str(folder))


def folder_config(folder: Path, written: Mapping[str, Any]) -> PretrainedConfig:
    """The configuration that a folder's config.json stands for, in the dialect of the transformers that is installed.

    Raises:
        EarnError: its settings do not fit together, or the stages would compute them wrongly.
    """
    family = FAMILIES[written["model_type"]]
    own = {name: value for name, value in written.items() if name not in ("auto_map", "transformers_version")}
    with _loading(folder):
        config = family.config.from_dict(own if IS_5 else in_dialect_of_version_4(own, str(folder)))
    check_backbone(config, str(folder))
    return config


def weight_problems(folder: Path, config: PretrainedConfig, stored: Mapping[str, StoredTensor]) -> list[str]:
    """In what a folder's weights are not those that a model of this configuration has places for.

    Raises:
        EarnError: there is no model of this configuration.
    """
    with _loading(folder), torch.device("meta"):
        places = AutoModelForCausalLM.from_config(config, attn_implementation="eager").state_dict()
    shapes = {name: tuple(place.shape) for name, place in places.items()}
    return list(stored_problems(folder, stored, shapes, bool(config.tie_word_embeddings)))


def _from_folder(folder: Path, written: Mapping[str, Any]) -> PreTrainedModel:
    config = folder_config(folder, written)
    stored = stored_tensors(folder)
    refuse(weight_problems(folder, config, stored))
    with _loading(folder):
        state = None
        if config.tie_word_embeddings and {EMBEDDING, HEAD} <= stored.keys():
            tables = (load_tensor(stored[name], name) for name in (EMBEDDING, HEAD))
            config.tie_word_embeddings = torch.equal(*tables)  # as transformers 5 reads it; 4 leaves the head out
        elif config.tie_word_embeddings and HEAD in stored:  # the shared table, under the head's name alone
            state = {EMBEDDING if name == HEAD else name: load_tensor(tensor, name) for name, tensor in stored.items()}
        family_model: Any = AutoModelForCausalLM._model_mapping[type(config)]  # the class itself: no code is looked for
        backbone: PreTrainedModel = family_model.from_pretrained(
            folder if state is None else None,
            state_dict=state,
            config=config,
            local_files_only=True,
            attn_implementation="eager",
            **float32_weights(from_gguf=False),
        )
    return backbone

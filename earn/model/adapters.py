"""A folder with a LoRA adapter, as peft writes it, merged into the model that it was trained on.

The folder holds adapter_config.json and adapter_model.safetensors; the model is the local folder that
"base_model_name_or_path" names, from the current directory or from the adapter's own. No hub is asked, no code is run.
What would be merged wrongly, or in part, is refused.
"""

from __future__ import annotations

from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from safetensors.torch import load_file
from transformers import PreTrainedModel

from earn.errors import EarnError
from earn.model.checkpoint_files import ADAPTER_FILE, CONFIG_FILE, read_object

WEIGHTS_FILE = "adapter_model.safetensors"
BASE = "base_model_name_or_path"
TABLES = ("embed_tokens", "lm_head")  # which may be one and the same


def is_adapter(source: str | Path) -> bool:
    """Whether the source is a folder with an adapter and no model."""
    return (Path(source) / ADAPTER_FILE).is_file() and not (Path(source) / CONFIG_FILE).is_file()


def base_folder(adapter: Path) -> Path:
    """The folder of the model that an adapter was trained on.

    Raises:
        EarnError: adapter_config.json cannot be read, or names no folder that is here.
    """
    name = read_object(adapter / ADAPTER_FILE).get(BASE)
    for folder in (Path(str(name)), adapter / str(name)):
        if name and (folder / CONFIG_FILE).is_file():
            return folder
    raise EarnError(
        f"{adapter}: holds an adapter (LoRA) for {name!r}, and there is no such folder with a model. Copy the model "
        f"here and name its folder in {ADAPTER_FILE} ({BASE}), or {merging(adapter)}"
    )


def merging(adapter: Path) -> str:
    """How one merges an adapter oneself."""
    return (
        "merge it first: pip install peft, then in Python: from peft import AutoPeftModelForCausalLM; "
        f"AutoPeftModelForCausalLM.from_pretrained({str(adapter)!r}).merge_and_unload().save_pretrained('merged')."
    )


def merge_adapter(adapter: Path, base: PreTrainedModel) -> PreTrainedModel:
    """The base, changed in place, with the adapter's weights added.

    Raises:
        EarnError: peft is missing, the adapter is of another kind or damaged, or does not fit the base.
    """
    written = read_object(adapter / ADAPTER_FILE)
    if find_spec("peft") is None:
        raise EarnError(
            f"{adapter}: holds an adapter (LoRA), which peft reads. Install it: pip install peft; or {merging(adapter)}"
        )
    from peft import LoraConfig, PeftModel, set_peft_model_state_dict

    if written.get("peft_type") != "LORA":
        raise EarnError(f"{adapter}: holds an adapter of the type {written.get('peft_type')!r}. Supported is LORA.")
    known = {field.name for field in fields(LoraConfig)}
    if unknown := sorted(name for name, value in written.items() if name not in known and value):
        raise EarnError(f"{adapter / ADAPTER_FILE}: peft does not know {unknown[0]!r}. Install a newer one.")
    if not (adapter / WEIGHTS_FILE).is_file():
        raise EarnError(f"{adapter}: there is no {WEIGHTS_FILE}. Copy the folder again.")
    names = set(base.state_dict())
    try:
        weights = load_file(adapter / WEIGHTS_FILE)
        changed = sorted({table for table in TABLES for name in weights if table in name.split(".")})
        if base.config.tie_word_embeddings and changed:
            raise EarnError(
                f"{adapter}: the adapter changes {changed[0]}, and embedding and head of its model share a table: "
                "both would change. Take an adapter of the layers alone."
            )
        model = PeftModel(base, cast(Any, LoraConfig).from_pretrained(str(adapter)))
        result: Any = set_peft_model_state_dict(model, weights)
        _check_complete(adapter, result.unexpected_keys, [name for name in result.missing_keys if "lora_" in name])
        merged = cast(PreTrainedModel, cast(Any, model).merge_and_unload(safe_merge=True))
    except EarnError:
        raise
    except Exception as error:  # peft, torch and safetensors raise classes of their own
        raise EarnError(f"{adapter}: the adapter does not fit its model ({error}). Check {BASE}.") from error
    if set(merged.state_dict()) != names:
        raise EarnError(f"{adapter}: merging leaves other weights than its model had; {merging(adapter)}")
    return merged.requires_grad_(True)


def _check_complete(adapter: Path, unexpected: list[str], missing: list[str]) -> None:
    for what, keys in (("holds weights that its model has no place for", unexpected), ("lacks weights", missing)):
        if keys:
            raise EarnError(f"{adapter / WEIGHTS_FILE}: {what}, such as {keys[0]}. Check {BASE}, or copy it again.")

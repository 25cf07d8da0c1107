"""A backbone's tokenizer: that of its folder or GGUF file, whichever version of transformers wrote it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from earn.errors import EarnError
from earn.model.adapters import base_folder, is_adapter
from earn.model.checkpoint_files import check_gguf, header_read_once, is_gguf

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def has_tokenizer(source: str | Path) -> bool:
    """Whether a backbone brings a tokenizer."""
    return is_gguf(source) or any((_folder(source) / name).is_file() for name in TOKENIZER_FILES)


def _folder(source: str | Path) -> Path:
    """Where a backbone's tokenizer stands: with an adapter that has none, in the folder of its model."""
    folder = Path(source)
    has_own = any((folder / name).is_file() for name in TOKENIZER_FILES)
    return base_folder(folder) if is_adapter(folder) and not has_own else folder


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase | None:
    """A folder's or a GGUF file's tokenizer, if there is one. No code of the folder is run.

    A folder with tokenizer.json, whose settings this version of transformers cannot read (of another version, or with
    a class that is not known here), is read from that file, which holds all that tokenizing needs.

    Raises:
        EarnError: it cannot be read, or a GGUF file holds none.
    """
    if not has_tokenizer(source):
        return None
    path = _folder(source)
    if is_gguf(source):
        with header_read_once():
            check_gguf(path)
            return _loaded(path, {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name})
    return _loaded(path, {"pretrained_model_name_or_path": path})


def _loaded(path: Path, where: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            **where, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers, tokenizers and json raise classes of their own
        if (path / "tokenizer.json").is_file():
            return _from_file(path)
        raise _unreadable(path, error) from error
    return tokenizer


def check_rows(tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Refuses a tokenizer that knows tokens for which an embedding table has no rows.

    Raises:
        EarnError: names the id.
    """
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= rows:
        raise EarnError(
            f"The tokenizer knows the token id {highest}, and the embedding table has {rows} rows. Take the tokenizer "
            "that the weights were trained with."
        )


def _from_file(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of tokenizer.json, with the roles that tokenizer_config.json names."""
    try:
        settings_file = folder / "tokenizer_config.json"
        settings = json.loads(settings_file.read_text(encoding="utf-8")) if settings_file.is_file() else {}
        roles = {role: _text(settings[role]) for role in ROLES if settings.get(role)}
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **roles)
        if template := settings.get("chat_template"):
            tokenizer.chat_template = template
    except Exception as error:  # transformers, tokenizers and json raise classes of their own
        raise _unreadable(folder, error) from error
    return tokenizer


def _text(token: Any) -> str:
    """A special token, which older versions write as an object."""
    return str(token["content"] if isinstance(token, dict) else token)


def _unreadable(source: str | Path, error: Exception) -> EarnError:
    return EarnError(
        f"{source}: its tokenizer cannot be loaded ({error}). Mend it, or take the method tiger, which needs none."
    )

"""A backbone's tokenizer, whichever version of transformers wrote it, and rows for new tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

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


def add_tokens(
    backbone: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    tokens: Sequence[str],
    seed: int,
    around_mean: bool,
) -> list[int]:
    """Token ids for `tokens`, with rows in embedding and head; tokens that the tokenizer knows keep theirs.

    New rows of a trained table start near its mean, those of an untrained one near zero.

    Raises:
        EarnError: the tokenizer knows tokens that the tables have no row for.
    """
    old_rows = len(_tables(backbone)[0])
    if tokenizer is None:
        known, token_ids = set(range(old_rows)), list(range(old_rows, old_rows + len(tokens)))
    else:
        check_rows(tokenizer, old_rows)
        known = set(tokenizer.get_vocab().values())
        token_ids = _new_ids(tokenizer, tokens, known)
    backbone.resize_token_embeddings(max(old_rows, max(token_ids, default=0) + 1), mean_resizing=False)
    new = torch.tensor(sorted(set(token_ids) - known), dtype=torch.long)  # there may be none
    trained = torch.tensor(sorted(known), dtype=torch.long)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for table in _tables(backbone):
            centre = table[trained].mean(0) if around_mean else table.new_zeros(table.shape[1])
            noise = torch.randn(len(new), table.shape[1], generator=generator).to(table.device)
            table[new] = centre + backbone.config.initializer_range * noise
    return token_ids


def _new_ids(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str], known: set[int]) -> list[int]:
    """The ids of all tokens; those that the tokenizer does not know are added to it.

    A tokenizer whose ids have holes would give new tokens ids that others have. There the new ones stand behind all of
    its own, and it does not learn of them: prompts are made of ids, not of their texts.
    """
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in tokens if token not in vocabulary]
    if len(known) <= max(known, default=-1):
        vocabulary |= {token: token_id for token_id, token in enumerate(missing, max(known) + 1)}
        return [vocabulary[token] for token in tokens]
    tokenizer.add_tokens(missing, special_tokens=True)
    ids: list[int] = tokenizer.convert_tokens_to_ids(list(tokens))
    return ids


def _tables(backbone: PreTrainedModel) -> list[Tensor]:
    """The weights of embedding and head, once where they are tied."""
    embedding = cast(nn.Embedding, backbone.get_input_embeddings()).weight
    head = cast(nn.Linear, backbone.get_output_embeddings()).weight
    return [embedding] if head is embedding else [embedding, head]

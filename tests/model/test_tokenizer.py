"""Tokenizers as folders bring them: settings of other versions, ids with holes, tokens without rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

from earn.errors import EarnError
from earn.files import write_json
from earn.model.backbones import load_backbone
from earn.model.earn_model import EarnModel
from earn.model.tokenizer import load_tokenizer
from tests.support import assert_close, scramble, small_backbone, toy_catalog, weight_of

ROLES = {"bos_token": "<s>", "unk_token": "<unk>"}
WORDS = {"<s>": 0, "<unk>": 1, "name": 2, "the": 3, "next": 4, "a0": 5, "b0": 6}
# Ids 5 to 8 and 10 are nobody's; "a0" and "b0" are tokens of items that were learned before.
WITH_HOLES = {"<s>": 0, "<unk>": 1, "name": 2, "the": 3, "next": 4, "a0": 9, "b0": 11}


def folder_with(folder: Path, vocabulary: Mapping[str, int], rows: int, has_bos: bool = False, **settings: Any) -> Path:
    """A backbone of so many rows, and a tokenizer of these words with these settings, which may put <s> first."""
    backbone = small_backbone("tiny-llama", vocab_size=rows, tie_word_embeddings=False)
    scramble(backbone)
    backbone.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(dict(vocabulary), unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if has_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {**ROLES, **settings})
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {"tokenizer_class": "PreTrainedTokenizerFast"},
        {"tokenizer_class": "TokenizersBackend"},
        {"tokenizer_class": "TokenizerOfTheYear3000"},
        {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["name", "the"]},
        {"tokenizer_class": "PreTrainedTokenizerFast", "extra_special_tokens": ["name", "the"]},
        {"tokenizer_class": "PreTrainedTokenizerFast", "extra_special_tokens": {"image_token": "name"}},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_settings_of_other_versions_do_not_change_what_is_read(settings: dict[str, Any], tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "backbone", WORDS, 8, **settings)
    tokenizer = load_tokenizer(folder)
    assert tokenizer is not None
    assert tokenizer.encode("name the next a0 what", add_special_tokens=False) == [2, 3, 4, 5, 1]
    assert (tokenizer.bos_token_id, tokenizer.unk_token_id) == (0, 1)
    model = EarnModel.from_backbone(folder, toy_catalog(), max_history=3)
    model.save_pretrained(tmp_path / "checkpoint")
    again = EarnModel.from_pretrained(tmp_path / "checkpoint")
    assert again.tokenizer is not None
    assert again.tokenizer.convert_ids_to_tokens(model.earn.token_ids) == list(model.catalog.tokens)


@pytest.mark.parametrize("vocabulary", [WORDS, WITH_HOLES], ids=["whole", "with holes"])
def test_identifier_tokens_that_are_known_keep_their_rows(vocabulary: dict[str, int], tmp_path: Path) -> None:
    folder = folder_with(tmp_path, vocabulary, 12)
    before = [weight_of(table).clone() for table in _tables(load_backbone(folder))]
    model = EarnModel.from_backbone(folder, toy_catalog(), max_history=3)
    ids = dict(zip(model.catalog.tokens, model.earn.token_ids, strict=True))
    assert (ids["a0"], ids["b0"]) == (vocabulary["a0"], vocabulary["b0"])
    registers = {*model.earn.prefix_ids, *model.earn.suffix_ids}
    others = [token for name, token in ids.items() if name not in ("a0", "b0")] + sorted(registers)
    assert min(others) > max(vocabulary.values())
    assert len({*others, ids["a0"], ids["b0"]}) == len(ids) + 2  # no two share a row
    known = sorted(vocabulary.values())
    for was, table in zip(before, _tables(model.backbone), strict=True):
        assert len(weight_of(table)) > max(others)
        assert_close(was[known], weight_of(table)[known], 0.0)


def test_a_table_without_rows_for_the_tokenizers_words_is_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, WITH_HOLES, 11)
    with pytest.raises(EarnError, match=r"knows the token id 11, and the embedding table has 11 rows\. Take the"):
        EarnModel.from_backbone(folder, toy_catalog(), max_history=3)


def _tables(backbone: Any) -> list[nn.Module]:
    return [backbone.get_input_embeddings(), backbone.get_output_embeddings()]

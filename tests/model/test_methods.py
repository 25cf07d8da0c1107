from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from earn.catalog import Catalog
from earn.errors import EarnError
from earn.model.methods import build_model, default_method, words_of
from earn.model.training import title_windows
from earn.prompts import Template
from tests.support import small_backbone, small_model

TITLES = ["Toy Story (1995)", "Café de Flore", "Toy Soldiers"]
IDENTIFIERS = (("a0", "b0"), ("a0", "b1"), ("a1", "b0"))
CATALOG = Catalog(("1", "2", "3"), IDENTIFIERS, tuple(TITLES))


def test_tiger_has_identifiers_alone_and_lcrec_words_around_them() -> None:
    tiger = build_model("tiger", "tiny-llama", CATALOG, 2)
    assert (tiger.tokenizer, tiger.earn.prompt.head, tiger.earn.prompt.tail) == (None, (), ())
    lcrec = build_model("lcrec", "tiny-llama", CATALOG, 2)
    tokenizer, prompt, text = lcrec.tokenizer, lcrec.earn.prompt, Template()
    assert tokenizer is not None
    head, separator, tail = text.parts()
    assert tokenizer.decode(list(prompt.head)) == head  # the prefix register stands where BOS would
    assert (tokenizer.decode(list(prompt.separator)), tokenizer.decode(list(prompt.tail))) == (separator, tail)
    assert tokenizer.convert_ids_to_tokens(list(lcrec.earn.token_ids)) == list(CATALOG.tokens)


def test_dense_models_have_no_registers_and_start_with_bos() -> None:
    for method in ("tiger", "lcrec"):
        dense = build_model(method, "tiny-qwen2", CATALOG, registers=(0, 0))
        assert dense.is_dense
        assert dense.earn.prompt.head[0] == dense.config.bos_token_id == 0


def test_titles_stand_where_a_history_would_and_name_their_item() -> None:
    model = build_model("lcrec", "tiny-llama", CATALOG, 2)
    windows = title_windows(model)
    assert [window[1] for window in windows] == model.identifiers
    assert model.tokenizer is not None
    for title, (words, _) in zip(TITLES, windows, strict=True):
        assert title in model.tokenizer.decode(list(words))


def test_titles_need_words_and_titles() -> None:
    with pytest.raises(EarnError, match="no tokenizer"):
        title_windows(small_model())
    with pytest.raises(EarnError, match="no titles"):
        title_windows(build_model("lcrec", "tiny-llama", replace(CATALOG, titles=("", "", ""))))


def test_a_checkpoint_is_a_backbone_that_knows_the_tokens(tmp_path: Path) -> None:
    first = build_model("lcrec", "tiny-llama", CATALOG, 2)
    first.save_pretrained(tmp_path)
    second = build_model("lcrec", tmp_path, CATALOG, 4)
    assert (second.identifiers, second.earn.early_layers) == (first.identifiers, 4)
    assert torch.equal(second.model.embed_tokens.weight, first.model.embed_tokens.weight)


def test_words_are_made_of_the_titles() -> None:
    tokenizer = words_of([*TITLES, ""] * 5, 400)
    assert len(tokenizer) <= 400
    for title in [*TITLES, "a title that never came, 東京 ✓"]:
        assert tokenizer.decode(tokenizer.encode(title, add_special_tokens=False)) == title
    assert len(tokenizer.encode("Toy Story")) < len("Toy Story") / 2
    assert tokenizer.get_vocab() == words_of([*TITLES, ""] * 5, 400).get_vocab()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"method": "bert4rec"}, "no method 'bert4rec'"),
        ({"template": Template()}, "tiger has no words"),
        ({"method": "lcrec", "backbone": "PLAIN"}, "has no tokenizer"),
        ({"backbone": "PLAIN", "sizes": {"hidden_size": 8}}, "Leave hidden_size away"),
    ],
)
def test_what_does_not_fit_together_is_refused(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    small_backbone("tiny-llama").save_pretrained(tmp_path)
    given = {"method": "tiger", "backbone": "tiny-llama", **settings}
    if given["backbone"] == "PLAIN":
        given["backbone"] = tmp_path
    assert default_method(given["backbone"]) == "tiger"
    with pytest.raises(EarnError, match=says):
        build_model(catalog=CATALOG, **given)

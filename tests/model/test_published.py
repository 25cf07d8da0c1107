"""Published recommenders: what they have learned stays, and their prompts are what their tokenizers give."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from earn.catalog import Catalog, read_index
from earn.errors import EarnError
from earn.export.bundle import export_bundle
from earn.files import write_json
from earn.identifier_tokens import IdentifierTokens, Level, identifier_tokens, unwrapped
from earn.model.earn_model import EarnModel
from earn.model.methods import build_model, default_method
from earn.model.published import published_model
from earn.model.reference import Trie, build_trie, descend
from earn.model.tokenizer import load_tokenizer
from earn.prompts import Template, whole_prompt
from earn.runtime.recommender import Recommender
from tests.published import BEGIN, END, PADDED_ROWS, PUBLISHERS, TEXT, Publisher
from tests.support import small_backbone, weight_of


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: publisher.folder(tmp_path_factory.mktemp(name)) for name, publisher in PUBLISHERS.items()}


def tokenizer_of(folder: Path) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(folder)
    assert tokenizer is not None
    return tokenizer


def prompt(model: EarnModel, history: list[int]) -> list[int]:
    identifiers = model.identifiers
    return whole_prompt([identifiers[item] for item in history], model.earn)


def their_prompt(
    publisher: Publisher, tokenizer: PreTrainedTokenizerBase, catalog: Catalog, template: Template, history: list[int]
) -> list[int]:
    """What the tokenizer gives for the text with the history in it, and the beginning of the next item's wrapper."""
    items = template.separator.join(publisher.text(catalog, item) for item in history)
    text = template.text.format(history=items)
    begin = BEGIN if publisher.wrapped else ""
    if template.chat:
        messages = [{"role": "system", "content": template.system}] if template.system else []
        messages.append({"role": "user", "content": text})
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    ids: list[int] = tokenizer(text + template.answer + begin, add_special_tokens=not template.chat)["input_ids"]
    return ids


@pytest.mark.parametrize("name", PUBLISHERS)
def test_learned_rows_stay_whatever_is_made_of_the_folder(name: str, folders: dict[str, Path]) -> None:
    folder, catalog = folders[name], PUBLISHERS[name].catalog()
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = tokenizer_of(folder)
    assert default_method(folder) == "lcrec"
    for model in (
        EarnModel.from_backbone(folder, catalog, 2),
        EarnModel.from_backbone(folder, catalog, 4, 0, 0),
        build_model("lcrec", folder, catalog, 1),
        published_model(folder, catalog),
    ):
        assert list(model.earn.token_ids) == tokenizer.convert_tokens_to_ids(list(catalog.tokens))
        rows = len(tokenizer)
        for table, before in ((model.model.embed_tokens, theirs.model.embed_tokens), (model.lm_head, theirs.lm_head)):
            assert torch.equal(weight_of(table)[:rows], weight_of(before)[:rows])
            assert len(weight_of(table)) == PADDED_ROWS  # registers take rows that were padding
        registers = (*model.earn.prefix_ids, *model.earn.suffix_ids)
        assert registers == tuple(range(rows, rows + len(registers)))


TEMPLATES = {
    "plain": Template(TEXT, " , "),
    "without-spaces": Template(TEXT, ""),
    "chat": Template(TEXT, " ; ", chat=True),
    "chat-with-system-and-answer": Template(TEXT, ",", chat=True, system="Can you predict", answer="Response :"),
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("name", PUBLISHERS)
def test_the_prompt_is_what_the_tokenizer_gives_for_the_whole_text(
    name: str, template: Template, folders: dict[str, Path]
) -> None:
    publisher, catalog = PUBLISHERS[name], PUBLISHERS[name].catalog()
    tokenizer = tokenizer_of(folders[name])
    dense = published_model(folders[name], catalog, template)
    early = EarnModel.from_backbone(folders[name], catalog, 2, template=template)
    for history in ([0], [5, 2], [8, 8, 1, 3]):
        want = their_prompt(publisher, tokenizer, catalog, template, history)
        assert prompt(dense, history) == want
        bos = [tokenizer.bos_token_id] if publisher.bos and not template.chat else []
        assert want[: len(bos)] == bos
        assert prompt(early, history) == [*early.earn.prefix_ids, *want[len(bos) :], *early.earn.suffix_ids]


def test_a_dense_model_that_gets_registers_gives_up_the_tokenizers_bos(folders: dict[str, Path]) -> None:
    for name, taken in (("lc-rec", 1), ("minionerec", 0)):
        dense = published_model(folders[name], PUBLISHERS[name].catalog())
        head = dense.earn.prompt.head
        assert EarnModel.from_dense(dense, 2).earn.prompt.head == head[taken:]


def test_apply_chat_template_itself_gives_the_prompt(folders: dict[str, Path]) -> None:
    publisher, catalog = PUBLISHERS["openonerec"], PUBLISHERS["openonerec"].catalog()
    model = published_model(folders["openonerec"], catalog, Template(TEXT, " , ", chat=True))
    assert model.tokenizer is not None
    text = TEXT.format(history=" , ".join(publisher.text(catalog, item) for item in (3, 1)))
    want = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
    )
    assert prompt(model, [3, 1]) == [*want, model.tokenizer.convert_tokens_to_ids(BEGIN)]


def test_wrappers_are_read_from_data_and_tokenizer_or_given(folders: dict[str, Path], tmp_path: Path) -> None:
    catalog = PUBLISHERS["openonerec"].catalog()
    wrapped = {
        item_id: [BEGIN, *identifier, END]
        for item_id, identifier in zip(catalog.item_ids, catalog.identifiers, strict=True)
    }
    write_json(tmp_path / "x.index.json", wrapped)
    assert read_index(tmp_path / "x.index.json") == catalog
    assert unwrapped(["<a_1>", END]) == unwrapped([BEGIN, "<a_1>"]) == unwrapped(["<a_1>"]) == ("<a_1>",)
    by_itself, given, none = (
        published_model(folders["openonerec"], catalog, Template(TEXT, " , ", item)).earn
        for item in ("", f"{BEGIN}{{item}}{END}", "{item}")
    )
    assert by_itself == given
    assert len(by_itself.prompt.separator) == len(none.prompt.separator) + 2


def refused(folder: Path, catalog: Catalog, template: Template, says: str) -> None:
    with pytest.raises(EarnError, match=says):
        published_model(folder, catalog, template)


def test_what_would_be_read_otherwise_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder, catalog = folders["minionerec"], PUBLISHERS["minionerec"].catalog()
    refused(folder, PUBLISHERS["openonerec"].catalog(), Template(TEXT), "'<s_a_1>'.*form <a_N>")
    refused(folder, catalog, Template("no place"), "exactly once")
    refused(folder, catalog, Template(TEXT, item="no place"), "{item} exactly once")
    refused(folder, catalog, Template(TEXT, system="Be brief."), "belongs to a chat")
    small_backbone("tiny-qwen2").save_pretrained(tmp_path / "bare")
    refused(tmp_path / "bare", catalog, Template(TEXT), "no tokenizer")
    tokenizer = tokenizer_of(folder)
    for text, says in ((None, "no chat template"), ("{{ raise_exception('no system') }}", "refuses.*no system")):
        tokenizer.chat_template = text
        with pytest.raises(EarnError, match=says):
            EarnModel.from_backbone(
                small_backbone("tiny-qwen2", vocab_size=PADDED_ROWS),
                catalog,
                template=Template(TEXT, chat=True),
                tokenizer=tokenizer,
            )


BEAMS, ITEMS = 6, 5


def allowed(trie: Trie, prompt_rows: int, batch: int, sequence: torch.Tensor) -> list[int]:
    return list(descend(trie, sequence[prompt_rows:].tolist()))


@pytest.mark.parametrize("name", ["minionerec", "openonerec"])
def test_lists_are_those_of_hugging_face_generate(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    publisher, catalog = PUBLISHERS[name], PUBLISHERS[name].catalog()
    template = Template(TEXT, " , ", chat=publisher.wrapped)
    model = published_model(folders[name], catalog, template, max_history=4)
    export_bundle(model, tmp_path / "bundle", [["0", "3"]], scoring="vocab")
    recommender = Recommender.load(tmp_path / "bundle", threads=1)
    tokenizer = tokenizer_of(folders[name])
    names = ["".join(identifier) for identifier in catalog.identifiers]
    codes = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in names]
    trie, theirs = build_trie(codes), AutoModelForCausalLM.from_pretrained(folders[name]).eval()
    for history in ([4], [0, 7, 2], [8, 6, 1, 1]):
        start = their_prompt(publisher, tokenizer, catalog, template, history)
        answer: Any = theirs.generate(
            torch.tensor([start]),
            attention_mask=torch.ones(1, len(start), dtype=torch.long),
            num_beams=BEAMS,
            num_return_sequences=ITEMS,
            max_new_tokens=len(codes[0]),
            do_sample=False,
            length_penalty=0.0,
            eos_token_id=None,
            prefix_allowed_tokens_fn=partial(allowed, trie, len(start)),
            return_dict_in_generate=True,
            output_scores=True,
        )
        want = [str(codes.index(tuple(row[len(start) :]))) for row in answer.sequences.tolist()]
        got = recommender.recommend(history, k=ITEMS, beams=BEAMS)
        assert [item.item_id for item in got] == want
        assert [item.score for item in got] == pytest.approx(answer.sequences_scores.tolist(), abs=1e-4)


def test_identifier_tokens_are_found_by_form_and_level(folders: dict[str, Path]) -> None:
    tokenizer = tokenizer_of(folders["openonerec"])
    levels = tuple(Level(letter, 10, 9) for letter in "abc")
    assert identifier_tokens(tokenizer.get_vocab()) == IdentifierTokens("<s_a_N>", levels, (BEGIN, END))
    few = ["<a_3>", "<a_255>", "<b_0>", "<|prefix_0|>", "<extra_id_7>", "word"]
    assert identifier_tokens(few) == IdentifierTokens("<a_N>", (Level("a", 2, 255), Level("b", 1, 0)), None)
    assert identifier_tokens(["<|reserved_special_token_0|>", "<unused3>"]) is None

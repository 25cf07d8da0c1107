from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2MoeConfig,
)

from earn.config import Prompt
from earn.errors import EarnError
from earn.files import read_json, write_json
from earn.model.backbones import load_backbone
from earn.model.earn_model import EarnModel
from earn.model.families import check_backbone
from earn.model.reference import reference_search
from earn.prompts import Template
from tests.model.test_tokenizer import folder_with
from tests.support import (
    FAMILIES,
    RULES,
    SMALL,
    Agreement,
    assert_close,
    brute_force,
    histories_of,
    naive_logits,
    pairs,
    prompt_of,
    scramble,
    small_backbone,
    small_model,
    sweep,
    toy_catalog,
    watched_recommender,
    weight_of,
)


@pytest.mark.parametrize(
    ("backbone", "says"),
    [
        (Qwen2Config(rope_scaling={"rope_type": "dynamic", "factor": 2.0}, **SMALL), "'dynamic'"),
        (Qwen2MoeConfig(**SMALL), "'qwen2_moe'"),
        (Gemma3TextConfig(final_logit_softcapping=30.0, pad_token_id=None, **SMALL), "final_logit_softcapping is 30.0"),
    ],
    ids=["dynamic rope", "another family", "capped logits"],
)
def test_backbones_that_would_be_computed_wrongly_are_refused(backbone: Any, says: str) -> None:
    with pytest.raises(EarnError, match=says):
        check_backbone(backbone)
    with pytest.raises(EarnError, match=says):
        EarnModel.from_backbone(AutoModelForCausalLM.from_config(backbone), toy_catalog())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"early_layers": 0}, "early_layers is 0"),
        ({"early_layers": 5}, "the backbone has 4 layers"),
        ({"max_history": 0}, "max_history is 0"),
        ({"max_history": 1000}, "Lower max_history"),
        ({"template": Template()}, "needs a tokenizer"),
        ({"prefix_registers": -1}, r"registers\. Take 0 or more"),
        ({"suffix_registers": -2}, r"registers\. Take 0 or more"),
        ({"catalog": toy_catalog(["<|prefix_0|> b"])}, "as a register has"),
        ({"backbone": "tiny-gpt"}, r"no backbone 'tiny-gpt'.*tiny-llama"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], says: str) -> None:
    given = {"backbone": small_backbone("tiny-llama"), "catalog": toy_catalog(), **settings}
    with pytest.raises(EarnError, match=says):
        EarnModel.from_backbone(**given)


def test_the_default_split_is_a_quarter_and_everything_when_dense() -> None:
    assert small_model().earn.early_layers == 1
    dense = EarnModel.dense(small_backbone("tiny-llama"), toy_catalog())
    assert dense.earn.early_layers == 4
    assert dense.earn.prefix_ids == dense.earn.suffix_ids == ()
    assert dense.earn.prompt.head == (0,)  # BOS, which the prefix register replaces otherwise
    assert small_model().earn.prompt == Prompt()
    half = EarnModel.from_backbone(small_backbone("tiny-llama").bfloat16(), toy_catalog())
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}


@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_was_saved_is_loaded(tmp_path: Path, name: str, untied: bool) -> None:
    backbone = small_backbone(name, tie_word_embeddings=not untied)
    model = EarnModel.from_backbone(backbone, toy_catalog(), early_layers=2, suffix_registers=2, max_history=7)
    scramble(model)
    model.eval().save_pretrained(tmp_path)
    loaded = EarnModel.from_pretrained(tmp_path)
    assert loaded.earn == model.earn
    assert loaded.catalog == model.catalog
    assert loaded.tokenizer is None
    prompt = prompt_of(model, [1, 2, 3])
    assert_close(naive_logits(model, prompt, (3,)), naive_logits(loaded, prompt, (3,)), 1e-5)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)  # it is a plain Hugging Face model too
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        assert_close(backbone.eval()(input_ids=tokens).logits, plain(input_ids=tokens).logits, 1e-5)


def edited(folder: Path, **settings: Any) -> None:
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "earn": {**config["earn"], **settings}})


def without_a_layer(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if "layers.3." not in name}, path)


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (shutil.rmtree, "no checkpoint"),
        (small_backbone("tiny-llama").save_pretrained, r"not an EARN checkpoint.*--backbone"),
        (partial(edited, distillation=True), "unknown key 'distillation'"),
        (partial(edited, positions="compact"), r"'compact' positions, which were removed.*Train it again"),
        (without_a_layer, r"11 weights \(model\.layers\.3.* are missing that config\.json asks for"),
        (cut_short, r"model\.safetensors: cannot be read"),
    ],
)
def test_what_is_no_whole_checkpoint_is_refused(
    toy_model: EarnModel, tmp_path: Path, change: Callable[[Path], object], says: str
) -> None:
    toy_model.save_pretrained(tmp_path / "checkpoint")
    change(tmp_path / "checkpoint")
    with pytest.raises(EarnError, match=says):
        EarnModel.from_pretrained(tmp_path / "checkpoint")


def test_older_versions_read_checkpoints_and_theirs_are_read(toy_model: EarnModel, tmp_path: Path) -> None:
    toy_model.save_pretrained(tmp_path)
    config = read_json(tmp_path / "config.json")
    assert config["earn"].pop("positions") == "original"
    write_json(tmp_path / "config.json", config)
    assert EarnModel.from_pretrained(tmp_path).earn == toy_model.earn


TEXT_TOKENS = 60
WORDS = Template("A user has chosen {history} . Name next :", " , ")


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    """A "trained" Hugging Face folder: its table is padded beyond the tokenizer and far from zero."""
    words = dict.fromkeys(["<s>", "<unk>", *WORDS.text.format(history=WORDS.separator).split()])
    vocabulary = {word: number for number, word in enumerate(words)}
    kind = "PreTrainedTokenizerFast"
    folder = folder_with(tmp_path / "pretrained", vocabulary, TEXT_TOKENS, has_bos=True, tokenizer_class=kind)
    backbone = load_backbone(folder)
    for table in (backbone.get_input_embeddings(), backbone.get_output_embeddings()):
        weight_of(table).add_(3)
    backbone.save_pretrained(folder)
    return folder


def test_new_rows_of_a_trained_table_start_near_its_mean(pretrained: Path) -> None:
    model = EarnModel.from_backbone(pretrained, toy_catalog())
    known = PreTrainedTokenizerFast.from_pretrained(pretrained)
    new = [*model.earn.token_ids, *model.earn.prefix_ids, *model.earn.suffix_ids]
    assert min(new) == len(known)
    assert len(set(new)) == len(new) == len(model.catalog.tokens) + 2
    trained = AutoModelForCausalLM.from_pretrained(pretrained)
    for table, old in (
        (model.get_input_embeddings(), trained.get_input_embeddings()),
        (model.lm_head, trained.get_output_embeddings()),
    ):
        was, rows = weight_of(old)[: len(known)], weight_of(table)
        distance = (rows[new] - was.mean(0)).std()
        assert 0.5 < distance / trained.config.initializer_range < 1.5
        assert_close(was, rows[: len(known)], 0.0)


def test_new_rows_of_an_untrained_table_start_near_zero() -> None:
    model = EarnModel.from_backbone("tiny-llama", toy_catalog())
    new = weight_of(model.get_input_embeddings())[[*model.earn.token_ids, *model.earn.prefix_ids]]
    assert abs(float(new.mean())) < 0.015
    assert 0.75 < float(new.std()) / model.config.initializer_range < 1.25


def test_the_prompt_is_the_template_in_the_tokenizers_words(pretrained: Path) -> None:
    model = EarnModel.from_backbone(pretrained, toy_catalog(), template=WORDS)
    assert model.tokenizer is not None
    prompt, words = model.earn.prompt, model.tokenizer.convert_ids_to_tokens
    assert words(prompt.head) == ["A", "user", "has", "chosen"]
    assert (words(prompt.separator), words(prompt.tail)) == ([","], [".", "Name", "next", ":"])
    assert model.tokenizer.convert_ids_to_tokens(model.earn.token_ids) == list(model.catalog.tokens)
    assert model.tokenizer.encode("a0b0", add_special_tokens=False) == [
        model.earn.token_ids[0],
        *model.tokenizer.convert_tokens_to_ids(["b0"]),
    ]
    dense = EarnModel.dense(pretrained, toy_catalog(), template=WORDS)
    assert dense.earn.prompt.head == (0, *model.earn.prompt.head)  # BOS
    for text in ("no place", "{history} and {history}"):
        with pytest.raises(EarnError, match="exactly once"):
            EarnModel.from_backbone(pretrained, toy_catalog(), template=Template(text))


@pytest.mark.parametrize(
    ("registers", "scoring"),
    sweep(
        [((1, 1), "trie"), ((0, 0), "level"), ((2, 2), "vocab"), ((0, 1), "trie"), ((1, 0), "vocab")],
        product([(1, 1), (0, 0), (2, 2), (1, 0)], RULES),
    ),
    ids=str,
)
def test_with_a_text_prompt_the_runtime_equals_brute_force(
    pretrained: Path, tmp_path: Path, registers: tuple[int, int], scoring: str
) -> None:
    model = EarnModel.from_backbone(pretrained, toy_catalog(), None, *registers, max_history=5)
    scramble(model)
    model.save_pretrained(tmp_path / "checkpoint")
    model = EarnModel.from_pretrained(tmp_path / "checkpoint").eval()
    assert model.tokenizer is not None
    recommender, _ = watched_recommender(model, scoring)
    agreement = Agreement()
    for history in histories_of(model.catalog, 3, 5):
        scores = brute_force(model, history, scoring)
        want = sorted(enumerate(scores), key=lambda pair: -pair[1])
        agreement.add(str(history), want, pairs(recommender.recommend(history)))
        agreement.add(str(history), want, reference_search(model, history, scoring=scoring))
    agreement.check()


def test_a_dense_model_is_split_with_its_own_weights() -> None:
    dense = small_model(prefix_registers=0, suffix_registers=0)
    identifiers, weights = dense.identifiers, {name: value.clone() for name, value in dense.state_dict().items()}
    rows = len(dense.lm_head.weight)
    model = EarnModel.from_dense(dense, 2, 1, 2)
    assert (model.earn.early_layers, model.identifiers) == (2, identifiers)
    assert model.earn.prefix_ids + model.earn.suffix_ids == (rows, rows + 1, rows + 2)
    assert model.earn.prompt.head == ()  # the prefix register stands where BOS stood
    for name, value in model.state_dict().items():
        assert value[: len(weights[name])].equal(weights[name])
    with pytest.raises(EarnError, match="The model is not dense"):
        EarnModel.from_dense(model, 2)

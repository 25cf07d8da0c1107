"""A checkpoint as a task of the comparison: its weights over fewer tokens, and histories of real users."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import engines
from benchmarks.engines import Runtime, make_generate, make_trained_task, needed_tokens
from benchmarks.peers import check_same_work
from benchmarks.sides import AS_THEY_COME, HISTORIES, ITEMS, SIDES
from earn.catalog import Catalog
from earn.config import Prompt
from earn.errors import EarnError
from earn.model.earn_model import EarnModel
from tests.benchmarks.conftest import write_data
from tests.support import toy_catalog

MOST = 4  # items that the models are trained to read


def catalog() -> Catalog:
    """60 items of two codes."""
    return toy_catalog([f"<a_{item % 10}> <b_{item // 10}>" for item in range(60)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of EARN, one of its dense twin, and data: users with six items each, of which one is the target."""
    folder, items = tmp_path_factory.mktemp("trained"), catalog()
    EarnModel.from_backbone("tiny-llama", items, 2, max_history=MOST).save_pretrained(folder / "earn")
    EarnModel.dense("tiny-llama", items, max_history=MOST).save_pretrained(folder / "dense")
    write_data(folder / "data", items, {f"u{user}": items.item_ids[10 * user : 10 * user + 6] for user in range(3)})
    return folder


def test_the_tokens_that_are_left_out_change_no_other_logit(folder: Path) -> None:
    whole, cut = (EarnModel.from_pretrained(folder / "earn") for _ in range(2))
    head = [whole.config.vocab_size - 3, 0]
    for model in (whole, cut):  # a text in front, of an identifier's token and of one that is none
        model.earn = model.earn.__class__(**{**vars(model.earn), "prompt": Prompt(head=tuple(head), separator=(0,))})
    backbone, config = needed_tokens(cut)
    assert config.prompt == Prompt(head=(config.token_ids[-1], 0), separator=(0,))
    old = [0, *whole.earn.token_ids, *whole.earn.prefix_ids, *whole.earn.suffix_ids]
    new = [0, *config.token_ids, *config.prefix_ids, *config.suffix_ids]
    assert sorted(new) == list(range(backbone.config.vocab_size))
    with torch.no_grad():
        want = whole.backbone(torch.tensor([old])).logits[..., old]
        got = backbone(torch.tensor([new])).logits[..., new]
    torch.testing.assert_close(got, want)


def test_a_prompt_is_filled_with_the_histories_of_the_next_users(folder: Path) -> None:
    task = make_trained_task(folder / "earn", None, str(folder / "data"), threads=1)
    first, second, third = ([*range(start, start + 5)] for start in (0, 10, 20))
    assert [list(history) for history in task.users] == [first, second, third]
    assert task.histories(AS_THEY_COME) == 4 * [first[-4:], second[-4:], third[-4:]]
    assert task.histories(3) == 4 * [first[-3:], second[-3:], third[-3:]]
    assert task.histories(8)[:3] == [second[-3:] + first, third[-3:] + second, first[-3:] + third]
    assert task.histories(17)[2] == third[-2:] + second + first + third
    assert len(task.histories(17)) == HISTORIES
    assert task.items_in(200) == 99  # two registers, two codes an item
    assert len(task.prompt(task.histories(99)[0])) == 200


def test_what_is_no_twin_or_no_model_of_beams_is_refused(folder: Path) -> None:
    make_trained_task(folder / "earn", folder / "dense", str(folder / "data"), threads=1)
    with pytest.raises(EarnError, match="no EARN checkpoint"):
        make_trained_task(folder / "dense", None, str(folder / "data"), threads=1)
    with pytest.raises(EarnError, match="no dense twin"):
        make_trained_task(folder / "earn", folder / "earn", str(folder / "data"), threads=1)
    with pytest.raises(EarnError, match="--data"):
        make_trained_task(folder / "earn", None, None, threads=1)


@pytest.mark.slow
def test_the_dense_model_here_gives_the_lists_of_generate(folder: Path, tmp_path: Path) -> None:
    task = make_trained_task(folder / "earn", folder / "dense", str(folder / "data"), threads=1)
    chosen = {name: SIDES[name] for name in ("dense_fp32_vocab", "earn_int8")}
    given = tmp_path / "given"
    engines.write(task, tmp_path, task.histories(6), chosen)
    (tmp_path / "bundles" / "earn" / "int8").rename(given)
    again = tmp_path / "again"
    engines.write(task, again, task.histories(6), chosen, given)
    generate, runtime = make_generate(task), Runtime(again / "bundles", threads=1)
    for items in (AS_THEY_COME, 12):  # more than the checkpoint was trained to read
        history = task.item_ids(task.histories(items)[1])
        check_same_work(generate.search([history], 20)[0], runtime.recommend(SIDES["dense_fp32_vocab"], history, 20))
        assert len(runtime.recommend(SIDES["earn_int8"], history, 20)) == ITEMS
    assert (again / "bundles" / "earn" / "int8").resolve() == given

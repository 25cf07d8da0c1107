from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from earn.cli import train
from earn.cli.main import build_parser
from earn.cli.recommend import items_table
from earn.data import Interactions, dataset, load_interactions, split_of
from earn.data.dataset import Dataset, load_dataset, sample
from earn.errors import EarnError
from earn.runtime.lists import Recommendation
from tests.cli.conftest import ITEMS, USERS, Earn
from tests.support import toy_catalog

MEASURES = {f"{name}@{cutoff}" for name in ("recall", "ndcg") for cutoff in (5, 10, 20)}


def test_data_counts_what_is_there(data: Path, earn: Earn, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = earn("data", data, "--json").json
    assert (facts["name"], facts["users"], facts["items"]) == ("walks", USERS, ITEMS)
    assert 8 <= facts["history"]["min"] <= facts["history"]["median"] <= facts["history"]["max"] <= 12
    assert (facts["identifiers"]["from"], facts["identifiers"]["depth"]) == ("built", None)
    built = earn("data", data, "--identifiers", "--json").json["identifiers"]
    assert (built["depth"], built["distinct"], built["shared"]) == (4, ITEMS, 0)
    assert facts["split"] == {"from": "leave-one-out", "train": USERS, "valid": USERS, "test": USERS}
    assert f"{USERS} training users" in earn("data", data).out
    held_out = tuple((2, 1) if user % 3 else (0, 0) for user in range(USERS))
    interactions = replace(load_interactions(data), held_out=held_out)
    monkeypatch.setattr(dataset, "load_interactions", lambda _: interactions)
    asked = USERS * 2 // 3
    assert earn("data", data, "--json").json["split"] == {"from": "data", "train": USERS, "valid": asked, "test": asked}
    assert "brought by the data" in earn("data", data).out


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        (None, "no user has three items or more, so nobody can be evaluated. Give longer histories."),
        (((0, 1),), "its split gives no user a valid item that comes after others, so nobody can be evaluated."),
    ],
)
def test_data_without_users_to_ask_says_why(held_out: tuple[tuple[int, int], ...] | None, message: str) -> None:
    short = Interactions("toy", ("a",), ("",), ("",), ("u",), (np.zeros(2, np.int64),), None, held_out)
    with pytest.raises(EarnError, match=message):
        Dataset("toy", short, split_of(short)).examples("valid")


def test_a_training_remembers_the_path_of_its_data(
    checkpoint: Path, data: Path, earn: Earn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = json.loads((checkpoint / "training.json").read_text())
    assert (record["data"], record["settings"]["epochs"]) == (str(data.resolve()), 2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EARN_DATA", str(data.parent))  # where a name is looked for
    assert load_dataset(data.name).source == str(data.resolve())


def test_nothing_is_resumed_where_nothing_was_interrupted(data: Path, earn: Earn, tmp_path: Path) -> None:
    assert "no interrupted training to resume" in earn("train", data, "--out", tmp_path / "new", "--resume").error


@pytest.mark.parametrize("is_left_out", [False, True])
def test_a_dense_model_has_no_registers_and_is_validated_as_told(
    is_left_out: bool, data: Path, backbone: Path, earn: Earn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def ranks(recommender: object, users: Sequence[object], item_ids: object, exclude_history: bool, _: object) -> Any:
        asked.append(exclude_history)
        return np.zeros(len(users), np.int64)

    monkeypatch.setattr("earn.export.validation.target_ranks", ranks)
    options = ["--exclude-history"] if is_left_out else []
    outcome = earn("train", data, "--out", tmp_path, "--backbone", backbone, "--dense", "--epochs", 1, *options)
    assert asked == [is_left_out]
    settings = json.loads((tmp_path / "config.json").read_text())["earn"]
    assert (settings["early_layers"], settings["prefix_ids"], settings["suffix_ids"]) == (4, [], [])
    assert "validation NDCG@10" in outcome.out
    assert outcome.out.count("\n") == 1  # the trainer's own figures are no results


@pytest.mark.parametrize(("options", "registers"), [((), (1, 1)), (("--prefix-registers", "0"), (0, 1))])
def test_registers_are_counted(options: tuple[str, ...], registers: tuple[int, int], backbone: Path) -> None:
    args = build_parser().parse_args(["train", "any", "--out", "any", "--backbone", str(backbone), *options])
    settings = train._model(args, "tiger", toy_catalog()).earn
    assert (len(settings.prefix_ids), len(settings.suffix_ids)) == registers


def test_checkpoint_and_bundle_evaluate_alike(checkpoint: Path, exported: Path, data: Path, earn: Earn) -> None:
    figures = [earn("evaluate", model, data, "--json").json for model in (checkpoint, exported)]
    assert figures[0].keys() == MEASURES | {"users"}
    assert figures[0]["users"] == USERS
    assert figures[0] == pytest.approx(figures[1])
    assert 0 <= figures[0]["recall@5"] <= figures[0]["recall@10"] <= figures[0]["recall@20"] <= 1


def test_evaluation_prints_a_table_and_takes_a_sample(exported: Path, data: Path, earn: Earn) -> None:
    outcome = earn("evaluate", exported, data, "--users", 5, "--split", "valid", "--exclude-history")
    lines = [line.split() for line in outcome.out.splitlines()[2:]]
    names = [f"{name}@{cutoff}" for name in ("Recall", "NDCG") for cutoff in (5, 10, 20)]
    assert [line[0] for line in lines] == [*names, "users"]
    assert lines[-1][1] == "5"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("i7\t", "new\tNew\ni7\t", f"1 of its {ITEMS + 1} items, such as 'new'"),
        ("Item 7", "Another", "item 'i7' is 'Another', but 'Item 7' in the catalog of"),
    ],
)
def test_evaluation_refuses_other_items(
    old: str, new: str, says: str, exported: Path, data: Path, earn: Earn, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(data, tmp_path / "other"))
    (other / "walks.item").write_text((data / "walks.item").read_text().replace(old, new))
    assert says in earn("evaluate", exported, other).error


def test_items_are_told_apart_by_title_or_by_the_identifiers_of_the_data(data: Path) -> None:
    dataset = load_dataset(str(data))
    catalog = dataset.catalog()
    first, second, *others = catalog.identifiers
    swapped = replace(catalog, identifiers=(second, first, *others))
    for fitting in (catalog, swapped, replace(catalog, titles=("",) * ITEMS)):  # these identifiers were built
        dataset.check_items(fitting, "model")
    renamed = replace(catalog, titles=("Another", *catalog.titles[1:]))
    with pytest.raises(EarnError, match="item 'i0' is 'Item 0', but 'Another' in the catalog of model"):
        dataset.check_items(renamed, "model")

    brought = replace(dataset, interactions=replace(dataset.interactions, catalog=catalog))
    for fitting in (catalog, swapped, renamed):  # titles that are spelled anew, identifiers that were built
        brought.check_items(fitting, "model")
    with pytest.raises(EarnError, match=f"item 'i0' is '{''.join(first)}', but '{''.join(second)}' in the catalog"):
        brought.check_items(replace(renamed, identifiers=swapped.identifiers), "model")


def test_identifiers_are_built_in_spite_of_given_ones_where_titles_tell_items_apart(data: Path) -> None:
    dataset = load_dataset(str(data))
    given = replace(dataset.catalog(), identifiers=tuple((f"<a_{item}>",) for item in range(ITEMS)))
    interactions = replace(dataset.interactions, catalog=given)
    brought = replace(dataset, interactions=interactions)
    assert brought.catalog() is given
    assert brought.catalog(build=True) == dataset.catalog()
    for titles in (interactions.titles, ("", *interactions.titles[1:])):
        titled = replace(brought, interactions=replace(interactions, titles=titles))
        titled.check_items(titled.catalog(build=True), "model")
    untitled = replace(brought, interactions=replace(interactions, titles=("",) * ITEMS))
    with pytest.raises(EarnError, match=r"identifiers but no titles.* leave away --build-identifiers"):
        untitled.catalog(build=True)


def test_export_lists_its_files(checkpoint: Path, data: Path, earn: Earn, tmp_path: Path) -> None:
    outcome = earn(
        *("export", checkpoint, "--out", tmp_path / "bundle", "--data", data),
        *("--scoring", "vocab", "--max-batch", 4, "--max-beams", 8),
    )
    assert outcome.status == 0
    assert all(name in outcome.out for name in ("early.onnx", "late.onnx", "catalog.npz", "together"))
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["scoring"] == "vocab"
    assert (manifest["limits"]["batch"], manifest["limits"]["beams"]) == (4, 8)


def test_export_asks_for_data_where_none_is_recorded(checkpoint: Path, earn: Earn, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    (copy / "training.json").unlink()
    assert "Give the data with --data" in earn("export", copy, "--out", tmp_path / "bundle").error


def test_recommend_gives_items_with_titles(exported: Path, earn: Earn) -> None:
    items = earn("recommend", exported, "--history", "i1, i2,i3", "-k", 5, "--json").json
    assert [set(item) for item in items] == [{"item_id", "score", "title"}] * 5
    assert all(item["title"] == f"Item {item['item_id'][1:]}" for item in items)
    assert [item["score"] for item in items] == sorted((item["score"] for item in items), reverse=True)
    lines = earn("recommend", exported, "--history", "i1,i2,i3", "-k", 5).out.splitlines()
    assert lines[0].split() == ["rank", "item", "score", "title"]
    assert [line.split()[1] for line in lines[2:]] == [item["item_id"] for item in items]


def test_recommend_excludes_and_skips(exported: Path, earn: Earn) -> None:
    def ids(*options: object, history: str = "i1,i2") -> list[str]:
        argv = ("recommend", exported, "--history", history, "--beams", ITEMS, "-k", ITEMS, "--json", *options)
        return [item["item_id"] for item in earn(*argv).json]

    everything = ids()
    assert len(everything) == ITEMS
    assert ids("--exclude", "i5,i6") == [item for item in everything if item not in ("i5", "i6")]
    assert ids("--exclude-history") == [item for item in everything if item not in ("i1", "i2")]
    assert ids("--unknown", "skip", history="i1,nope,i2") == everything


def test_inspect_shows_what_the_bundle_holds(exported: Path, earn: Earn, tmp_path: Path) -> None:
    facts: dict[str, Any] = earn("inspect", exported, "--json").json
    assert facts["sizes"]["family"] == "llama"
    assert (facts["sizes"]["early_layers"], facts["sizes"]["layers"]) == (1, 4)
    assert facts["registers"] == {"prefix": 1, "suffix": 1}
    # 4 layers of one key-value head of 16 numbers, keys and values, 4 bytes each; 20 beams over 3 steps.
    row, prompt, generated = 2 * 16 * 4, 1 + 6 * 4 + 1, 20 * 3
    assert facts["cache_bytes"] == {
        "beams": 20,
        "prompt": prompt,
        "bundle": row * (prompt + generated) + 3 * row * (2 + generated),
        "dense": 4 * row * (prompt - 1 + generated),  # BOS instead of the prefix register, no suffix register
    }
    assert facts["bundle_bytes"] == sum(
        (exported / name).stat().st_size for name in ("early.onnx", "late.onnx", "catalog.npz")
    )
    trie = facts["trie"]
    assert (trie["items"], trie["identifiers"], trie["depth"]) == (ITEMS, ITEMS, 4)
    shares = [trie["determined_after"][tokens] for tokens in "123"]
    assert shares == sorted(shares)
    assert "k = 1 of 4 layers" in earn("inspect", exported).out
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    (copy / "late.onnx").write_bytes(b"damaged")
    assert "late.onnx" in earn("inspect", copy).error


def test_a_sample_is_seeded_and_in_order() -> None:
    assert list(sample(range(10), 10)) == list(range(10))
    few = sample(range(1000), 10)
    assert list(few) == sorted(set(few))
    assert few == sample(range(1000), 10) != sample(range(1000), 10, seed=1)


def test_a_title_cannot_command_the_terminal() -> None:
    text = items_table([Recommendation("1", -1.0, "red \x1b[31m title " + "x" * 200)])
    assert "\x1b" not in text
    assert "red ?[31m title xx" in text
    assert max(map(len, text.splitlines())) < 130

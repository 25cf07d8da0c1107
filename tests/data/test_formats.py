from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import pytest

from earn.data import load_interactions, split_of
from earn.data.formats.lcrec import read_lcrec
from earn.data.formats.recbole import read_recbole
from earn.data.formats.timesplit import read_timesplit
from earn.errors import EarnError
from tests.data.tables import sequences, write_files

INDEX = {"2": ["<a_0>", "<b_0>"], "0": ["<a_0>", "<b_1>"], "1": ["<a_1>", "<b_0>"]}
INTER = {"u": [0, 1, 0], "v": [2]}
HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
ITEMS = "item_id:token\tyear:float\tmovie_title:token_seq\tclass:token_seq\tstudio:token\n"


# --- LC-Rec and LETTER --------------------------------------------------------------------------------------


def lcrec(folder: Path, files: dict[str, object] | None = None) -> Path:
    return write_files(folder, {"T.index.json": INDEX, "T.inter.json": INTER} | (files or {}))


def test_an_lcrec_folder_gives_items_in_the_order_of_the_index(tmp_path: Path) -> None:
    data = load_interactions(lcrec(tmp_path / "Toys"))
    assert (data.name, data.item_ids, data.titles) == ("Toys", ("2", "0", "1"), ("", "", ""))
    assert sequences(data) == {"u": ["0", "1", "0"], "v": ["2"]}
    assert data.catalog is not None
    assert data.catalog.identifiers == (("<a_0>", "<b_0>"), ("<a_0>", "<b_1>"), ("<a_1>", "<b_0>"))


def test_json_in_raw_and_titles_in_the_folder(tmp_path: Path) -> None:
    lcrec(tmp_path / "raw")
    rows = "0\tB00\tRed  ball\tOutdoor\n9\tB09\tGone\t\n"
    write_files(tmp_path, {"items.tsv": "item_id\tasin\ttitle\tcategories\n" + rows})
    data = load_interactions(tmp_path)
    assert data.titles == ("", "Red ball", "")
    assert data.metadata == ("", "Outdoor", "")
    assert data.catalog is not None
    assert data.catalog.titles == data.titles


def test_titles_of_item_json(tmp_path: Path) -> None:
    items = {"1": {"title": "Red\nball", "categories": [["Toys", "Balls"], "Outdoor"], "price": 3}, "0": {}}
    data = read_lcrec(lcrec(tmp_path, {"T.item.json": items}))
    assert data.titles == ("", "", "Red ball")
    assert data.metadata == ("", "", "Toys Balls Outdoor")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"T.inter.json": {"u": [0, 9]}},
            r"T\.inter\.json: user 'u' holds item 9, which T\.index\.json lacks",
        ),
        ({"T.inter.json": {"u": []}}, r"T\.inter\.json: user 'u' has no items. Remove the user"),
        ({"T.inter.json": {"u": 3}}, "user 'u' holds 3. Give a list"),
        ({"T.inter.json": {"u": [1.5]}}, r"user 'u' holds \[1\.5\]"),
        ({"T.inter.json": {"u": [True]}}, r"user 'u' holds \[True\]"),
        ({"T.inter.json": {}}, "not an object of the form"),
        ({"T.inter.json": ""}, "line 1, column 1: not valid JSON"),
        ({"T.inter.json": '{"u": [0], "u": [1]}'}, r"^[^(]*T\.inter\.json: the key 'u' stands twice"),
        ({"T.index.json": "[1]"}, r"T\.index\.json: holds a list"),
        ({"S.index.json": INDEX}, r"holds 2 files where one is expected: S\.index\.json, T\.index\.json"),
        (
            {"items.tsv": "item_id\ttitle\n0\tA\n", "T.item.json": {"0": {}}},
            "both items.tsv and T.item.json",
        ),
        (
            {"items.tsv": "item\ttitle\n0\tA\n"},
            r"items\.tsv, line 1: there is no column 'item_id', only item, title",
        ),
        ({"items.tsv": "item_id\ttitle\n0\tA\n0\tB\n"}, r"items\.tsv, line 3: item '0' stands twice"),
        ({"items.tsv": ""}, r"items\.tsv, line 1: the file is empty"),
        ({"T.item.json": {"0": "Ball"}}, r"T\.item\.json: item '0' holds Ball"),
        ({"T.item.json": {"0": {"title": 3}}}, r"T\.item\.json: item '0' holds"),
        (
            {"T.item.json": '{"0": {"title": "cut \\ud83d"}}'},
            r"T\.item\.json: half a character \(\\ud83d\) in .*cut \?",
        ),
        ({"T.inter.json": "[" * 100_000}, r"T\.inter\.json: cannot be read as JSON \(.*recursion"),
        ({"T.inter.json": '{"u": [' + "1" * 5000 + "]}"}, r"T\.inter\.json: cannot be read as JSON \(.*digits"),
    ],
)
def test_what_is_wrong_in_an_lcrec_folder_is_named(tmp_path: Path, files: dict[str, object], message: str) -> None:
    with pytest.raises(EarnError, match=message):
        load_interactions(lcrec(tmp_path, files))


def test_an_lcrec_folder_needs_its_index(tmp_path: Path) -> None:
    with pytest.raises(EarnError, match=r"holds no \*\.index\.json, nor does its raw/"):
        load_interactions(write_files(tmp_path, {"T.inter.json": INTER}))


# --- RecBole atomic files -----------------------------------------------------------------------------------


def test_interactions_are_sorted_by_time_and_keep_the_files_order_within_one(tmp_path: Path) -> None:
    rows = "u\tx\t5\t30\nv\ty\t5\t1\nu\tz\t5\t10\nu\ty\t5\t30\nu\tw\t5\t20\n"
    data = load_interactions(write_files(tmp_path, {"toy.inter": HEADER + rows}))
    assert (data.name, data.catalog) == ("toy", None)
    assert data.item_ids == ("x", "y", "z", "w")  # first appearance
    assert sequences(data) == {"u": ["z", "w", "x", "y"], "v": ["y"]}


def test_items_titles_and_metadata_come_from_the_item_file(tmp_path: Path) -> None:
    items = ITEMS + "y\t1999\tRed\u2028 ball\tAction Drama\tMGM\r\nx\t\t\t\t\r\n\r\n"
    write_files(tmp_path, {"toy.inter": HEADER + "u\tx\t5\t1\n", "toy.item": items})
    data = load_interactions(tmp_path / "toy.inter")
    assert data.item_ids == ("y", "x")
    assert data.titles == ("Red ball", "")
    assert data.metadata == ("Action Drama MGM", "")
    assert sequences(data) == {"u": ["x"]}


@pytest.mark.parametrize(("column", "title"), [("name", "Ball"), ("item_name", "Ball"), ("brand_name", "")])
def test_a_column_called_name_is_a_title(tmp_path: Path, column: str, title: str) -> None:
    items = f"item_id:token\t{column}:token_seq\nx\tBall\n"
    write_files(tmp_path, {"toy.inter": HEADER + "u\tx\t5\t1\n", "toy.item": items})
    assert read_recbole(tmp_path).titles == (title,)


def test_an_index_beside_atomic_files_gives_the_catalog_in_the_order_of_the_data(tmp_path: Path) -> None:
    index = {"y": ["<a_1>"], "w": ["<a_2>"], "x": ["<a_0>"]}
    data = read_recbole(
        write_files(tmp_path, {"toy.inter": HEADER + "u\tx\t5\t1\nu\ty\t5\t2\n", "other.index.json": index})
    )
    assert data.catalog is not None
    assert data.catalog.item_ids == data.item_ids == ("x", "y")
    assert data.catalog.identifiers == (("<a_0>",), ("<a_1>",))


def test_beside_several_data_sets_only_files_of_the_same_name_belong(tmp_path: Path) -> None:
    rows = HEADER + "u\tx\t5\t1\n"
    write_files(tmp_path, {"a.inter": rows, "b.inter": rows, "b.item": "item_id:token\ttitle:token_seq\nx\tBall\n"})
    assert load_interactions(tmp_path / "a.inter").titles == ("",)
    assert load_interactions(tmp_path / "b.inter").titles == ("Ball",)
    with pytest.raises(EarnError, match=r"holds 2 files where one is expected: a\.inter, b\.inter"):
        load_interactions(tmp_path)


ROW = HEADER + "u\tx\t5\t1\n"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"toy.inter": ""}, r"toy\.inter, line 1: the file is empty"),
        ({"toy.inter": HEADER}, r"toy\.inter: only a header"),
        ({"toy.inter": "user_id,item_id\nu,x\n"}, "line 1: the column 'user_id,item_id' has no type"),
        ({"toy.inter": "user_id:int\nu\n"}, "the column 'user_id:int' has no type.*token, token_seq, float"),
        ({"toy.inter": "user_id:token\tuser_id:token\nu\tu\n"}, "line 1: the column 'user_id' stands twice"),
        (
            {"toy.inter": "user_id:token\titem_id:token\nu\tx\n"},
            "line 1: there is no column 'timestamp', only user_id",
        ),
        ({"toy.inter": HEADER + "u\tx\t5\n"}, "line 2: 3 fields, but the header names 4 columns"),
        ({"toy.inter": ROW + "\tx\t5\t1\n"}, "line 3: the user_id is empty"),
        ({"toy.inter": ROW + "\t\t\t\n"}, "line 3: the user_id is empty"),
        ({"toy.inter": ROW + "u\t\t5\t1\n"}, "line 3: the item_id is empty"),
        ({"toy.inter": ROW + "u\tx\t5\tnoon\n"}, "line 3: the timestamp 'noon' is not a number"),
        ({"toy.inter": ROW + "u\tx\t5\tnan\n"}, "line 3: the timestamp 'nan' is not a number"),
        ({"toy.inter": ROW + "u\tx\t5\t" + "9" * 400 + "\n"}, "line 3: the timestamp '999"),
        ({"toy.inter": ROW + "u\tx\t5\t\n"}, "line 3: the timestamp '' is not a number"),
        ({"toy.inter": ROW + "u\tx\t5\t1_000\n"}, "line 3: the timestamp '1_000' is not a number"),
        ({"toy.inter": ROW + "u\tx\t5\t١٢٣\n"}, "line 3: the timestamp '١٢٣' is not a number"),
        ({"toy.inter": ROW + "nan\tx\t5\t3\n"}, r"line 3: the user_id is missing \(nan\)"),
        ({"toy.inter": ROW + "u\tNone\t5\t3\n"}, r"line 3: the item_id is missing \(None\)"),
        ({"toy.inter": ROW.encode() + "v\té\t5\t1\n".encode("latin-1")}, "line 3: byte 0xe9 is not UTF-8.*iconv"),
        (
            {"toy.inter": ROW, "toy.item": "item_id:token\nx\nx\n"},
            r"toy\.item, line 3: item 'x' stands twice",
        ),
        (
            {"toy.inter": ROW, "toy.item": "id:token\nx\n"},
            r"toy\.item, line 1: there is no column 'item_id'",
        ),
        (
            {"toy.inter": ROW, "toy.index.json": {"y": ["a"]}},
            r"toy\.index\.json: item 'x' of the data has no",
        ),
        ({"toy.inter": ROW, "a.item": "", "b.item": ""}, r"one is expected: a\.item, b\.item"),
    ],
)
def test_what_is_wrong_in_atomic_files_is_named(tmp_path: Path, files: dict[str, object], message: str) -> None:
    with pytest.raises(EarnError, match=message):
        load_interactions(write_files(tmp_path, files))


# --- AtSpeed, split by time ---------------------------------------------------------------------------------

TRAIN, VALID, TEST = (f"sequential_{part}.txt" for part in ("train", "valid", "test"))
# Users: "1" has all parts, "2" no validation item, "3" only trains and lacks a line, "4" and "5" have no training item.
TIMES = {TRAIN: "1 1 2 1\n2 3\n3 2 2\n4\n", VALID: "1 3 2\n2\n\n4 1\n", TEST: "1 1\n2 2 3\n4 2\n5 3\n"}
INDEX3 = {"0": ["<a_0>", "<b_0>"], "1": ["<a_0>", "<b_1>"], "2": ["<a_0>", "<b_0>"]}  # "0" and "2" share theirs


def timesplit(folder: Path, files: dict[str, object] | None = None) -> Path:
    return write_files(folder, {"toy.LCRec-1e-3lr.json": INDEX3} | TIMES | (files or {}))


def test_items_of_a_time_split_are_numbered_from_1_in_the_text_and_from_0_elsewhere(tmp_path: Path) -> None:
    titles = "item_id\tasin\ttitle\tcategories\n2\tB2\tRed ball\tToys > Balls\n0\tB0\tKite\t\n7\tB7\tGone\t\n"
    timesplit(tmp_path / "toy/raw")
    data = load_interactions(write_files(tmp_path / "toy", {"items.tsv": titles}))
    assert (data.name, data.item_ids, data.user_ids) == ("toy", ("0", "1", "2"), ("1", "2", "3", "4", "5"))
    assert (data.titles, data.metadata) == (("Kite", "", "Red ball"), ("", "", "Toys > Balls"))
    assert data.catalog is not None
    assert data.catalog.titles == data.titles
    assert data.catalog.identifiers == (("<a_0>", "<b_0>"), ("<a_0>", "<b_1>"), ("<a_0>", "<b_0>"))
    assert sequences(data) == {
        "1": ["0", "1", "0", "2", "1", "0"],
        "2": ["2", "1", "2"],
        "3": ["1", "1"],
        "4": ["0", "1"],
        "5": ["2"],
    }
    assert data.held_out == ((2, 1), (0, 2), (0, 0), (1, 1), (0, 1))


def test_a_time_split_trains_on_its_training_items_alone(tmp_path: Path) -> None:
    split = split_of(load_interactions(timesplit(tmp_path)))
    assert [sequence.tolist() for sequence in split.train] == [[0, 1, 0], [2], [1, 1]]
    valid = [(example.user, example.history.tolist(), example.target) for example in split.valid]
    test = [(example.user, example.history.tolist(), example.target) for example in split.test]
    assert valid == [("1", [0, 1, 0], 2)]
    assert test == [("1", [0, 1, 0, 2, 1], 0), ("2", [2], 1), ("4", [0], 1)]  # "5" has nothing to start from


def test_the_catalog_of_a_time_split_keeps_the_order_of_its_index(tmp_path: Path) -> None:
    (timesplit(tmp_path) / "toy.LCRec-1e-3lr.json").unlink()
    index = {item: INDEX3[item] for item in ("2", "0", "1")}
    data = read_timesplit(write_files(tmp_path, {"toy.index.json": index, TRAIN: "u\t1  2 3\r\n"}))
    assert data.item_ids == ("2", "0", "1")
    assert sequences(data)["u"] == ["0", "1", "2"]
    assert data.user_ids == ("u", "1", "2", "4", "5")


ONE_BASED = {str(int(item) + 1): identifier for item, identifier in INDEX3.items()}
NUMBERED = "items are numbered from 1 to 3 here: toy.* has 3, numbered from 0"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({TRAIN: "1 2\n2 1 0\n"}, rf"sequential_train\.txt, line 2: user '2' holds item '0', but {NUMBERED}"),
        ({VALID: "1 1\n\n2 4\n"}, rf"sequential_valid\.txt, line 3: user '2' holds item '4', but {NUMBERED}"),
        ({TEST: "1 x\n"}, rf"sequential_test\.txt, line 1: user '1' holds item 'x', but {NUMBERED}"),
        ({TEST: "1 -1\n"}, "user '1' holds item '-1'"),
        ({TRAIN: "1 1\n2 2\n1 3\n"}, r"sequential_train\.txt, line 3: user '1' stands twice"),
        ({TRAIN: "1\n2\n"}, r"sequential_train\.txt: no user has an item, so there is nothing to train on"),
        ({TRAIN: ""}, r"sequential_train\.txt: no user has an item"),
        (
            {TRAIN: "1 1\n9\n"},
            "user '9' has no item in sequential_train.txt, .*_test.txt",
        ),
        ({"toy.LCRec-1e-3lr.json": ONE_BASED}, r"toy.*\.json: holds 3 items, but no item '0'\. Number them from 0"),
        ({"toy.LCRec-1e-3lr.json": "[1]"}, "holds a list"),
        ({"b.json": INDEX3}, r"holds 2 files where one is expected: b\.json, toy\.LCRec-1e-3lr\.json"),
        ({"items.tsv": "item\ttitle\n0\tA\n"}, r"items\.tsv, line 1: there is no column 'item_id'"),
        ({"toy.inter.json": INTER}, r"more than one format fits it.*\(LC-Rec or LETTER\); .*\(AtSpeed\)"),
    ],
)
def test_what_is_wrong_in_a_time_split_is_named(tmp_path: Path, files: dict[str, object], message: str) -> None:
    with pytest.raises(EarnError, match=message):
        load_interactions(timesplit(tmp_path, files))


@pytest.mark.parametrize(("missing", "name"), [(VALID, VALID), (TEST, TEST), ("toy.LCRec-1e-3lr.json", "*.json")])
def test_a_time_split_needs_all_its_files(tmp_path: Path, missing: str, name: str) -> None:
    (timesplit(tmp_path) / missing).unlink()
    with pytest.raises(EarnError, match=rf"holds no {re.escape(name)}, nor does its raw/"):
        load_interactions(tmp_path)


# --- Data sets as they are shared ---------------------------------------------------------------------------


@pytest.mark.skipif(not os.environ.get("EARN_DATA"), reason="EARN_DATA does not name a folder with these data sets")
@pytest.mark.parametrize(
    ("name", "users", "parts", "items", "distinct", "sharing"),
    [
        ("amazon-games-atspeed", 49_156, (299_987, 22_609, 19_733), 17_332, 17_289, 84),
        ("amazon-beauty-atspeed", 19_383, (122_241, 9_316, 7_313), 12_035, 12_023, 21),
        ("amazon-beauty-letter", 22_363, (198_502 - 2 * 22_363, 22_363, 22_363), 12_101, 12_088, 24),
    ],
)
def test_real_data_has_its_known_size(
    name: str, users: int, parts: tuple[int, int, int], items: int, distinct: int, sharing: int
) -> None:
    """Interactions in training, validation and test; distinct identifiers, and items that share theirs."""
    data = load_interactions(name)
    assert (data.name, len(data.user_ids), len(data.item_ids)) == (name, users, items)
    held_out = data.held_out or ((1, 1),) * users
    valid, test = (sum(part) for part in zip(*held_out, strict=True))
    assert (sum(map(len, data.sequences)) - valid - test, valid, test) == parts
    assert sum(map(len, split_of(data).train)) == parts[0]
    assert data.catalog is not None
    named = Counter(data.catalog.identifiers)
    assert (len(named), sum(count for count in named.values() if count > 1)) == (distinct, sharing)
    assert all(data.titles[:100])
    assert all(
        len(set(sequence.tolist())) == len(sequence) for sequence in data.sequences
    )  # nobody chooses an item twice

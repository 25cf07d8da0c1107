"""Odd input in the formats that are shared with a shape of their own, and data in three parts."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from earn.data import load_interactions
from earn.errors import EarnError
from tests.data.tables import packed, sequences, write_files

HEADER = "user_id:token\titem_id:token\ttimestamp:float\n"
TWO = HEADER + "u\ty\t2\nu\tx\t1\n"
UX = {"u": ["x", "y"]}
INDEX = {"2": ["<a_0>", "<b_0>"], "9": ["<a_0>", "<b_1>"], "1": ["<a_1>", "<b_0>"]}


@pytest.mark.parametrize(
    ("content", "want"),
    [
        (TWO.encode("utf-16"), UX),
        (packed(TWO), UX),
        (TWO.replace("\n", "\r"), UX),
        (TWO.replace("\n", "\r\n"), UX),
        (HEADER + '"u"\t"y ""1"""\t2\n"u"\t"x"\t1\n', {"u": ["x", 'y "1"']}),
        (HEADER + 'u\tit"s\t1\n', {"u": ['it"s']}),
        (HEADER + "u\tx\t1700000000000000001\nu\ty\t1700000000000000000\n", {"u": ["y", "x"]}),  # equal as doubles
        (HEADER + "u\t007\t1\nu\t7\t2\nu\t1e5\t3\nu\ta,b\t4\n", {"u": ["007", "7", "1e5", "a,b"]}),
    ],
)
def test_odd_atomic_files_are_read(tmp_path: Path, content: object, want: dict[str, list[str]]) -> None:
    assert sequences(load_interactions(write_files(tmp_path, {"toy.inter": content}))) == want


def test_items_without_metadata_ties_and_repeats_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = 'item_id:token\ttitle:token_seq\nx\t"The ""Best"""\n'
    data = load_interactions(write_files(tmp_path, {"toy.inter": TWO + "u\tx\t1\n", "toy.item": items}))
    assert (data.item_ids, data.titles) == (("x", "y"), ('The "Best"', ""))
    said = capsys.readouterr().err
    assert "1 items such as 'y' are not in it" in said
    assert "2 interactions share their time" in said
    assert "1 are exact repeats" in said


def test_floats_of_pandas_are_items_and_nan_is_named_with_its_user(tmp_path: Path) -> None:
    write_files(tmp_path, {"T.index.json": INDEX, "T.inter.json": {"u": [2.0, 9.0, 1]}})
    assert sequences(load_interactions(tmp_path)) == {"u": ["2", "9", "1"]}
    write_files(tmp_path, {"T.inter.json": '{"u": [1], "v": [1, 2, NaN]}'})
    with pytest.raises(EarnError, match=r"T\.inter\.json: user 'v': item 3 is missing \(NaN, null\)"):
        load_interactions(tmp_path)


def test_titles_that_are_null_or_lists_are_counted_not_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    titles = {"2": {"title": None, "categories": ["A"]}, "9": {"title": ["Red", "ball"]}}
    data = load_interactions(
        write_files(tmp_path, {"T.index.json": INDEX, "T.inter.json": {"u": [2]}, "T.item.json": titles})
    )
    assert (data.titles, data.metadata) == (("", "Red ball", ""), ("A", "", ""))
    assert "1 of 2 items have no title" in capsys.readouterr().err


def test_whole_numbers_are_codes_per_level(tmp_path: Path) -> None:
    codes = {"2": [0, 0], "9": [0, 12], "1": [12, 0]}
    data = load_interactions(write_files(tmp_path, {"T.index.json": codes, "T.inter.json": {"u": [2]}}))
    assert data.catalog is not None
    assert data.catalog.identifiers == (("<a_0>", "<b_0>"), ("<a_0>", "<b_12>"), ("<a_12>", "<b_0>"))
    write_files(tmp_path, {"T.index.json": {"2": [0, "<b_0>"]}})
    with pytest.raises(EarnError, match=r"identifier of item '2' is \[0, '<b_0>'\]"):
        load_interactions(tmp_path)


# --- three parts ----------------------------------------------------------------------------------------------

RECBOLE = {
    "toy.train.inter": HEADER + "u\tb\t2\nu\ta\t1\nv\tb\t5\n",
    "toy.valid.inter": HEADER + "u\tc\t3\n",
    "toy.test.inter": HEADER + "u\ta\t4\nv\tc\t6\n",
}
EXAMPLES = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
RECBOLE_EXAMPLES = {
    "toy.train.inter": EXAMPLES + "u\ta\tb\nv\tb\tb\n",
    "toy.valid.inter": EXAMPLES + "u\ta b\tc\n",
    "toy.test.inter": EXAMPLES + "u\tb c\ta\nv\tb b\tc\n",  # the newest part of a history is enough
}
AMAZON = "user_id,parent_asin,rating,timestamp,history\n"
AMAZON_2023 = {
    "Toys.train.csv": AMAZON + "u,a,5.0,1628640520381,\nu,b,5.0,1628640520382,a\nv,b,5.0,1628640520383,\n",
    "Toys.valid.csv": AMAZON + "u,c,5.0,1628640520384,a b\n",
    "Toys.test.csv": AMAZON + "u,a,5.0,1628640520385,a b c\nv,c,5.0,1628640520386,b\n",
}
MINI = "user_id,history_item_title,item_title,history_item_id,item_id\n"
MINI_ONE_REC = {
    "train/Toys.csv": MINI + "u,\"['A']\",B,['a'],b\nv,\"['B']\",B,['b'],b\n",
    "valid/Toys.csv": MINI + "u,\"['A', 'B']\",C,\"['a', 'b']\",c\n",
    "test/Toys.csv": MINI + "u,\"['A', 'B', 'C']\",A,\"['a', 'b', 'c']\",a\nv,\"['B', 'B']\",C,\"['b', 'b']\",c\n",
    "index/Toys.index.json": {"c": ["<a_0>"], "a": ["<a_1>"], "b": ["<a_2>"]},
    "index/Toys.item.json": {"a": {"title": "A"}, "b": {"title": "B"}, "c": {"title": "C"}},
}


@pytest.mark.parametrize(
    ("files", "v"),
    [
        (RECBOLE, ["b", "c"]),
        (RECBOLE_EXAMPLES, ["b", "b", "c"]),
        (RECBOLE_EXAMPLES | {"toy.valid.inter": EXAMPLES + "u\tb\tc\n"}, ["b", "b", "c"]),
        (AMAZON_2023, ["b", "c"]),
        (MINI_ONE_REC, ["b", "b", "c"]),
    ],
    ids=["recbole", "recbole with histories", "the newest part of a history", "amazon 2023", "minionerec"],
)
def test_three_parts_are_kept_as_the_split(tmp_path: Path, files: dict[str, object], v: list[str]) -> None:
    data = load_interactions(write_files(tmp_path, files))
    assert sequences(data) == {"u": ["a", "b", "c", "a"], "v": v}
    assert data.held_out == ((1, 1), (0, 1))
    if "index/Toys.index.json" in files:
        assert data.catalog is not None
        assert (data.item_ids, data.titles) == (("c", "a", "b"), ("C", "A", "B"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"toy.valid.inter": EXAMPLES + "u\tc\tc\n"}, r"toy\.valid\.inter, line 2: the history of user 'u' ends with"),
        ({"toy.valid.inter": EXAMPLES + "u\tz a b\tc\n"}, r"toy\.valid\.inter, line 2: the history of user 'u' ends"),
        ({"toy.valid.inter": EXAMPLES + "u\t[a\tc\n"}, r"toy\.valid\.inter, line 2: the history '\[a' is no list"),
        ({"toy.valid.inter": EXAMPLES + "\ta\tc\n"}, r"toy\.valid\.inter, line 2: the user or the item is missing"),
        ({"b.train.inter": EXAMPLES}, r"holds 2 files where one is expected: b\.train\.inter, toy\.train\.inter"),
        ({"toy.index.json": {"a": ["<a_1>"]}}, r"toy\.index\.json: item 'b' of the data has no identifier"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(tmp_path: Path, files: dict[str, object], message: str) -> None:
    with pytest.raises(EarnError, match=message):
        load_interactions(write_files(tmp_path, RECBOLE_EXAMPLES | files))


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    (write_files(tmp_path, RECBOLE) / "toy.valid.inter").unlink()
    with pytest.raises(EarnError, match=r"holds no \*\.valid\.inter"):
        load_interactions(tmp_path)


def test_ties_are_told_of_data_in_three_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"t.train.inter": "u\ta\t5\nu\tb\t5\nv\ta\t5\n", "t.valid.inter": "u\tb\t5\n", "t.test.inter": "u\tc\t6\n"}
    data = load_interactions(write_files(tmp_path, {name: HEADER + rows for name, rows in files.items()}))
    assert data.ties is not None
    assert (data.ties.interactions, data.ties.exact_repeats) == (3, 1)
    said = capsys.readouterr().err
    assert "3 interactions share their time" in said
    assert "earn import" not in said  # which would not keep the split
    untimed = dict.fromkeys(files, "user_id:token\titem_id:token\nu\ta\n")
    assert load_interactions(write_files(tmp_path / "untimed", untimed)).ties is None


# --- OpenOneRec -----------------------------------------------------------------------------------------------


def one_rec(folder: Path, **columns: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    users = {"uid": [7, 8, 9], "split": [0, 1, 0], "hist_video_pid": [[11, 12], [12, 11], None]}
    users |= {"target_video_pid": [[13], [13, 14], [11]], "hist_ad_pid": [[1], [2], [3]], "target_ad_pid": [[1]] * 3}
    parquet.write_table(pa.table(users | columns), folder / "onerec_bench_release.parquet")
    return folder


def test_open_one_rec_is_read_with_its_split_and_identifiers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = one_rec(tmp_path)
    plain = load_interactions(folder)
    want = {"7": ["11", "12", "13"], "8": ["12", "11", "13", "14"], "9": ["11"]}
    assert sequences(plain) == want == sequences(load_interactions(folder / "onerec_bench_release.parquet"))
    assert plain.held_out == ((1, 0), (0, 2), (0, 0))
    assert plain.catalog is None
    assert "domain video; not read: ad" in capsys.readouterr().err
    mapping = {"pid": [13, 12, 11, 99], "sid": [[3, 0, 1], [2, 0, 1], [1, 0, 1], [9, 9, 9]]}
    parquet.write_table(pa.table(mapping), folder / "video_ad_pid2sid.parquet")
    named = load_interactions(folder)
    assert sequences(named) == want | {"8": ["12", "11", "13"]}
    assert named.catalog is not None
    assert named.catalog.identifiers[0] == ("<s_a_1>", "<s_b_0>", "<s_c_1>")
    assert "1 interactions with items without an identifier are left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"uid": [7, 7, 9]}, "row 2: the user 7 stands twice"),
        ({"split": [0, 3, 0]}, "row 2: uid is 8, split is 3"),
        ({"target_video_pid": [[1.5], [2.0], [3.0]]}, r"row 1: \[1\.5\] is no list of whole numbers"),
        ({"hist_video_pid": [[]] * 3, "target_video_pid": [[]] * 3}, "no interaction is left"),
    ],
)
def test_odd_open_one_rec_is_refused(tmp_path: Path, columns: dict[str, object], message: str) -> None:
    with pytest.raises(EarnError, match=message):
        load_interactions(one_rec(tmp_path, **columns))

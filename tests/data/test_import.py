"""Plain tables: odd files, each read right or refused by file, line and remedy; filters, ties, repeats, the folder."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from earn.data import Interactions, load_interactions
from earn.data.import_options import Columns, ImportOptions
from earn.data.tables.files import import_files
from earn.data.tables.folder import read_import, write_import
from earn.errors import EarnError
from tests.data.tables import HEADER, RATED, TWO, packed, read, sequences, write

ROW = HEADER + "u,x,1\n"


UX = {"u": ["x", "y"]}
TABBED = "196\t242\t3\t881250949\n196\t302\t3\t881250940\n"
JSONL = '{"user_id": "u", "parent_asin": "y", "timestamp": 2}\n{"user_id": "u", "parent_asin": "x", "timestamp": 1}\n'


@pytest.mark.parametrize(
    ("name", "content", "want"),
    [
        ("a.csv", TWO, UX),
        ("a.csv", "userId,movieId,rating,timestamp\nu,y,5.0,2\nu,x,4.0,1\n", UX),
        ("a.csv", "timestamp,visitorid,event,itemid\n2,u,view,y\n1,u,view,x\n", UX),
        ("a.csv", "reviewerID,asin,unixReviewTime\nu,y,2\nu,x,1\n", UX),
        ("a.csv", "USER ID,Item-Id,Time Stamp,time\nu,y,2,1\nu,x,1,2\n", UX),  # the preferred name
        ("a.csv", "user_id,asin,parent_asin,timestamp\nu,a,y,2\nu,b,x,1\n", UX),
        ("a.csv", "user_id;item_id;timestamp\nu;y;2\nu;x;1\n", UX),
        ("a.csv", "user_id|item_id|timestamp\nu|y|2\nu|x|1\n", UX),
        ("a.tsv", "user_id\titem_id\ttimestamp\nu\ty\t2\nu\tx\t1\n", UX),
        ("a.inter.csv", "user_id:token\titem_id:token\ttimestamp:float\nu\ty\t2\nu\tx\t1\n", UX),
        ("u.data", TABBED, {"196": ["302", "242"]}),
        ("ratings.dat", "1::1193::5::978300761\n1::661::3::978300760\n", {"1": ["661", "1193"]}),
        ("sasrec.txt", "1 5\n1 3\n2 5\n", {"1": ["5", "3"], "2": ["5"]}),
        ("a.jsonl", JSONL, UX),
        ("a.json", "[" + JSONL.strip().replace("\n", ",") + "]", UX),
        ("no suffix", TWO, UX),
        ("a.csv.gz", packed(TWO), UX),
        ("a.csv", packed(TWO), UX),  # gzip under another name
        ("a.jsonl.gz", packed(JSONL), UX),
        ("a.csv", "\ufeff" + TWO, UX),
        ("a.csv", TWO.encode("utf-16"), UX),
        ("a.csv", TWO.encode("utf-16-le"), UX),
        ("a.csv", TWO.encode("utf-16-be"), UX),
        ("a.csv", TWO.replace("\n", "\r"), UX),
        ("a.csv", TWO.replace("\n", "\r\n"), UX),
        ("a.tsv", TWO.replace(",", "\t").replace("\n", "\r"), UX),
        ("a.jsonl", JSONL.replace("\n", "\r\n\r\n"), UX),
        ("a.csv", TWO.replace("\n", "\n\n"), UX),  # empty lines
        ("a.csv", TWO.rstrip("\n"), UX),
        ("a.csv", '"user_id","item_id","timestamp"\n"u","y","2"\n"u","x","1"\n', UX),
        ("a.tsv", '"user_id"\t"item_id"\t"timestamp"\n"u"\t"y"\t"2"\n"u"\t"x"\t"1"\n', UX),
        ("a.csv", HEADER + '"a,b","x ""y""",1\n', {"a,b": ['x "y"']}),
        ("a.csv", HEADER + 'u,it"s,1\n', {"u": ['it"s']}),
        ("a.tsv", 'user_id\titem_id\ttime\nu\t"Weird Al\t1\nu\t"Foo\t2\n', {"u": ['"Weird Al', '"Foo']}),
        ("a.csv", HEADER + "u,007,1\nu,7,2\nu,1e5,3\nu,100000,4\nu,+7,5\n", {"u": ["007", "7", "1e5", "100000", "+7"]}),
        ("a.csv", HEADER + "u,2.0,1\nu,2,2\nu,true,3\n", {"u": ["2.0", "2", "true"]}),  # text stays as written
        ("a.csv", HEADER + "é,a b,1\né,😀🎬,2\n", {"é": ["a b", "😀🎬"]}),
        ("a.csv", HEADER + "u , x,1\nu,x ,2\n", {"u": ["x", "x"]}),
        ("a.csv", HEADER + "u,2014-01-01,1\n", {"u": ["2014-01-01"]}),
        ("a.csv", HEADER + "u,12345678901234567890123,1\n", {"u": ["12345678901234567890123"]}),
        ("a.jsonl", '{"uid": 1, "iid": 2.0, "ts": 1}\n{"uid": 1, "iid": 3, "ts": 2}\n', {"1": ["2", "3"]}),
        ("a.jsonl", '{"uid": 1, "iid": "2", "ts": 1}\n{"uid": "1", "iid": 3, "ts": 2}\n', {"1": ["2", "3"]}),
        ("a.csv", HEADER + "u,y,2020-01-02\nu,x,2020-01-01 23:59:59\n", UX),
        ("a.csv", HEADER + "u,y,2020-01-01T01:00:00Z\nu,x,2020-01-01T01:30:00+02:00\n", UX),
        ("a.csv", HEADER + "u,y,2019-10-01 00:00:01 UTC\nu,x,2019-10-01 00:00:00 UTC\n", UX),
        ("a.csv", HEADER + "u,y,1700000000000000001\nu,x,1700000000000000000\n", UX),  # equal as doubles
        ("a.csv", HEADER + "u,y,1331380058.75\nu,x,1331380058.5\n", UX),
        ("a.csv", HEADER + "u,y,8.8125e8\nu,x,881249999\n", UX),
        ("a.csv", HEADER + "u,y,1331380058001\nu,x,1331380058000\n", UX),
        ("a.csv", HEADER + "u,y,.5\nu,x,0\n", UX),
    ],
)  # fmt: skip
def test_a_table_is_read(tmp_path: Path, name: str, content: object, want: dict[str, list[str]]) -> None:
    assert sequences(load_interactions(write(tmp_path / name, content))) == want


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"the file is empty"),
        ("\n\n", r"the file is empty"),
        (packed(""), r"the file is empty"),
        (HEADER, r"only a header, no rows"),
        ("hello\nworld\n", r"is no table: its first line 'hello' has one cell"),
        ("user_id,item_id\nu,x\n", r"no column with a usual name for the time; .*--time COLUMN.*--order file"),
        ("item_id,timestamp\nx,1\n", r"no column with a usual name for the user; there are 'item_id', 'timestamp'"),
        ("user_id,timestamp\nx,1\n", r"no column with a usual name for the item"),
        ("who,what\nu,x\n", r"for the user and the item and the time;.*--user COLUMN --item COLUMN --time COLUMN"),
        ("A1,B1,5.0,1341100800\nA2,B2,5.0,1341100801\n", r"no header, give numbers: --user 1"),
        ("user_id,user_id,item_id,timestamp\nu,v,x,1\n", r"the column 'user_id' stands twice"),
        ("user_id,userId,item_id,timestamp\nu,v,x,1\n", r"the column 'userId' stands twice"),
        (ROW + "u,x\n", r"line 3: 2 cells, but the first line has 3"),
        (ROW + "u,x,1,2\n", r"line 3: 4 cells"),
        (ROW + '"u",""x,1\n', r"line 3: not valid csv"),
        (ROW + 'u,"x,1\n2,"Foo,6\n', r"line 4: not valid csv"),
        (ROW + 'u,"x,1\n', r"line 3: not valid csv"),
        (ROW + ",x,1\n", r"line 3: the user is missing \(''\).*--drop-missing"),
        (ROW + "u,,1\n", r"line 3: the item is missing"),
        (ROW + "u,x,\n", r"line 3: the time is missing"),
        (ROW + "nan,x,1\n", r"line 3: the user is missing \('nan'\)"),
        (ROW + "u,None,1\n", r"line 3: the item is missing \('None'\)"),
        (ROW + "u,NULL,1\n", r"line 3: the item is missing"),
        (ROW + "u,x,NaN\n", r"line 3: the time is missing"),
        (ROW + "u,x,1_000\n", r"line 3: the time '1_000' is not a number"),
        (ROW + "u,x,١٢٣\n", r"line 3: the time '١٢٣' is not a number"),
        (ROW + 'u,x,"1,000"\n', r"line 3: the time '1,000' is not a number"),
        (ROW + "u,x,inf\n", r"line 3: the time 'inf' is not a number"),
        (ROW + "u,x,1e999\n", r"line 3: the time '1e999' is not a number"),
        (ROW + "u,x,99999999999999999999\n", r"line 3: the time '99999999999999999999' is not a number"),
        (HEADER + "u,x,noon\n", r"line 2: the time 'noon' is no number, nor a date"),
        (HEADER + "u,x,2020-01-01\nu,y,01/02/2020\n", r"line 3: the time '01/02/2020' is no number, nor a date"),
        (HEADER + "u,x,2020-01-01T01:00:00Z\nu,y,2020-01-01T01:00:00\n", r"line 3: .*all with a zone or all without"),
        (HEADER + "u,x,2020-01-01\nu,y,881250949\n", r"line 2: the time '2020-01-01' is not a number"),
        (ROW + "u,x,-1\n", r"line 3: the time -1 is negative"),
        (HEADER + "u,x,881250949\nu,x,1331380058000\n", r"line 3: the time is in milliseconds .* in seconds.*--unit"),
        (HEADER + "u,x,881250949\nu,x,0\n", r"line 3: the time is in numbers without a unit by its size"),
        (ROW.encode() + "v,é,1\n".encode("latin-1"), r"line 3: byte 0xe9 is not UTF-8.*iconv"),
        (b"PK\x03\x04rest", r"a zip archive or a spreadsheet, not text"),
        (b"BZh91AY", r"a bzip2 archive"),
        (b"\x00\x01\x02\x03" * 20, r"holds bytes that are no text"),
        (packed(ROW)[:-12], r"its gzip is damaged or cut short"),
        (b"PAR1 and no more", r"not a readable parquet file"),
        (JSONL + "{'user_id': 'u'}\n", r"line 3: not valid JSON .*Python literal"),
        (JSONL + '{"user_id": "u", "parent_asin": "z"}\n', r"line 3: the time is missing \(None\)"),
        (JSONL + '{"user_id": NaN, "parent_asin": "z", "timestamp": 3}\n', r"line 3: the user is missing"),
        (JSONL + "[1]\n", r"line 3: \[1\] is no object"),
        ('{"user_id": true, "item_id": 1, "time": 1}\n', r"line 1: the user 'True' is no id"),
        ('{"user_id": 1.5, "item_id": 1, "time": 1}\n', r"line 1: the user '1.5' is no id"),
        ('{"user_id": ["a"], "item_id": 1, "time": 1}\n', r"line 1: the user is a list"),
        ('{"user_id": {"a": 1}, "item_id": 1, "time": 1}\n', r"line 1: the user is missing"),
        (HEADER + '"u\nv",x,1\n', r"line 3: the user 'u\\nv' is no id"),
    ],
)  # fmt: skip
def test_an_odd_table_is_refused_by_file_line_and_remedy(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(EarnError, match=message) as refusal:
        load_interactions(write(tmp_path / "odd", content))
    assert "odd" in str(refusal.value)


@pytest.mark.parametrize(
    ("columns", "want"),
    [
        ({"user_id": [1, 1], "item_id": [7, 8], "timestamp": [2, 1]}, {"1": ["8", "7"]}),
        ({"user_id": [1.0, 1.0], "item_id": [7.0, 2.0], "timestamp": [1.0, 2.0]}, {"1": ["7", "2"]}),
        ({"user_id": ["1", 1], "item_id": [7, "x"], "timestamp": [1, 2]}, {"1": ["7", "x"]}),
    ],
)
def test_a_data_frame_is_read(columns: dict[str, list[Any]], want: dict[str, list[str]]) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(columns)
    frame["date"] = pandas.to_datetime(frame["timestamp"], unit="D")
    assert sequences(Interactions.from_dataframe(frame)) == want
    dates = ImportOptions(columns=Columns(time="date"))
    assert sequences(Interactions.from_dataframe(frame, options=dates)) == want
    frame.loc[1, "item_id"] = None
    with pytest.raises(EarnError, match="data frame, row 1: the item is missing"):
        Interactions.from_dataframe(frame)


def test_categories_and_dictionaries_are_ids() -> None:
    column = pa.array(["x", "y"]).dictionary_encode()
    assert sequences(Interactions.from_dataframe(pa.table({"user": ["u", "u"], "item": column, "time": [2, 1]}))) == {
        "u": ["y", "x"]
    }


def test_rows_are_tuples_or_mappings() -> None:
    rows = [("u", 7, 2), ("u", "8", 1), ("v", 2.0, 0)]
    assert sequences(Interactions.from_rows(rows)) == {"u": ["8", "7"], "v": ["2"]}
    mappings = [dict(zip(("uid", "iid", "ts"), row, strict=True)) for row in rows]
    assert sequences(Interactions.from_rows(iter(mappings))) == {"u": ["8", "7"], "v": ["2"]}
    for wrong, message in (
        ([], "there are no rows"),
        ([("u", 1)], r"row 0: \('u', 1\) is not \(user, item, time\)"),
        ([("u", 1, 1), ("u", math.nan, 2)], "row 1: the item is missing"),
    ):
        with pytest.raises(EarnError, match=message):
            Interactions.from_rows(wrong)


def test_columns_may_be_named_or_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "who,what,when\nu,y,2\nu,x,1\n")
    assert sequences(read(path, columns=Columns("who", "what", "when"))[0]) == UX
    path = write(tmp_path / "clicks.dat", "u,2014-04-07T10:51:09.277Z,y,0\nu,2014-04-07T10:51:09.276Z,x,0\n")
    assert sequences(read(path, columns=Columns("1", "3", "2"))[0]) == UX
    with pytest.raises(EarnError, match="no column 'whom'"):
        read(path, columns=Columns("whom"))
    with pytest.raises(EarnError, match="'1' was given twice, as user and item"):
        read(path, columns=Columns("1", "1", "2"))


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({"min_rating": 3.5}, {"u": ["a", "c", "a", "a"], "v": ["a"]}),
        ({"since": "2020-01-03"}, {"u": ["c", "a", "a"], "v": ["a"]}),
        ({"since": "1578009600"}, {"u": ["c", "a", "a"], "v": ["a"]}),  # the same day in seconds
        ({"until": "2020-01-03"}, {"u": ["a", "b"]}),
        ({"dedupe": "consecutive"}, {"u": ["a", "b", "c", "a"], "v": ["a"]}),
        ({"dedupe": "all"}, {"u": ["a", "b", "c"], "v": ["a"]}),
        ({"k_core": 2}, {"u": ["a", "a", "a"]}),  # v has one item; then only a has two interactions
        ({"order": "file"}, {"u": ["a", "b", "c", "a", "a"], "v": ["a"]}),
    ],
)
def test_filters(tmp_path: Path, options: dict[str, Any], want: dict[str, list[str]]) -> None:
    data, said = read(write(tmp_path / "a.csv", RATED), **options)
    assert sequences(data) == want
    assert set(data.item_ids) == {item for items in want.values() for item in items}  # no item without interaction
    assert ("left out" in said) == (options != {"order": "file"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_rating": 9}, "no interaction is left"),
        ({"k_core": 9}, "no interaction is left"),
        ({"since": "noon"}, "--since: the time 'noon'"),
        ({"since": "12"}, "the table's times are dates, this is numbers without a unit"),
        ({"dedupe": "some"}, "dedupe is 'some'"),
        ({"unit": "h"}, "unit is 'h'"),
        ({"columns": Columns(rating="item_id"), "min_rating": 1}, "was given twice, as item and rating"),
        ({"columns": Columns(rating="timestamp"), "min_rating": 1}, "was given twice, as time and rating"),
    ],
)
def test_a_filter_that_cannot_be_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(EarnError, match=message):
        read(write(tmp_path / "a.csv", RATED), **options)


def test_missing_values_are_left_out_and_counted_on_request(tmp_path: Path) -> None:
    data, said = read(write(tmp_path / "a.csv", ROW + "u,,1\n,x,1\nu,y,\nu,z,3\n"), drop_missing=True)
    assert sequences(data) == {"u": ["x", "z"]}
    assert "left out: 1 without user" in said


def test_ties_and_repeats_are_counted_and_ties_shuffled_whatever_the_order_of_the_rows(tmp_path: Path) -> None:
    rows = [f"u{user},i{item},5\n" for user in range(20) for item in range(8)]
    path = write(tmp_path / "a.csv", HEADER + "".join(rows) + rows[0] + "w,i0,1\n")
    kept, said = read(path)
    assert sequences(kept)["u1"] == [f"i{item}" for item in range(8)]
    assert "161 of 162 interactions share their time" in said
    assert "1 are exact repeats" in said
    drawn = sequences(read(path, ties="shuffle", seed=3)[0])
    backwards = write(tmp_path / "b.csv", HEADER + "w,i0,1\n" + rows[0] + "".join(reversed(rows)))
    assert sequences(read(backwards, ties="shuffle", seed=3)[0]) == drawn
    assert sequences(read(path, ties="shuffle", seed=4)[0]) != drawn
    assert all(sorted(items) == sorted(sequences(kept)[user]) for user, items in drawn.items())
    firsts = [items[0] for user, items in drawn.items() if user != "w"]
    assert len(set(firsts)) > 3  # not an order of the items


@pytest.mark.parametrize(
    ("items", "titles", "metadata"),
    [
        ("item_id,title,genres\ny,Why,A|B\nz,Zed,C\n", ("Why", ""), ("A|B", "")),
        ('{"parent_asin": "x", "title": null, "categories": ["A", ["B"]], "price": 3}\n', ("", ""), ("A B", "")),
        ('item_id:token\ttitle:token_seq\nx\t"The ""Ex"""\nx\tAgain\n', ('The "Ex"', ""), ("", "")),
    ],
)  # fmt: skip
def test_titles_come_from_a_second_table(
    tmp_path: Path, items: str, titles: tuple[str, ...], metadata: tuple[str, ...]
) -> None:
    path = write(tmp_path / "a.csv", TWO)
    data, said = read(path, write(tmp_path / "items", items))
    assert (data.titles, data.metadata) == (titles, metadata)
    assert "1 of 2 items are not in it" in said


def test_files_of_different_units_are_refused(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.csv", TWO), write(tmp_path / "b.csv", HEADER + "u,z,881250949\n")]
    with pytest.raises(EarnError, match=r"b\.csv: its times are numbers without a unit"):
        import_files(paths)


def test_what_was_imported_is_read_as_it_was(tmp_path: Path) -> None:
    items = write(tmp_path / "items.csv", "item_id,title,genre\na,Ä,x\nc,C,y\nb,B,z\n")
    imported = import_files([write(tmp_path / "a.csv", RATED)], items)
    folder = tmp_path / "imported"
    folder.mkdir()
    write_import(folder, imported, ImportOptions())
    got, want = load_interactions(folder), imported.interactions
    assert sequences(got) == sequences(want) == {"u": ["a", "b", "c", "a", "a"], "v": ["a"]}
    assert (got.item_ids, got.titles, got.metadata) == (("a", "c", "b"), ("Ä", "C", "B"), ("x", "y", "z"))
    facts = json.loads((folder / "import.json").read_text(encoding="utf-8"))
    assert facts["counts"] == {"rows read": 6, "users": 2, "items": 3, "interactions": 6}
    assert facts["files"][0]["columns"] == {"user": "user_id", "item": "item_id", "time": "timestamp"}
    write(folder / "users.parquet", b"PAR1")
    with pytest.raises(EarnError, match="cannot be read"):
        read_import(folder)


def test_batches_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    rows = [f"u{user},i{item},{time}\n" for user, item, time in generator.integers(0, 9, (200, 3))]
    path = write(tmp_path / "a.csv", HEADER + "".join(rows))
    want = sequences(load_interactions(path))
    reference: dict[str, list[tuple[int, str]]] = {}
    for row in rows:
        user, item, time = row.strip().split(",")
        reference.setdefault(user, []).append((int(time), item))
    slow = {user: [item for _, item in sorted(pairs, key=lambda pair: pair[0])] for user, pairs in reference.items()}
    assert want == slow
    monkeypatch.setattr("earn.data.tables.sources.BATCH", 7)
    monkeypatch.setattr("earn.data.tables.text.BLOCK", 50)
    assert sequences(load_interactions(path)) == want
    columns = zip(*(row.strip().split(",") for row in rows), strict=True)
    table = pa.table(dict(zip(HEADER.strip().split(","), map(list, columns), strict=True)))
    parquet.write_table(table, tmp_path / "a.parquet")
    assert sequences(load_interactions(tmp_path / "a.parquet")) == want
    (tmp_path / "b").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes(), mtime=0))
    assert sequences(load_interactions(tmp_path / "b")) == want


def test_a_quote_in_the_middle_of_a_large_file_changes_no_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"u{number % 3},i{number % 5},{number}\n" for number in range(40)]
    want = sequences(load_interactions(write(tmp_path / "plain.csv", HEADER + "".join(rows))))
    monkeypatch.setattr("earn.data.tables.text.BLOCK", 60)
    rows[20] = '"u2","i0",20\r\n'
    rows[25] = "\n" + rows[25]  # an empty line
    assert sequences(load_interactions(write(tmp_path / "quoted.csv", HEADER + "".join(rows)))) == want
    rows[30] = "u0,i0\n"
    path = write(tmp_path / "short.csv", HEADER + "".join(rows))
    with pytest.raises(EarnError, match="line 33: 2 cells, but the first line has 3"):
        load_interactions(path)
    rows[30], rows[35] = "u0,i0,30\n", "u0,i0,now\n"
    path = write(tmp_path / "time.csv", (HEADER + "".join(rows)).replace('"', ""))
    with pytest.raises(EarnError, match="line 38: the time 'now' is not a number"):
        load_interactions(path)

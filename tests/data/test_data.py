from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from earn.catalog import Catalog
from earn.data import (
    NAMED,
    Example,
    Interactions,
    find_source,
    leave_one_out,
    load_interactions,
    popularity,
    popularity_ranks,
    split_of,
)
from earn.data.download import FILES, cache_folder
from earn.errors import EarnError
from tests.data.tables import toy, write_files

HEADER = "user_id:token\titem_id:token\ttimestamp:float\n"


def interactions(*sequences: list[int], held_out: tuple[tuple[int, int], ...] | None = None) -> Interactions:
    return toy(sequences, 6, held_out=held_out)


def asked(examples: Sequence[Example]) -> list[tuple[str, list[int], int]]:
    return [(example.user, example.history.tolist(), example.target) for example in examples]


def test_the_last_item_is_test_and_the_one_before_is_valid() -> None:
    data = interactions([3, 1, 4, 1], [5, 2], [0, 1, 2], [4])
    for split in (leave_one_out(data), split_of(data)):  # a source without a split of its own
        assert [sequence.tolist() for sequence in split.train] == [[3, 1], [5, 2], [0], [4]]
        assert asked(split.valid) == [("u0", [3, 1], 4), ("u2", [0], 1)]
        assert asked(split.test) == [("u0", [3, 1, 4], 1), ("u2", [0, 1], 2)]


def test_the_first_held_out_item_of_each_part_is_asked_for() -> None:
    held_out = (2, 2), (0, 1), (1, 0), (0, 0), (1, 1), (0, 2), (2, 0)
    sequences = [0, 1, 2, 3, 4, 5], [1, 2, 3], [2, 3], [4, 4], [5, 0], [1, 2], [3, 4]
    data = interactions(*sequences, held_out=held_out)
    split = split_of(data)
    assert [sequence.tolist() for sequence in split.train] == [[0, 1], [1, 2], [2], [4, 4]]
    assert asked(split.valid) == [("u0", [0, 1], 2), ("u2", [2], 3)]
    # u4 has no training item, so nothing is asked on validation, but the validation item is history for the test
    assert asked(split.test) == [("u0", [0, 1, 2, 3], 4), ("u1", [1, 2], 3), ("u4", [5], 0)]
    assert asked(leave_one_out(data).test) == [("u0", [0, 1, 2, 3, 4], 5), ("u1", [1, 2], 3)]


ITEMS = st.lists(st.integers(0, 5), max_size=4)
Parts = tuple[list[int], list[int], list[int]]


@given(st.lists(st.tuples(ITEMS, ITEMS, ITEMS).filter(any), max_size=6))
def test_no_held_out_item_is_trained_on_or_known_when_it_is_asked_for(users: list[Parts]) -> None:
    held_out = tuple((len(valid), len(test)) for _, valid, test in users)
    split = split_of(interactions(*[train + valid + test for train, valid, test in users], held_out=held_out))
    numbered = [(f"u{number}", *parts) for number, parts in enumerate(users)]
    assert [sequence.tolist() for sequence in split.train] == [train for train, _, _ in users if train]
    assert asked(split.valid) == [(user, train, valid[0]) for user, train, valid, _ in numbered if train and valid]
    assert asked(split.test) == [
        (user, train + valid, test[0]) for user, train, valid, test in numbered if train + valid and test
    ]


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        (((1, 1),), "2 users, 1 held_out. Give one per user, or None"),
        (((1, 1), (-1, 1)), r"of the 2 items of user 'u1', \(-1, 1\) are held out"),
        (((1, 1), (1, -1)), r"of the 2 items of user 'u1', \(1, -1\) are held out"),
        (((1, 1), (1, 2)), r"of the 2 items of user 'u1', \(1, 2\) are held out.*at most the number of items"),
    ],
)
def test_a_split_that_does_not_fit_the_sequences_is_refused(held_out: Any, message: str) -> None:
    with pytest.raises(EarnError, match=message):
        interactions([1, 2, 3], [4, 5], held_out=held_out)


def test_popularity_counts_the_training_part_only() -> None:
    # training: 1 1 | 2 | 3 ; item 5 is a target three times, which does not count
    split = leave_one_out(interactions([1, 1, 5, 5], [2, 0, 5], [3]))
    assert popularity(split, 6).tolist() == [1, 2, 3, 0, 4, 5]


def test_popularity_without_users_is_the_order_of_the_items() -> None:
    assert popularity(leave_one_out(interactions()), 3).tolist() == [0, 1, 2]


def test_popularity_ranks_leave_the_history_out() -> None:
    split = leave_one_out(interactions([1, 1, 5, 5], [2, 0, 5], [3]))  # in order of popularity: 1 2 3 0 4 5
    users = [
        Example("u", np.array(history, np.int64), target) for history, target in (([2, 4], 3), ([2, 1], 5), ([5], 5))
    ]
    assert popularity_ranks(split, 6, users).tolist() == [1, 3, -1]  # a target of the history is in no list


@pytest.mark.parametrize("sequence", [[], [6], [-1]])
def test_a_user_without_items_or_with_unknown_ones_is_refused(sequence: list[int]) -> None:
    with pytest.raises(EarnError, match=r"toy: user 'u1' has no item or one outside 0\.\.5"):
        interactions([0], sequence)


def test_fields_that_disagree_are_refused() -> None:
    one = (np.zeros(1, np.int64),)
    with pytest.raises(EarnError, match="1 items, 2 titles and 1 metadata"):
        Interactions("toy", ("a",), ("", ""), ("",), ("u",), one, None)
    with pytest.raises(EarnError, match="2 users, 1 sequences"):
        Interactions("toy", ("a",), ("",), ("",), ("u", "v"), one, None)
    with pytest.raises(EarnError, match="the catalog's items are not the data's"):
        Interactions("toy", ("a",), ("",), ("",), ("u",), one, Catalog(("b",), (("<a_0>",),), ("",)))


def test_a_source_that_is_nowhere_gets_the_variable_and_the_known_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EARN_DATA", raising=False)
    unset = r"no such file or folder here, and \$EARN_DATA is not set\..*set EARN_DATA to .*a known name: ml-100k"
    with pytest.raises(EarnError, match=unset):
        load_interactions(tmp_path / "absent")
    monkeypatch.setenv("EARN_DATA", str(tmp_path))
    with pytest.raises(EarnError, match=rf"absent: there is .*nor is it in \$EARN_DATA \({re.escape(str(tmp_path))}\)"):
        load_interactions("absent")


def test_what_is_no_path_here_is_looked_for_in_the_variables_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, item in ((here / "both", "h"), (there / "both", "t"), (there / "toy", "x"), (there / "ml-100k", "y")):
        write_files(folder, {"toy.inter": f"{HEADER}u\t{item}\t1\n"})
    monkeypatch.chdir(here)
    monkeypatch.setenv("EARN_DATA", str(there))
    monkeypatch.setitem(NAMED, "ml-100k", lambda: here / "both")
    assert find_source("toy") == there / "toy"
    assert load_interactions("toy/toy.inter").item_ids == ("x",)
    assert load_interactions("both").item_ids == ("h",)  # a path here comes first
    assert load_interactions("ml-100k").item_ids == ("h",)  # and so does a known name
    assert load_interactions(Path("ml-100k")).item_ids == ("y",)


def test_a_folder_that_no_format_fits_gets_what_was_looked_for(tmp_path: Path) -> None:
    message = r"no known format fits it.*\*\.inter\.json and \*\.index\.json.*\(LC-Rec or LETTER\); .*\(RecBole\)"
    with pytest.raises(EarnError, match=message):
        load_interactions(tmp_path)


def test_a_name_is_fetched_and_a_path_of_that_name_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, {"toy.inter": f"{HEADER}u\tx\t1\n"})
    monkeypatch.delenv("EARN_DATA", raising=False)
    monkeypatch.setitem(NAMED, "toy-set", lambda: tmp_path)
    assert load_interactions("toy-set").item_ids == ("x",)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EarnError, match="no such file or folder"):
        load_interactions(Path("toy-set"))


def test_reading_data_loads_nothing_heavy() -> None:
    heavy = ("torch", "sklearn", "scipy")
    code = f"import sys, earn.data, earn.data.identifiers; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout == "[]\n"


@pytest.mark.skipif(
    not all((cache_folder() / "ml-100k" / name).is_file() for name in FILES),
    reason="MovieLens 100k is not in the cache; fetch it with earn.data.download.fetch_ml100k()",
)
def test_movielens_has_its_known_size() -> None:
    data = load_interactions("ml-100k")
    assert (data.name, len(data.user_ids), len(data.item_ids)) == ("ml-100k", 943, 1682)
    assert sum(map(len, data.sequences)) == 100_000
    assert (data.titles[0], data.metadata[0]) == ("Toy Story", "1995 Animation Children's Comedy")
    split = split_of(data)
    assert sum(map(len, split.train)) == 100_000 - 2 * 943

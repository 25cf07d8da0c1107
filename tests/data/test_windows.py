from __future__ import annotations

import numpy as np
import pytest

from earn.data.windows import Window, Windows


def windows_of(lengths: list[int], size: int, seed: int = 0) -> Windows:
    """Windows over sequences in which every item stands once; an item's identifier is its number."""
    starts = np.cumsum([0, *lengths])
    items = [np.arange(start, start + length) for start, length in zip(starts, lengths)]  # noqa: B905
    return Windows(items, [(item,) for item in range(int(starts[-1]))], size, seed)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_windows_are_runs_of_two_to_size_items_of_one_user(size: int) -> None:
    lengths = [1, 2, 3, 4, 5, 6, 9, 14]
    windows = windows_of(lengths, size)
    users = np.repeat(np.arange(len(lengths)), lengths)
    assert len(windows) == sum(-(-(length - 1) // (size - 1)) for length in lengths)
    for epoch in range(5):
        windows.redraw(epoch)
        for place in range(len(windows)):
            items = [item for (item,) in windows[place]]
            assert 2 <= len(items) <= size
            assert items == list(range(items[0], items[-1] + 1))
            assert len(set(users[items].tolist())) == 1


def test_a_user_who_fits_into_one_window_is_read_whole() -> None:
    windows = windows_of([5, 2], 5)
    assert [len(windows[place]) for place in range(len(windows))] == [5, 2]


@pytest.mark.parametrize("length", [2, 5, 6, 9, 10, 14, 31])
def test_every_epoch_has_every_item_but_the_first_as_a_target_and_a_full_window_at_the_end(length: int) -> None:
    windows = windows_of([length], 5)
    for epoch in range(40):
        windows.redraw(epoch)
        drawn = [[item for (item,) in windows[place]] for place in range(len(windows))]
        assert {item for items in drawn for item in items[1:]} == set(range(1, length))
        assert drawn[0] == list(range(max(0, length - 5), length))


def test_over_the_epochs_contexts_vary() -> None:
    windows, starts = windows_of([14], 5), set()
    for epoch in range(60):
        windows.redraw(epoch)
        starts |= {windows[place][0][0] for place in range(len(windows))}
    assert starts == set(range(10))  # every full window


def test_the_same_seed_and_epoch_give_the_same_windows() -> None:
    def drawn(seed: int, epoch: int) -> list[list[tuple[int, ...]]]:
        windows = windows_of([30, 30], 5, seed)
        windows.redraw(epoch)
        return [windows[place] for place in range(len(windows))]

    assert drawn(1, 2) == drawn(1, 2)
    assert drawn(1, 2) != drawn(1, 3)
    assert drawn(1, 2) != drawn(2, 2)


FURTHER: list[Window] = [[(7,) * 9, (1,)], [(7,) * 3, (2,)]]


def test_further_windows_stay_as_they_are() -> None:
    windows = Windows([np.arange(3)], [(0, 1), (2, 3), (4, 5)], 5, 0, FURTHER)
    assert len(windows) == 3
    assert [windows[place] for place in range(3)] == [[(0, 1), (2, 3), (4, 5)], *FURTHER]

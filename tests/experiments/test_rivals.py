"""The models that EARN is compared with: ranks, item-kNN by hand, and SASRec's causality, windows and training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from earn.data.dataset import load_dataset
from earn.data.neighbours import likeness
from earn.errors import EarnError
from earn.metrics import NOT_FOUND, Example
from experiments import recbole_models
from experiments.recbole_models import MEASURES, PARTS, loss_by_length, write_benchmark
from experiments.rivals import (
    DECAYS,
    RivalSettings,
    Sasrec,
    batches,
    item_cosines,
    knn_scores,
    measure_neighbours,
    target_ranks,
    train,
    windows_of,
)
from experiments.runs import write_walks

TINY = RivalSettings(width=16, heads=2, dropout=0.0, learning_rate=1e-2, batch_size=8, max_history=6, epochs=30)


def example(history: list[int], target: int) -> Example:
    return Example("user", np.array(history), target)


def test_ranks_leave_the_history_out_unless_it_is_let_in_and_ties_keep_the_items_order() -> None:
    def scores(chosen: Sequence[Example]) -> NDArray[np.float32]:
        return np.tile(np.array([0.9, 0.5, 0.7, 0.5, 0.1], np.float32), (len(chosen), 1))

    users = [example([0], 2), example([0], 3), example([2], 1), example([0, 2], 0)]
    assert target_ranks(scores, users).tolist() == [0, 2, 1, NOT_FOUND]  # the last one's target is in its history
    assert target_ranks(scores, users, exclude_history=False).tolist() == [1, 3, 2, 0]
    wide = target_ranks(lambda chosen: np.zeros((len(chosen), 50), np.float32), [example([0], 20), example([0], 21)])
    assert wide.tolist() == [19, NOT_FOUND]


def test_recbole_gets_every_target_with_the_newest_items_before_it(tmp_path: Path) -> None:
    sequences = [np.array([3, 1, 4, 1]), np.array([5])]
    write_benchmark(tmp_path, sequences, [example([3, 1, 4], 9)], [example([2, 6, 5], 8), example([7], 0)], most=2)
    lines = {part: (tmp_path / f"data.{part}.inter").read_text().splitlines()[1:] for part in PARTS}
    assert lines == {
        "train": ["u0\t1\t3", "u0\t4\t3 1", "u0\t1\t1 4"],
        "valid": ["valid0\t9\t1 4"],
        "test": ["test0\t8\t6 5", "test1\t0\t7"],
    }


def test_recboles_loss_is_the_same_by_length_and_reads_no_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([3, 1, 6, 2] * 10)
    rows = torch.randint(1, 9, (40, 6), generator=generator) * (torch.arange(6) < lengths[:, None])
    batch = {"item_id": torch.arange(40), "item_id_list": rows, "item_length": lengths, "user_id": torch.arange(40)}
    seen = []

    def loss(rows: dict[str, torch.Tensor]) -> torch.Tensor:
        seen.append(rows["item_id_list"].numel())
        return (rows["item_id_list"].sum(1) * rows["item_id"] / rows["item_length"]).mean()

    torch.testing.assert_close(loss_by_length(loss, batch), loss(batch))
    assert sum(seen[:-1]) < lengths.sum() + 6 < seen[-1] == rows.numel()


def test_without_recbole_its_models_say_where_to_run_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recbole_models, "find_spec", lambda name: None)
    data = load_dataset(str(write_walks(tmp_path / "walks")))
    with pytest.raises(EarnError, match="environment"):
        MEASURES["recbole-sasrec"](data, TINY, tmp_path)


def test_item_knn_by_hand() -> None:
    cosines = item_cosines([np.array([0, 1]), np.array([0, 1, 2, 2]), np.array([0])], 4)
    # Item 0 has users {a,b,c}, 1 {a,b}, 2 {b}, 3 none: cos(0,1) = 2/sqrt(6), cos(0,2) = 1/sqrt(3), cos(1,2) = 1/sqrt(2)
    want = np.array([[0, 2 / 6**0.5, 1 / 3**0.5, 0], [2 / 6**0.5, 0, 1 / 2**0.5, 0]])
    assert cosines.toarray()[:2] == pytest.approx(want, rel=1e-6)
    scores = knn_scores(lambda weights: (weights @ cosines).toarray(), 0.5, 4)([example([0, 1], 2)])
    assert scores[0] == pytest.approx(0.5 * want[0] + want[1], rel=1e-6)


def test_neighbours_weigh_what_is_like_the_history_by_its_age(tmp_path: Path) -> None:
    data = load_dataset(str(write_walks(tmp_path / "walks")))
    items = len(data.interactions.item_ids)
    alike = likeness(data.interactions, data.split.train).of_others(np.eye(items))
    got = measure_neighbours(data, RivalSettings(validation_users=50)).scores([example([2, 0], 1)])[0]
    wants = [decay * alike[2] + alike[0] for decay in DECAYS]
    assert any(np.allclose(got, want, rtol=1e-5, atol=1e-6) for want in wants)


def test_every_item_but_the_first_is_the_target_of_one_window() -> None:
    windows = windows_of([np.arange(8), np.array([5]), np.array([3, 4])], 3)
    assert [window.tolist() for window in windows] == [[4, 5, 6, 7], [1, 2, 3, 4], [0, 1], [3, 4]]
    dealt = [window for batch in batches(windows, 2, np.random.default_rng(0)) for window in batch]
    assert sorted(window.tolist() for window in dealt) == sorted(window.tolist() for window in windows)


def test_sasrec_sees_no_later_item_and_no_padding() -> None:
    model = Sasrec(20, TINY).eval()
    one, other = torch.tensor([[1, 2, 3, 4, 5]]), torch.tensor([[1, 2, 3, 9, 8]])
    torch.testing.assert_close(model(one)[:, :3], model(other)[:, :3])
    assert not torch.allclose(model(one)[:, 3], model(other)[:, 3])
    alone = model.scores([example([1, 2], 3)])
    beside = model.scores([example([1, 2], 3), example([4, 5, 6, 7, 8], 3)])
    np.testing.assert_allclose(alone[0], beside[0], rtol=1e-5, atol=1e-7)
    long = model.scores([example([9, *range(6)], 3)])  # the newest six alone are read
    np.testing.assert_allclose(long, model.scores([example(list(range(6)), 3)]), rtol=1e-5, atol=1e-7)


def test_sasrecs_loss_is_the_mean_over_all_targets() -> None:
    model = Sasrec(20, TINY).eval()
    windows = [np.array([1, 2, 3]), np.array([4, 5])]
    want = []
    for window in windows:
        logits = (model(torch.from_numpy(window[:-1])[None])[0] @ model.items.weight.T).double()
        want += [-logits.log_softmax(1)[place, item] for place, item in enumerate(window[1:])]
    torch.testing.assert_close(model.loss(windows).double(), torch.stack(want).mean(), rtol=1e-5, atol=1e-6)


def test_sasrec_learns_a_walk_by_heart_and_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    sequences = [(start + np.arange(8)) % 20 for start in range(20)]
    judges = [example(((start + np.arange(4)) % 20).tolist(), (start + 4) % 20) for start in range(20)]
    model = Sasrec(20, TINY)
    best, seconds = train(model, sequences, judges, TINY, tmp_path / "state.pt")
    assert best > 0.99
    assert target_ranks(model.scores, judges).max() == 0
    again = Sasrec(20, TINY)
    assert train(again, sequences, judges, TINY, tmp_path / "state.pt") == (best, seconds)  # nothing is left to do
    np.testing.assert_array_equal(again.scores(judges), model.scores(judges))

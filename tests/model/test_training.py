from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import TrainingArguments

from earn.catalog import Catalog
from earn.config import to_json
from earn.data.windows import Windows
from earn.errors import EarnError
from earn.export.stages import torch_recommender
from earn.files import read_json, write_json
from earn.model.earn_model import EarnModel
from earn.model.packing import pack
from earn.model.training import train, trained_on
from earn.settings import TrainSettings
from tests.support import assert_close, small_backbone, token_identifiers, toy_catalog

CATALOG = toy_catalog([f"a{item % 4} b{item // 4}" for item in range(12)])
SETTINGS = TrainSettings(epochs=2, batch_size=8, learning_rate=1e-2)


def sequences() -> list[NDArray[np.int64]]:
    """Users who walk through the catalog step by step, each from another item."""
    return [np.arange(start, start + 9) % 12 for start in range(12) for _ in range(3)]


def untrained(catalog: Catalog = CATALOG) -> EarnModel:
    return EarnModel.from_backbone(small_backbone("tiny-llama"), catalog, early_layers=2, max_history=4)


@torch.no_grad()
def loss_of(model: EarnModel) -> float:
    identifiers = token_identifiers(model)
    windows = [[identifiers[item] for item in sequence[:5]] for sequence in sequences()[::3]]
    return float(model.eval()(**pack(windows, model.earn))["loss"])


class Validation:
    """Scores one epoch after the other; None stops the run there, as a kill would."""

    def __init__(self, *scores: float | None) -> None:
        self._scores = iter(scores)
        self.losses: list[float] = []

    def __call__(self, model: EarnModel) -> float:
        assert not model.training
        score = next(self._scores)
        if score is None:
            raise KeyboardInterrupt
        self.losses.append(loss_of(model))
        return score


def test_two_epochs_lower_the_loss_and_leave_a_checkpoint(tmp_path: Path) -> None:
    model, validate = untrained(), Validation(0.1, 0.2)
    before, were = loss_of(model), {name: value.detach().clone() for name, value in model.named_parameters()}
    assert trained_on(tmp_path / "ckpt") == ""
    (tmp_path / "ckpt/run").mkdir(parents=True)  # a start that was killed at once is no obstacle
    record = train(model, sequences(), tmp_path / "ckpt", validate, SETTINGS, data="toy")
    assert before > 2  # ten tokens in all, and nothing known: log 10 = 2.3
    assert loss_of(model) < before - 0.5
    assert [name for name, value in model.named_parameters() if torch.equal(value, were[name])] == []
    assert record["steps"] == 2 * -(-len(sequences()) * 2 // 8)  # two windows of up to five items per user
    assert (record["ndcg@10"], record["by_epoch"]) == (0.2, [0.1, 0.2])
    assert record["settings"] == to_json(SETTINGS)
    assert read_json(tmp_path / "ckpt/training.json") == record
    assert trained_on(tmp_path / "ckpt") == "toy"
    assert not (tmp_path / "ckpt/run").exists()
    loaded = EarnModel.from_pretrained(tmp_path / "ckpt")
    assert loss_of(loaded) == pytest.approx(loss_of(model), abs=1e-5)


def test_what_was_trained_long_enough_is_recommended(tmp_path: Path) -> None:
    scores = iter(np.linspace(0, 1, 12).tolist())  # better with every epoch, so that the last one stays
    model = untrained(toy_catalog([f"a{item} b{item // 3}" for item in range(12)]))
    train(model, sequences(), tmp_path, lambda _: next(scores), replace(SETTINGS, epochs=12))
    recommender = torch_recommender(model)
    histories = [[(start + step) % 12 for step in range(4)] for start in range(12)]
    found = recommender.recommend_batch(histories, 1)
    assert [items[0].item_id for items in found] == [str((start + 4) % 12) for start in range(12)]


def test_the_best_epoch_stays(tmp_path: Path) -> None:
    model, validate = untrained(), Validation(0.3, 0.2, 0.1)
    record = train(model, sequences(), tmp_path, validate, replace(SETTINGS, epochs=3))
    assert record["ndcg@10"] == 0.3
    assert len(set(validate.losses)) == 3
    assert loss_of(model) == pytest.approx(validate.losses[0], abs=1e-5)
    assert loss_of(EarnModel.from_pretrained(tmp_path)) == pytest.approx(validate.losses[0], abs=1e-5)


def test_dropout_is_no_part_of_the_trained_model(tmp_path: Path) -> None:
    """It changes what is learned, not what the model computes afterwards."""
    models = [untrained(), untrained()]
    for index, (model, share) in enumerate(zip(models, (0.0, 0.5), strict=True)):
        settings = replace(SETTINGS, epochs=1, dropout=0.0, hidden_dropout=share)
        train(model, sequences(), tmp_path / str(index), Validation(0.1), settings)
    assert abs(loss_of(models[0]) - loss_of(models[1])) > 0.01
    assert loss_of(EarnModel.from_pretrained(tmp_path / "1")) == loss_of(models[1])  # in evaluation nothing is drawn


def test_steps_and_epochs_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps: list[tuple[int, int]] = []
    lines: list[str] = []
    score, progress = Validation(0.1, 0.25), lambda *done: steps.append(done)
    record = train(untrained(), sequences(), tmp_path, score, SETTINGS, progress=progress, say=lines.append)
    assert steps == [(step + 1, record["steps"]) for step in range(record["steps"])]
    assert re.fullmatch(r"about \d+:\d\d for 8 steps of .+ s, beside the validation after each of 2 epochs", lines[1])
    assert re.fullmatch(r"epoch 1 of 2: loss \d\.\d{3}, validation NDCG@10 0\.1000, \d+:\d\d left", lines[0])
    assert lines[2].startswith("epoch 2 of 2:")
    assert lines[2].endswith("0.2500, 0:00 left")
    assert capsys.readouterr().out == ""


def test_a_training_with_a_removed_setting_is_not_resumed(tmp_path: Path) -> None:
    removed = {"label_smoothing": 0.1, "average": 4}
    with pytest.raises(KeyboardInterrupt):
        train(untrained(), sequences(), tmp_path, Validation(None), SETTINGS)
    plan = read_json(tmp_path / "run/plan.json")
    for name, value in removed.items():
        write_json(tmp_path / "run/plan.json", {**plan, name: value})
        with pytest.raises(EarnError, match=f"has {name} {value}, which was removed"):
            train(untrained(), sequences(), tmp_path, Validation(), SETTINGS, resume=True)
    write_json(
        tmp_path / "run/plan.json", {**plan, **dict.fromkeys(removed, 0)}
    )  # as an older version wrote it that did not use it
    train(untrained(), sequences(), tmp_path, Validation(0.1, 0.2), SETTINGS, resume=True)


def test_a_resumed_training_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=3)
    whole = untrained()
    train(whole, sequences(), tmp_path / "whole", Validation(0.1, 0.2, 0.3), settings)
    with pytest.raises(KeyboardInterrupt):
        train(untrained(), sequences(), tmp_path / "cut", Validation(0.1, None), settings)
    assert (tmp_path / "cut/run").is_dir()
    assert not (tmp_path / "cut/config.json").exists()
    resumed = untrained()
    record = train(resumed, sequences(), tmp_path / "cut", Validation(0.2, 0.3), settings, resume=True)
    assert record["ndcg@10"] == 0.3
    assert record["steps"] == 3 * -(-len(sequences()) * 2 // 8)
    for (name, want), got in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert_close(want, got, 1e-5, name)
    assert not (tmp_path / "cut/run").exists()


def test_part_of_an_epoch_is_trained_and_validated(tmp_path: Path) -> None:
    steps = -(-len(sequences()) * 2 // 8)
    record = train(untrained(), sequences(), tmp_path / "one", Validation(0.1), replace(SETTINGS, epochs=0.5))
    assert record["steps"] == -(-steps // 2)
    assert record["ndcg@10"] == 0.1
    record = train(untrained(), sequences(), tmp_path / "two", Validation(0.2, 0.3), replace(SETTINGS, epochs=1.5))
    assert record["steps"] == steps - (-steps // 2)
    assert record["ndcg@10"] == 0.3


def test_a_training_that_is_interrupted_within_an_epoch_goes_on_from_its_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SETTINGS, epochs=2)
    whole = untrained()
    steps = train(whole, sequences(), tmp_path / "whole", Validation(0.1, 0.2), settings)["steps"]
    monkeypatch.setattr("earn.model.training_callbacks.SAVE_SECONDS", 0)

    def stop(done: int, _: int) -> None:
        if done == steps // 2 + 2:  # in the second epoch
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(untrained(), sequences(), tmp_path / "cut", Validation(0.1), settings, progress=stop)
    seen: list[int] = []
    resumed = untrained()
    train(
        resumed,
        sequences(),
        tmp_path / "cut",
        Validation(0.2),
        settings,
        resume=True,
        progress=lambda done, _: seen.append(done),
    )
    assert seen[0] == steps // 2 + 2
    for (name, want), got in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert_close(want, got, 1e-5, name)


def test_a_resumed_training_still_knows_the_best_epoch_before_the_interruption(tmp_path: Path) -> None:
    settings, before = replace(SETTINGS, epochs=3), Validation(0.9, 0.1, None)
    with pytest.raises(KeyboardInterrupt):
        train(untrained(), sequences(), tmp_path, before, settings)
    resumed = untrained()
    assert train(resumed, sequences(), tmp_path, Validation(0.1), settings, resume=True)["ndcg@10"] == 0.9
    assert loss_of(resumed) == pytest.approx(before.losses[0], abs=1e-5)


def test_an_unfinished_run_is_neither_overwritten_nor_invented(tmp_path: Path) -> None:
    with pytest.raises(EarnError, match="no interrupted training to resume"):
        train(untrained(), sequences(), tmp_path, Validation(), SETTINGS, resume=True)
    with pytest.raises(KeyboardInterrupt):
        train(untrained(), sequences(), tmp_path, Validation(0.1, None), SETTINGS)
    with pytest.raises(EarnError, match=r"an interrupted training stands here. Pass --resume"):
        train(untrained(), sequences(), tmp_path, Validation(), SETTINGS)


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_anew(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(untrained(), sequences(), tmp_path, Validation(None), SETTINGS)
    for half_written in tmp_path.glob("run/checkpoint-*"):
        (half_written / "trainer_state.json").unlink(missing_ok=True)
    record = train(untrained(), sequences(), tmp_path, Validation(0.1, 0.2), SETTINGS, resume=True)
    assert record["ndcg@10"] == 0.2


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("early_layers", lambda: EarnModel.from_backbone(small_backbone("tiny-llama"), CATALOG, 3, max_history=4)),
        ("max_history", lambda: EarnModel.from_backbone(small_backbone("tiny-llama"), CATALOG, 2, max_history=5)),
        ("identifiers", lambda: untrained(toy_catalog([f"a{item // 3} b{item % 3}" for item in range(12)]))),
    ],
)
def test_another_training_is_not_resumed(
    tmp_path: Path, name: str, other: Callable[[], EarnModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(untrained(), sequences(), tmp_path, Validation(0.1, None), SETTINGS)
    with pytest.raises(EarnError, match=f"had another {name}"):
        train(other(), sequences(), tmp_path, Validation(), SETTINGS, resume=True)
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    with pytest.raises(EarnError, match="had another processes: 1, now it is 2"):
        train(untrained(), sequences(), tmp_path, Validation(), SETTINGS, resume=True)
    monkeypatch.undo()
    with pytest.raises(EarnError, match="had another data"):
        train(untrained(), sequences()[1:], tmp_path, Validation(), SETTINGS, resume=True)
    with pytest.raises(EarnError, match="had another learning_rate"):
        train(untrained(), sequences(), tmp_path, Validation(), replace(SETTINGS, learning_rate=0.1), resume=True)


def test_a_folder_that_holds_something_else_is_spared(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/precious.txt").write_text("mine")
    with pytest.raises(EarnError, match="exists and is not empty"):
        train(untrained(), sequences(), tmp_path, Validation(), SETTINGS)
    assert (tmp_path / "run/precious.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "value"), [("epochs", 0), ("dropout", 1.0), ("warmup", 2.0), ("learning_rate", float("nan"))]
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(EarnError, match=f"{name} is {value}"):
        replace(SETTINGS, **{name: value})  # type: ignore[arg-type]


def test_without_two_items_of_one_user_there_is_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(EarnError, match="nothing to train on"):
        train(untrained(), [np.array([1]), np.array([], np.int64)], tmp_path, Validation(), SETTINGS)


def test_every_epoch_draws_its_windows_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs: list[int] = []
    right: Callable[[Windows, int], None] = Windows.redraw

    def redraw(self: Windows, epoch: int) -> None:
        epochs.append(epoch)
        right(self, epoch)

    monkeypatch.setattr(Windows, "redraw", redraw)
    train(untrained(), sequences(), tmp_path, Validation(0.1, 0.2), SETTINGS)
    assert epochs[-1] == 1
    assert 0 in epochs

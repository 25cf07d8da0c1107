from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from earn.config import to_json
from earn.data.windows import Windows
from earn.errors import EarnError
from earn.export.stages import torch_recommender
from earn.files import read_json, write_json
from earn.model.earn_model import EarnModel
from earn.model.training import train, trained_on
from earn.settings import TrainSettings
from tests.model.trainings import (
    Validation,
    assert_same_weights,
    interrupted,
    loss_of,
    pretrained,
    sequences,
    untrained,
)
from tests.support import toy_catalog

SETTINGS = TrainSettings(epochs=2, batch_size=8, learning_rate=1e-2)
STEPS = -(-len(sequences()) * 2 // 8)  # of an epoch: two windows of up to five items per user
LORA = replace(SETTINGS, lora=4)
Kind = tuple[Callable[[], EarnModel], TrainSettings]


def test_two_epochs_lower_the_loss_and_leave_a_checkpoint(tmp_path: Path) -> None:
    model, validate = untrained(), Validation(0.1, 0.2)
    before = loss_of(model)
    assert trained_on(tmp_path / "ckpt") == ""
    (tmp_path / "ckpt/run").mkdir(parents=True)  # a start that was killed at once is no obstacle
    record = train(model, sequences(), tmp_path / "ckpt", validate, SETTINGS, data="toy")
    assert before > 2  # ten tokens in all, and nothing known: log 10 = 2.3
    assert loss_of(model) < before - 0.5
    assert record["steps"] == 2 * STEPS
    assert (record["ndcg@10"], record["by_epoch"]) == (0.2, [0.1, 0.2])
    assert record["settings"] == to_json(SETTINGS)
    assert read_json(tmp_path / "ckpt/training.json") == record
    assert trained_on(tmp_path / "ckpt") == "toy"
    assert not (tmp_path / "ckpt/run").exists()
    loaded = EarnModel.from_pretrained(tmp_path / "ckpt")
    assert loss_of(loaded) == pytest.approx(loss_of(model), abs=1e-5)


@pytest.mark.parametrize("warmup", [0.0, 0.02, 0.99])
@pytest.mark.parametrize("users", [1, 2])
def test_the_shortest_training_trains(users: int, warmup: float, tmp_path: Path) -> None:
    model = untrained()
    before = model.lm_head.weight.detach().clone()
    settings = replace(SETTINGS, epochs=1, batch_size=1, warmup=warmup, weight_decay=0.0)
    record = train(model, [np.arange(4)] * users, tmp_path, lambda _: 0.1, settings)
    assert record["steps"] == users
    assert not torch.equal(model.lm_head.weight, before)


def test_what_was_trained_long_enough_is_recommended(tmp_path: Path) -> None:
    scores = iter(np.linspace(0, 1, 12).tolist())  # better with every epoch, so that the last one stays
    model = untrained(catalog=toy_catalog([f"a{item} b{item // 3}" for item in range(12)]))
    train(model, sequences(), tmp_path, lambda _: next(scores), replace(SETTINGS, epochs=12))
    recommender = torch_recommender(model)
    histories = [[(start + step) % 12 for step in range(4)] for start in range(12)]
    found = recommender.recommend_batch(histories, 1)
    assert [items[0].item_id for items in found] == [str((start + 4) % 12) for start in range(12)]


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


@pytest.fixture(params=["every weight", "adapters", pytest.param("adapters in float32", marks=pytest.mark.slow)])
def kind(request: pytest.FixtureRequest) -> Kind:
    """A model, and three epochs of every weight or of adapters."""
    if request.param == "every weight":
        return untrained, replace(SETTINGS, epochs=3)
    pytest.importorskip("peft")
    dtype = "float32" if "float32" in request.param else "bfloat16"
    return pretrained, replace(LORA, epochs=3, batch_size=24, dtype=dtype)


def test_the_best_epoch_stays(kind: Kind, tmp_path: Path) -> None:
    make, settings = kind
    model, validate = make(), Validation(0.3, 0.2, 0.1)
    record = train(model, sequences(), tmp_path, validate, replace(settings, dtype="float32"))
    assert record["ndcg@10"] == 0.3
    assert len(set(validate.losses)) == 3
    for each in (model, EarnModel.from_pretrained(tmp_path)):
        assert loss_of(each) == pytest.approx(validate.losses[0], abs=1e-5)


def test_a_resumed_training_ends_as_an_uninterrupted_one(kind: Kind, tmp_path: Path) -> None:
    make, settings = kind
    whole, resumed = make(), make()
    train(whole, sequences(), tmp_path / "whole", Validation(0.1, 0.2, 0.3), settings)
    interrupted(make(), tmp_path / "cut", settings, 0.1)
    (saved,) = (tmp_path / "cut/run").glob("checkpoint-*/model.safetensors")
    if settings.lora:  # nothing that is frozen is saved
        assert all("lora_" in name or name.endswith(".rows") for name in load_file(saved))
    assert not (tmp_path / "cut/config.json").exists()
    record = train(resumed, sequences(), tmp_path / "cut", Validation(0.2, 0.3), settings, resume=True)
    assert (record["ndcg@10"], record["steps"]) == (0.3, 3 * 2 * len(sequences()) // settings.batch_size)
    assert_same_weights(whole, resumed, 1e-5)
    assert not (tmp_path / "cut/run").exists()


def test_part_of_an_epoch_is_trained_and_validated(tmp_path: Path) -> None:
    record = train(untrained(), sequences(), tmp_path / "one", Validation(0.1), replace(SETTINGS, epochs=0.5))
    assert (record["steps"], record["ndcg@10"]) == (-(-STEPS // 2), 0.1)
    record = train(untrained(), sequences(), tmp_path / "two", Validation(0.2, 0.3), replace(SETTINGS, epochs=1.5))
    assert (record["steps"], record["ndcg@10"]) == (STEPS - (-STEPS // 2), 0.3)


def test_a_training_that_is_interrupted_within_an_epoch_goes_on_from_its_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, resumed, seen = untrained(), untrained(), list[int]()
    train(whole, sequences(), tmp_path / "whole", Validation(0.1, 0.2), SETTINGS)
    monkeypatch.setattr("earn.model.training_run.SAVE_SECONDS", 0)

    def stop(done: int, _: int) -> None:
        if done == STEPS + 2:  # in the second epoch
            raise KeyboardInterrupt

    def note(done: int, _: int) -> None:
        seen.append(done)

    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        train(untrained(), sequences(), cut, Validation(0.1), SETTINGS, progress=stop)
    train(resumed, sequences(), cut, Validation(0.2), SETTINGS, resume=True, progress=note)
    assert seen[0] == STEPS + 2
    assert_same_weights(whole, resumed, 1e-5)


def test_a_resumed_training_still_knows_the_best_epoch_before_the_interruption(tmp_path: Path) -> None:
    settings, resumed = replace(SETTINGS, epochs=3), untrained()
    before = interrupted(untrained(), tmp_path, settings, 0.9, 0.1)
    assert train(resumed, sequences(), tmp_path, Validation(0.1), settings, resume=True)["ndcg@10"] == 0.9
    assert loss_of(resumed) == pytest.approx(before.losses[0], abs=1e-5)


def test_an_unfinished_run_is_neither_overwritten_nor_invented(tmp_path: Path) -> None:
    with pytest.raises(EarnError, match="no interrupted training to resume"):
        train(untrained(), sequences(), tmp_path, Validation(), SETTINGS, resume=True)
    interrupted(untrained(), tmp_path, SETTINGS, 0.1)
    with pytest.raises(EarnError, match=r"an interrupted training stands here. Pass --resume"):
        train(untrained(), sequences(), tmp_path, Validation(), SETTINGS)


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_anew(tmp_path: Path) -> None:
    interrupted(untrained(), tmp_path, SETTINGS)
    for half_written in tmp_path.glob("run/checkpoint-*"):
        (half_written / "trainer_state.json").unlink(missing_ok=True)
    record = train(untrained(), sequences(), tmp_path, Validation(0.1, 0.2), SETTINGS, resume=True)
    assert record["ndcg@10"] == 0.2


def test_plans_of_older_versions_are_read(tmp_path: Path) -> None:
    """They lack newer settings, and have settings that were removed: 0 means that they were not used."""
    removed = {"label_smoothing": 0.1, "average": 4}
    interrupted(untrained(), tmp_path, SETTINGS, 0.1)
    new = ("weights", "lora", "lora_targets", "gradient_checkpointing", "dtype", "users", "validation_users")
    plan = {name: value for name, value in read_json(tmp_path / "run/plan.json").items() if name not in new}
    for name, value in removed.items():
        write_json(tmp_path / "run/plan.json", {**plan, name: value})
        with pytest.raises(EarnError, match=f"has {name} {value}, which was removed"):
            train(untrained(), sequences(), tmp_path, Validation(), SETTINGS, resume=True)
    write_json(tmp_path / "run/plan.json", {**plan, **dict.fromkeys(removed, 0)})
    assert train(untrained(), sequences(), tmp_path, Validation(0.2), SETTINGS, resume=True)["ndcg@10"] == 0.2


def test_another_training_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(untrained(), tmp_path, SETTINGS, 0.1)

    def refused(name: str, model: EarnModel, users: int = 36, **changed: Any) -> None:
        with pytest.raises(EarnError, match=f"had another {name}"):
            train(model, sequences()[:users], tmp_path, Validation(), replace(SETTINGS, **changed), resume=True)

    refused("early_layers", untrained(early_layers=3))
    refused("max_history", untrained(max_history=5))
    refused("identifiers", untrained(catalog=toy_catalog([f"a{item // 3} b{item % 3}" for item in range(12)])))
    refused("data", untrained(), users=35)
    refused("learning_rate", untrained(), learning_rate=0.1)
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    refused("processes: 1, now it is 2", untrained())


def test_a_folder_that_holds_something_else_is_spared(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/precious.txt").write_text("mine")
    with pytest.raises(EarnError, match="exists and is not empty"):
        train(untrained(), sequences(), tmp_path, Validation(), SETTINGS)
    assert (tmp_path / "run/precious.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"warmup": 2.0}, "warmup is 2.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"lora_targets": "q"}, "there are no adapters"),
        ({"dtype": "bfloat16"}, "without lora all are"),
        ({"lora": 4, "lora_targets": "q,x"}, "names 'x'"),
        ({"lora": 4, "lora_targets": ""}, "names ''"),
        ({"lora": 4, "dtype": "float16"}, "dtype is 'float16'"),
        ({"lora": -1}, "lora is -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(EarnError, match=message):
        replace(SETTINGS, **changed)


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

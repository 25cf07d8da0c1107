from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from earn.cli.main import main
from earn.model.backbones import load_backbone

USERS, ITEMS = 90, 60
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What the last line of stdout says."""
        return json.loads(self.out.strip().splitlines()[-1])

    @property
    def error(self) -> str:
        """The one line that a refusal prints, after the headings of the steps that went well."""
        assert (self.status, self.out) == (2, "")
        *before, line = self.err.splitlines()
        assert all(text.startswith(("[", "      ")) for text in before)
        assert line.startswith("earn: error: ")
        return line.removeprefix("earn: error: ")


Earn = Callable[..., Outcome]


@pytest.fixture
def earn(capsys: pytest.CaptureFixture[str]) -> Earn:
    """Runs a command line."""

    def run(*argv: object) -> Outcome:
        capsys.readouterr()
        status = main([str(argument) for argument in argv])
        return Outcome(status, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RecBole files: every user walks through the items in order, from a place of his own."""
    folder = tmp_path_factory.mktemp("data") / "walks"
    folder.mkdir()
    generator = np.random.default_rng(0)
    rows = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(USERS):
        start, length = generator.integers(0, ITEMS), generator.integers(8, 13)
        rows += [f"u{user}\ti{(start + step) % ITEMS}\t{step}" for step in range(length)]
    (folder / "walks.inter").write_text("\n".join(rows) + "\n", encoding="utf-8")
    items = ["item_id:token\ttitle:token_seq", *(f"i{item}\tItem {item}" for item in range(ITEMS))]
    (folder / "walks.item").write_text("\n".join(items) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Hugging Face folder without a tokenizer."""
    folder = tmp_path_factory.mktemp("backbone")
    load_backbone("tiny-llama", sizes=SIZES).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(data: Path, backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `earn train` wrote; not to be changed."""
    folder = tmp_path_factory.mktemp("trained") / "checkpoint"
    _succeed(["train", data, "--out", folder, "--backbone", backbone, "--epochs", 2, "--max-history", 6])
    return folder


@pytest.fixture(scope="session")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `earn export` wrote; not to be changed."""
    folder = tmp_path_factory.mktemp("exported") / "bundle"
    _succeed(["export", checkpoint, "--out", folder])
    return folder


def _succeed(argv: Sequence[object]) -> None:
    assert main([str(argument) for argument in argv]) == 0

"""`earn inspect` of checkpoints: what they are, and every reason why they cannot be loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from earn.cli import train
from earn.cli.main import build_parser
from earn.errors import EarnError
from earn.model.backbones import load_backbone
from earn.model.earn_model import EarnModel
from earn.model.methods import build_model
from earn.prompts import Template
from tests.cli.conftest import ITEMS, Earn
from tests.model.test_gguf import write_gguf
from tests.published import BEGIN, END, PADDED_ROWS, PUBLISHERS
from tests.support import small_backbone

Weights = dict[str, Any]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return PUBLISHERS["openonerec"].folder(tmp_path_factory.mktemp("published"))


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A copy, to be changed."""
    return Path(shutil.copytree(published, tmp_path / "folder"))


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder: Path, change: Callable[[Weights], None]) -> None:
    weights = dict(load_file(folder / "model.safetensors"))
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_published_folder_is_described_without_its_weights(published: Path, earn: Earn) -> None:
    outcome = earn("inspect", published, "--json")
    assert outcome.status == 0
    facts = outcome.json
    backbone = load_backbone(published)
    assert (facts["kind"], facts["family"], facts["obstacles"]) == ("Hugging Face folder", "qwen3", [])
    sizes = {"layers": 4, "early_layers": 1, "hidden": 32, "heads": 4, "key_value_heads": 2, "head_size": 16}
    assert sizes.items() <= facts["sizes"].items()
    assert facts["sizes"]["embedding_rows"] == PADDED_ROWS
    assert facts["parameters"] == sum(weight.numel() for weight in backbone.parameters())
    assert facts["dtypes"] == {"F32": len(backbone.state_dict())}
    assert (facts["tied"], facts["weight_files"]) == (False, ["model.safetensors"])
    tokenizer = facts["tokenizer"]
    assert facts["padding_rows"] == PADDED_ROWS - tokenizer["rows"] > 0
    assert tokenizer["tokens"] == tokenizer["rows"]
    assert tokenizer["has_chat_template"]
    levels = [{"name": letter, "codes": 10, "highest": 9} for letter in "abc"]
    assert tokenizer["identifiers"] == {"form": "<s_a_N>", "levels": levels, "wrapper": [BEGIN, END]}
    text = earn("inspect", published).out
    for part in (
        "qwen3",
        "k = 1 of 4",
        "a: 10 up to 9",
        BEGIN,
        f"{facts['padding_rows']} rows stand behind",
        "nothing",
    ):
        assert part in text


def test_our_checkpoint_shows_its_split_and_catalog(checkpoint: Path, earn: Earn, tmp_path: Path) -> None:
    facts = earn("inspect", checkpoint, "--json").json
    model = EarnModel.from_pretrained(checkpoint)
    assert (facts["kind"], facts["items"], facts["tokenizer"]) == ("EARN checkpoint", ITEMS, None)
    assert facts["sizes"]["early_layers"] == model.earn.early_layers
    assert facts["parameters"] == model.num_parameters()
    assert facts["tied"]
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    settings = json.loads((copy / "config.json").read_text())["earn"]
    change_config(copy, earn={**settings, "early_layers": 9, "max_history": 10_000})
    facts = earn("inspect", copy, "--json").json
    assert len(facts["obstacles"]) == 2
    assert "early_layers is 9" in facts["obstacles"][0]
    assert "max_history, which is 10000" in facts["obstacles"][1]
    (copy / "catalog.npz").unlink()
    assert "catalog.npz" in earn("inspect", copy, "--json").json["obstacles"][0]


def test_a_gguf_file_is_described(earn: Earn, tmp_path: Path) -> None:
    backbone = small_backbone("tiny-llama", tie_word_embeddings=False)
    write_gguf(backbone, tmp_path / "small.gguf")
    facts = earn("inspect", tmp_path / "small.gguf", "--json").json
    assert (facts["kind"], facts["family"], facts["sizes"]["layers"]) == ("GGUF file", "llama", 4)
    assert facts["parameters"] == backbone.num_parameters()
    assert facts["sizes"]["embedding_rows"] == backbone.config.vocab_size
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "small.gguf").read_bytes()[:100])
    outcome = earn("inspect", tmp_path / "cut.gguf")
    assert (outcome.status, "is no GGUF file, or not whole" in outcome.out) == (1, True)


def several(folder: Path) -> None:
    """Quantized by its config, of another family, with a code among its weights."""
    change_config(folder, quantization_config={"quant_method": "gptq"}, rope_scaling={"type": "dynamic", "factor": 2.0})
    (folder / "tokenizer.json").write_text("{")


def misplaced(folder: Path) -> None:
    def change(weights: Weights) -> None:
        weights["model.layers.0.mlp.up_proj.weight"] = np.zeros((3, 3), np.float32)
        weights["model.layers.1.extra.weight"] = np.zeros(3, np.int8)
        del weights["model.norm.weight"]

    change_weights(folder, change)


def shortened(folder: Path) -> None:
    """Tables of fewer rows than the tokenizer has ids."""

    def change(weights: Weights) -> None:
        weights.update({name: table[:16] for name, table in weights.items() if len(table) == PADDED_ROWS})

    change_config(folder, vocab_size=16)
    change_weights(folder, change)


OBSTACLES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    # what is done to the folder, and what each obstacle says, in the order of loading
    "family": (lambda folder: change_config(folder, model_type="gpt2"), ["holds a 'gpt2' model"]),
    "several": (several, ["quantized (gptq)", "of type 'dynamic'", "its tokenizer cannot be loaded"]),
    "misplaced": (
        misplaced,
        ["quantized codes (I8)", "model.norm.weight is missing", "extra.weight is in its files", "[3, 3]"],
    ),
    "padded-config": (
        lambda folder: change_config(folder, vocab_size=256),
        ["Set vocab_size to 192", "Set vocab_size to 192"],
    ),
    "no-weights": (lambda folder: (folder / "model.safetensors").unlink(), ["there are no weights"]),
    "no-config": (lambda folder: (folder / "config.json").unlink(), ["config.json: cannot be read"]),
    "short-table": (
        shortened,
        ["knows the token id"],
    ),
}


@pytest.mark.parametrize(("change", "says"), OBSTACLES.values(), ids=OBSTACLES)
def test_every_obstacle_is_listed(
    change: Callable[[Path], object], says: list[str], folder: Path, earn: Earn, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(folder)
    outcome = earn("inspect", folder, "--json")
    assert (outcome.status, len(outcome.json["obstacles"])) == (1, len(says))
    for obstacle, part in zip(outcome.json["obstacles"], says, strict=True):
        assert part in obstacle
    text = earn("inspect", folder)
    assert text.status == 1
    assert all(part in text.out for part in says)
    with pytest.raises(EarnError) as refusal:
        EarnModel.from_backbone(folder, PUBLISHERS["openonerec"].catalog())
    assert str(refusal.value) in outcome.json["obstacles"] or "There is no backbone" in str(refusal.value)


def test_train_takes_the_publishers_prompt(published: Path) -> None:
    words = ["--template", "system {history} user", "--separator", " ; ", "--system", "Can you", "--answer", "the "]
    args = build_parser().parse_args(["train", "DATA", "--out", "CKPT", "--backbone", str(published), "--chat", *words])
    catalog = PUBLISHERS["openonerec"].catalog()
    prompt = train._model(args, "lcrec", catalog).earn.prompt
    template = Template("system {history} user", " ; ", chat=True, system="Can you", answer="the ")
    assert prompt == build_model("lcrec", published, catalog, template=template).earn.prompt
    assert prompt != build_model("lcrec", published, catalog).earn.prompt

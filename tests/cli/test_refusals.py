"""Bad input of every command: one line, status 2, said before the work, and nothing is written."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.cli.conftest import USERS, Earn

FILES = {
    "mine.txt": "keep",
    "mine.json": "{}",
    "short": "abc\n",
    "tags.csv": "id,genre,price\n0,Comedy,4\n",
    "no-id.csv": "id,title\n9,Nine\n",
    "new.csv": "item_id,title\n9,Nine\n",
    "titles-twice.csv": "item_id,title\n0,Zero\n1,One\n1,Two\n",
    "items-twice.csv": "item_id,identifier\n9,a3 b1 c1\n9,a0 b0\n",
    "column-twice.csv": "item_id,title,title\n0,Zero,Null\n",
    "wide.csv": "item_id,title\n0,Zero, one\n",
}
TRAIN = "train nowhere --out x"
CALIBRATE = "calibrate {exported} {data} --out x --samples 32"
CASES = [
    ("", "COMMAND"),
    ("bake", "bake"),
    ("data nowhere", "nowhere: there is no such file"),
    ("import absent.csv --out x", "there is no such file"),
    ("train ml-100k", "--out"),
    ("train ml-100k --out .", "not empty"),
    (TRAIN, "nowhere: there is no such file"),
    (f"{TRAIN} --epochs 0", "--epochs: '0' is not a finite number above 0"),
    (f"{TRAIN} --dense --early-layers 2", "--early-layers"),
    (f"{TRAIN} --dense --prefix-registers 1", "Leave away --prefix-registers"),
    (f"{TRAIN} --dense --suffix-registers 0", "Leave away --suffix-registers"),
    (f"{TRAIN} --prefix-registers 0 --suffix-registers 0", "Pass --dense, or"),
    (f"{TRAIN} --lora 4", "tiny-llama starts from random weights"),
    (f"{TRAIN} --lora-targets q", "there are no adapters"),
    (f"{TRAIN} --dtype bfloat16", "without lora all are"),
    (f"{TRAIN} --seed 4294967296", "seed is 4294967296. Take 0 to 4294967295"),
    (f"{TRAIN} --digits 8", "--digits is for --method set"),
    (f"{TRAIN} --temperature 0.1", "--temperature is for --method set"),
    (f"{TRAIN} --method set --digits many", "digits is 'many'"),
    (f"{TRAIN} --method set --lora 4", "--lora cannot be used"),
    (f"{TRAIN} --backbone {{backbone}} --layers 2", "Leave away --layers; --early-layers says"),
    ("train {data} --out {checkpoint}", "exists and is not empty"),
    ("evaluate nowhere ml-100k", "neither a bundle"),
    ("evaluate {exported} {data} --scoring vocab", "Leave away --scoring"),
    ("evaluate {checkpoint} {data} --scoring best", "no scoring rule 'best'"),
    ("analyze {checkpoint} {data} --report page.txt", "ends in .html"),
    ("analyze {checkpoint} {data} --users 0", "'0' is not a whole number from 1"),
    ("analyze nowhere {data}", "there is no checkpoint"),
    ("analyze {exported} {data}", "is a bundle, not a checkpoint"),
    ("export nowhere --out x", "there is no checkpoint"),
    ("export nowhere --out x --scoring best", "best"),
    ("calibrate nowhere {data} --out x", "no bundle"),
    (f"{CALIBRATE} --samples 128", f"There are {USERS} users, too few for 128"),
    (f"{CALIBRATE} --samples 2", "2 samples are too few"),
    (f"{CALIBRATE} --precision fp7", "no precision 'fp7'"),
    (f"{CALIBRATE} --engine cuda", "not written for the engine 'cuda'"),
    (f"{CALIBRATE} --report {{exported}}/page.html", "lies in a bundle"),
    (f"{CALIBRATE} --report x/page.html", "lies in a bundle"),
    (f"{CALIBRATE} --report a.json", "ends in .html"),
    (f"{CALIBRATE} --report mine.html", "stands where the report's figures go"),
    ("tags {bundle} --columns genre", "--from FILE"),
    ("tags {bundle} --from tags.csv", "No column was named"),
    ("tags {bundle} --from tags.csv --columns color", "no column 'color'"),
    ("tags {bundle} --from tags.csv --bands price=a", "COLUMN=5,20"),
    ("tags {bundle} --from tags.csv --bands price=9,5", "ascending"),
    ("catalog list nowhere", "there is no bundle"),
    ("catalog add {bundle} no-id.csv", "no column 'item_id'"),
    ("catalog add {bundle} new.csv", "Give each one's identifier"),
    ("catalog add {bundle} new.csv --vectors new.csv", "by numpy.save"),
    ("catalog add {bundle} items-twice.csv", "the item '9' has 2 rows"),
    ("catalog rename {bundle} titles-twice.csv", "the item '1' has 2 rows"),
    ("catalog rename {bundle} column-twice.csv", "the column 'title' twice"),
    ("catalog rename {bundle} wide.csv", "more cells than the header, '0,Zero, one'"),
    ("catalog remove {bundle} x", "no item 'x'"),
    ("catalog rollback {bundle}", "no earlier catalog"),
    ("profile {bundle} --engine abacus", "no engine 'abacus'"),
    ("profile {bundle} --histories 7", "reads the newest 6 items"),
    ("profile {bundle} --beams 25", "searches with 24 beams at the most"),
    ("profile {bundle} --against nowhere", "nowhere: there is no bundle"),
    ("profile {bundle} --report page.txt", "ends in .html"),
    ("profile {bundle} --report {bundle}/page.html", "lies in a bundle"),
    ("profile {bundle} --beams 5,x", "'x' is not a whole number from 1"),
    ("profile {bundle} --histories ''", "'' is not a whole number from 1"),
    ("profile {bundle} --seconds 0", "--seconds"),
    ("profile {bundle} --data nowhere", "nowhere: there is no such file"),
    ("recommend nowhere --history 1", "earn export CKPT --out nowhere"),
    ("recommend {checkpoint} --history i1", "earn export {checkpoint} --out BUNDLE"),
    ("recommend {exported} --history i1,nope", "'nope'"),
    ("recommend {exported} --history i1 --engine gpu9", "no engine 'gpu9'"),
    ("recommend {bundle} --history 1 --block adult", "see earn tags"),
    ("recommend {bundle} --history 1 --allow {{", "no filter in JSON"),
    ("serve {bundle} --host 0.0.0.0", "--token-file"),
    ("serve {bundle} --token-file short", "16 or more"),
    ("serve {bundle} --app .", "index.html"),
    ("serve {bundle} --deadline-s 0", "deadline_s"),
    ("serve {bundle} --port 70000", "port"),
    ("inspect .", "there is no bundle"),
    ("inspect nowhere", "there is no bundle"),
    ("quickstart --out .", "not a quickstart's"),
    ("quickstart --out mine.txt", "not a quickstart's"),
]
UNWRITABLE = ("train {data}", "export {checkpoint}", "calibrate {exported} {data}")  # found before the first step


@pytest.mark.parametrize(
    ("command", "says", "last_step"),
    [
        *((command, says, 1) for command, says in CASES),
        *((f"{command} --out mine.txt/inside/out", "cannot be written", 0) for command in UNWRITABLE),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(
    command: str,
    says: str,
    last_step: int,
    earn: Earn,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    places = ("bundle", "exported", "checkpoint", "backbone", "data")
    house = {name: request.getfixturevalue(name) for name in places if f"{{{name}}}" in command}
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    before = _contents(tmp_path)
    outcome = earn(*shlex.split(command.format(**house)))
    assert says.format(**house) in outcome.error
    assert f"[{last_step + 1}/" not in outcome.err
    assert _contents(tmp_path) == before


def _contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

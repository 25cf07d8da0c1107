"""The code of README and the pages runs: every block does, or says in a comment in front of it why it does not.

    <!-- not run: WHY -->      in front of a block that takes a machine, data or time that no test has
    <!-- command: NAME -->     in front of a command that .ci/run runs by this name

All other blocks of a page run one after another, in one folder and one namespace: Python as it stands, lines of bash as
`earn` commands. What they find there is made by `house`. Command lines that do not run are parsed at least.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from earn.bundle_edit import set_tags
from earn.catalog import Catalog
from earn.cli.main import build_parser, main
from earn.export.bundle import export_bundle
from earn.runtime.recommender import Recommender
from earn.tags import Tags
from tests.published import PUBLISHERS
from tests.support import small_backbone, small_model

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PICTURES = ("", "text")  # examples of files, and drawings: nothing to be run
FENCE = re.compile(r"(?:<!-- (?P<mark>[\w ]+): (?P<said>.+) -->\n)?^```(?P<language>.*)\n(?P<code>(?s:.*?))^```$", re.M)

IDS = ("1", "50", "172", "181", "100", "127", "174", "56", "98")
HISTORIES = [[IDS[(start + step) % len(IDS)] for step in range(5)] for start in range(30)]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and the comment in front of it."""

    place: str  # page and line
    mark: str | None
    said: str | None
    language: str
    code: str

    @property
    def commands(self) -> list[list[str]]:
        """The arguments of each `earn` command in a block of bash."""
        lines = self.code.replace("\\\n", " ").splitlines()
        words = chain.from_iterable(simple_commands(line) for line in lines)
        return [line[1:] for line in words if Path(line[0]).name == "earn"]

    @property
    def is_earn_alone(self) -> bool:
        """Whether each line of it is one `earn` command."""
        lines = [line for line in self.code.replace("\\\n", " ").splitlines() if line.strip()]
        return self.language == "bash" and len(lines) == len(self.commands)


def simple_commands(line: str) -> Iterator[list[str]]:
    """The words of each command in a line of bash, without what && and its like put between them."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    command: list[str] = []
    for word in chain(lexer, [";"]):
        if set(word) <= set("();<>|&"):
            if command:
                yield command
            command = []
        else:
            command.append(word)


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = [
        Block(
            f"{page.name}:{text.count(chr(10), 0, match.start('language')) + 1}",
            *match.group("mark", "said", "language", "code"),
        )
        for match in FENCE.finditer(text)
    ]
    assert text.count("```") == 2 * len(found), f"{page.name}: a fence that is not read here"
    return found


ALL = [block for page in PAGES for block in blocks(page)]


def check_mark(block: Block, commands_of_ci: Sequence[str]) -> None:
    """A block runs here, is run by .ci/run, or says why it is not run."""
    if block.mark == "command":
        assert block.said in commands_of_ci, f"{block.place}: .ci/run does not run {block.said}"
    elif block.mark is not None:
        assert block.mark == "not run", f"{block.place}: what is {block.mark!r}?"
    else:
        is_run = block.language in (*PICTURES, "python", "json") or block.is_earn_alone
        assert is_run, f"{block.place}: this runs nowhere. Say why: <!-- not run: WHY -->"


def run_block(block: Block, names: dict[str, Any]) -> None:
    """Runs a block that has no mark, in the folder at hand."""
    if block.language == "python":
        exec(compile(block.code, block.place, "exec"), names)
    elif block.language == "json":
        json.loads(block.code)
    elif block.language == "bash":
        for command in block.commands:
            assert main(command) == 0, f"{block.place}: earn {shlex.join(command)}"


def write_tables(folder: Path) -> None:
    """What the commands read: a table of ratings, items, titles, histories."""
    import pyarrow as pa
    from pyarrow import parquet

    rows = [f"{user},{item},5,{step}" for user, items in enumerate(HISTORIES) for step, item in enumerate(items)]
    (folder / "ratings.csv").write_text("\n".join(["user_id,item_id,rating,timestamp", *rows]))
    genres = ("Comedy", "Drama", "Comedy|Drama")
    films = [f"{item},Film {item},{genres[index % 3]}" for index, item in enumerate(IDS)]
    (folder / "movies.csv").write_text("\n".join(["item_id,title,genre", *films]))
    (folder / "movies.tsv").write_text((folder / "movies.csv").read_text().replace(",", "\t"))
    (folder / "items.csv").write_text("item_id,title,identifier\n9000,New,<a_1> <b_2>\n")
    (folder / "titles.csv").write_text("item_id,title\n100,Another name\n")
    for name in ("histories.parquet", "histories/one.parquet"):
        (folder / name).parent.mkdir(exist_ok=True)
        parquet.write_table(pa.table({"user": range(len(HISTORIES)), "items": HISTORIES}), folder / name)


def write_published(folder: Path) -> None:
    """A published recommender, the data that it knows, and a plain backbone."""
    data = folder / "data/Beauty"
    data.mkdir(parents=True)
    index = dict(zip(IDS, map(list, PUBLISHERS["minionerec"].catalog().identifiers), strict=True))
    (data / "Beauty.index.json").write_text(json.dumps(index))
    (data / "Beauty.inter.json").write_text(json.dumps({f"u{user}": items for user, items in enumerate(HISTORIES)}))
    PUBLISHERS["minionerec"].folder(folder / "models/MiniOneRec")
    small_backbone("tiny-qwen2", num_hidden_layers=8).save_pretrained(folder / "models/qwen2")


def write_bundles(folder: Path) -> None:
    """An untrained model's bundle, with tags, under the names that the pages give theirs."""
    identifiers = tuple((f"<a_{a}>", f"<b_{b}>") for a in range(3) for b in range(3))
    catalog, bundle = Catalog(IDS, identifiers, tuple(f"Film {item}" for item in IDS)), folder / "BUNDLE"
    export_bundle(small_model("tiny-qwen3", catalog, early_layers=2, max_history=6), bundle, [["1", "50"]])
    tags = {"genre:Comedy": range(0, 9, 2), "adult": [3], "price:<5": range(9)}
    set_tags(bundle, Tags.of({name: list(held) for name, held in tags.items()}, len(catalog)))
    for name in ("movies-bundle", "movies-int8", "runs/movies-bundle"):
        shutil.copytree(bundle, folder / name)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the blocks take for granted; not to be changed."""
    folder = tmp_path_factory.mktemp("docs")
    write_tables(folder)
    write_published(folder)
    write_bundles(folder)
    return folder


WITH_CODE = [
    page for page in PAGES if any(block.mark is None and block.language not in PICTURES for block in blocks(page))
]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page: Path, house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas as pd

    shutil.copytree(house, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {
        "recommender": Recommender.load("movies-bundle"),
        "frame": pd.read_csv("ratings.csv"),
    }
    for block in blocks(page):
        if block.mark is None:
            run_block(block, names)


@pytest.mark.parametrize("block", ALL, ids=lambda block: block.place)
def test_a_block_runs_or_says_why_not(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_mark(block, re.findall(r"^readme (\w+)", (ROOT / ".ci/run").read_text(), re.M))
    for command in block.commands if block.language == "bash" else []:
        build_parser().parse_args(command)

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import pytest

from earn.errors import EarnError
from earn.report.page import Page, Picture, Table, check_place, three_digits
from earn.report.plots import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent.parent
EVIL = "<script>alert('$x_{')</script>&\"<b>"


class Seen(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, name: str) -> list[str]:
        return [value for _, attributes in self.elements if (value := attributes.get(name)) is not None]


def draw(figure: Figure, label: str = "label") -> None:
    axes = figure.subplots()
    axes.bar([0, 1], [1, 2], color=COLOURS["main"], label=label)
    axes.plot([0, 1], [1, 2], "o", color=COLOURS["mark"])
    axes.set_xticks([0, 1], [label, "b"])
    axes.set_title(label)
    axes.legend()


def page_of(text: str) -> Page:
    picture = Picture(text, lambda figure: draw(figure, text))
    parts = (text, Table((text, "n"), [(text, "1"), ("b", text)], marked=[1]), picture, picture)
    return Page(text, text, {text: parts}, text, tiles=[(text, text)])


def test_what_comes_from_outside_is_escaped() -> None:
    seen, plain = Seen(page_of(EVIL).html()), Seen(page_of("sample").html())
    assert [tag for tag, _ in seen.elements] == [tag for tag, _ in plain.elements]
    assert seen.text.count(EVIL) == plain.text.count("sample") == 19


def test_a_page_needs_no_network_and_runs_nothing() -> None:
    html = page_of("text").html()
    seen = Seen(html)
    assert not {tag for tag, _ in seen.elements} & {"script", "link", "img", "iframe", "object", "embed", "base", "a"}
    assert "default-src 'none'" in seen.values("content")[0]
    assert not re.search(r"https?://|@import|javascript:| on\w+=", html)
    assert all(target.startswith("#") for target in (*seen.values("href"), *seen.values("src")))
    assert set(re.findall(r"url\((.)", html)) == {"#"}


def test_every_reference_within_the_page_has_one_target() -> None:
    html = page_of("text").html()
    names = Seen(html).values("id")
    assert len(names) == len(set(names))
    wanted = {target[1:] for target in Seen(html).values("href")} | set(re.findall(r"url\(#(\w+)\)", html))
    assert wanted
    assert wanted <= set(names)


def test_figures_take_the_pages_colours_and_keep_their_text() -> None:
    svg = re.findall(r"<svg.*?</svg>", page_of("a label").html(), re.DOTALL)
    assert len(svg) == 2
    for name in ("main", "mark", "muted", "rule", "ink"):
        assert f"var(--{name})" in svg[0]
        assert COLOURS[name] not in svg[0]
    assert ">a label</text>" in svg[0]


def test_figures_have_three_digits() -> None:
    assert [three_digits(value) for value in (0.1234, 1.0, 12.34, 1234.5)] == ["0.123", "1.00", "12.3", "1,234"]


def test_the_same_page_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    first = page_of("text").html()
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 30.0)  # the user's own settings
    assert page_of("text").html() == first
    assert matplotlib.rcParams["font.size"] == 30


LAZY = """
import sys
import earn.report.page
loaded = {"matplotlib", "jinja2", "numpy"} & set(sys.modules)
assert not loaded, loaded
from earn.report.page import Page, Picture
html = Page("t", "s", {"x": [Picture("c", lambda figure: figure.subplots().plot([1, 2]) and None)]}).html()
assert "matplotlib.pyplot" not in sys.modules
sys.stdout.write(html)
"""


def test_libraries_come_when_a_page_is_rendered_and_other_processes_agree() -> None:
    command, environment = [sys.executable, "-c", LAZY], {"PYTHONHASHSEED": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", check=True)

    def draw(figure: Figure) -> None:
        figure.subplots().plot([1, 2])

    assert done.stdout == Page("t", "s", {"x": [Picture("c", draw)]}).html()


@pytest.mark.parametrize("library", ["matplotlib", "jinja2"])
def test_a_missing_library_is_named(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(EarnError, match=f"need {library}.*pip install"):
        page_of("text").html()


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail(figure: Figure) -> None:
        raise RuntimeError("no")

    path = tmp_path / "new" / "page.html"
    page = Page("file \udce9", "über", {"x": ["…"]})  # a file name that is not UTF-8
    page.write(path)
    before = path.read_bytes()
    assert before.decode("utf-8") == page.html().replace("\udce9", "?")
    with pytest.raises(RuntimeError):
        Page("t", "s", {"x": [Picture("c", fail)]}).write(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_place_for_the_page_is_checked_before_anything_is_measured(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (tmp_path / "file").write_text("")
    check_place(tmp_path / "new" / "page.html", bundle)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "file"]  # nothing is left behind
    for path, says in (
        ("page.txt", "Give a file that ends in .html"),
        ("bundle/page.html", "lies in a bundle"),
        ("file/page.html", "cannot be written"),
    ):
        with pytest.raises(EarnError, match=says):
            check_place(tmp_path / path, bundle)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that nobody can write to")
def test_a_folder_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(EarnError, match=re.escape(f"cannot be written ({os.strerror(2)}: /proc)")):
        check_place(Path("/proc/page.html"))

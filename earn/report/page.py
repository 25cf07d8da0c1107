"""One self-contained HTML page: text, tables and figures, for reports that people read, print and send on.

A page needs no network and no script, and forbids both. Figures are inline SVG whose text stays text; their colours are
the page's own, so they follow light and dark mode. What comes from outside is escaped. The same page gives the same
bytes.

    Page("Title", "What was found.", sections={"Part": ["A sentence.", Table(...), Picture(...)]}).write(path)

matplotlib and Jinja2 are imported when a page is rendered, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from earn.errors import EarnError, to_install
from earn.files import check_writable, written_whole
from earn.report.plots import PALETTE, svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """Rows of text; columns behind the first are set as figures, flush right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1  # so many, from the left, are set as text
    marked: Collection[int] = ()  # indices of the rows to stand out


@dataclass(frozen=True)
class Picture:
    """A figure with the sentence that says what it shows."""

    caption: str
    draw: Callable[[Figure], None]  # into an empty figure, with COLOURS of `plots`, when the page is rendered
    height: float = 3.0  # inches; the width is the same for all


Parts = Sequence[str | Table | Picture]  # of a section; a string is a paragraph


@dataclass(frozen=True)
class Page:
    """A report."""

    title: str
    summary: str  # one paragraph
    sections: Mapping[str, Parts] = field(default_factory=dict)  # by heading
    banner: str = ""  # the verdict, above everything
    is_good: bool = False  # the verdict
    tiles: Sequence[tuple[str, str]] = ()  # the few figures that matter most, and what each is

    def html(self) -> str:
        """The page as HTML.

        Raises:
            EarnError: matplotlib or Jinja2 is missing.
        """
        check_installed()
        from jinja2 import Environment, FunctionLoader, StrictUndefined
        from markupsafe import Markup

        numbers = count(1)
        loader = FunctionLoader(lambda name: files(__package__).joinpath(name).read_text("utf-8"))
        environment = Environment(
            autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, loader=loader
        )
        return environment.get_template("page.html").render(
            page=self, colours=PALETTE, svg=lambda picture: Markup(svg(picture.draw, picture.height, next(numbers)))
        )

    def write(self, path: Path) -> None:
        """Writes the page, whole or not at all."""
        text = self.html().encode("utf-8", "replace")  # names of files may hold what UTF-8 cannot
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as beside:
            beside.write_bytes(text)


def settings_table(rows: Sequence[tuple[str, str]]) -> Table:
    """Names and values of what was set."""
    return Table(("Setting", "Value"), rows, text_columns=2)


def three_digits(value: float) -> str:
    """A number from 0 in three digits, or all those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def check_place(path: Path, *bundles: Path) -> None:
    """Refuses a place where no page can be written, before hours of work.

    Raises:
        EarnError: not an .html file, in one of the bundles, a folder that cannot be written to, or a missing library.
    """
    check_installed()
    folders = [path.resolve(), *path.resolve().parents]
    if path.suffix != ".html" or path.is_dir():
        raise EarnError(f"{path}: is no place for a page. Give a file that ends in .html.")
    if any(bundle.resolve() in folders for bundle in bundles):
        raise EarnError(f"{path}: lies in a bundle, which is deployed as it is. Choose a place outside.")
    check_writable(path)


def check_installed() -> None:
    """Raises EarnError where a library is missing that pages are made with."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise EarnError(f"Reports need {error.name}. Install it: {to_install('report')}") from error

"""One self-contained HTML page: text, tables and figures, for reports that people read, print and send on.

A page needs no network and no script, and forbids both. Figures are inline SVG whose text stays text; their colours are
the page's own, so they follow light and dark mode. What comes from outside is escaped. The same page gives the same
bytes.

    Page("Title", "What was found.", sections=(Section("Part", ("A sentence.", Table(...), Picture(...))),)).write(path)

matplotlib and Jinja2 are imported when a page is rendered, not before.
"""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from earn.errors import EarnError
from earn.files import written_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# name: in light mode and in print, in dark mode. Blue, orange and grey differ for every kind of colour blindness.
_COLOURS: Mapping[str, tuple[str, str]] = {
    "paper": ("#ffffff", "#14181f"),
    "ink": ("#1c2430", "#e6e9ef"),
    "muted": ("#5b6574", "#9ba6b5"),
    "rule": ("#dde2e9", "#323a47"),
    "main": ("#1f6fb2", "#6ab2ee"),
    "pale": ("#c2d6e8", "#38536d"),
    "mark": ("#b8500c", "#f0994f"),
    "good": ("#0d7468", "#5cc4b2"),
    "bad": ("#a92c18", "#f58d76"),
}
COLOURS: Mapping[str, str] = MappingProxyType({name: light for name, (light, _) in _COLOURS.items()})  # for figures


@dataclass(frozen=True)
class Table:
    """Rows of text; columns behind the first are set as figures, flush right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1  # so many, from the left, are set as text
    marked: Collection[int] = ()  # numbers of the rows to stand out


@dataclass(frozen=True)
class Picture:
    """A figure with the sentence that says what it shows."""

    caption: str
    draw: Callable[[Figure], None]  # draws into an empty figure, with COLOURS; called when the page is rendered
    height: float = 3.0  # inches; every figure is WIDTH wide


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; a string is a paragraph."""

    title: str
    parts: Sequence[str | Table | Picture]


@dataclass(frozen=True)
class Banner:
    """The verdict, above everything."""

    text: str
    is_good: bool


@dataclass(frozen=True)
class Page:
    """A report."""

    title: str
    summary: str  # one paragraph
    sections: Sequence[Section] = ()
    banner: Banner | None = None
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
            page=self, colours=_COLOURS, svg=lambda picture: Markup(_svg(picture, next(numbers)))
        )

    def write(self, path: Path) -> None:
        """Writes the page, whole or not at all."""
        text = self.html().encode("utf-8", "replace")  # names of files may hold what UTF-8 cannot
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as beside:
            beside.write_bytes(text)


def check_place(path: Path, *bundles: Path) -> None:
    """Refuses a place where no page can be written, before hours of work.

    Raises:
        EarnError: not an .html file, in one of the bundles, or a folder that cannot be written to.
    """
    folders = [path.resolve(), *path.resolve().parents]
    if path.suffix != ".html" or path.is_dir():
        raise EarnError(f"{path}: is no place for a page. Give a file that ends in .html.")
    if any(bundle.resolve() in folders for bundle in bundles):
        raise EarnError(f"{path}: lies in a bundle, which is deployed as it is. Choose a place outside.")
    folder = next(folder for folder in folders[1:] if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise EarnError(f"{path}: cannot be written ({error.strerror}: {folder}). Choose another place.") from error


def check_installed() -> None:
    """Raises EarnError where a library is missing that pages are made with."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise EarnError(f"Reports need {error.name}. Install it: pip install 'earn-edge[report]'") from error


WIDTH = 9.0  # inches
_STYLE: Mapping[str, object] = {
    "axes.axisbelow": True,
    "axes.edgecolor": COLOURS["muted"],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": COLOURS["muted"],
    "axes.linewidth": 0.7,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlepad": 9.0,
    "axes.titlesize": 9.0,
    "axes.titleweight": "bold",
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "font.size": 8.5,
    "grid.color": COLOURS["rule"],
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.color": COLOURS["main"],
    "svg.fonttype": "none",  # text stays text
    "text.color": COLOURS["ink"],
    "text.parse_math": False,  # a dollar sign is a dollar sign
    "xtick.color": COLOURS["muted"],
    "xtick.major.size": 0.0,
    "ytick.color": COLOURS["muted"],
    "ytick.major.size": 0.0,
}


def _svg(picture: Picture, number: int) -> str:
    """The picture as an <svg> element that takes its colours and its font from the page."""
    from matplotlib import style
    from matplotlib.figure import Figure

    text = io.StringIO()
    with style.context(["default", {**_STYLE, "svg.hashsalt": f"figure {number}"}]):  # the salt keeps ids apart
        figure = Figure(figsize=(WIDTH, picture.height), layout="constrained")
        picture.draw(figure)
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = text.getvalue()
    svg = svg[svg.index(">", svg.index("<svg")) + 1 :]
    svg = re.sub(r"<style.*?</style>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg).replace(" xlink:href=", " href=")
    names = {light: name for name, light in COLOURS.items()}
    svg = re.sub(
        r"(?<=: )#[0-9a-f]{6}", lambda found: f"var(--{names[found[0]]})" if found[0] in names else found[0], svg
    )
    box = f'viewBox="0 0 {WIDTH * 72:g} {picture.height * 72:g}"'
    return f'<svg {box} aria-hidden="true">{svg}'

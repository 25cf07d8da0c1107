"""What bundles and runtime withstand: writes docs/reliability.md and its picture.

    python -m tests.reliability                          # all but the cost
    python -m tests.reliability bad kills                # some parts
    python -m tests.reliability endurance --requests 5000
    python -m tests.reliability cost --against OLD       # see tests/reliability/cost.py

Each part stands between markers of its own in the page and is written when it ends; the others stay as they are. One
line of JSON per part goes to stdout. The exit status is 1 if anything was not as it must be. For Linux, with strace if
it is there.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from earn.console import show_json
from earn.report.plots import COLOURS
from tests.reliability import bad_bundles, cost, running
from tests.reliability.made import make

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGE, PICTURE = DOCS / "reliability.md", DOCS / "pictures/memory.svg"
ITEMS = 60
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}


def bad(arguments: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Bad bundles by class."""
    found = bad_bundles.run(folder / "old", folder / "work", arguments.seed)
    columns = ("refused", "right", "other lists")
    rows: list[list[Any]] = []
    for name, each in found.items():
        outcomes = [each["outcomes"].get(column, 0) for column in columns]
        cost_of_it = f"{each['seconds']:.2f}", f"{max(0, each['bytes']) / (1 << 20):.0f}"
        rows.append([bad_bundles.KINDS[name].says, *outcomes, len(each["faults"]), *cost_of_it])
    sums = [sum(row[index] for row in rows) for index in range(1, 5)]
    rows.append(["together", *sums, *(f"{max(float(row[index]) for row in rows):g}" for index in (5, 6))])
    heads = [
        "what is changed",
        "refused",
        "the right lists",
        "the changed file's lists",
        "faults",
        "most s",
        "most MiB",
    ]
    return found, [*_table(heads, rows), *(f"- fault: {fault}" for each in found.values() for fault in each["faults"])]


def kills(arguments: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Writers that are killed."""
    found = running.kills(folder / "old", folder / "new", folder / "work", arguments.kills)
    aims = ", ".join(f"{name} {count}" for name, count in found["calls"].items())
    outcomes = ", ".join(f"{name} {count}" for name, count in found["found"].items())
    return found, [
        f"- kills, by the system call before which they came: {aims}",
        f"- what stood there then: {outcomes}",
    ]


def swaps(arguments: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """A bundle that is replaced while it is loaded."""
    found = running.swaps(folder / "old", folder / "new", folder / "work", arguments.swaps)
    outcomes = ", ".join(f"{name} {count}" for name, count in found["found"].items())
    return found, [f"- {found['swaps']} swaps; loads by whose lists they gave: {outcomes}"]


def endurance(arguments: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Many requests and sessions."""
    found = running.endurance(folder / "old", arguments.requests, arguments.sessions)
    PICTURE.write_bytes(_picture(found))
    first, last = (found["requests"][index][1] / (1 << 20) for index in (0, -1))
    end = found["sessions"][-1][1] / (1 << 20)
    return found, [
        f"- {arguments.requests:,} requests in {found['seconds']:.0f} s, {arguments.sessions:,} sessions (opened, "
        "three items appended, asked after each, saved, restored, asked)",
        f"- lists that differed from the first time: {found['wrong']}",
        f"- resident memory: {first:.1f} MiB after a hundredth of the requests, {last:.1f} MiB after all, "
        f"{end:.1f} MiB after the sessions",
        f"- growth from a tenth of the requests to all: {found['grown'] / (1 << 20):.2f} MiB",
        "",
        f"![resident memory](pictures/{PICTURE.name})",
    ]


def costs(arguments: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """This code beside an older one."""
    found = cost.compare(arguments.against, folder / "cost", arguments.rounds)
    rows = [
        [
            what,
            *(f"{1000 * found['seconds'][side][what]:.2f}" for side in ("old", "new")),
            f"{found['more'][what]:+.1%}",
        ]
        for what in ("load", "request")
    ]
    return found, _table([f"{found['items']:,} items", "before, ms", "now, ms", "difference"], rows)


PARTS: Mapping[str, Callable[[argparse.Namespace, Path], tuple[dict[str, Any], list[str]]]] = {
    "bad": bad,
    "kills": kills,
    "swaps": swaps,
    "endurance": endurance,
    "cost": costs,
}
EXPECTED = {"kills": {"old", "new"}, "swaps": {"old", "new", "refused: replaced"}}


def is_good(part: str, found: Mapping[str, Any]) -> bool:
    """Whether a part's figures are as they must be."""
    if part == "bad":
        return not any(each["faults"] for each in found.values())
    if part in EXPECTED:
        return set(found["found"]) <= EXPECTED[part] and not found.get("status")
    return not found.get("wrong")


def main() -> int:
    """Runs the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--seed", type=int, default=0, help="of the bad bundles (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=40, help="at random moments (default: %(default)s)")
    parser.add_argument("--swaps", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--requests", type=int, default=200_000, help="default: %(default)s")
    parser.add_argument("--sessions", type=int, default=1_000, help="default: %(default)s")
    parser.add_argument("--against", type=Path, help="a working tree of older code, for the part cost")
    parser.add_argument("--rounds", type=int, default=10, help="of the part cost (default: %(default)s)")
    arguments = parser.parse_args()
    parts = arguments.parts or [name for name in PARTS if name != "cost"]
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {min(unknown)!r}; there are {', '.join(PARTS)}")
    if "cost" in parts and arguments.against is None:
        parser.error("the part cost needs --against")
    good = True
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for seed, name in enumerate(("old", "new")):
            _in_a_process(make, folder / name, ITEMS, seed, SIZES)
        for part in parts:
            found, lines = PARTS[part](arguments, folder)
            PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), part, lines), encoding="utf-8")
            show_json({"part": part, **found})
            good = good and is_good(part, found)
    return 0 if good else 1


def _in_a_process(work: Callable[..., None], *arguments: Any) -> None:
    process = get_context("spawn").Process(target=work, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        sys.exit("the bundles could not be made; see above")


def written(page: str, part: str, lines: list[str]) -> str:
    """The page with other lines between the markers of a part."""
    begin, end = f"<!-- begin: {part} -->\n", f"<!-- end: {part} -->"
    before, rest = page.split(begin)
    return before + begin + "\n".join(lines) + "\n" + end + rest.split(end)[1]


def _table(heads: list[str], rows: list[list[Any]]) -> list[str]:
    rules = ["---", *["---:"] * (len(heads) - 1)]
    return [f"| {' | '.join(map(str, row))} |" for row in (heads, rules, *rows)]


def _picture(found: Mapping[str, Any]) -> bytes:
    """The memory curve as an SVG file."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "earn", "svg.fonttype": "none", "font.size": 9}):
        figure, file = Figure(figsize=(7.5, 2.6), layout="constrained", facecolor=COLOURS["paper"]), io.BytesIO()
        for axes, what in zip(figure.subplots(1, 2, sharey=True), ("requests", "sessions"), strict=True):
            axes.plot(
                *zip(*((count, size / (1 << 20)) for count, size in found[what]), strict=True), color=COLOURS["main"]
            )
            axes.set_xlabel(what)
            axes.set_ylim(bottom=0)
            axes.locator_params(axis="x", nbins=4)  # more numbers of six digits would touch
            axes.grid(color=COLOURS["rule"], linewidth=0.6)
        figure.axes[0].set_ylabel("resident memory, MiB")
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


if __name__ == "__main__":
    sys.exit(main())

"""The tables of docs/results.md, each of lines of the rows of docs/results.json, and of columns.

A line has the rows of one model, of one or more seeds, and those that it is compared with. A column is a header and the
function that makes a line's cell. Where nothing was measured yet a table says so.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from earn.metrics import CUTOFFS
from experiments.grid import AFTER_DENSE, PRESETS, REAL, RIVALS, TRIED, TWINS
from experiments.runs import MEASURES, SHOWN

MODEL = ("data", "method", "backbone", "recipe")  # what a dense model and its EARN twins share
# The paper's Recall@10 as a share of its EARN's .0174 (arXiv 2507.00715; LC-Rec, Beauty, Llama, k = 7).
PAPER_SHARES = {"earn": 1.0, "untrained": 0.0048 / 0.0174, "no-prefix": 0.0172 / 0.0174, "no-suffix": 0.0041 / 0.0174}

Row = dict[str, Any]


class Line(NamedTuple):
    """One line of a table."""

    rows: Sequence[Row]  # of one model and variant, a row for each seed
    others: Sequence[Row] = ()  # what it is compared with

    @property
    def first(self) -> Row:
        """The row that says what all are."""
        return self.rows[0]

    @property
    def model(self) -> str:
        """What was trained."""
        return ", ".join(self.first[name] for name in MODEL if self.first[name])

    @property
    def name(self) -> str:
        """What was trained and asked; of a rival, which has no variants, what was trained."""
        if self.first["method"] in RIVALS:
            return self.model
        split = "" if self.first["variant"] == "dense" else ", k = {early_layers} of {layers}".format(**self.first)
        return f"{self.model}: {self.first['variant']}{split}"

    def share(self, measure: str = "recall@10") -> float | None:
        """A figure's mean as a share of the others' of the same seeds; None where there are none, or theirs is 0."""
        others = of_same_seeds(self.others, self.rows)
        rows = of_same_seeds(self.rows, others)
        return mean(rows, measure) / mean(others, measure) if others and mean(others, measure) else None


Lines = Iterable[Line]
Cell = Callable[[Line], str]


def groups(rows: Iterable[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by the values of these fields."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def run_name(row: Row) -> str:
    """The name in the grid of the run that a row came from."""
    return str(row["command"].partition("--only ")[2])


def mean(rows: Sequence[Row], name: str) -> float:
    """A figure's mean over seeds."""
    return statistics.fmean(row[name] for row in rows)


def of_same_seeds(rows: Iterable[Row], others: Iterable[Row]) -> list[Row]:
    """The rows whose seed is among the others': a share of figures over other seeds would be one of chance."""
    seeds = {row["seed"] for row in others}
    return [row for row in rows if row["seed"] in seeds]


def _models(rows: Iterable[Row]) -> list[dict[str, list[Row]]]:
    """The rows of each model, by variant."""
    return [
        {variant: found for (variant,), found in groups(group, "variant").items()}
        for group in groups(rows, *MODEL).values()
    ]


# Lines


def pairs(rows: Sequence[Row]) -> Lines:
    """EARN of each data set, method, backbone and recipe at its usual k, compared with the dense model."""
    for variants in _models(rows):
        by_split = groups(variants.get("earn", ()), "early_layers")
        usual = min(by_split, key=lambda split: abs(split[0] - variants["earn"][0]["layers"] / 4), default=None)
        earn = [row for row in by_split.get(usual or (), ()) if "difference" in row]
        if earn and "dense" in variants:
            yield Line(earn, of_same_seeds(variants["dense"], earn))


def _twins(rows: Sequence[Row]) -> Lines:
    for pair in pairs(rows):
        yield from (Line(pair.others), pair)


def sweep(rows: Sequence[Row]) -> Lines:
    """EARN with each k where there are three or more, and the dense model, compared with the latter."""
    for variants in _models(row for row in rows if not row["recipe"]):
        dense = variants.get("dense", [])
        by_split = sorted(groups(variants.get("earn", ()), "early_layers").items())
        if len(by_split) > 2:
            yield from (Line(earn, dense) for earn in [*(earn for _, earn in by_split), dense] if earn)


def _analyzed(rows: Sequence[Row]) -> Lines:
    """Dense models whose attention was looked at, beside EARN."""
    for variants in _models(row for row in rows if not row["recipe"]):
        if dense := [row for row in variants.get("dense", ()) if "attention" in row]:
            yield Line(dense, variants.get("earn", []))


def ablations(rows: Sequence[Row]) -> Lines:
    """Every variant of EARN with the same k, compared with EARN itself; but none that starts from other weights."""
    compared = (row for row in rows if row["variant"] not in ("dense", AFTER_DENSE))
    for group in groups(compared, *MODEL, "early_layers").values():
        variants = groups(group, "variant")
        if len(variants) > 1 and ("earn",) in variants:
            yield from (Line(found, variants[("earn",)]) for found in variants.values())


def _tuning(rows: Sequence[Row]) -> Lines:
    """What each change of the training gave, one seed each, the best first."""
    trained = [row for row in rows if row["variant"] != "dense" and row["valid_ndcg@10"] and not row["seed"]]
    tried = {(row["data"], row["early_layers"]) for row in trained if row["recipe"] in TRIED}
    for row in sorted(trained, key=lambda row: -row["valid_ndcg@10"]):
        if (row["data"], row["early_layers"]) in tried:
            yield Line([row])


def _methods(rows: Sequence[Row]) -> Lines:
    """Every method on the data that was trained all codes at once: its EARN and its dense model.

    Where several models of a method were tried, the one with the highest validation NDCG@10.
    """
    data = {row["data"]: None for row in rows if row["method"] == "set"}
    chosen = [row for row in rows if row["data"] in data and row["variant"] in TWINS]
    for of_data in groups(chosen, "data").values():
        for tried in groups(of_data, "method", "variant").values():
            models = groups(tried, *MODEL, "early_layers").values()
            yield Line(max(models, key=lambda found: max(row["valid_ndcg@10"] or 0.0 for row in found)))


def _to_sasrec(rows: Sequence[Row]) -> Lines:
    """The same, where users were asked that SASRec was asked too."""
    return (line for line in _methods(rows) if any("to_sasrec" in row for row in line.rows))


def _rare(rows: Sequence[Row]) -> Lines:
    """The same, where users of rare items were looked at."""
    for line in _methods(rows):
        if looked_at := [row for row in line.rows if row.get("rare", {}).get("users")]:
            yield Line([{**row, **row["rare"]} for row in looked_at])


def _sasrec(rows: Sequence[Row]) -> Lines:
    """What was tried of SASRec on each data set, the best first."""
    tried = sorted((row for row in rows if row["method"] == "sasrec"), key=lambda row: -row["valid_ndcg@10"])
    yield from (Line([row]) for of_data in groups(tried, "data").values() for row in of_data)


def _pretrained(rows: Sequence[Row]) -> Lines:
    """The runs of the preset of that name, compared with the dense one of the same recipe."""
    names = {run.name for run in PRESETS["pretrained"].runs}
    for variants in _models(row for row in rows if run_name(row) in names):
        yield from (Line([row], variants.get("dense", [])) for found in variants.values() for row in found)


def _with(part: str) -> Callable[[Sequence[Row]], Lines]:
    """A line for every row that has this part."""
    return lambda rows: (Line([row]) for row in rows if part in row)


def _presets(rows: Sequence[Row]) -> Lines:
    """The measured runs of each preset of real data, beside all of its runs."""
    known = {run_name(row) for row in rows}
    for name, preset in REAL.items():
        yield Line([{"preset": name, "known": run.name in known} for run in preset.runs])


# Cells


def _short(value: float) -> str:
    """.0710"""
    return f"{value:.4f}".replace("0.", ".", 1)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _figure(measure: str) -> Cell:
    """A figure over seeds, with the ends of its interval likewise."""

    def cell(line: Line) -> str:
        lowest, highest = np.mean([row["interval"][measure] for row in line.rows], axis=0)
        return f"{_short(mean(line.rows, measure))} ({_short(lowest)} to {_short(highest)})"

    return cell


def _mean(measure: str) -> Cell:
    return lambda line: _short(mean(line.rows, measure))


def _difference(rows: Iterable[Row], measure: str, part: str = "difference") -> str:
    """A paired difference with the ends of its interval, averaged over seeds."""
    paired = [row[part][measure] for row in rows if row.get(part)]
    return "{:+.4f} ({:+.4f} to {:+.4f})".format(*np.mean(paired, axis=0)) if paired else ""


def _seeds(line: Line) -> str:
    values = [row["recall@10"] for row in line.rows]
    return f"{len(values)}: {_short(min(values))} to {_short(max(values))}" if len(values) > 1 else "1"


def _form(form: str, part: str = "variant") -> Cell:
    """Fields of the first row that has this part, as the form sets them; nothing where no row has it."""

    def cell(line: Line) -> str:
        row = next((row for row in line.rows if row.get(part) is not None), None)
        return form.format(**row) if row else ""

    return cell


def _setting(name: str) -> Cell:
    """A setting of the training; nothing where a model has none of that name, or none was trained."""

    def cell(line: Line) -> str:
        row = line.first
        return f"{row['settings'][name]:g}" if row["training_seconds"] and name in row["settings"] else ""

    return cell


def _smallest_good(line: Line) -> str:
    """The smallest k whose mean paired intervals to the dense model reach 0 in recall and in NDCG."""
    by_split = groups((row for row in line.others if "difference" in row), "early_layers")
    good = [
        k
        for (k,), rows in by_split.items()
        if all(np.mean([row["difference"][measure][2] for row in rows]) >= 0 for measure in MEASURES)
    ]
    several = len({row["early_layers"] for row in line.others}) > 1  # of one k there is no smallest
    return str(min(good, default="none")) if several else ""


def _kept_finer(line: Line) -> str:
    found = line.first["int8"]
    names = [f"{kind} refined" for kind in found["refined"]] + [f"{layer} float" for layer in found["float_layers"]]
    return ", ".join(names) or "nothing"


# Header -> what stands in the cell of a line.
COLUMNS: Mapping[str, Cell] = {
    "": lambda line: line.name,
    "NDCG@10, validation": _mean("valid_ndcg@10"),
    "Recall@10": _figure("recall@10"),
    "NDCG@10": _figure("ndcg@10"),
    "users": _form("{users:,}"),
    **{f"{name}@{cut}": _mean(f"{name.lower()}@{cut}") for name in ("Recall", "NDCG") for cut in (5, 20)},
    "seeds, Recall@10": _seeds,
    "Recall@10 to SASRec": lambda line: _difference(line.rows, "recall@10", "to_sasrec"),
    "NDCG@10 to SASRec": lambda line: _difference(line.rows, "ndcg@10", "to_sasrec"),
    "Recall@10 to dense": lambda line: _difference(line.rows, "recall@10"),
    "NDCG@10 to dense": lambda line: _difference(line.rows, "ndcg@10"),
    "Recall@10, share": lambda line: _percent(line.share("recall@10")),
    "NDCG@10, share": lambda line: _percent(line.share("ndcg@10")),
    "the paper's share": lambda line: _percent(PAPER_SHARES.get(line.first["variant"])),
    "dense model": lambda line: line.model,
    "suggested k, by seed": lambda line: ", ".join(str(row["attention"]["suggestions"]["cut"]) for row in line.rows),
    "trained k": lambda line: ", ".join(map(str, sorted({row["early_layers"] for row in line.others}))),
    "smallest good enough": _smallest_good,
    "one request": _form("{speed[p50_ms][1]:.1f} to {speed[p50_ms][0]:.1f} ms", "speed"),
    "faster": _form("{speed[speedup]:.2f}x", "speed"),
    "cache smaller": _form("{speed[cache_reduction]:.0%}", "speed"),
    "in batches": _form("{speed[batch_speedup]:.2f}x", "speed"),
    "codes/s (dense)": _form("{speed[tokens_per_second][0]:,} ({speed[tokens_per_second][1]:,})", "speed"),
    "one sequence's cache smaller": _form("{speed[sequence_cache_reduction]:.0%}", "speed"),
    "bundle of": lambda line: f"`{run_name(line.first)}`",
    "judges": _form("{int8[users]:,}", "int8"),
    "of the best 20 stay": _form("{int8[beam_set_overlap]:.1%}", "int8"),
    "NDCG@10, before to after": _form("{int8[ndcg@10][before]:.4f} to {int8[ndcg@10][after]:.4f}", "int8"),
    "Recall@10 of all users, change": lambda line: _difference([line.first["int8"]], "recall@10"),
    "size": _form("{int8[size_ratio]:.0%}", "int8"),
    "kept finer": _kept_finer,
    "gate": lambda line: "passes" if line.first["int8"]["passed"] else "fails",
    "preset": _form("`{preset}`", "preset"),
    "runs": lambda line: str(len(line.rows)),
    "not run": lambda line: str(sum(not run["known"] for run in line.rows)),
    "command": _form("`{command}`"),
    "million parameters": lambda line: f"{line.first['parameters'] / 1e6:.2f}",
    **{name.replace("_", " "): _setting(name) for name in SHOWN},
    "minutes": lambda line: f"{line.first['training_seconds'] / 60:.0f}" if line.first["training_seconds"] else "",
}
_FIGURES = ("Recall@10", "NDCG@10", "seeds, Recall@10")
_AT_CUTOFFS = tuple(f"{name}@{cutoff}" for name in ("Recall", "NDCG") for cutoff in CUTOFFS)
_SHARES, _TO_DENSE = ("Recall@10, share", "NDCG@10, share"), ("Recall@10 to dense", "NDCG@10 to dense")
_SETTINGS = tuple(name.replace("_", " ") for name in SHOWN)
_BATCHES = ("in batches", "one sequence's cache smaller")
_JUDGED = ("judges", "of the best 20 stay", "NDCG@10, before to after", "Recall@10 of all users, change")

# What stands between the markers of docs/results.md: name -> its lines, and its columns by their headers.
TABLES: Mapping[str, tuple[Callable[[Sequence[Row]], Lines], Sequence[str]]] = {
    "twins": (_twins, ("", "NDCG@10, validation", *_FIGURES, *_TO_DENSE)),
    "beside the paper": (pairs, ("", *_SHARES, *_BATCHES)),
    "early layers": (sweep, ("", *_FIGURES, "Recall@10, share")),
    "suggested": (_analyzed, ("dense model", "suggested k, by seed", "trained k", "smallest good enough")),
    "ablations": (ablations, ("", *_FIGURES, "Recall@10, share", "the paper's share")),
    "pretrained": (_pretrained, ("", "Recall@10", "NDCG@10", *_SHARES, *_TO_DENSE, *_SETTINGS, "minutes")),
    "tuning": (_tuning, ("", "NDCG@10, validation", "Recall@10", "NDCG@10", "epochs", "minutes")),
    "methods": (_methods, ("", *_AT_CUTOFFS, "seeds, Recall@10", "million parameters", "minutes")),
    "to sasrec": (_to_sasrec, ("", "Recall@10 to SASRec", "NDCG@10 to SASRec")),
    "rare items": (_rare, ("", "users", "Recall@10", "NDCG@10")),
    "sasrec": (_sasrec, ("", "NDCG@10, validation", "Recall@10", "NDCG@10", "minutes")),
    "speed": (
        _with("speed"),
        ("", "one request", "faster", "cache smaller", "in batches", "codes/s (dense)", _BATCHES[1]),
    ),
    "int8": (_with("int8"), ("bundle of", *_JUDGED, "size", "kept finer", "gate")),
    "commands": (_with("command"), ("command", "million parameters", *_SETTINGS, "minutes")),
    "presets": (_presets, ("preset", "runs", "not run")),
}


def table(name: str, rows: Sequence[Row]) -> str:
    """A table of this name in Markdown, of the rows; columns behind the first flush right."""
    lines, headers = TABLES[name]
    cells = [[COLUMNS[header](line) for header in headers] for line in lines(rows)]
    rule = ["---", *("---:" for _ in headers[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in [headers, rule, *cells]) if cells else "Not run yet."

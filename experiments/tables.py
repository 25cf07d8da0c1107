"""The tables of docs/results.md, each a function from the rows of docs/results.json to Markdown.

Where nothing was measured yet a table is one line that says so. Beside ours stand the paper's own figures (arXiv
2507.00715).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earn.metrics import ndcg, recall
from experiments.grid import (
    ABLATIONS,
    BACKBONES,
    BEAUTY_LEAVE_ONE_OUT,
    DATA,
    PAPER_ABLATIONS,
    PAPER_TWINS,
    PRESETS,
    RECIPES,
    REMOVED_RECIPES,
    REMOVED_VARIANTS,
    VARIANTS,
    WINDOWS,
)
from experiments.runs import SHOWN

MEASURES: Mapping[str, Callable[..., Any]] = {"recall@10": recall, "ndcg@10": ndcg}
HIDDEN = ("walks",)  # made-up data
MODEL = ("data", "method", "backbone", "recipe")  # what a dense model and its EARN twins share
TUNED = ("earn", "registers-2", "registers-3", *WINDOWS)  # variants that are also a matter of tuning
ABLATED = ("earn", *ABLATIONS, *REMOVED_VARIANTS)
NOT_RUN = "Not run yet."

Row = dict[str, Any]


def groups(rows: Iterable[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by the values of these fields."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def model_name(data: str, method: str, backbone: str, recipe: str = "") -> str:
    """What was trained, in one line."""
    return f"{data}, {method}, {backbone}" + (f", {recipe}" if recipe else "")


def run_name(row: Row) -> str:
    """The name in the grid of the run that a row came from."""
    return str(row["command"].partition("--only ")[2])


def _usual(rows: Iterable[Row]) -> list[Row]:
    """Those that were trained by the data's own settings."""
    return [row for row in rows if not row["recipe"]]


def mean(rows: Sequence[Row], name: str) -> float:
    """A figure's mean over seeds."""
    return statistics.fmean(row[name] for row in rows)


def of_same_seeds(rows: Iterable[Row], others: Sequence[Row]) -> list[Row]:
    """The rows whose seed is among the others': a share of figures over other seeds would be one of chance."""
    seeds = {row["seed"] for row in others}
    return [row for row in rows if row["seed"] in seeds]


def share_of(rows: Sequence[Row], whole: Iterable[Row], name: str = "recall@10") -> float | None:
    """A figure's mean as a share of other rows' of the same seeds; None where there are none, or theirs is 0."""
    same = of_same_seeds(whole, rows)
    rows = of_same_seeds(rows, same)
    return mean(rows, name) / mean(same, name) if same and mean(same, name) else None


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; columns behind the first flush right."""
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


Columns = Mapping[str, Callable[[Row], str]]  # header -> the cell of a row


def _by_columns(columns: Columns, rows: Sequence[Row]) -> str:
    """A table with one line per row."""
    return table(list(columns), [[cell(row) for cell in columns.values()] for row in rows]) if rows else NOT_RUN


def _model(row: Row) -> str:
    return model_name(*(row[name] for name in MODEL))


def _figure(rows: Sequence[Row], name: str) -> str:
    """A figure over seeds, with the ends of its interval likewise."""
    lowest, highest = np.mean([row["interval"][name] for row in rows], axis=0)
    return f"{_short(mean(rows, name))} ({_short(lowest)} to {_short(highest)})"


def _short(value: float) -> str:
    """.0710"""
    return f"{value:.4f}".replace("0.", ".", 1)


def _seeds(rows: Sequence[Row]) -> str:
    if len(rows) == 1:
        return "1"
    values = [row["recall@10"] for row in rows]
    return f"{len(rows)}: {_short(min(values))} to {_short(max(values))}"


def _data_sets(rows: Sequence[Row]) -> str:
    used = dict.fromkeys(row["data"] for row in rows)
    lines = [f"- `{name}`: {DATA[name].about}; {_users(rows, name):,} test users" for name in used]
    backbones = dict.fromkeys(row["backbone"] for row in rows)
    lines += [f"- `{name}`: {BACKBONES[name].about}" for name in backbones]
    return "\n".join(lines)


def _users(rows: Sequence[Row], data: str) -> int:
    return int(max(row["users"] for row in rows if row["data"] == data))


def _twins(rows: Sequence[Row]) -> str:
    lines = [line for name, dense, earn in _pairs(rows) for line in _pair(name, dense, earn)]
    figures = ("NDCG@10, validation", "Recall@10", "NDCG@10", "seeds, Recall@10")
    header = ("", *figures, "Recall@10 to dense", "NDCG@10 to dense")
    return table(header, lines)


def _pairs(rows: Sequence[Row]) -> list[tuple[str, list[Row], list[Row]]]:
    """Name, dense runs and EARN runs of each data set, method, backbone and recipe, at its usual k."""
    found = []
    for names, group in groups(rows, *MODEL).items():
        dense = [row for row in group if row["variant"] == "dense"]
        usual = usual_split(group)
        earn = [
            row for row in group if (row["variant"], row["early_layers"]) == ("earn", usual) and "difference" in row
        ]
        if dense and earn:
            found.append((model_name(*names), of_same_seeds(dense, earn), earn))
    return found


def _beside(rows: Sequence[Row]) -> str:
    """EARN by dense, ours and the paper's."""
    lines = []
    for name, dense, earn in _pairs(rows):
        shares = [share_of(earn, dense, measure) for measure in MEASURES]
        ratios = ["" if share is None else f"{share:.2f}" for share in shares]
        speed: Row = next((row["speed"] for row in earn if row["speed"]), {})
        faster = f"{speed['batch_speedup']:.2f}x" if speed else ""
        smaller = f"{speed['sequence_cache_reduction']:.0%}" if speed else ""
        lines.append([f"{name}, k = {earn[0]['early_layers']} of {earn[0]['layers']}", *ratios, faster, smaller])
    for (method, data, family), found in PAPER_TWINS.items():
        ratios = [f"{earn_value / value:.2f}" for earn_value, value in zip(found.earn, found.dense, strict=True)]
        lines.append(
            [f"paper: {data}, {method}, {family}", *ratios, f"{found.speedup:.2f}x", f"{found.cache_reduction:.0%}"]
        )
    return table(("EARN by dense", "Recall@10", "NDCG@10", "faster, in batches", "cache smaller"), lines)


def usual_split(rows: Sequence[Row]) -> int | None:
    """The k of EARN rows that is nearest to a quarter of the layers, the paper's default; None: there are none."""
    splits = sorted({row["early_layers"] for row in rows if row["variant"] == "earn"})
    return min(splits, key=lambda k: abs(k - rows[0]["layers"] / 4), default=None)


def _pair(name: str, dense: Sequence[Row], earn: Sequence[Row]) -> list[list[str]]:
    differences = [_difference(np.mean([row["difference"][measure] for row in earn], axis=0)) for measure in MEASURES]
    split = f"EARN, k = {earn[0]['early_layers']} of {earn[0]['layers']}"
    return [_twin(f"{name}: dense", dense, ("", "")), _twin(f"{name}: {split}", earn, differences)]


def _difference(found: Sequence[float] | NDArray[np.float64]) -> str:
    """A paired difference with the ends of its interval."""
    return "{:+.4f} ({:+.4f} to {:+.4f})".format(*found)


def _twin(label: str, rows: Sequence[Row], differences: Sequence[str]) -> list[str]:
    valid = _short(mean(rows, "valid_ndcg@10"))
    return [label, valid, *(_figure(rows, measure) for measure in MEASURES), _seeds(rows), *differences]


def _sweep(rows: Sequence[Row]) -> str:
    lines = []
    for names, group in groups(_usual(rows), *MODEL).items():
        dense = [row for row in group if row["variant"] == "dense"]
        splits = sorted(groups((row for row in group if row["variant"] == "earn"), "early_layers").items())
        if len(splits) < 3:
            continue
        name = model_name(*names)
        for (k,), earn in splits:
            figures = [_figure(earn, measure) for measure in MEASURES]
            label = f"{name}: k = {k} of {earn[0]['layers']}"
            lines.append([label, *figures, _seeds(earn), _percent(share_of(earn, dense))])
        if dense:
            figures = [_figure(dense, measure) for measure in MEASURES]
            lines.append([f"{name}: dense", *figures, _seeds(dense), "100%"])
    header = ("", "Recall@10", "NDCG@10", "seeds, Recall@10", "of the dense Recall@10, same seeds")
    return table(header, lines) if lines else NOT_RUN


def _suggested(rows: Sequence[Row]) -> str:
    """The k that `earn analyze` suggests for each dense model, beside what was trained."""
    lines = []
    for names, group in groups(_usual(rows), *MODEL).items():
        dense = [row for row in group if row["variant"] == "dense"]
        analyzed = [row for row in dense if "attention" in row]
        splits = groups((row for row in group if row["variant"] == "earn"), "early_layers")
        if not analyzed:
            continue
        good = sorted(k for (k,), earn in splits.items() if _good_enough(earn))
        suggested = [row["attention"]["suggestions"]["cut"] for row in analyzed]
        text = ", ".join("none" if k is None else str(k) for k in suggested)
        trained = ", ".join(str(k) for (k,) in sorted(splits))
        smallest = (str(good[0]) if good else "none") if len(splits) > 1 else ""  # of one k there is no smallest
        lines.append([model_name(*names), text, trained, smallest])
    header = ("dense model", "suggested k, by seed", "trained k", "smallest good enough")
    return table(header, lines) if lines else NOT_RUN


def _good_enough(earn: Sequence[Row]) -> bool:
    """Whether EARN's paired intervals to the dense model, averaged over seeds, reach 0 in recall and in NDCG."""
    paired = [row["difference"] for row in earn if "difference" in row]
    return bool(paired) and all(np.mean([each[measure][2] for each in paired]) >= 0 for measure in MEASURES)


def _ablations(rows: Sequence[Row]) -> str:
    lines = []
    earn_and_others = [row for row in rows if row["variant"] in ABLATED and not row["recipe"]]
    for (*names, k), group in groups(earn_and_others, *MODEL, "early_layers").items():
        variants = groups(group, "variant")
        if len(variants) < 2 or ("earn",) not in variants:
            continue
        for (variant,), found in variants.items():
            share = PAPER_ABLATIONS[variant] / PAPER_ABLATIONS["earn"] if variant in PAPER_ABLATIONS else None
            lines.append(
                [
                    f"{model_name(*names)}, k = {k}: {variant}",
                    *(_figure(found, measure) for measure in MEASURES),
                    _seeds(found),
                    _percent(share_of(found, variants[("earn",)])),
                    _percent(share),
                ]
            )
    header = ("", "Recall@10", "NDCG@10", "seeds, Recall@10", "of EARN's Recall@10, same seeds", "the paper's share")
    return table(header, lines) if lines else NOT_RUN


def _variants(rows: Sequence[Row]) -> str:
    """What each variant is."""
    about = {**{name: variant.about for name, variant in VARIANTS.items()}, **REMOVED_VARIANTS}
    return "\n".join(f"- `{name}`: {about[name]}" for name in ABLATED)


def _tuning(rows: Sequence[Row]) -> str:
    """What each change of the training gave, one seed each."""
    tried = {(row["data"], row["early_layers"]) for row in rows if row["recipe"]}
    lines = []
    for row in sorted(rows, key=lambda row: -(row["valid_ndcg@10"] or 0)):  # the best first
        if row["variant"] not in TUNED or row["seed"] or (row["data"], row["early_layers"]) not in tried:
            continue
        changes = _changes(row["recipe"])
        if row["variant"] != "earn":
            changes.append(VARIANTS[row["variant"]].about)
        name = ", ".join(changes) or "the usual settings"
        figures = [_short(row["valid_ndcg@10"]), *(_figure([row], measure) for measure in MEASURES)]
        label = f"{model_name(row['data'], row['method'], row['backbone'])}: {name}"
        lines.append([label, *figures, f"{row['settings']['epochs']}", _minutes(row)])
    header = ("EARN", "NDCG@10, validation", "Recall@10", "NDCG@10", "epochs", "minutes")
    return table(header, lines) if lines else NOT_RUN


def _changes(recipe: str) -> list[str]:
    """What a recipe changes of the usual settings."""
    if recipe in REMOVED_RECIPES:
        return [REMOVED_RECIPES[recipe]]
    return [f"{name} {value}" for name, value in RECIPES[recipe].items()] if recipe else []


def _published(rows: Sequence[Row]) -> str:
    """What others report of Beauty, and ours with items of the history in the lists."""
    lines = [[f"{name} (arXiv 2305.05065, table 1)", _short(recall)] for name, recall in BEAUTY_LEAVE_ONE_OUT.items()]
    returns = [row for row in rows if (row["data"], row["variant"]) == ("beauty", "history-returns")]
    for names, ours in groups(returns, *MODEL).items():
        lines.append([f"EARN, {model_name(*names)}, history in the lists", _figure(ours, "recall@10")])
    return table(("Beauty, leave-one-out, full ranking", "Recall@10"), lines)


def _speeds(rows: Sequence[Row]) -> str:
    timed = groups((row for row in rows if row["speed"]), *MODEL, "variant", "early_layers")
    columns: Columns = {
        "": lambda row: f"{_model(row)}: {row['variant']}, k = {row['early_layers']} of {row['layers']}",
        "one request": lambda row: "{1:.1f} to {0:.1f} ms".format(*row["speed"]["p50_ms"]),
        "faster": lambda row: f"{row['speed']['speedup']:.2f}x",
        "cache smaller": lambda row: f"{row['speed']['cache_reduction']:.0%}",
        "in batches": lambda row: f"{row['speed']['batch_speedup']:.2f}x",
        "codes/s (dense)": lambda row: "{:,} ({:,})".format(*row["speed"]["tokens_per_second"]),
        "one sequence's cache smaller": lambda row: f"{row['speed']['sequence_cache_reduction']:.0%}",
    }
    return _by_columns(columns, [group[0] for group in timed.values()])


def _quantized(rows: Sequence[Row]) -> str:
    """What the int8 gate says of the bundles."""

    def kept_finer(row: Row) -> str:
        refined = [f"{kind} refined" for kind in row["int8"]["refined"]]
        return ", ".join(refined + [f"{layer} float" for layer in row["int8"]["float_layers"]]) or "nothing"

    def change(row: Row) -> str:
        change = row["int8"]["difference"]
        return _difference(change["recall@10"]) if change else ""

    columns: Columns = {
        "": lambda row: f"`{run_name(row)}`",
        "judges": lambda row: f"{row['int8']['users']:,}",
        "of the best 20 stay": lambda row: f"{row['int8']['beam_set_overlap']:.1%}",
        "NDCG@10": lambda row: " to ".join(_short(row["int8"]["ndcg@10"][side]) for side in ("before", "after")),
        "Recall@10 of all users, change": change,
        "size": lambda row: f"{row['int8']['size_ratio']:.0%}",
        "kept finer": kept_finer,
        "gate": lambda row: "passes" if row["int8"]["passed"] else "fails",
    }
    return _by_columns(columns, [row for row in rows if "int8" in row])


def _commands(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        is_own = row["training_seconds"] is not None  # otherwise it is another line's training
        settings = [f"{row['settings'][name]:g}" if is_own else "" for name in SHOWN]
        lines.append([f"`{row['command']}`", f"{row['parameters'] / 1e6:.2f}", *settings, _minutes(row)])
    commands = table(("command", "million parameters", *(name.replace("_", " ") for name in SHOWN), "minutes"), lines)
    return f"<details><summary>{len(rows)} commands</summary>\n\n{commands}\n\n</details>"


def _minutes(row: Row) -> str:
    """How long it was trained; nothing where it asks another run's checkpoint."""
    return f"{row['training_seconds'] / 60:.0f}" if row["training_seconds"] else ""


def _missing(rows: Sequence[Row]) -> str:
    known = {run_name(row) for row in rows}
    lines = []
    for name, preset in PRESETS.items():
        left = [run for run in preset.runs if run.name not in known and run.data not in HIDDEN]
        if left:
            lines.append(
                f"- `python -m experiments {name}` ({preset.about}): {len(left)} of {len(preset.runs)} runs, such as"
            )
            lines += [f"  `{run.name}`" for run in left[:3]]
    return "\n".join(lines)


# What stands between the markers of docs/results.md, by their names.
TABLES: Mapping[str, Callable[[Sequence[Row]], str]] = MappingProxyType(
    {
        "data": _data_sets,
        "twins": _twins,
        "beside the paper": _beside,
        "early layers": _sweep,
        "suggested": _suggested,
        "variants": _variants,
        "ablations": _ablations,
        "published": _published,
        "tuning": _tuning,
        "speed": _speeds,
        "int8": _quantized,
        "commands": _commands,
        "not run": _missing,
    }
)

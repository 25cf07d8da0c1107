"""The text and the tables of docs/results.md, made of rows of docs/results.json."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import paper
from benchmarks.grid import BACKBONES, DATA, PRESETS, RECIPES, VARIANTS
from earn.metrics import ndcg, recall

MEASURES: Mapping[str, Callable[..., Any]] = {"recall@10": recall, "ndcg@10": ndcg}
HIDDEN = ("walks",)  # made-up data

Row = dict[str, Any]


def page(rows: Sequence[Row]) -> str:
    """The page, of these rows alone."""
    usual = [row for row in rows if not row["recipe"]]
    parts = [
        _HEAD,
        _about_data(rows),
        "## Dense and EARN\n\n" + _TWINS + _twins(usual) + _BESIDE + _beside(usual),
        "## How many early layers\n\n" + _SWEEP + _sweep(usual),
        "## Which k the attention suggests\n\n" + _SUGGESTED + _suggested(usual),
        "## Ablations\n\n" + _ABLATIONS + _ablations(usual),
        "## How it was trained\n\n" + _tuning(rows),
        "## Speed and cache\n\n" + _SPEED + _speeds(usual),
        "## In int8\n\n" + _INT8 + _quantized(rows),
        "## Commands\n\n" + _commands(rows),
        "## What was not run\n\n" + _missing(rows),
    ]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def groups(rows: Iterable[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by the values of these fields."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def mean(rows: Sequence[Row], name: str) -> float:
    """A figure's mean over seeds."""
    return statistics.fmean(row[name] for row in rows)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; columns behind the first flush right."""
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


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


def _about_data(rows: Sequence[Row]) -> str:
    used = dict.fromkeys(row["data"] for row in rows)
    lines = [f"- `{name}`: {DATA[name].about}; {_users(rows, name):,} test users" for name in used]
    backbones = dict.fromkeys(row["backbone"] for row in rows)
    lines += [f"- `{name}`: {BACKBONES[name].about}" for name in backbones]
    return "\n".join(lines)


def _users(rows: Sequence[Row], data: str) -> int:
    return int(max(row["users"] for row in rows if row["data"] == data))


def _twins(rows: Sequence[Row]) -> str:
    lines = [line for name, dense, earn in _pairs(rows) for line in _pair(name, dense, earn)]
    return table(("", "Recall@10", "NDCG@10", "seeds, Recall@10", "Recall@10 to dense", "NDCG@10 to dense"), lines)


def _pairs(rows: Sequence[Row]) -> list[tuple[str, list[Row], list[Row]]]:
    """Name, dense runs and EARN runs of each data set, method and backbone, at its usual k."""
    found = []
    for (data, method, backbone), group in groups(rows, "data", "method", "backbone").items():
        dense = [row for row in group if row["variant"] == "dense"]
        usual = usual_split(group)
        earn = [
            row for row in group if (row["variant"], row["early_layers"]) == ("earn", usual) and "difference" in row
        ]
        if dense and earn:
            found.append((f"`{data}`, {method}, {backbone}", dense, earn))
    return found


def _beside(rows: Sequence[Row]) -> str:
    """EARN by dense, ours and the paper's."""
    lines = []
    for name, dense, earn in _pairs(rows):
        ratios = [f"{mean(earn, measure) / mean(dense, measure):.2f}" for measure in MEASURES]
        speed: Row = next((row["speed"] for row in earn if row["speed"]), {})
        faster = f"{speed['paper_speedup']:.2f}x" if speed else ""
        smaller = f"{speed['paper_cache_reduction']:.0%}" if speed else ""
        lines.append([f"{name}, k = {earn[0]['early_layers']} of {earn[0]['layers']}", *ratios, faster, smaller])
    for (method, data, family), found in paper.TWINS.items():
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
    differences = [
        "{:+.4f} ({:+.4f} to {:+.4f})".format(*np.mean([row["difference"][measure] for row in earn], axis=0))
        for measure in MEASURES
    ]
    split = f"EARN, k = {earn[0]['early_layers']} of {earn[0]['layers']}"
    return [
        [f"{name}: dense", *(_figure(dense, measure) for measure in MEASURES), _seeds(dense), "", ""],
        [f"{name}: {split}", *(_figure(earn, measure) for measure in MEASURES), _seeds(earn), *differences],
    ]


def _sweep(rows: Sequence[Row]) -> str:
    lines = []
    chosen = [row for row in rows if row["variant"] == "earn"]
    for (data, method, backbone), group in groups(chosen, "data", "method", "backbone").items():
        splits = sorted(groups(group, "early_layers").items())
        if len(splits) < 3:
            continue
        name = f"`{data}`, {method}, {backbone}"
        dense = [
            row
            for row in rows
            if (row["data"], row["method"], row["backbone"], row["variant"]) == (data, method, backbone, "dense")
        ]
        for (k,), earn in splits:
            figures = [_figure(earn, measure) for measure in MEASURES]
            lines.append([f"{name}: k = {k} of {earn[0]['layers']}", *figures, _seeds(earn)])
        if dense:
            lines.append([f"{name}: dense", *(_figure(dense, measure) for measure in MEASURES), _seeds(dense)])
    return table(("", "Recall@10", "NDCG@10", "seeds, Recall@10"), lines) if lines else "None was run yet."


def _suggested(rows: Sequence[Row]) -> str:
    """What the rules of `earn analyze` say of each dense model, beside what was trained."""
    lines = []
    for (data, method, backbone), group in groups(rows, "data", "method", "backbone").items():
        dense = [row for row in group if row["variant"] == "dense"]
        analyzed = [row for row in dense if "attention" in row]
        splits = groups((row for row in group if row["variant"] == "earn"), "early_layers")
        if not analyzed:
            continue
        least = np.mean([row["interval"]["recall@10"][0] for row in dense])
        good = sorted(k for (k,), earn in splits.items() if mean(earn, "recall@10") >= least)
        found = [[row["attention"]["suggestions"][rule] for row in analyzed] for rule in ("attention", "cut")]
        texts = [", ".join("none" if k is None else str(k) for k in ks) for ks in found]
        trained = ", ".join(str(k) for (k,) in sorted(splits))
        lines.append([f"`{data}`, {method}, {backbone}", *texts, trained, str(good[0]) if good else "none"])
    header = (
        "dense model",
        "attention rule, by seed",
        "cut rule, by seed",
        "trained k",
        "smallest good enough",
    )
    return table(header, lines) if lines else "None was analyzed yet."


def _ablations(rows: Sequence[Row]) -> str:
    lines = []
    earn_and_others = [row for row in rows if row["variant"] != "dense"]
    for (data, method, backbone, k), group in groups(
        earn_and_others, "data", "method", "backbone", "early_layers"
    ).items():
        variants = groups(group, "variant")
        if len(variants) < 2 or ("earn",) not in variants:
            continue
        whole = mean(variants[("earn",)], "recall@10")
        for (variant,), found in variants.items():
            share = paper.ABLATIONS[variant] / paper.ABLATIONS["earn"] if variant in paper.ABLATIONS else None
            lines.append(
                [
                    f"`{data}`, {method}, {backbone}, k = {k}: {variant}",
                    *(_figure(found, measure) for measure in MEASURES),
                    _seeds(found),
                    f"{mean(found, 'recall@10') / whole:.0%}",
                    f"{share:.0%}" if share is not None else "",
                ]
            )
    header = ("", "Recall@10", "NDCG@10", "seeds, Recall@10", "of EARN's Recall@10", "the paper's share")
    names = "\n".join(f"- {name}: {variant.about}" for name, variant in VARIANTS.items() if name != "dense")
    return f"{names}\n\n{table(header, lines)}" if lines else "None was run yet."


def _tuning(rows: Sequence[Row]) -> str:
    """What each change of the training gave."""
    tried = {(row["data"], row["early_layers"]) for row in rows if row["recipe"]}
    lines = []
    for row in rows:
        if row["variant"] != "earn" or row["seed"] or (row["data"], row["early_layers"]) not in tried:
            continue
        changes = RECIPES[row["recipe"]] if row["recipe"] else {}
        name = ", ".join(f"{field} {value}" for field, value in changes.items()) or "as above"
        figures = [_figure([row], measure) for measure in MEASURES]
        label = f"`{row['data']}`, {row['method']}, {row['backbone']}: {name}"
        lines.append([label, *figures, f"{row['epochs']}", _minutes(row)])
    header = ("EARN", "Recall@10", "NDCG@10", "epochs", "minutes")
    published = ", ".join(f"{name} {_short(figure)}" for name, figure in paper.BEAUTY_LEAVE_ONE_OUT.items())
    bar = f"Published on Beauty, leave-one-out (arXiv 2305.05065, table 1), Recall@10: {published}."
    return f"{bar}\n\n{table(header, lines)}" if lines else bar


def _speeds(rows: Sequence[Row]) -> str:
    lines = []
    timed = [row for row in rows if row["speed"]]
    for (data, method, backbone, variant, k), group in groups(
        timed, "data", "method", "backbone", "variant", "early_layers"
    ).items():
        speed = group[0]["speed"]
        lines.append(
            [
                f"`{data}`, {method}, {backbone}: {variant}, k = {k} of {group[0]['layers']}",
                f"{speed['p50_ms'][1]:.1f} to {speed['p50_ms'][0]:.1f} ms",
                f"{speed['speedup']:.2f}x",
                f"{speed['cache_reduction']:.0%}",
                f"{speed['paper_speedup']:.2f}x",
                f"{speed['tokens_per_second'][0]:,} ({speed['tokens_per_second'][1]:,})",
                f"{speed['paper_cache_reduction']:.0%}",
            ]
        )
    header = (
        "",
        "one request",
        "faster",
        "cache smaller",
        "in batches",
        "codes/s (dense)",
        "one sequence's cache smaller",
    )
    return table(header, lines) if lines else "Not timed yet."


def _quantized(rows: Sequence[Row]) -> str:
    """What the int8 gate says of the bundles."""
    lines = []
    for row in rows:
        if "int8" in row:
            found = row["int8"]
            ndcg = found["ndcg@10"]
            finer = [f"{kind} refined" for kind in found["refined"]] + [
                f"{unit} float" for unit in found["float_layers"]
            ]
            lines.append(
                [
                    f"`{row['command'].partition('--only ')[2]}`",
                    f"{found['beam_set_overlap']:.1%}",
                    f"{_short(ndcg['before'])} to {_short(ndcg['after'])}",
                    f"{found['size_ratio']:.0%}",
                    ", ".join(finer) or "nothing",
                    "passes" if found["passed"] else "fails",
                ]
            )
    header = ("", "of the best 20 stay", "NDCG@10", "size", "kept finer", "gate")
    return table(header, lines) if lines else "None was judged yet."


def _commands(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        epochs = f"{row['epochs']}" if row["training_seconds"] else ""
        lines.append([f"`{row['command']}`", epochs, _minutes(row), f"{row['parameters'] / 1e6:.2f}"])
    return table(("command", "epochs", "minutes of training", "million parameters"), lines)


def _minutes(row: Row) -> str:
    """How long it was trained; nothing where it asks another run's checkpoint."""
    return f"{row['training_seconds'] / 60:.0f}" if row["training_seconds"] else ""


def _missing(rows: Sequence[Row]) -> str:
    known = {row["command"].partition("--only ")[2] for row in rows}
    lines = []
    for name, preset in PRESETS.items():
        left = [run for run in preset.runs if run.name not in known and run.data not in HIDDEN]
        if left:
            lines.append(f"- `experiments.py {name}` ({preset.about}): {len(left)} of {len(preset.runs)} runs, such as")
            lines += [f"  `{run.name}`" for run in left[:3]]
    return _NOT_RUN + "\n".join(lines)


_HEAD = """# Results

EARN's claims, checked on real data with models trained here. This page and its pictures are made of
[results.json](results.json) by `python benchmarks/results.py`; [experiments.py](../benchmarks/experiments.py) trains
and measures, [grid.py](../benchmarks/grid.py) says what. Every figure is by search over the whole catalog with 20
beams for every test user; weights are chosen by NDCG@10 on 2,000 validation users at the most. In none of these data
sets does anybody choose an item twice, so items of the history are left out of the lists (the ablation
`history-returns` says what that changes). Figures are means over seeds; in parentheses stand the ends of a seed's 95 %
bootstrap interval over users, averaged likewise."""

_TWINS = """"To dense" is the difference, user by user, to the dense model of the same seed, with its paired interval:
one below 0 would say that EARN is worse. What few users cannot tell apart may still differ.

![Recall@10 of dense and EARN](pictures/twins.svg)

"""

_BESIDE = """

The same as shares of the dense model's, beside the paper's with backbones of 7 billion parameters (its data sets are
split by time):

"""

_SWEEP = """The paper's rule of thumb is k = N/4. Its recall collapses below k = 4 of 32 (Llama) and 7 of 28 (Qwen2.5),
and little is gained beyond 13.

![Recall@10 by the number of early layers](pictures/sweep.svg)

"""

_SUGGESTED = """`earn analyze` looks at a dense model, before anything is trained as EARN. Its attention rule asks that
later layers look at little but the prompt's ends; its cut rule, that cutting later layers off the history costs the
weights, as they are, little. "Good enough": Recall@10 at or above the lower end of the dense model's interval.

"""

_ABLATIONS = """The paper's are of LC-Rec on Beauty with Llama-7B; the last column is its Recall@10 as a share of its
whole EARN's.

![Recall@10 of each variant beside whole EARN's](pictures/ablations.svg)

"""

_SPEED = """Both sides as fp32 bundles in ONNX Runtime on a CPU, taking turns. These models are so small that the search
around them is a good part of a request; [benchmarks.md](benchmarks.md) has larger shapes. "One request": median
milliseconds, dense to EARN, 20 beams; its cache holds the prompt once for all beams. "In batches" of 64 and "one
sequence's cache" are the paper's terms: its speed-ups are 2.6 to 3.8x, its caches 45 to 81 % smaller, with prompts of
100 to 170 tokens on a GPU.

"""

_INT8 = """`experiments.py PRESET --quantize --only RUN` exports a trained checkpoint and quantizes the bundle; 1,000
test users judge it: 95 % of their best 20 items must stay, and NDCG@10 may not fall significantly
([calibration.md](calibration.md)).

"""

_NOT_RUN = """The paper's own settings need GPUs that were not at hand: Llama-7B and Qwen2.5-7B at the largest batch
that fits into 80 GB, MovieLens-1M, HSTU. Of the presets:

"""

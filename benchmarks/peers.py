"""Latency of one request beside the field: the same weights, prompts, histories and beams in one run.

    python benchmarks/peers.py --quick                     # Qwen2.5-0.5B shape, prompt of 200 tokens, 20 beams
    python benchmarks/peers.py --quick --data data/Beauty  # over the item trie of another catalog
    python benchmarks/peers.py                             # prompts of 100 to 1000 tokens, 10 to 50 beams: an hour
    python benchmarks/peers.py --prompts 1000 --beams 10   # some of these beside the headline setting
    python benchmarks/peers.py --quick --all-sides         # what the rules and the kinds of int8 give, too
    python benchmarks/peers.py --quick --shape tiny        # a minute's check that everything runs
    python benchmarks/peers.py --trained CKPT              # a trained model's weights, its data's histories
    python benchmarks/peers.py --set                       # all codes at once beside beams

Without --trained weights are random, and the catalog is real: its identifiers decide how early a beam is determined.
`benchmarks/engines.py` says what is measured of a checkpoint: prompts as they come, of 200 and of 400 tokens.

    hf_generate        Hugging Face's generate, dense fp32, beams constrained to the catalog
    ctranslate2_int8   CTranslate2, dense int8, beams over the whole vocabulary (it takes no trie); also with the
                       prompt's constant head as its static prompt. "ctranslate2_int8_ms" is the faster of the two
    dense_int8         the dense model in this runtime, rule "trie": all that the runtime does but EARN
    earn_fp32          the EARN split in this runtime, rule "trie"
    earn_int8          the same in int8
    earn_int8_vocab    the same under the rule "vocab", under which every beam goes on in every step
    earn_int8_session  an open session: the user chose one more item, show the new list

`--all-sides` adds dense and EARN in fp32 under "vocab", int8 with refined activations, and int8-dynamic.

All read as many tokens: 50 of the prompt's constant head, the history, a tail and a register; registers are text to
the dense sides. Each peer, and this runtime, has a process of its own, which keeps the memory that it frees: in one
process they slow each other, and where glibc gives memory back, CTranslate2 asks for a gigabyte anew in every request.
Sides take turns within every history; medians are over histories and requests. No figure is printed unless dense fp32
in this runtime gives generate's ten items, and CTranslate2 torch's log-probabilities: those of fp32, and in int8 nearly
those.

What is not fair to whom:
    generate       is in fp32, reads the constant head anew, and copies the prompt once per beam
    CTranslate2    need not look at the catalog; it finds the ranges of activations in every request, ours are fixed
    this runtime   random weights draw beams to where items are determined, which "trie" makes the most of:
                   earn_int8_vocab is the bound that owes nothing to that
    the session    has read the history before the clock starts; the others start from nothing
Nothing here is about accuracy: no gate is asked.

`speedup_vs_*` are the other side's time by that of earn_int8, `vocab_*` and `session_*` by those of these sides.
`operation_ratio_vs_dense` is how many times fewer operations EARN needs: `speedup_vs_dense`, if all ran at one rate.
`prefill_share_of_gemm_rate`: what the early stage's prefill reaches of the rate of its bare matmuls on this machine.
`search_share`: the part of a request that is spent outside the graphs.

With --set, all over a random catalog and a history of 37 items, which is 200 tokens with beams:
    beams              a fresh request: 20 beams over four codes per item, rule "trie"
    set                a fresh request: one row per item, sixteen digits at once, the whole catalog scored
    set_int4           the same, its late stage in int4 (the precision int8-int4)
    *_session          an open session: the user chose one more item, show the new list
    ctranslate2_int8   the dense model of the beams in CTranslate2, if it is installed
    scoring_ms         what `python -m benchmarks.costs scoring` measures
The set's score spread is that of random weights, which is when bounds help least.

Prints a table per setting, then one line of JSON.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run as a script, for which Python looks in this folder alone
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import engines, sides
from benchmarks.costs import DIGITS, SCORED, digit_catalog, distinct_catalog, scoring_ms
from benchmarks.engines import CTranslate2, Runtime, make_trained_task, write
from benchmarks.sides import AS_THEY_COME, HISTORIES, ITEMS, SIDES, Contender, OwnProcess, Side, Step, Task, Timings
from earn.config import SET
from earn.console import progress, show, show_json, table
from earn.data.dataset import load_dataset
from earn.errors import EarnError
from earn.model.earn_model import EarnModel
from earn.model.set_model import SetModel
from earn.profiling.machine import this_machine
from earn.prompts import constant_head
from earn.runtime.cache import cache_bytes
from earn.runtime.lists import Recommendation

SHAPES = {"qwen2.5-0.5b": sides.SHAPES["0.5b"], "tiny": sides.SHAPES["tiny"]}
ROUNDS = 3  # histories of a request; of a session there are more
SESSIONS = {"session_ms_history_10": 10, "session_ms_history_200": 200}  # items of further sessions' histories
PACKAGES = ("torch", "transformers", "onnxruntime", "ctranslate2")
SAME_LIST = 0.8  # share of a list that two ways to the same answer must have in common in int8
CTRANSLATE2 = tuple(name for name, side in SIDES.items() if side.kind == "ctranslate2" and side.group == sides.USUAL)
ALIKE = (("earn_int8_session", "earn_int8"), CTRANSLATE2)
SET_HISTORY, SET_REQUESTS = 37, 5  # items: with beams a prompt of 200 tokens

Items = Sequence[int]  # item indices


@dataclass(frozen=True)
class Setting:
    """What a table is about."""

    prompt: int  # tokens; AS_THEY_COME: those of the users' own histories
    beams: int

    def histories(self, task: Task) -> list[list[int]]:
        """The histories that fill the prompt."""
        return task.histories(task.items_in(self.prompt) if self.prompt else AS_THEY_COME)

    @property
    def name(self) -> str:
        """For a table."""
        return f"{f'prompt {self.prompt}' if self.prompt else 'prompts as they come'}, {self.beams} beams"


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    settings: tuple[Setting, ...]
    generate_histories: int  # of which generate, which takes many seconds, is asked one request each
    requests: int  # of every history to each other side


HEADLINE = Setting(200, 20)
QUICK = Plan((HEADLINE,), ROUNDS, 5)
PROMPTS, BEAMS = [100, 200, 400, 1000], [10, 20, 50]
TRAINED_PROMPTS, TRAINED_BEAMS = [AS_THEY_COME, 400], [20]


def main() -> None:
    """Measures and prints."""
    try:
        arguments = parse()
        (run_set if arguments.set else run)(arguments, arguments.threads or os.cpu_count() or 1)
    except EarnError as error:
        sys.exit(str(error))


def parse() -> argparse.Namespace:
    """The command line."""

    def sizes(text: str) -> tuple[int, ...]:
        return tuple(map(int, text.split(",")))

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the headline setting alone")
    parser.add_argument("--prompts", type=sizes, metavar="N,N,...", help="tokens; 0: as they come (default: all)")
    parser.add_argument("--beams", type=sizes, metavar="N,N,...", help="default: 10,20,50; of a checkpoint 20")
    parser.add_argument("--trained", type=Path, metavar="CKPT", help="EARN's weights and its data's histories")
    parser.add_argument("--dense", type=Path, metavar="CKPT", help="the weights of its dense twin")
    parser.add_argument("--int8", type=Path, metavar="BUNDLE", help="its bundle in int8, instead of one made here")
    parser.add_argument("--all-sides", action="store_true", help="fp32 under vocab, refined and dynamic int8 too")
    parser.add_argument("--set", action="store_true", help="all codes at once beside beams")
    parser.add_argument("--data", help="whose items make the catalog (default: ml-100k, or a checkpoint's)")
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-0.5b")
    parser.add_argument("--threads", type=int, default=None, help="threads of all sides (default: all cores)")
    return parser.parse_args()


def run(arguments: argparse.Namespace, threads: int) -> None:
    """Measures every setting and prints its table; then the line of JSON."""
    task, plan, chosen = make_plan(arguments, threads)
    timings: dict[Setting, dict[str, Timings]] = {}
    generate_bytes: dict[Setting, int] = {}
    with started(task, HEADLINE.histories(task), chosen, arguments.int8) as peers:
        for setting in plan.settings:
            title = f"{arguments.trained or arguments.shape}, {setting.name}"
            asked_sides = make_sides(task, peers, setting, plan, chosen)
            timings[setting] = sides.measure(asked_sides, HISTORIES, finished=progress(title))
            _, generate_bytes[setting] = peers["hf"].ask("cache_bytes")
            check_answers(task, peers["ours"], setting, timings[setting])
            show(f"{title}, {task.catalog.depth} codes\n{timings_table(timings[setting], 'earn_int8')}\n")
        result = {**figures(timings[HEADLINE]), **shares(task, peers["ours"], plan.requests)}
    others = {setting: own for setting, own in timings.items() if setting != HEADLINE}
    about = {
        "hf_cache_bytes": generate_bytes[HEADLINE],
        "settings": [{"prompt": it.prompt, "beams": it.beams, **figures(own)} for it, own in others.items()],
        "shape": None if arguments.trained else arguments.shape,
        "trained": str(arguments.trained) if arguments.trained else None,
        "prompt": HEADLINE.prompt,
        "beams": HEADLINE.beams,
        "items": len(task.catalog),
    }
    show_json({**result, **about, **machine(threads)})


@contextmanager
def started(
    task: Task, items: Sequence[Items], chosen: Mapping[str, Contender], int8: Path | None = None
) -> Iterator[dict[str, OwnProcess]]:
    """A process for each engine behind the sides, which read what is written here (see `benchmarks.engines.write`)."""
    os.environ.update(sides.KEEP_MEMORY)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder, model = Path(name), Path(name) / "ctranslate2"
        peers = {"ours": OwnProcess(Runtime, folder / "bundles", task.threads)}
        if write(task, folder, items, chosen, int8):
            peers["ctranslate2"] = OwnProcess(CTranslate2, model, task.threads, "int8", task.catalog.depth)
        if "hf_generate" in chosen:
            peers["hf"] = OwnProcess(engines.make_generate, task)
        for peer in peers.values():
            stack.enter_context(peer)
        yield peers


def make_plan(arguments: argparse.Namespace, threads: int) -> tuple[Task, Plan, dict[str, Contender]]:
    """The task, how much of it is measured, and by which sides."""
    groups = (sides.USUAL, sides.EXTRA) if arguments.all_sides else (sides.USUAL,)
    chosen = {name: side for name, side in SIDES.items() if side.group in groups}
    prompts, beams = (TRAINED_PROMPTS, TRAINED_BEAMS) if arguments.trained else (PROMPTS, BEAMS)
    if arguments.trained:
        task: Task = make_trained_task(arguments.trained, arguments.dense, arguments.data, threads)
    elif arguments.dense or arguments.int8:
        raise EarnError("--dense and --int8 go with --trained. Give the checkpoint, or leave them away.")
    else:
        catalog = load_dataset(arguments.data or "ml-100k").catalog()
        task = sides.make_task(catalog, SHAPES[arguments.shape], threads)
    if arguments.int8:  # whose head has the rows of the rule that it was exported with
        chosen = {name: side for name, side in chosen.items() if (side.split, side.rule) != ("earn", "vocab")}
    if arguments.quick:
        return task, QUICK, chosen
    asked = [Setting(prompt, width) for prompt in arguments.prompts or prompts for width in arguments.beams or beams]
    return task, Plan(tuple(dict.fromkeys((HEADLINE, *asked))), 1, 3), chosen


def make_sides(
    task: Task, peers: Mapping[str, OwnProcess], setting: Setting, plan: Plan, chosen: Mapping[str, Contender]
) -> dict[str, Side]:
    """All sides of a setting; a round is a history."""

    def side(contender: Contender, histories: Sequence[Items], requests: int, rounds: int, warm_up: int = 1) -> Side:
        return Side(partial(steps, task, peers, contender, setting.beams, histories), requests, rounds, warm_up)

    own = setting.histories(task)
    found = {}
    for name, contender in chosen.items():
        if contender.kind == "hf":
            found[name] = side(contender, own, 1, plan.generate_histories, warm_up=0)
        elif contender.kind != "ctranslate2" or "ctranslate2" in peers:
            found[name] = side(contender, own, plan.requests, ROUNDS)
    if setting == HEADLINE:
        open_session = SIDES["earn_int8_session"]
        found |= {name: side(open_session, task.histories(items), 2, HISTORIES) for name, items in SESSIONS.items()}
    return found


def steps(
    task: Task, peers: Mapping[str, OwnProcess], contender: Contender, beams: int, histories: Sequence[Items], turn: int
) -> list[Step]:
    """The timed steps of a request of a round, which is a history; a session has read all but the last item before."""
    history, ids = histories[turn], task.item_ids(histories[turn])
    ask = peers[contender.kind if contender.kind in peers else "ours"].ask
    if contender.kind == "hf":
        return [partial(ask, "search", [ids], beams)]
    if contender.kind == "ctranslate2":
        static = len(constant_head(task.splits["dense"])) if contender.is_static else 0
        return [partial(ask, "search", task.prompt(history), beams, static)]
    if contender.kind == "ours":
        return [partial(ask, "recommend", contender, ids, beams)]
    ask("open", contender, ids[:-1])
    return [partial(ask, "append", ids[-1]), partial(ask, "show", beams)]


def check_answers(task: Task, runtime: OwnProcess, setting: Setting, timings: Mapping[str, Timings]) -> None:
    """Stops where generate and this runtime recommend different items, or two ways of one side do."""
    for history, (want,) in zip(setting.histories(task), timings["hf_generate"].answers, strict=False):
        _, got = runtime.ask("recommend", SIDES["dense_fp32_vocab"], task.item_ids(history), setting.beams)
        check_same_work(want, got)
    for one, other in ALIKE:
        for pair in zip(timings[one].answers, timings[other].answers, strict=True) if one in timings else ():
            first, second = ({getattr(item, "item_id", item) for item in answer} for answer in pair)
            if len(first & second) < SAME_LIST * ITEMS:
                sys.exit(f"{one} and {other} give {first} and {second}, so their times say nothing.")


def check_same_work(want: Sequence[str], got: Sequence[Recommendation]) -> None:
    """Stops where the dense model's list here is not generate's; only near ties may stand in another order."""
    if not sides.is_same_list(want, got):
        items = [item.item_id for item in got]
        sys.exit(f"dense fp32 here and generate differ, so their times say nothing: {items} instead of {want}")


def timings_table(timings: Mapping[str, Timings], base: str) -> str:
    """Every side's times, and how many times as long as the side `base` it took."""
    rows = []
    for name, side in timings.items():
        times = (side.median, min(side.totals), max(side.totals))
        share = side.median / timings[base].median
        rows.append([name, *(f"{ms:.2f}" for ms in times), str(len(side.totals)), f"{share:.2f}"])
    return table(("", "median ms", "least", "most", "requests", f"times {base}"), rows)


def medians(timings: Mapping[str, Timings]) -> dict[str, float]:
    """Every side's milliseconds."""
    return {name if name in SESSIONS else f"{name}_ms": side.median for name, side in timings.items()}


def shares(task: Task, runtime: OwnProcess, requests: int) -> dict[str, Any]:
    """What EARN leaves out, how near its prefill comes to bare matmuls, what the search costs."""
    items = list(map(task.item_ids, HEADLINE.histories(task)))
    own: dict[str, Any] = {}
    held: dict[str, int] = {}
    for name in ("dense", "earn"):
        side = SIDES[f"{name}_int8"]
        _, own[name] = runtime.ask("figures", side, items, HEADLINE.beams, requests)
        _, manifest = runtime.ask("manifest", side)
        held[name] = cache_bytes(manifest.sizes, manifest.limits, HEADLINE.prompt, HEADLINE.beams)
    dense, earn = own["dense"], own["earn"]
    return {
        "operation_ratio_vs_dense": round(dense["operations"] / earn["operations"], 2),
        "prefill_share_of_gemm_rate": round(earn["prefill_rate"] / earn["gemm_rate"], 3),
        "search_share": round(earn["search_share"], 3),
        "operations": {name: round(figures["operations"]) for name, figures in own.items()},
        "gemm_rate": round(earn["gemm_rate"]),
        "prompt_rows": earn["prompt_rows"],
        "pass_rows": {name: figures["pass_rows"] for name, figures in own.items()},
        "cache_bytes": held["earn"],
        "dense_cache_bytes": held["dense"],
    }


def figures(timings: Mapping[str, Timings]) -> dict[str, Any]:
    """The headline's times and how they compare; nothing stands for what was not measured."""
    ms = {name: side.median for name, side in timings.items()}
    ways = {name: ms[name] for name in CTRANSLATE2 if name in ms}
    faster = min(ways, key=lambda name: ways[name], default=None)
    peer = ways[faster] if faster else None
    append, recommend = timings["earn_int8_session"].step_medians
    return {
        **medians(timings),
        "ctranslate2_int8_ms": peer,
        "ctranslate2_faster": faster,
        "speedup_vs_hf": ratio(ms["hf_generate"], ms["earn_int8"]),
        "speedup_vs_ctranslate2": ratio(peer, ms["earn_int8"]),
        "vocab_speedup_vs_ctranslate2": ratio(peer, ms.get("earn_int8_vocab")),
        "session_speedup_vs_ctranslate2": ratio(peer, ms["earn_int8_session"]),
        "speedup_vs_dense": ratio(ms["dense_int8"], ms["earn_int8"]),
        "session_append_ms": append,
        "session_recommend_ms": recommend,
    }


def machine(threads: int) -> dict[str, Any]:
    """What the figures were measured with."""
    return {"threads": threads, "machine": this_machine().cpu, "versions": sides.versions(*PACKAGES)}


def ratio(other: float | None, ours: float | None) -> float | None:
    """How many times as long the other takes."""
    return round(other / ours, 2) if other and ours else None


@dataclass(frozen=True)
class SetTask(sides.RandomTask):
    """Beams, and all codes at once over as many items."""

    def model(self, split: str) -> EarnModel:
        """The set's is the shape with digits: a prompt of as many other tokens."""
        if split != "set":
            return super().model(split)
        own = sides.make_task(digit_catalog(len(self.catalog)), self.shape, self.threads, depth=DIGITS)
        model: EarnModel = SetModel(own.backbone(), replace(own.splits["earn"], method=SET), own.catalog).eval()
        return model


def run_set(arguments: argparse.Namespace, threads: int) -> None:
    """Measures all codes at once beside beams; prints a table and the line of JSON."""
    os.environ.update(sides.KEEP_MEMORY)
    scoring = {str(items): scoring_ms(items) for items in SCORED}
    shape = SHAPES[arguments.shape]
    task = SetTask(**vars(sides.make_task(distinct_catalog(shape.items, shape.codebook), shape, threads)))
    chosen = {name: side for name, side in SIDES.items() if side.group == sides.SET_SIDES}
    histories = task.histories(SET_HISTORY)[:ROUNDS]
    with started(task, histories[:2], chosen) as peers:
        asked = {
            name: Side(partial(steps, task, peers, side, HEADLINE.beams, histories), SET_REQUESTS)
            for name, side in chosen.items()
            if side.kind != "ctranslate2" or "ctranslate2" in peers
        }
        timings = sides.measure(asked, ROUNDS, finished=progress("rounds"))
    show(timings_table(timings, "set"))
    about = {"shape": arguments.shape, "history": SET_HISTORY, "beams": HEADLINE.beams, "digits": DIGITS}
    ms = {"ctranslate2_int8_ms": None, **medians(timings), "scoring_ms": scoring}
    show_json({**ms, **about, **machine(threads)})


if __name__ == "__main__":
    main()

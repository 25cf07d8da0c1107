"""What the tests share: small models with well spread scores, slow references, comparisons that show their figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from earn.catalog import Catalog
from earn.config import SCORING_RULES, Prompt
from earn.export.stages import TorchEngine, bundle_model
from earn.model.backbones import load_backbone
from earn.model.earn_model import EarnModel
from earn.model.families import TINY_BACKBONES
from earn.model.reference import build_trie, descend, next_token_scores
from earn.prompts import constant_head, history_tokens, prompt_end, readout_rows
from earn.runtime.engine import Engine
from earn.runtime.lists import Recommendation
from earn.runtime.memory import Array
from earn.runtime.recommender import Recommender
from earn.specs import Axis, StageSpecs

FAMILIES = ("tiny-llama", "tiny-qwen2", "tiny-qwen3")
RULES = tuple(SCORING_RULES)
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
# Beside SMALL, what a family needs so that so few layers show all that it does.
OWN_SIZES: Mapping[str, Mapping[str, Any]] = {
    "tiny-gemma3": {"layer_types": ["sliding_attention", "full_attention"] * 2}
}
NEAR_TIE = 1e-6  # relative difference of scores below which fp32 cannot tell them apart

# Identifiers of 2 to 4 tokens: "0" and "4" share one, "1" ends a chain without branches, "2" and "3" part at the end.
TOY = ("a0 b0", "a1 b0 c0", "a2 b0 c0 d0", "a2 b0 c0 d1", "a0 b0", "a2 b1 c1 d0", "a3 b1 c0", "a3 b0 c1")


def sweep(few: Iterable[tuple[Any, ...]], every: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Parameters of a test: the few of the default run, and those of the slow run that are not among them."""
    few = list(few)
    return [*few, *(pytest.param(*case, marks=pytest.mark.slow) for case in every if case not in few)]


def small_backbone(name: str, seed: int = 0, **sizes: Any) -> PreTrainedModel:
    head = {"head_dim": 16} if "head_dim" in TINY_BACKBONES[name].tiny_sizes else {}
    return load_backbone(name, seed, {**SMALL, **head, **OWN_SIZES.get(name, {}), **sizes})


def scramble(module: nn.Module, seed: int = 1, spread: float = 0.7) -> None:
    """Draws every parameter so that outputs are spread widely: matrices keep the size of what goes through them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.dim() == 1:
                parameter.copy_(0.3 * noise)
            else:
                embeds = "embed" in name or "lm_head" in name
                parameter.copy_(noise * (spread if embeds else 1 / math.sqrt(parameter.shape[1])))


def toy_catalog(identifiers: Sequence[str] = TOY) -> Catalog:
    """Items "0", "1", ... with these identifiers, tokens separated by spaces."""
    numbers = tuple(map(str, range(len(identifiers))))
    return Catalog(numbers, tuple(tuple(text.split()) for text in identifiers), tuple(map("t{}".format, numbers)))


def random_catalog(items: int, seed: int = 0, codes: int = 4) -> Catalog:
    """Identifiers of 2 to 4 tokens, some shared: the first code decides the length, so none begins another."""
    generator = np.random.default_rng(seed)
    rows = generator.integers(0, codes, (items, 4)).tolist()
    return toy_catalog(
        [" ".join(f"{letter}{code}" for letter, code in zip("abcd"[: 2 + row[0] % 3], row)) for row in rows]  # noqa: B905
    )


def small_model(
    name: str = "tiny-llama",
    catalog: Catalog | None = None,
    seed: int = 1,
    prompt: Prompt | None = None,
    **settings: Any,
) -> EarnModel:
    """A scrambled model in evaluation mode; `prompt` replaces the text parts of its prompt."""
    backbone, catalog = small_backbone(name), catalog or toy_catalog()
    early_layers = settings.pop("early_layers", None)
    if prompt is None:
        model = EarnModel.from_backbone(backbone, catalog, early_layers, **settings)
    else:  # which may end where there is no suffix register
        layers = backbone.config.num_hidden_layers
        model = EarnModel.from_backbone(backbone, catalog, layers, **settings)
        registers = (*model.earn.prefix_ids, *model.earn.suffix_ids)
        split = early_layers or (layers // 4 if registers else layers)
        model = EarnModel(backbone, replace(model.earn, prompt=prompt, early_layers=split), catalog)
    scramble(model, seed)
    model.eval()
    return model


def weight_of(layer: Any) -> Tensor:
    """A layer's weight, to be read or changed."""
    return cast(Tensor, layer.weight.detach())


def token_identifiers(model: EarnModel) -> list[tuple[int, ...]]:
    """Each item's identifier in the model's token ids."""
    return [tuple(model.earn.token_ids[code] for code in row if code >= 0) for row in model.catalog.codes.tolist()]


def prompt_of(model: EarnModel, history: Sequence[int]) -> list[int]:
    """The whole prompt of a history of item indices."""
    identifiers = token_identifiers(model)
    items = history_tokens([identifiers[item] for item in history], model.earn)
    return [*constant_head(model.earn), *items, *prompt_end(model.earn)]


def naive_logits(model: EarnModel, prompt: Sequence[int], generated: Sequence[int]) -> Tensor:
    """Logits [1+generated,v] from the last prompt row on, by Hugging Face's own decoder layers.

    Layers 1..k see the whole sequence, the layers above only registers and generated tokens; all are plainly causal.
    """
    config, sequence = model.earn, [*prompt, *generated]
    layers = cast(Sequence[nn.Module], model.model.layers)
    positions = torch.arange(len(sequence))[None]
    kept = [*range(len(config.prefix_ids)), *range(len(prompt) - readout_rows(config), len(sequence))]
    if config.early_layers == len(layers):
        kept = list(range(len(sequence)))
    hidden = model.model.embed_tokens(torch.tensor([sequence]))
    for number, layer in enumerate(layers):
        if number == config.early_layers:
            hidden, positions = hidden[:, kept], positions[:, kept]
        rows = hidden.shape[1]
        mask = torch.full((rows, rows), -1e9, dtype=hidden.dtype).triu(1)[None, None]
        rotation = model.model.rotary_emb(hidden, positions)
        out = layer(hidden, attention_mask=mask, position_ids=positions, position_embeddings=rotation)
        hidden = out[0] if isinstance(out, tuple) else out
    return cast(Tensor, model.lm_head(model.model.norm(hidden))[0, -1 - len(generated) :])


@torch.no_grad()
def brute_force(model: EarnModel, history: Sequence[int], scoring: str) -> list[float]:
    """Every item's score: the sum of its tokens' log-probabilities under the rule, from `naive_logits`."""
    identifiers, prompt = token_identifiers(model), prompt_of(model, history)
    scores = []
    for identifier in identifiers:
        logits = naive_logits(model, prompt, identifier[:-1]).double()
        score = 0.0
        for depth, token in enumerate(identifier):
            over = {
                "trie": {
                    other[depth] for other in identifiers if other[:depth] == identifier[:depth] and depth < len(other)
                },
                "level": {other[depth] for other in identifiers if depth < len(other)},
                "vocab": set(range(logits.shape[1])),
            }[scoring]
            score += float(logits[depth, token] - torch.logsumexp(logits[depth, sorted(over)], 0))
        scores.append(score)
    return scores


def closest_call(
    model: EarnModel, history: Sequence[int], beams: int, scoring: str, exclude: Collection[int] = ()
) -> float:
    """How near the reference search comes to another answer: the smallest relative gap, in float64, between the last
    beam that is kept and the first that is dropped, or between neighbours at the end.
    """
    model = deepcopy(model).double()
    identifiers, prompt = token_identifiers(model), prompt_of(model, history)
    whole = build_trie(identifiers)
    allowed = build_trie([identifier for item, identifier in enumerate(identifiers) if item not in exclude])
    found: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    gaps: list[float] = []
    while unfinished := [beam for beam, _ in found if descend(allowed, beam)]:
        scores = next_token_scores(model, prompt, unfinished, whole, scoring)
        candidates = [(beam, score) for beam, score in found if beam not in scores]
        for beam, score in found:
            candidates += [((*beam, token), score + scores[beam][token]) for token in descend(allowed, beam)]
        candidates.sort(key=lambda candidate: -candidate[1])
        gaps += [relative_gap(*pair) for pair in pairwise(candidates[beams - 1 : beams + 1])]
        found = candidates[:beams]
    return min([*gaps, *(relative_gap(*pair) for pair in pairwise(found))])


def relative_gap(first: tuple[Any, float], second: tuple[Any, float]) -> float:
    return abs(first[1] - second[1]) / max(1.0, abs(first[1]))


class CountingEngine:
    """Passes calls on to another engine and notes them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.device = engine.device
        self.shapes: list[tuple[str, dict[str, tuple[int, ...]]]] = []  # of the feeds, call by call
        self.written: list[tuple[str, dict[str, tuple[int, ...]]]] = []  # likewise of the outputs

    def run(self, stage: str, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        self.shapes.append((stage, {name: array.shape for name, array in feeds.items()}))
        self.written.append((stage, {name: array.shape for name, array in outputs.items()}))
        self._engine.run(stage, feeds, outputs)


def watched_recommender(model: EarnModel, scoring: str = "trie", **limits: int) -> tuple[Recommender, CountingEngine]:
    """A recommender over the torch stages, and what it asks of them."""
    bundle = bundle_model(model, scoring, **limits)
    engine = CountingEngine(TorchEngine(bundle.stages))
    return Recommender(engine, bundle.manifest, model.catalog), engine


def largest_sizes(engine: CountingEngine, specs: Mapping[str, StageSpecs]) -> dict[tuple[str, Axis], int]:
    """The largest size that each axis had in all calls; no size was ever outside its range, and no tensor missing."""
    largest: dict[tuple[str, Axis], int] = {}
    for side, calls in (("inputs", engine.shapes), ("outputs", engine.written)):
        for stage, shapes in calls:
            table = {spec.name: spec for spec in getattr(specs[stage], side)}
            assert table.keys() == shapes.keys()
            for name, shape in shapes.items():
                for axis, size in zip(table[name].axes, shape, strict=True):
                    assert axis.least <= size <= axis.most, (stage, name, axis, size)
                    largest[stage, axis] = max(size, largest.get((stage, axis), 0))
    return largest


def outputs_for(specs: StageSpecs, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Arrays for what a stage answers to these feeds; what is not written into them is no number."""
    first = feeds["input_ids" if "input_ids" in feeds else "hidden"]
    size = {"b": first.shape[0], "m": first.shape[1], "r": len(feeds["keep"])}
    return {
        spec.name: np.full([size.get(axis.name, axis.most) for axis in spec.axes], np.nan, np.float32)
        for spec in specs.outputs
    }


def pairs(items: Iterable[Recommendation]) -> list[tuple[int, float]]:
    """Recommendations of a catalog of numbered items as (index, score)."""
    return [(int(item.item_id), item.score) for item in items]


def histories_of(catalog: Catalog, count: int, longest: int, seed: int = 0) -> list[list[int]]:
    """Random histories of 1 to `longest` item indices."""
    generator = np.random.default_rng(seed)
    return [generator.integers(0, len(catalog), generator.integers(1, longest + 1)).tolist() for _ in range(count)]


def assert_close(want: Any, got: Any, tolerance: float, name: str = "values") -> None:
    """Equality within a tolerance; a failure shows the largest and the mean difference."""
    first, second = (np.asarray(value.detach() if isinstance(value, Tensor) else value) for value in (want, got))
    assert first.shape == second.shape, f"{name}: shape {second.shape} instead of {first.shape}"
    difference: NDArray[np.float64] = np.abs(first.astype(np.float64) - second)
    worst = difference.max(initial=0.0)
    assert worst <= tolerance, f"{name}: differ by {worst:.3g} at most, {difference.mean():.3g} on average"


@dataclass
class Agreement:
    """Compares ranked lists of (item, score) with an oracle's: same items, same order, near scores."""

    tolerance: float = 1e-4
    lists: int = 0
    near_ties: int = 0  # lists that differ only because the oracle's own search is a near-tie
    differences: list[float] = field(default_factory=list)  # of scores, position by position
    wrong: list[str] = field(default_factory=list)

    def add(
        self,
        name: str,
        want: Sequence[tuple[int | str, float]],
        got: Sequence[tuple[int | str, float]],
        closest: Callable[[], float] = lambda: math.inf,
    ) -> None:
        """Compares two lists; where they differ, `closest` says how near the oracle's own search was to a tie."""
        self.lists += 1
        differences = [abs(one[1] - other[1]) for one, other in zip(want, got)]  # noqa: B905
        is_near = [difference <= self.tolerance for difference in differences]
        if len(want) == len(got) and all(is_near) and [item for item, _ in want] == [item for item, _ in got]:
            self.differences += differences
        elif closest() < NEAR_TIE:
            self.near_ties += 1
        else:
            self.differences += differences
            same = [near and one[0] == other[0] for near, one, other in zip(is_near, want, got)]  # noqa: B905
            place = [*same, False].index(False)
            self.wrong.append(
                f"{name}, position {place}: {got[place : place + 1]} instead of {want[place : place + 1]}"
            )

    def __str__(self) -> str:
        worst, mean = max(self.differences, default=0.0), float(np.mean(self.differences or [0.0]))
        return (
            f"{len(self.wrong)} of {self.lists} lists differ; score difference {worst:.3g} at most, {mean:.3g} on "
            f"average; {self.near_ties} near-ties; first: {(self.wrong or ['none'])[0]}"
        )

    def check(self) -> None:
        assert self.lists, "nothing was compared"
        assert not self.wrong, str(self)
        assert self.near_ties <= self.lists / 100, str(self)
        print(self)

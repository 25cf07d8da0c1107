"""A trained model as the two stage modules of a bundle, with the bundle's own token numbers (see earn.manifest).

The modules share the model's layers; only the embedding table and the item head are cut to the rows that a bundle
needs. `TorchEngine` runs them behind the runtime's engine protocol: a checkpoint then recommends exactly as its
bundle will.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import cast

import torch
from torch import Tensor, nn

import earn
from earn.config import SCORING_RULES, SET, EarnConfig, Prompt, check_scoring
from earn.errors import EarnError
from earn.manifest import Manifest, limits_of
from earn.model.earn_model import EarnModel
from earn.model.families import sizes_of
from earn.model.stage import DenseHead, EarlyStage, LateStage, scaled
from earn.runtime.memory import HOST, Array
from earn.runtime.recommender import Recommender

MAX_BATCH = 64
MAX_BEAMS = 64


@dataclass(frozen=True)
class BundleModel:
    """What a bundle is made of, before it is files."""

    stages: Mapping[str, EarlyStage | LateStage]
    manifest: Manifest  # without files
    embedded: Sequence[int]  # the model's token of each row of the early stage's embedding
    predicted: Sequence[int]  # the row of the late stage's head of each logit: the model's token, or digits' place


def bundle_model(
    model: EarnModel, scoring: str = "trie", max_batch: int = MAX_BATCH, max_beams: int = MAX_BEAMS
) -> BundleModel:
    """The stage modules and manifest of a model.

    Args:
        scoring: one of SCORING_RULES; it decides which rows of the item head the bundle keeps. All codes at once are
            always normalised over each digit, which is the rule "level"; "trie" stands for it there.
        max_batch: users that one pass of the runtime may hold.
        max_beams: widest search that the bundle allows.

    Raises:
        EarnError: no such scoring rule, or none for this model's method.
    """
    rule = SCORING_RULES[check_scoring(scoring)]
    is_set = model.earn.method == SET
    if is_set and rule.needs_whole_head:
        raise EarnError(f"The model names all codes at once, which the scoring rule {scoring} cannot. Take level.")
    scoring = "level" if is_set else scoring
    known = model.history_ids
    fixed = {*model.earn.prompt.head, *model.earn.prompt.separator, *model.earn.prompt.tail}
    fixed |= {*model.earn.prefix_ids, *model.earn.suffix_ids}
    embedded = known + sorted(fixed - set(known))
    early, late = model.early_stage(), model.late_stage()
    others = sorted(set(range(model.lm_head.weight.shape[0])) - set(known))
    predicted = list(range(len(model.earn.token_ids))) if is_set else known + (others if rule.needs_whole_head else [])
    kind = LateStage if late.layers else DenseHead
    stages: dict[str, EarlyStage | LateStage] = {
        "early": EarlyStage(early.layers, early.rotary, _embedding_rows(early, embedded)),
        "late": kind(late.layers, late.rotary, late.norm, _head_rows(late.head, predicted, late.divisor)),
    }
    manifest = Manifest(
        sizes=sizes_of(model.config, model.earn.early_layers, len(embedded), len(predicted)),
        limits=limits_of(model.earn, model.earn.item_rows(model.catalog.depth), max_batch, max_beams),
        model=_renumbered(
            replace(model.earn, token_ids=tuple(known)), {token: row for row, token in enumerate(embedded)}
        ),
        scoring=scoring,
        precision="fp32",
        files={},
        tools=_tools(),
    )
    for stage in stages.values():
        stage.eval()
    return BundleModel(stages, manifest, embedded, predicted)


class TorchEngine:
    """The stage modules behind the runtime's engine protocol."""

    device = HOST

    def __init__(self, stages: Mapping[str, nn.Module]) -> None:
        self._stages = stages

    @torch.no_grad()
    def run(self, stage: str, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Runs the stage and copies its outputs to where they belong."""
        module = self._stages[stage]
        device = next(module.parameters()).device
        results: dict[str, Tensor] = module(
            **{name: torch.tensor(array, device=device) for name, array in feeds.items()}
        )
        for name, array in outputs.items():
            array[...] = results[name].float().cpu().numpy()


def torch_recommender(model: EarnModel, scoring: str = "trie") -> Recommender:
    """A recommender over the model itself, before any export: the runtime's search on torch."""
    bundle = bundle_model(model, scoring)
    return Recommender(TorchEngine(bundle.stages), bundle.manifest, model.catalog)


@torch.no_grad()
def _embedding_rows(early: EarlyStage, rows: Sequence[int]) -> nn.Embedding:
    """The rows as they enter the first layer, by whatever they are multiplied."""
    device = next(early.embedding.parameters()).device
    cut: nn.Embedding = nn.Embedding.from_pretrained(early.embed(torch.tensor(rows, device=device)))
    return cut


def _head_rows(head: nn.Module, rows: Sequence[int], divisor: float) -> nn.Linear:
    """The rows that give these logits, divided as the family divides them."""
    weight = cast(Tensor, head.weight).detach()
    cut = nn.Linear(weight.shape[1], len(rows), bias=False)
    cut.weight = nn.Parameter(scaled(weight[list(rows)], 1 / divisor), requires_grad=False)
    return cut


def _renumbered(config: EarnConfig, bundle_id: Mapping[int, int]) -> EarnConfig:
    """The configuration with the bundle's token ids in place of the model's."""

    def of(tokens: Sequence[int]) -> tuple[int, ...]:
        return tuple(bundle_id[token] for token in tokens)

    return replace(
        config,
        prefix_ids=of(config.prefix_ids),
        suffix_ids=of(config.suffix_ids),
        prompt=Prompt(of(config.prompt.head), of(config.prompt.separator), of(config.prompt.tail)),
        token_ids=of(config.token_ids),
    )


def _tools() -> dict[str, str]:
    """Versions of what writes the bundle."""
    tools = {"earn-edge": earn.__version__, "python": platform.python_version()}
    for package in ("torch", "transformers", "optimum", "onnx", "onnxruntime"):
        try:
            tools[package] = version(package)
        except PackageNotFoundError:  # onnxruntime-gpu, or no exporter where only torch recommends
            continue
    return tools

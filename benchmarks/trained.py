"""A task of `benchmarks/peers.py` with the weights of a checkpoint and the histories of its data.

Dense sides get the checkpoint of a dense twin, if one is given, or else EARN's weights with k = N and registers as
text, which takes as long and recommends other items.

All sides get the model without the words that neither prompts nor items hold: the rest of a tokenizer's rows would only
cost the peers time, which normalise over the whole vocabulary. This runtime leaves them out of its bundles anyway.

Histories are those of a sample of test users. As they come, they are the newest items that the model was trained to
read. Where a longer prompt needs more items than a user has, the histories of the next users of the sample go before
them: times are those of such a prompt, but nobody chose so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel

from benchmarks.sides import AS_THEY_COME, HISTORIES, MOST_ITEMS, Task, as_text, check_depth
from earn.catalog import Catalog
from earn.config import BEAMS, EarnConfig, Prompt
from earn.data.dataset import load_dataset
from earn.errors import EarnError
from earn.model.earn_model import EarnModel
from earn.model.training import trained_on


@dataclass(frozen=True)
class TrainedTask(Task):
    """A task whose weights are those of checkpoints."""

    checkpoints: Mapping[str, Path]  # "earn" and "dense", which may be the same
    users: tuple[tuple[int, ...], ...]  # histories of test users, as item indices
    usual: int  # items that the model was trained to read

    def backbone(self, split: str = "dense") -> PreTrainedModel:
        """A split's weights over the tokens that are needed."""
        torch.set_num_threads(self.threads)
        backbone, _ = needed_tokens(EarnModel.from_pretrained(self.checkpoints[split]))
        backbone.eval()
        return backbone

    def histories(self, items: int) -> list[list[int]]:
        """HISTORIES histories of so many items, or as they come (module docstring)."""
        turns = [turn % len(self.users) for turn in range(HISTORIES)]
        if items == AS_THEY_COME:
            return [list(self.users[user][-self.usual :]) for user in turns]
        return [self._joined(user, items) for user in turns]

    def _joined(self, user: int, items: int) -> list[int]:
        """The user's newest items, and before them those of the next users where they are too few."""
        joined: list[int] = []
        while len(joined) < items:
            joined = [*self.users[user % len(self.users)], *joined]
            user += 1
        return joined[-items:]


def make_trained_task(checkpoint: Path, dense: Path | None, data: str | None, threads: int) -> TrainedTask:
    """The task of a checkpoint of EARN.

    Args:
        dense: the checkpoint of its dense twin (module docstring).
        data: whose test users are asked; None: what the checkpoint was trained on.

    Raises:
        EarnError: it does not name items by beams, its identifiers have several lengths, the twin is of other items, or
            the data is not what it was trained on.
    """
    model = EarnModel.from_pretrained(checkpoint)
    if model.method != BEAMS or model.is_dense:
        raise EarnError(f"{checkpoint}: no EARN checkpoint that names items by beams. Train one: earn train DATA")
    catalog = check_depth(model.catalog, model.catalog.depth)
    _, earn = needed_tokens(model)
    twin = as_text(earn, model.config.num_hidden_layers) if dense is None else _twin(dense, catalog)
    splits = {name: replace(config, max_history=MOST_ITEMS) for name, config in (("dense", twin), ("earn", earn))}
    checkpoints = {"earn": checkpoint, "dense": dense or checkpoint}
    users = _histories(data or trained_on(checkpoint), catalog, checkpoint)
    return TrainedTask(catalog, splits, threads, checkpoints, users, earn.max_history)


def needed_tokens(model: EarnModel) -> tuple[PreTrainedModel, EarnConfig]:
    """A model's backbone with the tokens alone that identifiers and prompts hold, and its settings in their new ids.

    Token 0 is in no identifier, as in random models. The model is taken apart.
    """
    earn, backbone = model.earn, model.backbone
    parts = (earn.prefix_ids, earn.prompt.head, earn.prompt.separator, earn.prompt.tail, earn.suffix_ids)
    identifiers = set(earn.token_ids)
    spare = next(token for token in range(backbone.config.vocab_size) if token not in identifiers)
    kept = list(dict.fromkeys((spare, *earn.token_ids, *(token for part in parts for token in part))))
    for layer in {backbone.get_input_embeddings(), backbone.get_output_embeddings()}:
        layer.weight = torch.nn.Parameter(layer.weight.detach()[kept])
    if backbone.config.tie_word_embeddings:
        backbone.tie_weights()
    backbone.config.vocab_size = len(kept)
    backbone.config.bos_token_id = backbone.config.pad_token_id = 0
    backbone.config.eos_token_id = None
    backbone.generation_config = GenerationConfig(bos_token_id=0, pad_token_id=0)
    own = {token: index for index, token in enumerate(kept)}
    prefix, head, separator, tail, suffix = (tuple(own[token] for token in part) for part in parts)
    token_ids, prompt = tuple(own[token] for token in earn.token_ids), Prompt(head, separator, tail)
    return backbone, replace(earn, prefix_ids=prefix, suffix_ids=suffix, token_ids=token_ids, prompt=prompt)


def _twin(checkpoint: Path, catalog: Catalog) -> EarnConfig:
    model = EarnModel.from_pretrained(checkpoint)
    if not model.is_dense or (model.catalog.item_ids, model.catalog.identifiers) != (
        catalog.item_ids,
        catalog.identifiers,
    ):
        raise EarnError(f"{checkpoint}: no dense twin of the model. Train one of the same items with --dense.")
    return needed_tokens(model)[1]


def _histories(data: str, catalog: Catalog, checkpoint: Path) -> tuple[tuple[int, ...], ...]:
    """The histories of a sample of test users, as indices of the catalog."""
    if not data:
        raise EarnError(f"{checkpoint}: it is not recorded what it was trained on. Give --data.")
    dataset = load_dataset(data)
    dataset.check_items(catalog, checkpoint)
    index = catalog.index.find(dataset.interactions.item_ids)
    return tuple(tuple(index[user.history].tolist()) for user in dataset.examples("test", HISTORIES))

"""The engines behind the sides of `benchmarks/sides.py`, what they read, and tasks of checkpoints.

Generate       Hugging Face's generate over the dense model, beams constrained to the catalog
CTranslate2    CTranslate2 over the dense model: products in int8, beams over the whole vocabulary
Runtime        this runtime over bundles: whole requests, or an open session

Each is made in a process of its own and asked there. They read what `write` writes:

    folder/bundles/<split>/fp32         exported with all rows of the head
    folder/bundles/<split>/<precision>  calibrated, without asking the gate
    folder/ctranslate2                  the dense weights in fp32

In a task of a checkpoint, dense sides get the checkpoint of a dense twin, if one is given, or else EARN's weights with
k = N and registers as text, which takes as long and recommends other items. All sides get the model without the words
that neither prompts nor items hold: the rest of a tokenizer's rows would only cost the peers time, which normalise over
the whole vocabulary. This runtime leaves them out of its bundles anyway.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from benchmarks import sides
from benchmarks.costs import request_figures
from benchmarks.sides import AS_THEY_COME, DEPTH, HISTORIES, ITEMS, MOST_ITEMS, Contender, History, Task, Tokens
from earn.catalog import Catalog
from earn.config import BEAMS, EarnConfig, Prompt
from earn.console import note
from earn.data.dataset import load_dataset
from earn.errors import EarnError
from earn.manifest import Manifest, limits_of
from earn.model.earn_model import EarnModel
from earn.model.reference import build_trie, descend
from earn.prompts import whole_prompt
from earn.runtime.cuda import Cuda
from earn.runtime.engine import Engine, load_engine
from earn.runtime.lists import Recommendation
from earn.runtime.recommender import Recommender
from earn.runtime.session import Session

REFINED = "int8-refined"  # the name of a bundle in int8 with refined activations; others are named by their precision
# Mean difference of log-probabilities from torch's, beside their spread; SmolLM2, with its outliers, has .0011
NEAR = {"float32": 0.003, "int8": 0.3}
# A backbone's model_type -> the class that reads it in ctranslate2.converters.transformers.
LOADERS = {"llama": "LlamaLoader", "mistral": "MistralLoader", "qwen2": "Qwen2Loader", "qwen3": "Qwen3Loader"}


class Generate:
    """Hugging Face's generate over the dense model."""

    def __init__(self, model: PreTrainedModel, config: EarnConfig, catalog: Catalog) -> None:
        """Takes a model in the token ids of the dense split's `config`."""
        self._model, self._config, self._index, self._depth = model, config, catalog.index, catalog.depth
        self._identifiers = sides.identifiers_of(catalog, config)
        self._trie = build_trie(self._identifiers)
        self._items: dict[tuple[int, ...], list[str]] = {}  # that an identifier names: one may name several
        for item_id, identifier in zip(catalog.item_ids, self._identifiers, strict=True):
            self._items.setdefault(identifier, []).append(item_id)
        self._held: list[int] = []  # bytes of keys and values after each pass of the last request
        model.register_forward_hook(self._look)

    @torch.no_grad()
    def search(self, histories: Sequence[History], beams: int, constrained: bool = True) -> list[list[str]]:
        """The best items of histories of one length; without the constraint only the work is done."""
        self._held.clear()
        prompts = [
            whole_prompt([self._identifiers[self._index[item_id]] for item_id in history], self._config)
            for history in histories
        ]
        tokens = torch.tensor(prompts, device=self._model.device)
        length = tokens.shape[1]

        def allowed(batch: int, sequence: Tensor) -> list[int]:
            return list(descend(self._trie, sequence[length:].tolist()))

        found = self._model.generate(  # type: ignore[operator]
            tokens,
            attention_mask=torch.ones_like(tokens),
            num_beams=beams,
            num_return_sequences=ITEMS,
            max_new_tokens=self._depth,
            do_sample=False,
            prefix_allowed_tokens_fn=allowed if constrained else None,
            early_stopping=True,
        )
        rows = found[:, length:].tolist() if constrained else []
        return [self.named(rows[start : start + ITEMS]) for start in range(0, len(rows), ITEMS)]

    def named(self, identifiers: Sequence[Tokens]) -> list[str]:
        """The first items that identifiers name."""
        return [item_id for identifier in identifiers for item_id in self._items[tuple(identifier)]][:ITEMS]

    def cache_bytes(self) -> int:
        """The most bytes of keys and values that it held for the last request."""
        return max(self._held)

    def _look(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        self._held.append(sum(keys.nbytes + values.nbytes for keys, values in output.past_key_values))


def make_generate(task: Task) -> Generate:
    """Hugging Face's side of a task."""
    return Generate(task.backbone("dense"), task.splits["dense"], task.catalog)


class CTranslate2:
    """The dense model in CTranslate2: products in int8, beam search in C++.

    Its generator takes no trie, so it searches the whole vocabulary: it is spared the catalog, and what it names need
    not exist. Everything else is the same: weights, prompt, beams, tokens to generate.
    """

    def __init__(self, folder: Path, threads: int, kind: str, depth: int = DEPTH) -> None:
        """Loads what `convert` wrote; `kind` is the type of its products, `depth` the tokens that it generates."""
        self._depth = depth
        self._generator = import_module("ctranslate2").Generator(
            str(folder), device="cpu", compute_type=kind, intra_threads=threads, inter_threads=1
        )

    def search(self, prompt: Tokens, beams: int, static: int) -> list[tuple[int, ...]]:
        """The best continuations; keys and values of the first `static` tokens are kept from prompt to prompt."""
        words = list(map(str, prompt))
        (found,) = self._generator.generate_batch(
            [words[static:]],
            static_prompt=words[:static] or None,
            cache_static_prompt=True,
            beam_size=beams,
            num_hypotheses=ITEMS,
            max_length=self._depth,
            min_length=self._depth,
            include_prompt_in_result=False,
            sampling_topk=1,
        )
        return [tuple(map(int, row)) for row in found.sequences]

    def log_probabilities(self, sequences: Sequence[Tokens]) -> Any:  # [sequences, tokens - 1]
        """Those of every token but the first."""
        scored = self._generator.score_batch([list(map(str, sequence)) for sequence in sequences])
        return np.array([found.log_probs for found in scored])


class Runtime:
    """This runtime over bundles in folder/<split>/<precision>; each is loaded when it is first asked."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._folder, self._threads = folder, threads
        self._engines: dict[Path, Engine] = {}
        self._recommenders: dict[Contender, Recommender] = {}
        self._session: Session  # once it is open

    def manifest(self, side: Contender) -> Manifest:
        """A side's, which takes histories of MOST_ITEMS.

        The graphs serve every rule, for nearly all tokens of these vocabularies are an identifier's.
        """
        own = Manifest.load(self._folder_of(side), verify=False)
        model, limits = replace(own.model, max_history=MOST_ITEMS), own.limits
        limits = limits_of(model, limits.depth, limits.batch, limits.beams)
        return replace(own, scoring=side.rule, model=model, limits=limits)

    def recommend(self, side: Contender, items: History, beams: int) -> list[Recommendation]:
        """A side's answer."""
        return self._recommender(side).recommend(items, ITEMS, beams)

    def open(self, side: Contender, items: History) -> None:
        """Opens a session, which takes the place of the one before."""
        self._session = self._recommender(side).session(items)

    def append(self, item: str) -> None:
        """The session's next item."""
        self._session.append(item)

    def show(self, beams: int) -> list[Recommendation]:
        """The session's list."""
        return self._session.recommend(ITEMS, beams)

    def figures(self, side: Contender, histories: Sequence[History], beams: int, requests: int) -> dict[str, Any]:
        """What a side does for a request (see `request_figures`)."""
        asked = [items for items in histories for _ in range(requests)]
        engine, folder = self._engine(side), self._folder_of(side)
        return request_figures(engine, self.manifest(side), folder, asked, beams, self._threads)

    def _folder_of(self, side: Contender) -> Path:
        return self._folder / side.split / side.precision

    def _engine(self, side: Contender) -> Engine:
        folder = self._folder_of(side)
        if folder not in self._engines:
            self._engines[folder] = load_engine("cpu", folder, Manifest.load(folder, verify=False), self._threads)
        return self._engines[folder]

    def _recommender(self, side: Contender) -> Recommender:
        if side not in self._recommenders:
            engine, folder = self._engine(side), self._folder_of(side)
            self._recommenders[side] = Recommender.with_engine(engine, folder, self.manifest(side))
        return self._recommenders[side]


def unload(recommenders: dict[str, Recommender]) -> None:
    """Forgets recommenders and gives the GPU its memory back."""
    devices = [recommender.decoder.device for recommender in recommenders.values()]
    recommenders.clear()
    gc.collect()
    for device in devices:
        if isinstance(device, Cuda):
            device.release()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def write(
    task: Task, folder: Path, items: Sequence[Sequence[int]], chosen: Mapping[str, Contender], int8: Path | None = None
) -> bool:
    """Writes bundles, and the model for CTranslate2 if it is installed; says whether it is.

    Args:
        items: histories as item indices, of which graphs are checked and calibrated.
        int8: the bundle of EARN in int8; None: one is made.
    """
    if has_ctranslate2 := find_spec("ctranslate2") is not None:
        backbone = task.backbone("dense")
        convert(backbone, folder / "ctranslate2")
        sequences = [[*task.prompt(history), *task.identifiers[history[0]]] for history in items]
        check_ctranslate2(folder / "ctranslate2", backbone, sequences, task.threads)
    else:
        note("without ctranslate2_int8, which is not installed: pip install ctranslate2")
    histories = list(map(task.item_ids, items))
    ours = [side for side in chosen.values() if side.kind in ("ours", "session")]
    for split in sorted({side.split for side in ours}):
        given = int8 if split == "earn" else None
        own = folder / "bundles" / split
        precisions = {side.precision for side in ours if side.split == split} - {"fp32", "int8" if given else ""}
        write_bundles(task.model(split), own, histories, sorted(precisions), "level" if split == "set" else "vocab")
        if given:
            (own / "int8").symlink_to(given.resolve(), target_is_directory=True)
    return has_ctranslate2


def write_bundles(
    model: EarnModel, folder: Path, histories: Sequence[History], calibrated: Sequence[str], scoring: str = "vocab"
) -> None:
    """Exports to folder/fp32 and calibrates to folder/<name>.

    No gate is asked: calibration only gives the graphs their form and ranges, for which few histories serve.
    """
    from earn.calibration.calibrate import CalibrationSettings, calibrate  # onnx: a machine with a GPU may lack it
    from earn.calibration.gate import HeldOut
    from earn.calibration.refine import LEVELS
    from earn.calibration.variants import MixedPrecision
    from earn.export.bundle import export_bundle

    note(f"exporting {folder.name}")
    export_bundle(model, folder / "fp32", histories[:1], scoring)
    gc.collect()  # the exporter leaves copies of the weights in cycles
    plain = CalibrationSettings(least_overlap=0, explain=False, compare=False, requests=0, feedback=False)
    users = HeldOut((tuple(histories[0]),), (histories[0][0],))
    for name in calibrated:
        note(f"calibrating {folder.name} to {name}")
        precision, refined = ("int8", LEVELS[0]) if name == REFINED else (name, ())
        settings = replace(plain, mixed=MixedPrecision(refined_kinds=refined))
        calibrate(folder / "fp32", folder / name, histories, users, precision, settings)
        gc.collect()


@torch.no_grad()
def check_ctranslate2(folder: Path, backbone: PreTrainedModel, sequences: Sequence[Tokens], threads: int) -> None:
    """Stops where it and torch differ in the log-probabilities of equally long sequences' tokens but the first."""
    tokens = torch.tensor(sequences)
    scores: Tensor = backbone(tokens).logits[:, :-1].log_softmax(-1)
    want = scores.gather(2, tokens[:, 1:, None])[..., 0].numpy()  # [sequences, tokens - 1]
    for kind, near in NEAR.items():
        got = CTranslate2(folder, threads, kind).log_probabilities(sequences)
        error = float(np.abs(got - want).mean() / want.std())
        note(f"ctranslate2 in {kind}: log-probabilities differ from torch's by {error:.2g} of their spread")
        if error > near:
            sys.exit("CTranslate2 does not compute the same model, so its times say nothing.")


def convert(backbone: PreTrainedModel, folder: Path) -> None:
    """Writes the weights for CTranslate2, which makes int8 of them when they are loaded.

    Raises:
        EarnError: they are of a family without a row in LOADERS.
    """
    note("converting for ctranslate2")
    family = backbone.config.model_type
    if family not in LOADERS:
        raise EarnError(
            f"CTranslate2 is asked for models of {', '.join(LOADERS)}, not of {family!r}. Take one of these."
        )
    loader = getattr(import_module("ctranslate2.converters.transformers"), LOADERS[family])()
    spec = loader.get_model_spec(deepcopy(backbone))  # which it takes apart
    # Token 0 is in no identifier; as the end it is held back until `min_length`, and more is never asked for.
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = "0"
    spec.register_vocabulary([str(token) for token in range(backbone.config.vocab_size)])
    spec.validate()
    spec.optimize(quantization="float32")
    folder.mkdir(parents=True)
    spec.save(str(folder))


@dataclass(frozen=True)
class TrainedTask(Task):
    """A task whose weights are those of checkpoints, and whose histories are those of a sample of test users.

    As they come, these are the newest items that the model was trained to read. Where a prompt needs more than a user
    has, the next users' histories go before them: times are those of such a prompt, but nobody chose so.
    """

    checkpoints: Mapping[str, Path]  # "earn" and "dense", which may be the same
    users: tuple[tuple[int, ...], ...]  # histories of test users, as item indices
    usual: int  # items that the model was trained to read

    def backbone(self, split: str = "dense") -> PreTrainedModel:
        """A split's weights over the tokens that are needed."""
        torch.set_num_threads(self.threads)
        backbone: PreTrainedModel = needed_tokens(EarnModel.from_pretrained(self.checkpoints[split]))[0].eval()
        return backbone

    def histories(self, items: int) -> list[list[int]]:
        """HISTORIES histories of so many items, or as they come."""
        users = [turn % len(self.users) for turn in range(HISTORIES)]
        if items == AS_THEY_COME:
            return [list(self.users[user][-self.usual :]) for user in users]
        newest_first = [chain.from_iterable(map(reversed, islice(cycle(self.users), user, None))) for user in users]
        return [[*islice(own, items)][::-1] for own in newest_first]


def make_trained_task(checkpoint: Path, dense: Path | None, data: str | None, threads: int) -> TrainedTask:
    """The task of a checkpoint of EARN.

    Args:
        dense: the checkpoint of its dense twin (module docstring).
        data: whose test users are asked; None: what the checkpoint was trained on.

    Raises:
        EarnError: it does not name items by beams, its identifiers have several lengths, the twin is of other items, or
            the data is not what it was trained on.
    """
    from earn.model.training import trained_on  # accelerate: a machine that asks models alone may lack it

    model = EarnModel.from_pretrained(checkpoint)
    if model.method != BEAMS or model.is_dense:
        raise EarnError(f"{checkpoint}: no EARN checkpoint that names items by beams. Train one: earn train DATA")
    catalog = sides.check_depth(model.catalog, model.catalog.depth)
    _, earn = needed_tokens(model)
    twin = sides.as_text(earn, model.config.num_hidden_layers)
    if dense is not None:
        other = EarnModel.from_pretrained(dense)
        items = (other.catalog.item_ids, other.catalog.identifiers)
        if not other.is_dense or items != (catalog.item_ids, catalog.identifiers):
            raise EarnError(f"{dense}: no dense twin of the model. Train one of the same items with --dense.")
        _, twin = needed_tokens(other)
    data = data or trained_on(checkpoint)
    if not data:
        raise EarnError(f"{checkpoint}: it is not recorded what it was trained on. Give --data.")
    dataset = load_dataset(data)
    dataset.check_items(catalog, checkpoint)
    index = catalog.index.find(dataset.interactions.item_ids)
    users = tuple(tuple(index[user.history].tolist()) for user in dataset.examples("test", HISTORIES))
    splits = {name: replace(config, max_history=MOST_ITEMS) for name, config in (("dense", twin), ("earn", earn))}
    checkpoints = {"earn": checkpoint, "dense": dense or checkpoint}
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

"""EARN over a Hugging Face backbone (paper, section 3): k dense layers, registers, and late layers that see only those.

A checkpoint is a Hugging Face folder: weights (safetensors), config.json with the EARN settings under "earn", the
tokenizer where there is one, and catalog.npz. Registers and identifier tokens are rows of the embedding table.

The dense baseline is the same class with k = N and no registers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from earn.catalog import CATALOG_FILE, Catalog
from earn.config import BEAMS, MASKED, SET, EarnConfig, Prompt, from_json, to_json
from earn.errors import EarnError, refuse
from earn.model.backbones import load_backbone
from earn.model.families import TINY_BACKBONES, check_backbone, family_of, rotary_of, setting, window_of
from earn.model.prompt_tokens import tokenize_prompt, without_bos
from earn.model.rope import longrope_window
from earn.model.stage import DenseHead, EarlyStage, LateStage
from earn.model.tokenizer import add_tokens, load_tokenizer
from earn.model.transformers_versions import TIED_HEAD
from earn.prompts import Template, prompt_rows

_log = logging.getLogger(__name__)

IGNORED = -100  # label of a row that predicts nothing


class EarnModel(PreTrainedModel):
    """A backbone split into an early and a late stage, with its catalog.

    Parameters carry the backbone's own names, so a checkpoint also loads as the plain Hugging Face model.
    """

    backbone: PreTrainedModel  # the plain Hugging Face model, which shares the parameters and writes the checkpoint
    method = BEAMS  # the one of its settings
    input_dropout = 0.0  # of the embedded prompt, which a training may set

    base_model_prefix = "model"
    # The stages compute attention themselves; a backbone that was loaded for another implementation serves as well.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True
    _tied_weights_keys = TIED_HEAD

    def __init__(
        self,
        backbone: PreTrainedModel,
        earn: EarnConfig,
        catalog: Catalog,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        check_backbone(backbone.config)
        if earn.method != self.method:
            raise EarnError(
                f"{type(self).__name__} is no model of the method {earn.method!r}. Take `model_class` of it."
            )
        refuse(earn_problems(earn, catalog, backbone.config))
        _mend_generation_settings(backbone)
        backbone.config.earn = to_json(earn)
        super().__init__(backbone.config)
        self.model = backbone.model
        self.lm_head = backbone.lm_head
        if self.config.tie_word_embeddings:  # one tensor under two names: the file holds it once
            self._keys_to_ignore_on_save = ["lm_head.weight"]  # type: ignore[assignment]
        self.earn = earn
        self.catalog = catalog
        self.tokenizer = tokenizer
        # Not a submodule: that would name every parameter twice.
        object.__setattr__(self, "backbone", backbone)

    @classmethod
    def from_backbone(
        cls,
        backbone: str | Path | PreTrainedModel,
        catalog: Catalog,
        early_layers: int | None = None,
        prefix_registers: int = 1,
        suffix_registers: int = 1,
        max_history: int = 20,
        template: Template | None = None,
        seed: int = 0,
        tokenizer: PreTrainedTokenizerBase | None = None,
        around_mean: bool | None = None,
        temperature: float = EarnConfig.temperature,
    ) -> EarnModel:
        """Adds identifier tokens and registers to a backbone.

        Args:
            backbone: a name of TINY_BACKBONES, a Hugging Face folder, or a loaded model, which becomes part of the new
                one: it is changed in place, and brought to float32.
            catalog: the items to recommend.
            early_layers: k; if None a quarter of the layers, or all of them without registers.
            prefix_registers: registers before the prompt; they replace the BOS that the tokenizer puts before a text.
            suffix_registers: registers after the prompt; the first code is read off the last one.
            max_history: items that the prompt holds.
            template: the text around the history; needs the folder's tokenizer, and is the default text where there is
                one. Without a tokenizer the prompt is identifiers alone.
            seed: of the new rows' noise (and of a tiny backbone's weights).
            tokenizer: of a loaded model; a folder's own is found there.
            around_mean: whether new rows of the embedding table start at the mean of the old ones (the paper leaves
                this open) or, with the same small noise, at zero; if None, at the mean unless `backbone` is the name of
                a tiny one.
            temperature: of a model that names all codes at once (see earn.model.set_model).

        Raises:
            EarnError: no such backbone, more early layers than there are, or a template without a tokenizer.
        """
        if around_mean is None:
            around_mean = str(backbone) not in TINY_BACKBONES
        if not isinstance(backbone, PreTrainedModel):
            tokenizer = tokenizer or load_tokenizer(backbone)
            backbone = load_backbone(backbone, seed)
        backbone.float()
        layers = backbone.config.num_hidden_layers
        registers = _register_tokens(prefix_registers, suffix_registers)
        if taken := set(registers) & set(catalog.tokens):
            raise EarnError(f"The catalog has an identifier token {min(taken)}, as a register has. Rename it.")
        token_ids = tuple(add_tokens(backbone, tokenizer, [*catalog.tokens, *registers], seed, around_mean))
        own_ids, register_ids = token_ids[: len(catalog.tokens)], token_ids[len(catalog.tokens) :]
        earn = EarnConfig(
            early_layers=default_early_layers(layers, bool(registers)) if early_layers is None else early_layers,
            prefix_ids=register_ids[:prefix_registers],
            suffix_ids=register_ids[prefix_registers:],
            prompt=tokenize_prompt(tokenizer, template, catalog, own_ids, backbone.config, not prefix_registers),
            token_ids=own_ids,
            max_history=max_history,
            method=cls.method,
            temperature=temperature,
        )
        return cls(backbone, earn, catalog, tokenizer)

    @classmethod
    def dense(
        cls,
        backbone: str | Path | PreTrainedModel,
        catalog: Catalog,
        max_history: int = 20,
        template: Template | None = None,
        seed: int = 0,
    ) -> EarnModel:
        """The dense baseline: the same backbone with k = N and no registers."""
        return cls.from_backbone(backbone, catalog, None, 0, 0, max_history, template, seed)

    @classmethod
    def from_dense(
        cls, dense: EarnModel, early_layers: int, prefix_registers: int = 1, suffix_registers: int = 1, seed: int = 0
    ) -> EarnModel:
        """A trained dense model's weights, which become part of the new one, split and with new registers.

        This is where an EARN training may start, and before it what the paper's ablation calls "without register
        training".

        Raises:
            EarnError: the model is not dense, or has fewer layers.
        """
        if not dense.is_dense or dense.earn.prefix_ids or dense.earn.suffix_ids:
            raise EarnError("The model is not dense: it has late layers or registers. Train one with --dense.")
        backbone, tokenizer = dense.backbone, dense.tokenizer
        registers = _register_tokens(prefix_registers, suffix_registers)
        register_ids = add_tokens(backbone, tokenizer, registers, seed, around_mean=True)
        prompt = dense.earn.prompt
        earn = replace(
            dense.earn,
            early_layers=early_layers,
            prefix_ids=tuple(register_ids[:prefix_registers]),
            suffix_ids=tuple(register_ids[prefix_registers:]),
            prompt=without_bos(prompt, backbone.config, tokenizer, dense.catalog) if prefix_registers else prompt,
        )
        return type(dense)(backbone, earn, dense.catalog, tokenizer)

    @property
    def is_dense(self) -> bool:
        """Whether there are no late layers."""
        layers: int = self.config.num_hidden_layers
        return self.earn.early_layers == layers

    @property
    def history_ids(self) -> list[int]:
        """The ids of all that histories are made of: those of the catalog's tokens."""
        return list(self.earn.token_ids)

    @property
    def identifiers(self) -> list[tuple[int, ...]]:
        """The catalog's items as they stand in a history: their identifiers in the model's token ids."""
        token_ids = self.earn.token_ids
        return [tuple(token_ids[code] for code in row if code >= 0) for row in self.catalog.codes.tolist()]

    def early_stage(self) -> EarlyStage:
        """Layers 1..k and the embedding, sharing this model's parameters."""
        layers = cast(Sequence[nn.Module], self.model.layers)
        multiplier = setting(self.config, family_of(self.config).embedding_multiplier)
        early = layers[: self.earn.early_layers]
        return EarlyStage(early, rotary_of(self.model), self.model.embed_tokens, multiplier)

    def late_stage(self) -> LateStage:
        """Layers k+1..N, the final norm and the head, sharing this model's parameters."""
        layers = cast(Sequence[nn.Module], self.model.layers)[self.earn.early_layers :]
        kind = LateStage if layers else DenseHead
        divisor = setting(self.config, family_of(self.config).logits_divisor)
        return kind(layers, rotary_of(self.model), self.model.norm, self.lm_head, divisor)

    def rows_logits(
        self, input_ids: Tensor, position_ids: Tensor, attention_bias: Tensor, keep: Tensor, predict: Tensor
    ) -> Tensor:
        """Uncached pass over whole sequences: the logits [b,p,v] of the rows that predict.

        Args:
            input_ids: [b,m].
            position_ids: [b,m].
            attention_bias: [b,1,m,m], who may see whom; the late stage keeps the part among the kept rows.
            keep: [r], the rows that go on to the late stage (registers and generated tokens), ascending.
            predict: [p], the rows to predict from, as places in `keep`.
        """
        return self.late_stage().read_off(self.rows_hidden(input_ids, position_ids, attention_bias, keep, predict))

    def rows_hidden(
        self, input_ids: Tensor, position_ids: Tensor, attention_bias: Tensor, keep: Tensor, predict: Tensor
    ) -> Tensor:
        """As `rows_logits`, but the hidden states [b,p,d] from which the logits are read."""
        early, late = self.early_stage(), self.late_stage()
        hidden = functional.dropout(early.embed(input_ids), self.input_dropout, self.training)
        hidden, _ = early.run(hidden, position_ids, attention_bias, None, keep)
        late_bias = attention_bias.index_select(2, keep).index_select(3, keep)
        hidden, _ = late.run(hidden, position_ids.index_select(1, keep), late_bias, None, predict)
        return hidden

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        visible: Tensor,
        keep: Tensor,
        predict: Tensor,
        labels: Tensor,
    ) -> dict[str, Tensor]:
        """The training loss: mean cross-entropy of what comes next over the rows that predict it.

        Args:
            input_ids: [b,m], a packed batch (see packing).
            position_ids: [b,m].
            visible: bool [b,m,m], who may see whom.
            keep: [r], likewise.
            predict: [p], likewise.
            labels: [b,p], token ids; IGNORED where nothing is predicted.
        """
        bias = torch.where(visible, 0.0, MASKED).unsqueeze(1)
        return {"loss": self.loss_of(self.rows_hidden(input_ids, position_ids, bias, keep, predict), labels)}

    def loss_of(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """The training loss [] of hidden states [b,p,d] and labels [b,p]."""
        logits = self.late_stage().read_off(hidden)
        return functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)

    def save_pretrained(self, save_directory: str | Path, **settings: Any) -> None:  # type: ignore[override]
        """Writes the checkpoint folder; `settings` go to Hugging Face's own save_pretrained."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.backbone.save_pretrained(folder, **settings)
        self.catalog.save(folder / CATALOG_FILE, with_trie=self.earn.method != SET)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> EarnModel:
        """Reads a checkpoint folder.

        Raises:
            EarnError: there is none, or it is not an EARN checkpoint.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise EarnError(
                f"{folder}: there is no checkpoint (no config.json). Train one: earn train DATA --out {folder}"
            )
        backbone = load_backbone(folder)
        settings = getattr(backbone.config, "earn", None)
        if settings is None:
            raise EarnError(
                f"{folder}: a plain Hugging Face model, not an EARN checkpoint. "
                f"Train one from it: earn train DATA --backbone {folder} --out CKPT"
            )
        earn = read_earn(settings, str(folder / "config.json"))
        catalog = Catalog.load(folder / CATALOG_FILE)
        return model_class(earn.method)(backbone, earn, catalog, load_tokenizer(folder))


def model_class(method: str) -> type[EarnModel]:
    """The class of models of a method, BEAMS or SET."""
    from earn.model.set_model import SetModel  # which derives from this module's class

    return SetModel if method == SET else EarnModel


def read_earn(settings: Mapping[str, Any], where: str) -> EarnConfig:
    """The EARN settings from their JSON form.

    Raises:
        EarnError: unknown or missing keys.
    """
    prompt = from_json(Prompt, settings.get("prompt", {}) if isinstance(settings, Mapping) else settings, where)
    return from_json(EarnConfig, {**settings, "prompt": prompt}, where)


def _register_tokens(prefix_registers: int, suffix_registers: int) -> list[str]:
    if min(prefix_registers, suffix_registers) < 0:
        raise EarnError(f"There cannot be {min(prefix_registers, suffix_registers)} registers. Take 0 or more.")
    return [
        f"<|{end}_{index}|>"
        for end, count in (("prefix", prefix_registers), ("suffix", suffix_registers))
        for index in range(count)
    ]


def default_early_layers(layers: int, has_registers: bool = True) -> int:
    """k where nobody names it: a quarter of the layers, or all of them without registers."""
    return max(1, layers // 4) if has_registers else layers


def earn_problems(earn: EarnConfig, catalog: Catalog, config: PretrainedConfig) -> Iterator[str]:
    """Why these settings do not fit the catalog or a backbone of this configuration."""
    if len(earn.token_ids) != len(catalog.tokens):
        yield (
            f"The model has {len(earn.token_ids)} identifier tokens, the catalog {len(catalog.tokens)}. "
            "Take the catalog that the model was made with."
        )
    layers = config.num_hidden_layers
    if not 1 <= earn.early_layers <= layers:
        yield f"early_layers is {earn.early_layers}; the backbone has {layers} layers. Take 1 to {layers}."
    if earn.max_history < 1:
        yield f"max_history is {earn.max_history}. Take at least 1 item."
    item_rows = earn.item_rows(catalog.depth)
    needed = prompt_rows(earn, item_rows) + item_rows
    limits = {
        "max_position_embeddings": config.max_position_embeddings,
        "sliding_window": window_of(config),
        "original_max_position_embeddings; longrope turns longer prompts by other angles": longrope_window(
            config.to_dict()
        ),
    }
    for name, limit in limits.items():
        if limit is not None and needed > limit:
            yield (
                f"A full prompt takes {needed} positions, and the backbone sees {limit} ({name}). Lower max_history, "
                f"which is {earn.max_history}, or shorten the prompt."
            )


def _mend_generation_settings(backbone: PreTrainedModel) -> None:
    """Replaces settings of `generate` that transformers would refuse to write; nothing here uses them."""
    settings = backbone.generation_config
    if settings is None:
        return
    try:
        settings.validate(strict=True)
    except ValueError as error:
        _log.warning("generation_config.json is replaced by the default one: %s", error)
        backbone.generation_config = GenerationConfig.from_model_config(backbone.config)

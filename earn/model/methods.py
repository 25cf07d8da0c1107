"""The ways to make a recommendation prompt and to name the next item, and models that use them.

    tiger   identifiers alone, as in TIGER (arXiv 2305.05065): the prompt is the history's codes
    lcrec   an instruction in words around the identifiers, read by the backbone's tokenizer, as in LC-Rec
            (arXiv 2311.09049); items' titles are learned beside the histories where there are any
    set     one row per item, and all codes of the next one at once, without beams (see earn.model.set_model); with
            the instruction in words where the backbone has a tokenizer

A tiny backbone has no words of its own. For "lcrec" it gets a tokenizer made of the titles, so that this way can be
tried without a pretrained model; what pretrained words would bring is then missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from earn.catalog import Catalog
from earn.config import BEAMS, SET, EarnConfig
from earn.errors import EarnError
from earn.model.backbones import load_backbone
from earn.model.earn_model import EarnModel, model_class
from earn.model.families import TINY_BACKBONES
from earn.model.neighbour_start import start_as_neighbours
from earn.model.tokenizer import has_tokenizer, load_tokenizer
from earn.prompts import Template

METHODS = {
    "tiger": "identifiers alone",
    "lcrec": "an instruction in words; titles are learned too",
    "set": "all codes at once",
}
SET_BACKBONE = "tiny-qwen2"  # has the biases that a start as neighbours needs (see earn.model.neighbour_start)
SET_SIZES = {  # of a backbone from scratch: wide, because the rows alone say what items are alike; and shallow
    "hidden_size": 256,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
TINY_WORDS = 2000  # tokens of a tokenizer that is made of titles
BOS = "<|bos|>"


def default_backbone(method: str | None) -> str:
    """The backbone from scratch that suits a method."""
    return SET_BACKBONE if method == "set" else "tiny-llama"


def default_method(backbone: str | Path) -> str:
    """The method that suits a backbone: words where it brings a tokenizer."""
    return "lcrec" if has_tokenizer(backbone) else "tiger"


def build_model(
    method: str,
    backbone: str | Path,
    catalog: Catalog,
    early_layers: int | None = None,
    registers: tuple[int, int] = (1, 1),
    max_history: int = 20,
    template: Template | None = None,
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
    temperature: float = EarnConfig.temperature,
    vectors: NDArray[np.float64] | None = None,
) -> EarnModel:
    """An untrained model of one of METHODS over a backbone.

    Args:
        early_layers: k; None: a quarter of the layers, or all of them without registers (the dense baseline).
        registers: how many before and after the prompt.
        template: the text of "lcrec", if not the default one.
        sizes: settings of the family's configuration that replace a tiny backbone's.
        temperature: of "set".
        vectors: of "set" over a tiny backbone: the items' [items,d], from which it starts
            (see earn.model.neighbour_start); d is SET_SIZES' width, unless `sizes` gives another.

    Raises:
        EarnError: no such method or backbone, sizes for a pretrained one, or words without a tokenizer.
    """
    if method not in METHODS:
        raise EarnError(f"There is no method {method!r}. Take one of: {', '.join(METHODS)}.")
    if method == "tiger" and template is not None:
        raise EarnError("The method tiger has no words in its prompt. Leave the template away, or take lcrec.")
    tiny = str(backbone) in TINY_BACKBONES
    if sizes and not tiny:
        raise EarnError(f"{backbone} has the sizes it was trained with. Leave {', '.join(sizes)} away.")
    tokenizer = None
    if method == "lcrec":
        tokenizer = words_of(catalog.titles) if tiny else load_tokenizer(backbone)
        if tokenizer is None:
            raise EarnError(f"{backbone} has no tokenizer, which the method lcrec needs. Take tiger.")
    if method == "set":
        tokenizer = None if tiny else load_tokenizer(backbone)
        sizes = {**SET_SIZES, **(sizes or {})} if tiny else sizes
    if tiny and tokenizer is not None:
        sizes = {**(sizes or {}), "vocab_size": len(tokenizer)}
    model = model_class(SET if method == "set" else BEAMS).from_backbone(
        load_backbone(backbone, seed, sizes),
        catalog,
        early_layers,
        *registers,
        max_history,
        template,
        seed,
        tokenizer,
        around_mean=not tiny,
        temperature=temperature,
    )
    if vectors is not None:
        start_as_neighbours(model, vectors)
    return model


def words_of(texts: Sequence[str], size: int = TINY_WORDS) -> PreTrainedTokenizerBase:
    """A byte-pair tokenizer of at most `size` tokens, of these texts and the default template; it puts BOS first."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=size,
        special_tokens=[BOS],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    template = Template()
    tokenizer.train_from_iterator([template.text, template.separator, *filter(None, texts)], trainer)
    tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS)

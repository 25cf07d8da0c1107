"""Small random folders as published recommenders are: their tokenizers know identifier tokens and a chat template."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from earn.catalog import Catalog
from tests.support import scramble, small_backbone

WORDS = "The user has interacted with items in order . Can you predict the next item ? ### Response : , ; system user"
BEGIN, END = "<|sid_begin|>", "<|sid_end|>"
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }} {{ message.content | trim }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)
TEXT = "The user has interacted with items {history} in order . Can you predict the next item ? ### Response : "
PADDED_ROWS = 192  # the next multiple of 64 after any of the tokenizers here


@dataclass(frozen=True)
class Publisher:
    """How a folder is written."""

    family: str
    letters: str  # of the levels
    form: str  # of a code
    wrapped: bool = False
    bos: bool = False  # the tokenizer puts BOS before a text

    def folder(self, path: Path) -> Path:
        """A random model whose tokenizer knows codes 0 to 9 of each level."""
        words = ["<unk>", "<s>", *dict.fromkeys(WORDS.split()), "assistant"]
        tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, "<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        if self.bos:
            tokenizer.post_processor = processors.TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", words.index("<s>"))]
            )
        codes = [self.form.format(letter, code) for letter in self.letters for code in range(10)]
        tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
        tokenizer.add_tokens([AddedToken(token) for token in ([BEGIN, END] if self.wrapped else []) + codes])
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>")
        fast.chat_template = CHAT
        fast.save_pretrained(path)
        backbone = small_backbone(self.family, vocab_size=PADDED_ROWS, tie_word_embeddings=False, pad_token_id=0)
        scramble(backbone)
        backbone.save_pretrained(path)
        return path

    def catalog(self) -> Catalog:
        """Items that share codes as items do."""
        numbers = [(a, b, a * b % 10, (a + b) % 10)[: len(self.letters)] for a, b in product((1, 4, 7), (0, 3, 8))]
        identifiers = tuple(
            tuple(self.form.format(letter, code) for letter, code in zip(self.letters, row, strict=True))
            for row in numbers
        )
        return Catalog(tuple(map(str, range(len(identifiers)))), identifiers, ("",) * len(identifiers))

    def text(self, catalog: Catalog, item: int) -> str:
        """An item as the publisher writes it."""
        name = "".join(catalog.identifiers[item])
        return f"{BEGIN}{name}{END}" if self.wrapped else name


PUBLISHERS = {
    "lc-rec": Publisher("tiny-llama", "abcd", "<{}_{}>", bos=True),
    "minionerec": Publisher("tiny-qwen2", "abc", "<{}_{}>"),
    "openonerec": Publisher("tiny-qwen3", "abc", "<s_{}_{}>", wrapped=True),
}

"""The prompt as token ids: [prefix registers | head | item | separator | item ... | tail | suffix registers]. No torch.

The part before the history is the same in every request, the constant head: nothing after it is seen by it, so its keys
and values are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from earn.config import EarnConfig
from earn.errors import EarnError

HISTORY, ITEM = "{history}", "{item}"


@dataclass(frozen=True)
class Template:
    """A prompt's text around the history, for models with a tokenizer.

    What stands before the history is computed once. What stands behind it is computed for every request, for every item
    that a session appends, and for every target of a training: so the default text has its words in front.
    """

    text: str = "The items that a user has chosen, oldest first, and then the item chosen next: {history}"
    separator: str = " "
    item: str = ""  # each item's identifier as {item} with text around it; "": in the wrapper that the tokenizer knows
    chat: bool = False  # the text is a user's message to the tokenizer's chat template, and an answer is begun
    system: str = ""  # a system message before it
    answer: str = ""  # text between all that and the item that is to be generated

    def parts(self) -> tuple[str, str, str]:
        """Head, separator and tail, without what a chat template adds.

        Raises:
            EarnError: the text does not hold "{history}" exactly once.
        """
        head, tail = split_once("template", self.text, HISTORY, "where the items are to stand")
        return head, self.separator, tail + self.answer


def split_once(what: str, text: str, mark: str, meaning: str) -> tuple[str, str]:
    """The text before and after a mark.

    Raises:
        EarnError: it does not hold the mark exactly once.
    """
    if text.count(mark) != 1:
        raise EarnError(f"The {what} {text!r} must hold {mark} exactly once, {meaning}.")
    before, after = text.split(mark)
    return before, after


def constant_head(config: EarnConfig) -> list[int]:
    """The tokens that start every prompt: prefix registers and head."""
    return [*config.prefix_ids, *config.prompt.head]


def prompt_end(config: EarnConfig) -> list[int]:
    """The tokens that end every prompt: tail and suffix registers."""
    return [*config.prompt.tail, *config.suffix_ids]


def history_tokens(items: Sequence[Sequence[int]], config: EarnConfig) -> list[int]:
    """The identifiers of a history's newest `max_history` items, oldest first, with separators between them."""
    tokens: list[int] = []
    for identifier in items[-config.max_history :]:
        if tokens:
            tokens += config.prompt.separator
        tokens += identifier
    return tokens


def whole_prompt(items: Sequence[Sequence[int]], config: EarnConfig) -> list[int]:
    """The prompt of a history, given as its items' identifiers in token ids, oldest first."""
    return [*constant_head(config), *history_tokens(items, config), *prompt_end(config)]


def readout_rows(config: EarnConfig) -> int:
    """How many of the prompt's last rows go on to the late stage: the suffix registers, or else the last token."""
    return max(1, len(config.suffix_ids))


def prompt_rows(config: EarnConfig, depth: int) -> int:
    """The most tokens that a prompt may have: full history, identifiers of `depth` tokens."""
    history = config.max_history * depth + (config.max_history - 1) * len(config.prompt.separator)
    return len(constant_head(config)) + history + len(prompt_end(config))

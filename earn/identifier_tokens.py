"""How published recommenders write identifiers: which tokens are codes, and which wrap an item. No torch.

    form       tokens                                                       written by
    <a_N>      <a_12><b_3><c_250><d_0>                                      LC-Rec, LETTER, MiniOneRec, this package
    <s_a_N>    <|sid_begin|><s_a_340><s_b_6566><s_c_5603><|sid_end|>        OpenOneRec

The letter is the level, the number the code. Wrappers say that an item begins or ends, not which one. So they are no
part of an identifier here: they stand in the prompt, around each item of the history and before the item that is to be
generated.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

# A new form is one more row: what stands for it in tables, and its level and code as groups.
FORMS: Mapping[str, re.Pattern[str]] = {
    "<a_N>": re.compile(r"<([a-z])_(\d+)>"),
    "<s_a_N>": re.compile(r"<s_([a-z])_(\d+)>"),
}
# Likewise of wrappers: what begins an item, what ends it.
WRAPPERS = (("<|sid_begin|>", "<|sid_end|>"), ("<|sid_start|>", "<|sid_end|>"))


@dataclass(frozen=True)
class Level:
    """The codes of one place in an identifier."""

    name: str  # its letter
    codes: int  # how many there are
    highest: int  # the largest number among them; codes that no item has may be missing


@dataclass(frozen=True)
class IdentifierTokens:
    """The identifier tokens that a vocabulary holds."""

    form: str  # one of FORMS
    levels: tuple[Level, ...]  # by letter
    wrapper: tuple[str, str] | None  # one of WRAPPERS


def identifier_tokens(vocabulary: Iterable[str]) -> IdentifierTokens | None:
    """The identifier tokens in a vocabulary, of the form that most of them have; None where there are none."""
    tokens = set(vocabulary)
    codes: dict[str, dict[str, list[int]]] = {form: {} for form in FORMS}
    for token in tokens:
        for form, pattern in FORMS.items():
            if match := pattern.fullmatch(token):
                codes[form].setdefault(match[1], []).append(int(match[2]))
    form = max(codes, key=lambda form: sum(map(len, codes[form].values())))
    levels = tuple(Level(name, len(numbers), max(numbers)) for name, numbers in sorted(codes[form].items()))
    return IdentifierTokens(form, levels, wrapper_in(tokens)) if levels else None


def wrapper_in(vocabulary: Collection[str]) -> tuple[str, str] | None:
    """The wrapper whose tokens a vocabulary holds."""
    return next((pair for pair in WRAPPERS if all(token in vocabulary for token in pair)), None)


def unwrapped(identifier: Sequence[str]) -> tuple[str, ...]:
    """An identifier without the wrapper's tokens at its ends."""
    begins, ends = ({pair[side] for pair in WRAPPERS} for side in (0, 1))
    first = 1 if identifier and identifier[0] in begins else 0
    last = len(identifier) - (1 if identifier and identifier[-1] in ends else 0)
    return tuple(identifier[first:last])

"""What a trained EARN model is, beside its weights: the split, the registers, the prompt, the sizes. No torch.

In a checkpoint this stands in the Hugging Face `config.json` under the key "earn".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from earn.errors import EarnError

T = TypeVar("T")

# Who may not see whom, as a number added to attention scores. exp(-30000) is 0 in every precision that is used, and the
# number itself fits into fp16.
MASKED = -30000.0

MOST_REGISTERS = 128  # at either end of a prompt

BEAMS, SET = "beams", "set"  # how a model names items: one code after the other, or all of them at once


@dataclass(frozen=True)
class ScoringRule:
    """How a token's log-probability is computed from the logits."""

    over: str  # tokens that it is normalised over: "children", "level" or "vocabulary" (see earn.runtime.beam)
    meaning: str  # the same in words
    needs_whole_head: bool = False  # the item head keeps all rows, not those of identifier tokens alone
    finishes_determined: bool = False  # a prefix that leads to one identifier has probability 1 from there on


# What else a new rule needs stands in docs/contributing.md.
SCORING_RULES: Mapping[str, ScoringRule] = {
    "trie": ScoringRule("children", "the children of this prefix in the item trie", finishes_determined=True),
    "level": ScoringRule("level", "the tokens that may stand at this depth of an identifier"),
    "vocab": ScoringRule(
        "vocabulary", "the model's whole vocabulary, as Hugging Face's generate does", needs_whole_head=True
    ),
}


def check_scoring(rule: str) -> str:
    """The rule, if there is such a rule.

    Raises:
        EarnError: there is none of that name.
    """
    if rule not in SCORING_RULES:
        raise EarnError(f"There is no scoring rule {rule!r}. Take one of: {', '.join(SCORING_RULES)}.")
    return rule


@dataclass(frozen=True)
class Prompt:
    """The prompt's fixed parts as token ids: head, then items with separators between them, then tail.

    The registers stand around it: prefix registers before the head, suffix registers after the tail.
    """

    head: tuple[int, ...] = ()  # instruction before the history; with a dense model also the BOS token
    separator: tuple[int, ...] = ()  # between two items
    tail: tuple[int, ...] = ()  # instruction after the history


@dataclass(frozen=True)
class EarnConfig:
    """The split of the backbone, its registers, its prompt and its identifier tokens, in the model's token ids."""

    early_layers: int  # k: layers that see every token
    prefix_ids: tuple[int, ...]  # token ids of the prefix registers, () in a dense model
    suffix_ids: tuple[int, ...]  # token ids of the suffix registers, () in a dense model
    prompt: Prompt
    token_ids: tuple[int, ...]  # token id of each identifier token, in the catalog's order
    max_history: int = 20  # items of a history that the prompt holds; the newest are kept
    positions: str = "original"  # of the late stage's rows: as in the whole prompt; files still name this one choice
    method: str = BEAMS  # or SET (see earn.model.set_model)
    temperature: float = 0.07  # of SET: by which cosines of outputs and digits are divided

    def __post_init__(self) -> None:
        if self.method not in (BEAMS, SET):
            raise EarnError(f"The model's method is {self.method!r}. Use the version of earn-edge that trained it.")
        if not self.temperature > 0:  # also true of nan
            raise EarnError(f"The temperature is {self.temperature}. Take one above 0.")
        if self.positions != "original":
            raise EarnError(
                f"The model has {self.positions!r} positions, which were removed: rows of the late stage keep those "
                "of the whole prompt. Train it again, or use the version of earn-edge that trained it."
            )
        most = max(len(self.prefix_ids), len(self.suffix_ids))
        if most > MOST_REGISTERS:
            raise EarnError(f"There are {most} registers at one end of the prompt. Take {MOST_REGISTERS} at the most.")

    def item_rows(self, depth: int) -> int:
        """Rows that an item of the history takes at the most: one for each of its `depth` codes, or one for all."""
        return 1 if self.method == SET else depth


def to_json(value: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values."""
    result: dict[str, Any] = asdict(value)
    return result


def from_json(cls: type[T], value: Mapping[str, Any], where: str) -> T:
    """A frozen dataclass of numbers, texts and tuples from JSON; keys that it does not know are refused.

    Args:
        cls: the dataclass; fields that hold a dataclass must be passed ready-made in `value`.
        where: names the source in messages, such as "CKPT/config.json".

    Raises:
        EarnError: a key is unknown or missing, or a value is not of its field's type.
    """
    remedy = "Write it again with this version of earn-edge."
    if not isinstance(value, Mapping):
        raise EarnError(f"{where}: {str(value)[:40]!r} stands where {cls.__name__} belongs. {remedy}")
    kinds = {field.name: str(field.type) for field in fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(value) - set(kinds)):
        raise EarnError(f"{where}: unknown key {unknown[0]!r}, perhaps of another version. {remedy}")
    ready = {name: _tuples(item) for name, item in value.items()}
    for name, item in ready.items():
        if kinds[name] in _FITS and not _FITS[kinds[name]](item):
            raise EarnError(f"{where}: {name!r} is {value[name]!r}, not {kinds[name]}. {remedy}")
    try:
        return cls(**ready)
    except TypeError as error:
        raise EarnError(f"{where}: {error}. {remedy}") from error


# Which values fit a field, by the type that it is declared with; fields of other types are not looked at.
_FITS: Mapping[str, Callable[[Any], bool]] = {
    "int": lambda value: isinstance(value, int),
    "str": lambda value: isinstance(value, str),
    "tuple[int, ...]": lambda value: isinstance(value, tuple) and all(isinstance(item, int) for item in value),
}


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples, all the way down."""
    return tuple(map(_tuples, value)) if isinstance(value, Sequence) and not isinstance(value, str) else value

"""A prompt's fixed parts in token ids, as the tokenizer gives them when the whole text is read at once.

A text is not the sum of its parts: tokenizers add a space in front of a text, or treat what follows a special token in
their own way. So the text is written out with two items of the catalog, tokenized whole, and cut where these items'
tokens stand:

    head                           separator                     tail
    before | begin | ITEM | end | between | begin | ITEM | end | after | answer | begin | (generated)

Begin and end are what wraps each item. The prompt ends with the wrapper's beginning, so that generation starts with the
first code. The wrapper's end, which is determined, is not generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from earn.catalog import Catalog
from earn.config import Prompt
from earn.errors import EarnError
from earn.identifier_tokens import wrapper_in
from earn.prompts import HISTORY, ITEM, Template, split_once


def tokenize_prompt(
    tokenizer: PreTrainedTokenizerBase | None,
    template: Template | None,
    catalog: Catalog,
    token_ids: Sequence[int],
    config: PretrainedConfig,
    with_bos: bool,
) -> Prompt:
    """The prompt of a template; without a tokenizer that of identifiers alone.

    Args:
        tokenizer: of the model, which knows the identifier tokens.
        template: the text around the history; None: the default one.
        catalog: the items.
        token_ids: the ids of the catalog's tokens.
        config: the backbone's, which names BOS where there is no tokenizer.
        with_bos: whether the text begins with what the tokenizer itself puts before one. What a chat template writes
            stays in any case.

    Raises:
        EarnError: the template lacks a mark or there is no tokenizer for it, there is no chat template or it refuses
            the messages, or the tokenizer reads the text otherwise for other items.
    """
    if tokenizer is None:
        if template is not None:
            raise EarnError("A prompt template needs a tokenizer, and the backbone's folder has none. Leave it away.")
        return Prompt(head=_bos_without_tokenizer(config) if with_bos else ())
    template = template or Template()
    before, after = split_once("prompt", _rendered(tokenizer, template), HISTORY, "where the items are to stand")
    begin, end = _item_parts(tokenizer, template)
    after += template.answer + begin
    before, between, after = before + begin, end + template.separator + begin, end + after

    names = tuple("".join(catalog.identifiers[item]) for item in (0, -1))
    ids = dict(zip(catalog.tokens, token_ids, strict=True))
    items = tuple([ids[token] for token in catalog.identifiers[item]] for item in (0, -1))
    whole = before + names[0] + between + names[1] + after
    bos = bos_of(tokenizer, whole) if with_bos and not template.chat else ()
    if set(catalog.tokens) <= tokenizer.get_added_vocab().keys():  # which stay whole in any text
        parts = _cut(_encode(tokenizer, whole), *items)
        other = before + names[1] + between + names[0] + after
        if parts is None or parts != _cut(_encode(tokenizer, other), *reversed(items)):
            raise EarnError(
                f"The tokenizer reads the prompt {whole!r} otherwise for other items. Separate items from words by "
                "spaces or wrappers (separator, item), or leave words out that are identifier tokens."
            )
    else:  # ordinary words, which a text may join with others, or words that it was not told of (see _new_ids)
        parts = [_encode(tokenizer, text) for text in (before, between, after)]
    head, separator, tail = map(tuple, parts)
    return Prompt((*bos, *head), separator, tail)


def without_bos(
    prompt: Prompt, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None, catalog: Catalog
) -> Prompt:
    """The prompt without the BOS that stands before it, for prefix registers take its place."""
    bos = _bos_without_tokenizer(config) if tokenizer is None else bos_of(tokenizer, catalog.tokens[0])
    return replace(prompt, head=prompt.head[len(bos) :]) if prompt.head[: len(bos)] == bos else prompt


def bos_of(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """What the tokenizer itself puts before a text: BOS, or nothing."""
    plain, special = _encode(tokenizer, text), tokenizer.encode(text, add_special_tokens=True)
    start = _find(special, plain, 0)
    return tuple(special[: max(start, 0)])


def _bos_without_tokenizer(config: PretrainedConfig) -> tuple[int, ...]:
    return () if config.bos_token_id is None else (int(config.bos_token_id),)


def _rendered(tokenizer: PreTrainedTokenizerBase, template: Template) -> str:
    """The template's text, as a chat where one is wanted."""
    split_once("template", template.text, HISTORY, "where the items are to stand")
    if not template.chat:
        if template.system:
            raise EarnError("A system message belongs to a chat. Set chat (--chat), or write it into the template.")
        return template.text
    if not tokenizer.chat_template:
        raise EarnError("The tokenizer has no chat template. Leave chat (--chat) away, or add chat_template.jinja.")
    messages = [{"role": "system", "content": template.system}] if template.system else []
    messages.append({"role": "user", "content": template.text})
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except ImportError:
        raise
    except Exception as error:  # jinja raises classes of its own, and templates raise errors on purpose
        raise EarnError(
            f"The chat template refuses the messages ({error}). Change them, or leave --chat away."
        ) from error
    return str(text)


def _item_parts(tokenizer: PreTrainedTokenizerBase, template: Template) -> tuple[str, str]:
    if template.item:
        return split_once("item's text", template.item, ITEM, "where the identifier is to stand")
    return wrapper_in(tokenizer.get_vocab().keys()) or ("", "")


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False) if text else []
    return ids


def _cut(tokens: list[int], first: Sequence[int], second: Sequence[int]) -> list[list[int]] | None:
    """What stands before, between and after the two items; None where they are not found."""
    start = _find(tokens, first, 0)
    middle = _find(tokens, second, start + len(first)) if start >= 0 else -1
    if middle < 0:
        return None
    return [tokens[:start], tokens[start + len(first) : middle], tokens[middle + len(second) :]]


def _find(tokens: Sequence[int], part: Sequence[int], start: int) -> int:
    """Where a part first stands at or after `start`; -1 where it does not."""
    places = range(start, len(tokens) - len(part) + 1)
    return next((place for place in places if list(tokens[place : place + len(part)]) == list(part)), -1)

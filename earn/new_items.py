"""Items that a model was not trained on, named by codes that it knows.

Their codes are given, or made of their vectors or texts where the catalog has a quantizer (see earn.digits,
earn.quantizer). A new item's score is that of its codes, as for every item. Where items also have a digit of their own,
a new item has none that the model knows; it takes that of the trained item with which it shares most digits, so it is
expected to be chosen about as often as that one. Where a model has a row per item, the same item stands for it in a
history.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from earn.catalog import OFFERED, REMOVED, Catalog, Identifiers
from earn.digits import Digits
from earn.errors import EarnError
from earn.trie import Codes


@dataclass(frozen=True)
class NewItems:
    """Items to be added to a catalog.

    Raises:
        EarnError: fields disagree in length.
    """

    item_ids: Sequence[str]
    titles: Sequence[str] = ()  # one per item, which are shown; none: unknown
    metadata: Sequence[str] = ()  # one per item: words that say more, such as genre or brand
    vectors: ArrayLike | None = None  # [items,c], made as the catalog's were; None: they are made of title and metadata
    identifiers: Sequence[Sequence[str]] = ()  # one per item, tokens of the catalog; none: they are made of the vectors

    def __post_init__(self) -> None:
        parts = (self.titles, self.metadata, self.identifiers)
        counts = [len(self.item_ids), *(len(part) for part in parts if len(part))]
        if self.vectors is not None:
            counts.append(len(np.asarray(self.vectors)))
        if len(set(counts)) > 1:
            raise EarnError(
                f"There are {counts[0]} new items, but {counts[1:]} titles, metadata, identifiers or vectors. Give one "
                "per item."
            )

    @property
    def texts(self) -> list[str]:
        """What is said about each item."""
        titles, metadata = self.titles or [""] * len(self.item_ids), self.metadata or [""] * len(self.item_ids)
        return [f"{title} {words}" for title, words in zip(titles, metadata, strict=True)]

    def __getitem__(self, chosen: Sequence[int]) -> NewItems:
        """Some of them, by index."""
        ids, titles, metadata = (
            [part[index] for index in chosen] if len(part) else []
            for part in (self.item_ids, self.titles, self.metadata)
        )
        vectors = None if self.vectors is None else np.asarray(self.vectors)[chosen]
        identifiers = [self.identifiers[index] for index in chosen] if len(self.identifiers) else []
        return NewItems(ids, titles, metadata, vectors, identifiers)


def with_new_items(catalog: Catalog, items: NewItems, has_rows: bool = False) -> Catalog:
    """The catalog with new items after its own. Items that were removed come back, with the identifier they had.

    Args:
        catalog: the catalog.
        items: the items.
        has_rows: whether the model has a row per item, so that another one is read for each new one in a history.

    Raises:
        EarnError: an id is known already, or an item's identifier, or its vector, cannot be made.
    """
    ids = list(map(str, items.item_ids))
    indices = catalog.index.find(ids)
    is_known = indices >= 0
    stays = is_known & (catalog.status[indices] != REMOVED)
    if stays.any() or len(set(ids)) < len(ids):
        twice = ids[int(stays.argmax())] if stays.any() else Counter(ids).most_common(1)[0][0]
        raise EarnError(f"The item id {twice!r} stands twice in the catalog. Keep one of them.")
    catalog = _brought_back(catalog, indices[is_known], items[np.flatnonzero(is_known).tolist()])
    items = items[np.flatnonzero(~is_known).tolist()]
    if not items.item_ids:
        return catalog
    codes = _given(catalog, items) if items.identifiers else _quantized(catalog, items)
    alike = np.array(
        [(catalog.codes[: catalog.trained, : codes.shape[1]] == row).sum(axis=1).argmax() for row in codes], np.int32
    )
    whole = np.column_stack([codes, catalog.codes[alike, codes.shape[1] :]]).astype(np.int32)
    return replace(
        catalog,
        item_ids=(*catalog.item_ids, *map(str, items.item_ids)),
        identifiers=Identifiers(np.concatenate((catalog.codes, whole)), catalog.tokens),
        titles=(*catalog.titles, *(items.titles or [""] * len(items.item_ids))),
        status=np.pad(catalog.status, (0, len(whole))),
        read_as=np.concatenate((catalog.read_as, alike)) if has_rows else catalog.read_as,
    )


def _brought_back(catalog: Catalog, indices: NDArray[np.int64], items: NewItems) -> Catalog:
    """The catalog with removed items offered again, under their new titles where these are given.

    Raises:
        EarnError: one is to have another identifier: histories hold it under the one that it had.
    """
    if not len(indices):
        return catalog
    titles, status = list(catalog.titles), catalog.status.copy()
    status[indices] = OFFERED
    for place, index in enumerate(indices.tolist()):
        had = catalog.identifiers[index]
        if items.identifiers and tuple(items.identifiers[place]) != had:
            raise EarnError(
                f"The item {items.item_ids[place]!r} was removed and had the identifier {' '.join(had)}, and histories "
                "hold it so. Add it with this one, or under another id."
            )
        titles[index] = (items.titles[place] if items.titles else "") or titles[index]
    return replace(catalog, titles=titles, status=status)


def _given(catalog: Catalog, items: NewItems) -> Codes:  # [items, depth]
    """The codes of identifiers that were given: tokens that stand at the same place in others, as many as others have.

    Raises:
        EarnError: other ones.
    """
    number = {token: code for code, token in enumerate(catalog.tokens)}
    levels = [set(level.tolist()) for level in catalog.trie.level_tokens]
    lengths = {int(length) for length in np.unique((catalog.codes >= 0).sum(axis=1))}
    codes = np.full((len(items.item_ids), catalog.depth), -1, np.int32)
    example = " ".join(catalog.identifiers[0])
    for item_id, identifier, row in zip(items.item_ids, items.identifiers, codes, strict=True):
        if len(identifier) not in lengths:
            raise EarnError(
                f"The item {item_id!r} has the identifier {' '.join(identifier)!r} of {len(identifier)} codes; this "
                f"catalog's have {' or '.join(map(str, sorted(lengths)))}. Give one such as {example!r}."
            )
        for depth, token in enumerate(identifier):
            if number.get(token, -1) not in levels[depth]:
                raise EarnError(
                    f"The item {item_id!r} has the code {token!r} in place {depth + 1}, where no trained item has it. "
                    f"Give codes that the model knows, in their places, such as {example!r}."
                )
            row[depth] = number[token]
    return codes


def _quantized(catalog: Catalog, items: NewItems) -> Codes:  # [items, digits of vectors]
    """The codes nearest to the items' vectors, or those of their texts.

    Raises:
        EarnError: the catalog has no quantizer, or another catalog's, or an item's vector cannot be made.
    """
    quantizer = catalog.quantizer
    if quantizer is None:
        raise EarnError(
            "The catalog does not hold what makes codes of new items. Give each one's identifier, of codes that the "
            f"model knows, such as {' '.join(catalog.identifiers[0])!r}; that of an item that is like it will do. Or "
            "train with --method set and digits of vectors, such as --digits 16, and export again."
        )
    codes = quantizer.codes(quantizer.read(items.texts) if items.vectors is None else items.vectors)
    known, quantized = Digits.of(catalog), codes.shape[1]
    if known.sizes[:quantized].tolist() != [len(centers) for centers in quantizer.centers]:
        raise EarnError("The quantizer is not of the catalog's digits. Export the checkpoint again.")
    return (codes + known.starts[:quantized]).astype(np.int32)

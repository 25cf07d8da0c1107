"""Items that a model was not trained on, named by the digits of their vectors (see earn.digits, earn.quantizer).

A new item's score is that of its digits, as for every item. Where items also have a digit of their own, a new item has
none that the model knows; it takes that of the known item with which it shares most digits, so it is expected to be
chosen about as often as that one. The same item stands for it in a history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from earn.catalog import Catalog
from earn.digits import Digits
from earn.errors import EarnError


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

    def __post_init__(self) -> None:
        counts = [len(self.item_ids), *(len(part) for part in (self.titles, self.metadata) if len(part))]
        if self.vectors is not None:
            counts.append(len(np.asarray(self.vectors)))
        if len(set(counts)) > 1:
            raise EarnError(
                f"There are {counts[0]} new items, but {counts[1:]} titles, metadata or vectors. Give one per item."
            )

    @property
    def texts(self) -> list[str]:
        """What is said about each item."""
        titles, metadata = self.titles or [""] * len(self.item_ids), self.metadata or [""] * len(self.item_ids)
        return [f"{title} {words}" for title, words in zip(titles, metadata, strict=True)]


def with_new_items(catalog: Catalog, items: NewItems) -> tuple[Catalog, NDArray[np.int64]]:
    """The catalog with new items after its own, and of each new one the item that is most like it.

    Raises:
        EarnError: the catalog has no quantizer, or an item's vector cannot be made or an id is known already.
    """
    quantizer = catalog.quantizer
    if quantizer is None:
        raise EarnError(
            "The catalog does not hold what makes digits of new items. Train with --method set and digits of vectors, "
            "such as --digits 16, and export again."
        )
    vectors = quantizer.read(items.texts) if items.vectors is None else items.vectors
    known, codes = Digits.of(catalog), quantizer.codes(vectors)
    quantized = codes.shape[1]
    if known.sizes[:quantized].tolist() != [len(centers) for centers in quantizer.centers]:
        raise EarnError("The quantizer is not of the catalog's digits. Export the checkpoint again.")
    codes += known.starts[:quantized]
    alike = np.array([(known.codes[:, :quantized] == row).sum(axis=1).argmax() for row in codes], np.int64)
    whole = np.column_stack([codes, known.codes[alike, quantized:]])
    tokens = catalog.tokens
    grown = replace(
        catalog,
        item_ids=(*catalog.item_ids, *map(str, items.item_ids)),
        identifiers=(*catalog.identifiers, *(tuple(tokens[code] for code in row) for row in whole.tolist())),
        titles=(*catalog.titles, *(items.titles or [""] * len(items.item_ids))),
    )
    return grown, alike

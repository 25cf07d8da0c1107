"""Digits of items, for the method that predicts all codes at once: product quantization of the items' vectors.

    vectors     as `earn.data.identifiers` makes them, of what users did and what items say
    rotation    centred, turned to the principal axes and then at random, so that every part says about as much
    digit j     k-means over the j-th part of the turned vectors; the digit is the number of the cluster

Digits have no order, and items may share all of them. An identifier reads `<d0_12><d1_250>...`. The digit `<i_7>` has
a value per item, the item's index.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from earn.catalog import Catalog
from earn.data.formats import Interactions
from earn.data.identifiers import codebook_size, item_vectors
from earn.errors import EarnError

DEFAULT_DIGITS = "items"
MOST_DIGITS = 64
_FORM = re.compile(r"(\d+)?(?:(?:^|(?<=\d)\+)(items))?")


@dataclass(frozen=True)
class DigitForm:
    """What an item's digits are, as a command names it: `16`, `items` or `16+items`."""

    quantized: int  # digits from the item's vector
    has_items: bool  # a digit with a value per item

    @classmethod
    def of(cls, text: str) -> DigitForm:
        """Reads the form.

        Raises:
            EarnError: it is none of these, or has more than MOST_DIGITS digits.
        """
        match = _FORM.fullmatch(text)
        form = cls(int(match[1] or 0), match[2] is not None) if match else cls(0, False)
        if not (form.quantized or form.has_items) or form.quantized > MOST_DIGITS:
            raise EarnError(f"digits is {text!r}. Give a number up to {MOST_DIGITS}, items, or both, such as 16+items.")
        return form


def build_digits(
    interactions: Interactions,
    train_sequences: Sequence[NDArray[np.int64]],
    form: str = DEFAULT_DIGITS,
    codebook: int | None = None,
    seed: int = 0,
) -> Catalog:
    """A catalog whose identifiers are digits (module docstring).

    Args:
        interactions: the items with titles and metadata; the sequences in it are not read.
        train_sequences: item indices per user, the training part only.
        form: see `DigitForm`. Where vectors have fewer components, there are as many digits as these.
        codebook: values per digit; None chooses `codebook_size(items)`, 256 at the most.
        seed: fixes the result.

    Raises:
        EarnError: no such form, or nothing is known about any item.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

    wanted, items = DigitForm.of(form), len(interactions.item_ids)
    columns: list[list[str]] = []
    if wanted.quantized:
        with threadpool_limits(1):  # sums of several threads are added in the order in which they end
            vectors = item_vectors(interactions, train_sequences, seed)
            codes = quantize(vectors, wanted.quantized, codebook or codebook_size(items), seed)
        columns += [[f"<d{digit}_{code}>" for code in column] for digit, column in enumerate(codes.T.tolist())]
    if wanted.has_items:
        columns.append([f"<i_{item}>" for item in range(items)])
    return Catalog(interactions.item_ids, tuple(zip(*columns, strict=True)), interactions.titles)


def quantize(
    vectors: NDArray[np.float64], digits: int, codebook: int, seed: int
) -> NDArray[np.int64]:  # [items, digits]
    """Product quantization after a rotation that spreads the variance over all parts (module docstring)."""
    from sklearn.cluster import KMeans

    turned = _turned(vectors, seed)
    codes = []
    for digit, part in enumerate(np.array_split(turned, min(digits, turned.shape[1]), axis=1)):
        distinct = len(np.unique(part.round(6), axis=0))  # more clusters than that cannot be told apart
        means = KMeans(min(codebook, distinct), n_init=1, random_state=seed + digit).fit(part)
        _, numbers = np.unique(means.labels_, return_inverse=True)
        codes.append(numbers.astype(np.int64))
    return np.column_stack(codes)


def _turned(vectors: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """The vectors [items,components] on their principal axes, those without variance left out, turned at random."""
    centred = vectors - vectors.mean(axis=0)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    kept = max(1, int((sizes > 1e-9 * max(sizes[0], 1e-300)).sum()))
    noise = np.random.default_rng(seed).standard_normal((kept, kept))
    rotation, _ = np.linalg.qr(noise)
    turned: NDArray[np.float64] = centred @ axes[:kept].T @ rotation
    return turned

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
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from earn.catalog import Catalog
from earn.data.formats import Interactions
from earn.data.identifiers import codebook_size, item_vectors
from earn.errors import EarnError
from earn.quantizer import Quantizer, TextReader, nearest, unit, words_of

DEFAULT_DIGITS = "items"
MOST_DIGITS = 64
MOST_WORDS = 20_000  # that a text reader knows, the most frequent ones: 2.5 MB
TOPICS = 32
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
    quantizer = None
    if wanted.quantized:
        with threadpool_limits(1):  # sums of several threads are added in the order in which they end
            vectors = item_vectors(interactions, train_sequences, seed)
            quantizer = fit_quantizer(vectors, wanted.quantized, codebook or codebook_size(items), seed)
            quantizer = replace(quantizer, text=text_reader(interactions, vectors, seed))
            codes = quantizer.codes(vectors)
        columns += [[f"<d{digit}_{code}>" for code in column] for digit, column in enumerate(codes.T.tolist())]
    if wanted.has_items:
        columns.append([f"<i_{item}>" for item in range(items)])
    return Catalog(interactions.item_ids, tuple(zip(*columns, strict=True)), interactions.titles, quantizer)


def fit_quantizer(vectors: NDArray[np.float64], digits: int, codebook: int, seed: int) -> Quantizer:
    """Product quantization after a rotation that spreads the variance over all parts (module docstring).

    Args:
        vectors: [items,components].
    """
    from sklearn.cluster import KMeans

    mean = vectors.mean(axis=0)
    rotation = _rotation(vectors - mean, seed)
    single, turn = mean.astype(np.float32), rotation.astype(np.float32)
    turned = (vectors.astype(np.float32) - single) @ turn
    centers = []
    for digit, part in enumerate(np.array_split(turned, min(digits, turned.shape[1]), axis=1)):
        distinct = len(np.unique(part.round(6), axis=0))  # more clusters than that cannot be told apart
        means = KMeans(min(codebook, distinct), n_init=1, random_state=seed + digit).fit(part)
        found = means.cluster_centers_.astype(np.float32)
        centers.append(found[np.unique(nearest(part, found))])  # those that items have
    return Quantizer(single, turn, tuple(centers))


def text_reader(interactions: Interactions, vectors: NDArray[np.float64], seed: int) -> TextReader | None:
    """What makes the vector of a new item from its words; None where no word stands in two items.

    Args:
        vectors: [items,components] of the items.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [words_of(text) for text in interactions.texts]
    try:
        reader = TfidfVectorizer(analyzer=list, sublinear_tf=True, min_df=2, max_features=MOST_WORDS)
        matrix = reader.fit_transform(texts)
    except ValueError:  # as scikit-learn says that no word is left
        return None
    topics = min(TOPICS, min(matrix.shape) - 1)
    if topics < 1:
        return None
    svd = TruncatedSVD(topics, random_state=seed).fit(matrix)
    known = unit(svd.transform(matrix))
    has_words = known.any(axis=1)
    bridge, *_ = np.linalg.lstsq(known[has_words], vectors[has_words], rcond=None)
    arrays = (reader.idf_, svd.components_.T, bridge)
    idf, axes, bridge = (np.ascontiguousarray(array, np.float32) for array in arrays)
    return TextReader(tuple(reader.get_feature_names_out().tolist()), idf, axes, bridge)


def _rotation(centred: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Turns vectors [items,components] to their principal axes, but those without variance, and then at random."""
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    kept = max(1, int((sizes > 1e-9 * max(sizes[0], 1e-300)).sum()))
    noise = np.random.default_rng(seed).standard_normal((kept, kept))
    turn, _ = np.linalg.qr(noise)
    rotation: NDArray[np.float64] = axes[:kept].T @ turn
    return rotation

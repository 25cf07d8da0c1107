"""Building identifiers for items that have none: residual k-means over what users did and what items say.

    user part    truncated SVD of the matrix items x users of the training interactions, weighted as tf-idf,
                 rows scaled to length 1
    word part    truncated SVD of the tf-idf of title and metadata, rows scaled to WORD_WEIGHT;
                 it alone places an item that has no training interaction
    vector       both parts, side by side, scaled to length 1
    level 1..L   k-means over what the levels before left of the vectors; a code is the number of its cluster
    last code    numbers the items that share all codes so far, the most trained on first

Beyond SMALL items k-means runs in mini-batches. `cached_catalog` keeps the codes in the cache folder
(`earn.data.download.cache_folder`) as identifiers/SHA256.npy, by the SHA-256 of the items, the training part and the
settings; whether the cache can be written changes nothing else.

An identifier reads `<a_12><b_3><c_7><d_0>`; no two items share one, and near items share their
beginnings. Only the training part of the data is used, and the same seed gives the same identifiers.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earn.catalog import Catalog
from earn.data.download import cache_folder
from earn.data.formats import Interactions
from earn.data.splits import flat, item_counts
from earn.errors import EarnError
from earn.files import written_whole
from earn.quantizer import unit, words_of

COMPONENTS = 32  # of each part's SVD
WORD_WEIGHT = 0.5  # of the word part beside the user part's 1
LARGEST_CODEBOOK = 256
SMALL = 20_000  # items: above, k-means takes mini-batches (54,542 items: 47 s whole)
BATCH = 8192  # vectors per mini-batch
CACHED = 1_000  # items: fewer take less than a second
VERSION = 1  # of the computation, in the sum: raise it when the same inputs give other codes
MOST_LEVELS = 25  # one letter each, and one for the last code


def build_catalog(
    interactions: Interactions,
    train_sequences: Sequence[NDArray[np.int64]],
    codebook: int | None = None,
    levels: int = 3,
    seed: int = 0,
) -> Catalog:
    """Gives every item an identifier of its own (module docstring).

    Args:
        interactions: the items with titles and metadata; the sequences in it are not read.
        train_sequences: item indices per user, the training part only.
        codebook: codes per level; None chooses `codebook_size(items)`.
        levels: how many levels are clustered; identifiers have one token more.
        seed: fixes the result.

    Raises:
        EarnError: codebook or levels out of range, or nothing is known about any item.
    """
    return _catalog(interactions, _codes(interactions, train_sequences, codebook, levels, seed))


def cached_catalog(
    interactions: Interactions, train_sequences: Sequence[NDArray[np.int64]], levels: int = 3, seed: int = 0
) -> Catalog:
    """As `build_catalog`, but codes that were built before are read from the cache (module docstring)."""
    if len(interactions.item_ids) < CACHED:
        return build_catalog(interactions, train_sequences, None, levels, seed)
    path = cache_folder() / "identifiers" / f"{_sum(interactions, train_sequences, levels, seed)}.npy"
    try:
        return _catalog(interactions, np.load(path))
    except (OSError, ValueError, EOFError):  # not there, or damaged
        pass
    codes = _codes(interactions, train_sequences, None, levels, seed)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as beside, beside.open("wb") as file:
            np.save(file, codes)
    return _catalog(interactions, codes)


def _sum(interactions: Interactions, train_sequences: Sequence[NDArray[np.int64]], levels: int, seed: int) -> str:
    """The SHA-256 of all that the codes depend on."""
    import sklearn

    lengths = [len(sequence) for sequence in train_sequences]
    settings = [VERSION, sklearn.__version__, COMPONENTS, WORD_WEIGHT, SMALL, BATCH, levels, seed]
    words = [interactions.titles, interactions.metadata]
    digest = hashlib.sha256(json.dumps([settings, lengths, words]).encode())
    for sequence in train_sequences:
        digest.update(sequence.tobytes())
    return digest.hexdigest()


def _codes(
    interactions: Interactions,
    train_sequences: Sequence[NDArray[np.int64]],
    codebook: int | None,
    levels: int,
    seed: int,
) -> NDArray[np.int64]:  # [items, levels + 1]
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

    if not 1 <= levels <= MOST_LEVELS:
        raise EarnError(f"levels is {levels}. Give a number from 1 to {MOST_LEVELS}.")
    if codebook is not None and codebook < 1:
        raise EarnError(f"codebook is {codebook}. Give at least one code per level.")
    items = len(interactions.item_ids)
    with threadpool_limits(1):  # sums of several threads are added in the order in which they end
        vectors = item_vectors(interactions, train_sequences, seed)
        codes = _residual_codes(vectors, codebook or codebook_size(items), levels, seed)
    return np.column_stack([codes, numbers_within(codes, item_counts(train_sequences, items))])


def _catalog(interactions: Interactions, codes: NDArray[np.int64]) -> Catalog:
    """The catalog whose identifiers have these codes [items, tokens]."""
    if len(codes) != len(interactions.item_ids):
        raise ValueError(f"{len(codes)} codes for {len(interactions.item_ids)} items")
    identifiers = tuple(
        tuple(f"<{chr(ord('a') + level)}_{code}>" for level, code in enumerate(row)) for row in codes.tolist()
    )
    return Catalog(interactions.item_ids, identifiers, interactions.titles)


def disambiguated(catalog: Catalog, train_sequences: Sequence[NDArray[np.int64]]) -> Catalog:
    """Appends a last code to identifiers that several items share: 0 for the one most trained on, then 1, ...

    The others stay as they are. No identifier becomes the beginning of another, for all of a shared one's items get a
    code.

    Args:
        catalog: the items and their identifiers.
        train_sequences: item indices per user, the training part only.
    """
    shared = Counter(catalog.identifiers)
    numbers = numbers_within(catalog.codes, item_counts(train_sequences, len(catalog))).tolist()
    identifiers = (
        (*identifier, f"<{chr(ord('a') + len(identifier))}_{number}>") if shared[identifier] > 1 else identifier
        for identifier, number in zip(catalog.identifiers, numbers, strict=True)
    )
    return replace(catalog, identifiers=tuple(identifiers))


def codebook_size(items: int) -> int:
    """The power of two next to 2 * sqrt(items): dozens of items per first code, few that share all."""
    return min(LARGEST_CODEBOOK, 1 << round(math.log2(2 * math.sqrt(items))))


def item_vectors(
    interactions: Interactions, train_sequences: Sequence[NDArray[np.int64]], seed: int
) -> NDArray[np.float64]:  # [items, components]
    """What users did and what items say (module docstring), each row of length 1.

    Raises:
        EarnError: nothing is known about any item.
    """
    weighted = (
        (1.0, _user_matrix(train_sequences, len(interactions.item_ids))),
        (WORD_WEIGHT, word_matrix(interactions)),
    )
    parts = [weight * _factors(matrix, seed) for weight, matrix in weighted if matrix is not None]
    if not parts:
        raise EarnError(
            f"{interactions.name}: no training interaction, title or metadata says anything about the items. "
            "Give a longer training part, or titles."
        )
    return unit(np.hstack(parts))


def _user_matrix(train_sequences: Sequence[NDArray[np.int64]], items: int) -> Any | None:
    """tf-idf of the training interactions, sparse [items, users]."""
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfTransformer

    users, rows = flat(train_sequences)
    if not rows.size:
        return None
    counts = csr_matrix((np.ones(len(rows)), (rows, users)), shape=(items, len(train_sequences)))
    return TfidfTransformer(sublinear_tf=True).fit_transform(counts)


def word_matrix(interactions: Interactions) -> Any | None:
    """tf-idf of titles and metadata, sparse [items, words]."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = [words_of(text) for text in interactions.texts]
    return TfidfVectorizer(analyzer=list, sublinear_tf=True).fit_transform(words) if any(words) else None


def _factors(matrix: Any, seed: int) -> NDArray[np.float64]:  # [items, components]
    from sklearn.decomposition import TruncatedSVD

    components = min(COMPONENTS, min(matrix.shape) - 1)
    if components < 1:  # one item, or one column: nothing to reduce
        return unit(matrix.toarray())
    return unit(TruncatedSVD(components, random_state=seed).fit_transform(matrix))


def _residual_codes(
    vectors: NDArray[np.float64], codebook: int, levels: int, seed: int
) -> NDArray[np.int64]:  # [items, levels]
    from sklearn.cluster import KMeans, MiniBatchKMeans

    rest, codes = vectors, []
    for level in range(levels):
        distinct = len(np.unique(rest.round(6), axis=0))  # more clusters than that cannot be told apart
        clusters = min(codebook, distinct)
        if len(vectors) <= SMALL:
            means = KMeans(clusters, n_init=1, random_state=seed + level).fit(rest)
        else:
            means = MiniBatchKMeans(clusters, batch_size=BATCH, n_init=1, random_state=seed + level).fit(rest)
        codes.append(means.labels_.astype(np.int64))
        rest = rest - means.cluster_centers_[means.labels_]
    return np.column_stack(codes)


def numbers_within(codes: NDArray[Any], counts: NDArray[np.int64]) -> NDArray[np.int64]:  # [items]
    """Numbers the items of equal codes [items, tokens] 0, 1, ..., by falling count, ties by index."""
    _, group = np.unique(codes, axis=0, return_inverse=True)
    order = np.lexsort((-counts, group.reshape(-1)))  # [items]; numpy 2.0 gives the groups another shape
    sizes = np.bincount(group.reshape(-1))
    numbers = np.empty_like(order)
    numbers[order] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return numbers

"""What an item says -> its vector -> its digits, in numpy alone: all that a new item needs to be recommended.

    words [w]    tf-idf of the text's words: (1 + log count) * idf, scaled to length 1; others count 0
    topics [p]   words @ axes (a truncated SVD), scaled to length 1
    vector [c]   topics @ bridge (least squares from topics to the catalog's vectors), scaled to length 1; or given
    turned [t]   (vector - mean) @ rotation
    digit j      which of its centers is nearest to the j-th part of the turned vector; parts as numpy.array_split makes

`quantizer.npz` stands beside the catalog of a checkpoint and a bundle whose digits were made of vectors:
    mean      float32 [c]
    rotation  float32 [c, t]
    sizes     int32 [m], values per digit
    centers   float32 [values of all digits, the widest part], zeros after a narrower part's end
and, where items say something,
    words     UTF-8 text joined by newlines (uint8)
    idf       float32 [w]
    axes      float32 [w, p]
    bridge    float32 [p, c]
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from earn.arrays import ArrayForm, read_arrays
from earn.errors import EarnError
from earn.files import written_whole

QUANTIZER_FILE = "quantizer.npz"
MOST_UNPACKED = 256 << 20  # bytes
BLOCK = 4096  # vectors whose distances are computed at once

Floats = NDArray[np.float32]
_AXES = {"mean": 1, "rotation": 2, "centers": 2, "idf": 1, "axes": 2, "bridge": 2}
_FORMS = {
    **{name: ArrayForm("<f4", axes) for name, axes in _AXES.items()},
    "sizes": ArrayForm("<i4", 1),
    "words": ArrayForm("|u1", 1),
}


@dataclass(frozen=True)
class TextReader:
    """Makes vectors of texts."""

    words: tuple[str, ...]  # [w]
    idf: Floats  # [w]
    axes: Floats  # [w,p]
    bridge: Floats  # [p,c]

    @cached_property
    def _index(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.words)}

    def vectors(self, texts: Sequence[str]) -> Floats:  # [texts,c]
        """The texts' vectors.

        Raises:
            EarnError: a text has no word that is known.
        """
        topics = np.zeros((len(texts), self.axes.shape[1]), np.float32)
        for row, text in zip(topics, texts, strict=True):
            counts = Counter(self._index[word] for word in words_of(text) if word in self._index)
            if not counts:
                raise EarnError(
                    f"The catalog's items share no word with {text!r}, so nothing is known about it. Give its vector, "
                    "or say more about it."
                )
            known = np.fromiter(counts, np.int64)
            row += ((1 + np.log(np.fromiter(counts.values(), np.float32))) * self.idf[known]) @ self.axes[known]
        return unit(unit(topics) @ self.bridge)


@dataclass(frozen=True)
class Quantizer:
    """Makes digits of vectors."""

    mean: Floats  # [c]
    rotation: Floats  # [c,t]
    centers: tuple[Floats, ...]  # of each digit [values,part]
    text: TextReader | None = None  # None where no text was known

    def codes(self, vectors: ArrayLike) -> NDArray[np.int64]:  # [n,m]
        """The digits of vectors [n,c], each counted from 0.

        Raises:
            EarnError: they have another shape, or hold what is no finite number.
        """
        given = np.asarray(vectors, np.float32)
        if given.ndim != 2 or given.shape[1] != len(self.mean) or not np.isfinite(given).all():
            raise EarnError(
                f"The vectors have the shape {list(given.shape)}, or hold what is no finite number. Give finite ones "
                f"[items, {len(self.mean)}], made as those of the catalog were."
            )
        turned = (given - self.mean) @ self.rotation
        parts = np.array_split(turned, len(self.centers), axis=1)
        return np.column_stack([nearest(part, centers) for part, centers in zip(parts, self.centers, strict=True)])

    def read(self, texts: Sequence[str]) -> Floats:  # [texts,c]
        """The vectors of texts.

        Raises:
            EarnError: it reads no text, or knows no word of one.
        """
        if self.text is None:
            raise EarnError("The catalog's items had no texts, so none can be read. Give vectors of the new items.")
        return self.text.vectors(texts)

    def save(self, path: Path) -> None:
        """Writes `quantizer.npz` (format above), whole or not at all."""
        widest = max(centers.shape[1] for centers in self.centers)
        padded = [np.pad(centers, ((0, 0), (0, widest - centers.shape[1]))) for centers in self.centers]
        sizes = np.array([len(centers) for centers in self.centers], np.int32)
        text: dict[str, Any] = {} if self.text is None else asdict(self.text)
        if text:
            text["words"] = np.frombuffer("\n".join(text["words"]).encode(), np.uint8)
        with written_whole(path) as beside, beside.open("wb") as file:
            np.savez_compressed(
                file, mean=self.mean, rotation=self.rotation, sizes=sizes, centers=np.concatenate(padded), **text
            )

    @classmethod
    def load(cls, path: Path) -> Quantizer:
        """Reads `quantizer.npz`.

        Raises:
            EarnError: not such a file.
        """
        try:
            with path.open("rb") as file:
                arrays = read_arrays(file, _FORMS, MOST_UNPACKED)
            return _from_arrays(arrays)
        except (OSError, KeyError, ValueError) as error:
            raise EarnError(
                f"{path}: not a readable quantizer ({error}). Write the checkpoint or bundle again."
            ) from error


def words_of(text: str) -> list[str]:
    """The words that count, in lower case."""
    return re.findall(r"\w+", text.lower())


def unit(rows: NDArray[Any]) -> NDArray[Any]:
    """The rows scaled to length 1; zeros stay zeros."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: NDArray[Any] = np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
    return scaled


def nearest(vectors: NDArray[Any], centers: NDArray[Any]) -> NDArray[np.int64]:  # [n]
    """Which of the centers is nearest to each vector; the first of equally near ones."""
    half = (centers**2).sum(1) / 2
    blocks = [vectors[start : start + BLOCK] for start in range(0, len(vectors), BLOCK)]
    return np.concatenate([np.zeros(0, np.int64), *((half - block @ centers.T).argmin(1) for block in blocks)])


def _from_arrays(arrays: dict[str, NDArray[Any]]) -> Quantizer:
    mean, rotation, sizes, centers = (arrays[name] for name in ("mean", "rotation", "sizes", "centers"))
    widths = [len(part) for part in np.array_split(np.arange(rotation.shape[1]), max(1, len(sizes)))]
    if (sizes < 1).any() or (len(mean), int(sizes.sum()), max(widths)) != (len(rotation), *centers.shape):
        raise ValueError(f"centers {list(centers.shape)} of {sizes.tolist()} values, rotation {list(rotation.shape)}")
    if not 1 <= len(sizes) <= rotation.shape[1]:
        raise ValueError(f"{len(sizes)} digits of vectors with {rotation.shape[1]} components")
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise ValueError("it holds what is no finite number")
    blocks = np.split(centers, np.cumsum(sizes)[:-1])
    own = tuple(np.ascontiguousarray(block[:, :width]) for block, width in zip(blocks, widths, strict=True))
    if "words" not in arrays:
        return Quantizer(mean, rotation, own)
    words = tuple(arrays["words"].tobytes().decode().split("\n"))
    idf, axes, bridge = arrays["idf"], arrays["axes"], arrays["bridge"]
    if (len(words), len(words), axes.shape[1], len(mean)) != (len(idf), len(axes), *bridge.shape):
        raise ValueError(f"{len(words)} words, idf {list(idf.shape)}, axes {list(axes.shape)}, {list(bridge.shape)}")
    return Quantizer(mean, rotation, own, TextReader(words, idf, axes, bridge))

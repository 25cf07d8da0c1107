"""From words to vectors to digits in numpy alone, beside scikit-learn and the slow way; the file that holds it all."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from earn.catalog import CATALOG_FILE, Catalog
from earn.data.digits import build_digits, fit_quantizer, text_reader
from earn.data.identifiers import item_vectors
from earn.digits import Digits
from earn.errors import EarnError
from earn.quantizer import QUANTIZER_FILE, Quantizer
from tests.data.test_digits import interactions


def test_digits_are_the_nearest_centers() -> None:
    vectors = np.random.default_rng(0).normal(size=(80, 7))
    quantizer = fit_quantizer(vectors, 3, 8, 0)
    turned = (vectors - quantizer.mean) @ quantizer.rotation
    assert [centers.shape[1] for centers in quantizer.centers] == [3, 2, 2]
    for row, codes in zip(turned, quantizer.codes(vectors), strict=True):
        for part, centers, code in zip(np.split(row, [3, 5]), quantizer.centers, codes, strict=True):
            assert code == ((part - centers) ** 2).sum(axis=1).argmin()
    assert [len(centers) for centers in quantizer.centers] == [8, 8, 8]


def test_an_items_digits_are_those_of_its_vector() -> None:
    data = interactions()
    catalog = build_digits(data, data.sequences, "4+items", seed=3)
    assert catalog.quantizer is not None
    digits = Digits.of(catalog)
    codes = catalog.quantizer.codes(item_vectors(data, data.sequences, 3))
    assert (codes == (digits.codes - digits.starts)[:, :4]).all()


def test_texts_become_what_scikit_learn_and_least_squares_make_of_them() -> None:
    data = interactions()
    vectors = item_vectors(data, data.sequences, 0)
    reader = text_reader(data, vectors, 0)
    assert reader is not None
    matrix = TfidfVectorizer(analyzer=lambda text: re.findall(r"\w+", text.lower()), sublinear_tf=True, min_df=2)
    counts = matrix.fit_transform(data.texts)
    topics = TruncatedSVD(reader.axes.shape[1], random_state=0).fit(counts).transform(counts)
    topics /= np.linalg.norm(topics, axis=1, keepdims=True)
    want = topics @ np.linalg.lstsq(topics, vectors, rcond=None)[0]
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    assert np.abs(reader.vectors(data.texts) - want).max() < 1e-5
    with pytest.raises(EarnError, match="share no word with 'Quince'"):
        reader.vectors(["Quince"])


@pytest.mark.parametrize("has_text", [True, False])
def test_a_catalog_keeps_its_quantizer(tmp_path: Path, has_text: bool) -> None:
    data = interactions()
    texts = data.titles if has_text else tuple("" for _ in data.titles)
    data = type(data)(data.name, data.item_ids, texts, data.metadata, data.user_ids, data.sequences, None)
    catalog = build_digits(data, data.sequences, "5")
    catalog.save(tmp_path / CATALOG_FILE)
    again = Catalog.load(tmp_path / CATALOG_FILE)
    assert again == catalog
    assert again.quantizer is not None
    vectors = item_vectors(data, data.sequences, 0)
    assert (again.quantizer.codes(vectors) == catalog.quantizer.codes(vectors)).all()  # type: ignore[union-attr]
    if has_text:
        assert (again.quantizer.read(["a red fruit"]) == catalog.quantizer.read(["a red fruit"])).all()  # type: ignore[union-attr]
    else:
        with pytest.raises(EarnError, match="had no texts"):
            again.quantizer.read(["a red fruit"])
    for wrong in (vectors[:, :-1], vectors[0], np.full_like(vectors, np.nan)):
        with pytest.raises(EarnError, match="The vectors have the shape"):
            again.quantizer.codes(wrong)


@pytest.mark.parametrize("name", ["mean", "rotation", "sizes", "centers", "words", "idf", "axes", "bridge"])
def test_a_quantizer_that_does_not_fit_together_is_refused(tmp_path: Path, name: str) -> None:
    data, path = interactions(), tmp_path / QUANTIZER_FILE
    quantizer = build_digits(data, data.sequences, "5").quantizer
    assert quantizer is not None
    quantizer.save(path)
    arrays = dict(np.load(path))
    arrays[name] = arrays[name][:-1] if name != "words" else np.frombuffer(b"one\ntwo", np.uint8)
    np.savez(path, **arrays)
    with pytest.raises(EarnError, match="not a readable quantizer"):
        Quantizer.load(path)
    del arrays[name]
    np.savez(path, **arrays)
    if name != "words":
        with pytest.raises(EarnError, match="not a readable quantizer"):
            Quantizer.load(path)

"""Digits: their forms, product quantization, and the catalog that they make."""

from __future__ import annotations

import numpy as np
import pytest

from earn.data.digits import DigitForm, build_digits, fit_quantizer
from earn.data.formats import Interactions
from earn.digits import Digits
from earn.errors import EarnError
from tests.data.tables import toy


def interactions(items: int = 30) -> Interactions:
    """Two kinds of items, told apart by their words and by who chose them."""
    kinds = [("red apple fruit", "green pear fruit")[item % 2] + f" n{item}" for item in range(items)]
    generator = np.random.default_rng(0)
    sequences = tuple(2 * generator.integers(0, items // 2, 8) + user % 2 for user in range(20))
    return toy(sequences, items, kinds)


@pytest.mark.parametrize(
    ("text", "form"), {"16": (16, False), "items": (0, True), "8+items": (8, True), "64": (64, False)}.items()
)
def test_forms(text: str, form: tuple[int, bool]) -> None:
    assert DigitForm.of(text) == DigitForm(*form)


@pytest.mark.parametrize("text", ["", "0", "65", "-3", "+items", "16+", "16items", "item", "16+items+items", "1.5"])
def test_other_texts_are_no_forms(text: str) -> None:
    with pytest.raises(EarnError, match="digits is"):
        DigitForm.of(text)


@pytest.mark.parametrize("form", ["4", "items", "4+items"])
def test_every_item_gets_digits(form: str) -> None:
    data = interactions()
    catalog = build_digits(data, data.sequences, form, seed=3)
    digits = Digits.of(catalog)
    assert catalog.item_ids == data.item_ids
    assert digits.codes.shape == (30, {"4": 4, "items": 1, "4+items": 5}[form])
    assert catalog == build_digits(data, data.sequences, form, seed=3)
    if "items" in form:
        assert [identifier[-1] for identifier in catalog.identifiers] == [f"<i_{item}>" for item in range(30)]
        assert digits.weights.tolist() == ([1.0] if form == "items" else [1.0, 1.0, 1.0, 1.0, 4.0])


def test_clusters_of_vectors_become_digits() -> None:
    generator = np.random.default_rng(0)
    kind = generator.integers(0, 4, 60)
    vectors = generator.normal(size=(4, 8))[kind] + 1e-3 * generator.normal(size=(60, 8))
    codes = fit_quantizer(vectors, 2, 4, 0).codes(vectors)
    assert codes.shape == (60, 2)
    same = (codes[:, None] == codes[None]).all(-1)
    assert (same == (kind[:, None] == kind[None])).all()


def test_there_are_no_more_digits_than_components() -> None:
    flat = np.outer(np.arange(10.0), np.ones(6))  # one direction alone
    assert fit_quantizer(flat, 4, 4, 0).codes(flat).shape == (10, 1)
    alike = np.ones((5, 3))
    assert fit_quantizer(alike, 4, 4, 0).codes(alike).tolist() == [[0]] * 5

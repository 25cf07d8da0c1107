"""Cells as ids, times and numbers. Arrays come from pyarrow and leave as numpy's.

Ids stay text as written (`007`, `1e5`), without blanks around them. Numbers become text: 7 is "7", and 2.0, which is
what pandas makes of a column with gaps, is "2".

Times become whole nanoseconds. The unit of numbers is told from their size, and all times of a table must agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earn.data.import_options import UNITS
from earn.data.tables.columns import NUMBER, WHOLE
from earn.errors import EarnError

Where = Callable[[int], str]  # from a row's index in its batch to the words for messages: file and line

MISSING = ("", "nan", "NaN", "NAN", "None", "null", "NULL", "<NA>", "NaT")
# Bounds between the units of times since 1970: 1e8 s is 1973, 1e10 ms April 1970.
BOUNDS = np.array([1e8, 1e10, 1e13, 1e16])
KINDS = ("numbers without a unit", "seconds", "milliseconds", "microseconds", "nanoseconds")
NANOSECONDS = (10**9, 10**9, 10**6, 10**3, 1)  # in one of each kind
DATES = "dates"


class Ids:
    """Texts and their codes, numbered by first appearance."""

    def __init__(self, role: str) -> None:
        self._role = role
        self._codes: dict[str, int] = {}
        self.from_floats = False  # whether ids came as 2.0

    def __len__(self) -> int:
        return len(self._codes)

    @property
    def texts(self) -> list[str]:
        """The id of each code."""
        return list(self._codes)

    def codes(self, column: Any, where: Where) -> NDArray[np.int32]:
        """The column's codes [rows], -1 where the id is missing.

        Raises:
            EarnError: a value that is no id.
        """
        import pyarrow as pa

        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        try:
            encoded = column.dictionary_encode()
        except pa.ArrowNotImplementedError:
            raise EarnError(
                f"{where(0)}: the {self._role} is a {column.type}. Give a text of one line or a whole number."
            ) from None
        rows: NDArray[np.int32] = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        codes = np.full(len(encoded.dictionary) + 1, -1, np.int32)  # the last is that of null
        texts = _plain_texts(encoded.dictionary)
        for index, value in enumerate(encoded.dictionary.to_pylist() if texts is None else texts):
            try:
                text = value if texts is not None else id_text(value)
            except ValueError:
                raise EarnError(
                    f"{where(int(np.argmax(rows == index)))}: the {self._role} {str(value)[:60]!r} is no id. "
                    "Give a text of one line or a whole number."
                ) from None
            if text is not None:
                codes[index] = self._codes.setdefault(text, len(self._codes))
                self.from_floats |= isinstance(value, float)
        return codes[rows]


def _plain_texts(values: Any) -> list[str | None] | None:
    """What `id_text` makes of texts and whole numbers, all at once; None where a value has to be looked at."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_integer(values.type):
        values = values.cast(pa.string())
    if not pa.types.is_string(values.type) or pc.any(pc.match_substring_regex(values, "[\r\n]")).as_py():
        return None
    texts: list[str | None] = _cleaned(values).to_pylist()
    return texts


def id_text(value: object) -> str | None:
    """An id as text, None where it is missing.

    Raises:
        ValueError: no id.
    """
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, str):
        text = value.strip()
        if "\n" in text or "\r" in text:
            raise ValueError(text)
        return None if text in MISSING else text
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise ValueError(value)
    return str(int(value))


class Clock:
    """Reads a table's times, which must all be of one kind."""

    def __init__(self, unit: str | None = None) -> None:
        self.kind = None if unit is None else KINDS[UNITS.index(unit) + 1]
        self._given = unit is not None

    def read(self, column: Any, where: Where) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Nanoseconds [rows], and where they are missing [rows].

        Raises:
            EarnError: a time that is not one, is before 1970, or is of another kind than those before.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        column = _cleaned(column)
        missing = column.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)
        if missing.all():
            return np.zeros(len(column), np.int64), missing
        if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
            self._agree(DATES, lambda: where(int(np.argmin(missing))))
            return _as_int64(pc.cast(column, pa.timestamp("ns", getattr(column.type, "tz", None)))), missing
        is_text = pa.types.is_string(column.type) and not _are_digits(column, missing)
        if is_text and not _matches(column, NUMBER.pattern, missing).any():
            return self._read_dates(column, missing, where), missing
        return self._read_numbers(numbers(column, missing, where, "time"), missing, where), missing

    def _read_dates(self, column: Any, missing: NDArray[np.bool_], where: Where) -> NDArray[np.int64]:
        import pyarrow as pa
        import pyarrow.compute as pc

        self._agree(DATES, lambda: where(int(np.argmin(missing))))
        texts = pc.replace_substring_regex(column, r" ?UTC$", "Z")
        first = texts[int(np.argmin(missing))].as_py()
        kind = pa.timestamp("ns", "UTC" if _parses(first, pa.timestamp("ns", "UTC")) else None)
        try:
            return _as_int64(texts.cast(kind))
        except pa.ArrowInvalid:
            bad = next(
                row for row, text in enumerate(texts.to_pylist()) if text is not None and not _parses(text, kind)
            )
            raise EarnError(
                f"{where(bad)}: the time {column[bad].as_py()!r} is no number, nor a date as the others are. Write "
                "seconds, such as 881250949, or ISO text, such as 1997-12-04T15:55:49, all with a zone or all without."
            ) from None

    def _read_numbers(self, values: NDArray[Any], missing: NDArray[np.bool_], where: Where) -> NDArray[np.int64]:
        values = np.where(missing, 0, values)
        if (values < 0).any():
            row = int(np.argmax(values < 0))
            raise EarnError(
                f"{where(row)}: the time {values[row]} is negative, which often marks one that is missing. Write the "
                "time, or remove the row."
            )
        kinds = np.searchsorted(BOUNDS, values, side="right")
        kinds[missing] = kind = int(kinds[np.argmin(missing)])
        if self._given:
            kinds[:] = kind = KINDS.index(str(self.kind))
        if (kinds != kind).any():
            row = int(np.argmax(kinds != kind))
            self._mixed(KINDS[int(kinds[row])], KINDS[kind], where(row))
        self._agree(KINDS[kind], lambda: where(int(np.argmin(missing))))
        factor = NANOSECONDS[kind]
        if values.max() > np.iinfo(np.int64).max // factor:
            row = int(np.argmax(values))
            raise EarnError(f"{where(row)}: the time {values[row]} is too large for {KINDS[kind]}. Mend it.")
        scaled = values * factor
        return scaled if scaled.dtype == np.int64 else np.rint(scaled).astype(np.int64)

    def _agree(self, kind: str, where: Callable[[], str]) -> None:
        if self.kind is not None and self.kind != kind:
            self._mixed(kind, self.kind, where())
        self.kind = kind

    def _mixed(self, kind: str, before: str, where: str) -> None:
        raise EarnError(
            f"{where}: the time is in {kind} by its size, but others are in {before}. Write all times in one unit, or "
            "name the unit: --unit s."
        )


def numbers(column: Any, missing: NDArray[np.bool_], where: Where, role: str) -> NDArray[Any]:
    """A column as numbers [rows]: int64 where all are whole, else float64; whatever stands where they are missing.

    Raises:
        EarnError: a value that is no finite number written in ASCII digits.
    """
    import pyarrow as pa

    try:
        if pa.types.is_string(column.type) and _are_digits(column, missing):
            bad, whole = np.zeros(len(column), np.bool_), True
        elif pa.types.is_string(column.type):
            bad = ~_matches(column, NUMBER.pattern, missing) & ~missing
            whole = not bad.any() and bool((_matches(column, "-?" + WHOLE.pattern, missing) | missing).all())
        else:
            known = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
            bad = ~missing & (not (known or pa.types.is_decimal(column.type)))
            whole = pa.types.is_integer(column.type)
        if not bad.any():
            values: NDArray[Any] = column.cast(pa.int64() if whole else pa.float64()).fill_null(0).to_numpy()
            bad = ~missing & ~np.isfinite(values)
    except pa.ArrowInvalid:  # more than 64 bits
        bad = np.array([abs(float(value or 0)) >= 1 << 63 for value in column.to_pylist()])
    if bad.any():
        row = int(np.argmax(bad))
        raise EarnError(
            f"{where(row)}: the {role} {str(column[row].as_py())[:60]!r} is not a number. "
            "Write it in digits 0 to 9, without separators."
        )
    return values


def _cleaned(column: Any) -> Any:
    """Texts without blanks around them, and null where they say that something is missing."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_large_string(column.type) or pa.types.is_string(column.type):
        column = pc.utf8_trim_whitespace(column.cast(pa.string()))
        column = pc.if_else(pc.is_in(column, pa.array(MISSING)), pa.scalar(None, pa.string()), column)
    return column


def ratings(column: Any, where: Where) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Ratings as numbers [rows], and where they are missing [rows].

    Raises:
        EarnError: a value that is no number.
    """
    column = _cleaned(column)
    missing = column.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)
    return numbers(column, missing, where, "rating"), missing


def _are_digits(column: Any, missing: NDArray[np.bool_]) -> bool:
    """Whether all texts that are there are ASCII digits alone, as most columns of numbers are."""
    import pyarrow.compute as pc

    return bool((np.asarray(pc.ascii_is_decimal(column).fill_null(False)) | missing).all())


def _matches(column: Any, pattern: str, missing: NDArray[np.bool_]) -> NDArray[np.bool_]:
    import pyarrow.compute as pc

    matches = pc.match_substring_regex(column, f"^(?:{pattern})$").fill_null(False)
    return np.asarray(matches.to_numpy(zero_copy_only=False)) & ~missing


def _parses(text: str, kind: Any) -> bool:
    import pyarrow as pa

    try:
        pa.array([text]).cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def _as_int64(times: Any) -> NDArray[np.int64]:
    import pyarrow as pa

    return np.asarray(times.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False))

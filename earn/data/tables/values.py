"""Cells as ids, times and numbers. Arrays come from pyarrow and leave as numpy's.

Ids stay text as written (`007`, `1e5`), without blanks around them. Numbers become text: 7 is "7", and 2.0, which is
what pandas makes of a column with gaps, is "2".

Times become whole nanoseconds. The unit of numbers is told from their size, and all times of a table must agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earn.data.import_options import UNITS
from earn.data.tables.columns import NUMBER, WHOLE
from earn.errors import EarnError

Where = Callable[[int], str]  # from a row's index in its batch to the words for messages: file and line

MISSING = frozenset(("", "nan", "NaN", "NAN", "None", "null", "NULL", "<NA>", "NaT"))
# Bounds between the units of times since 1970: 1e8 s is 1973, 1e10 ms April 1970.
BOUNDS = np.array([1e8, 1e10, 1e13, 1e16])
UNITLESS, DATES = "numbers without a unit", "dates"
KINDS = (UNITLESS, "seconds", "milliseconds", "microseconds", "nanoseconds", DATES)
NANOSECONDS = (10**9, 10**9, 10**6, 10**3, 1)  # in one of each kind


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

        try:
            encoded = _without_dictionary(column).dictionary_encode()
        except pa.ArrowNotImplementedError:
            raise EarnError(
                f"{where(0)}: the {self._role} is a {column.type}. Give a text of one line or a whole number."
            ) from None
        rows: NDArray[np.int32] = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        codes = np.full(len(encoded.dictionary) + 1, -1, np.int32)  # the last is that of null
        for index, value in enumerate(encoded.dictionary.to_pylist()):
            try:
                text = id_text(value)
            except ValueError:
                raise EarnError(
                    f"{where(int(np.argmax(rows == index)))}: the {self._role} {str(value)[:60]!r} is no id. "
                    "Give a text of one line or a whole number."
                ) from None
            if text is not None:
                codes[index] = self._codes.setdefault(text, len(self._codes))
                self.from_floats |= isinstance(value, float)
        return codes[rows]


def id_text(value: object) -> str | None:
    """An id as text, None where it is missing.

    Raises:
        ValueError: no id.
    """
    if isinstance(value, str):
        text = value.strip()
        if "\n" in text or "\r" in text:
            raise ValueError(text)
        return None if text in MISSING else text
    if isinstance(value, bytes):
        return id_text(value.decode())
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise ValueError(value)
    return str(int(value))


def texts(value: object, with_numbers: bool = False) -> Iterator[str]:
    """Every text in a cell or JSON value: categories come as one text, as a list or as a list of lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from texts(part, with_numbers)
    elif with_numbers and isinstance(value, int | float) and not isinstance(value, bool) and value == value:
        yield str(int(value) if isinstance(value, float) and value.is_integer() else value)


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

        column, missing = _cleaned(column)
        if missing.all():
            return np.zeros(len(column), np.int64), missing
        is_date = pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)
        if not is_date and not (pa.types.is_string(column.type) and not _matches(column, NUMBER.pattern).any()):
            return self._read_numbers(numbers(column, missing, where, "time"), missing, where), missing
        self._agree(np.full(len(column), KINDS.index(DATES)), missing, where)
        dates = column if is_date else _parsed_dates(column, int(np.argmin(missing)), where)
        times = pc.cast(dates, pa.timestamp("ns", getattr(dates.type, "tz", None))).cast(pa.int64()).fill_null(0)
        return np.asarray(times.to_numpy(zero_copy_only=False)), missing

    def _read_numbers(self, values: NDArray[Any], missing: NDArray[np.bool_], where: Where) -> NDArray[np.int64]:
        values = np.where(missing, 0, values)
        if (values < 0).any():
            row = int(np.argmax(values < 0))
            raise EarnError(
                f"{where(row)}: the time {values[row]} is negative, which often marks one that is missing. Write the "
                "time, or remove the row."
            )
        if not self._given:
            self._agree(np.searchsorted(BOUNDS, values, side="right"), missing, where)
        kind = KINDS.index(str(self.kind))
        if values.max() > np.iinfo(np.int64).max // NANOSECONDS[kind]:
            row = int(np.argmax(values))
            raise EarnError(f"{where(row)}: the time {values[row]} is too large for {KINDS[kind]}. Mend it.")
        scaled = values * NANOSECONDS[kind]
        return scaled if scaled.dtype == np.int64 else np.rint(scaled).astype(np.int64)

    def _agree(self, kinds: NDArray[np.int64], missing: NDArray[np.bool_], where: Where) -> None:
        """Refuses times of another kind than those before; `kinds` [rows] are indices of KINDS."""
        self.kind = self.kind or KINDS[int(kinds[np.argmin(missing)])]
        is_other = (kinds != KINDS.index(self.kind)) & ~missing
        if is_other.any():
            row = int(np.argmax(is_other))
            raise EarnError(
                f"{where(row)}: the time is in {KINDS[int(kinds[row])]} by its size, but others are in {self.kind}. "
                "Write all times in one unit, or name the unit: --unit s."
            )


def _parsed_dates(column: Any, first: int, where: Where) -> Any:
    """Texts as timestamps, all with a zone or all without, as the row `first` is."""
    import pyarrow as pa
    import pyarrow.compute as pc

    dates = pc.replace_substring_regex(column, r" ?UTC$", "Z")
    zoned = pa.timestamp("ns", "UTC")
    kind = zoned if _parses(dates[first].as_py(), zoned) else pa.timestamp("ns")
    try:
        return dates.cast(kind)
    except pa.ArrowInvalid:
        bad = next(row for row, text in enumerate(dates.to_pylist()) if text is not None and not _parses(text, kind))
        raise EarnError(
            f"{where(bad)}: the time {column[bad].as_py()!r} is no number, nor a date as the others are. Write "
            "seconds, such as 881250949, or ISO text, such as 1997-12-04T15:55:49, all with a zone or all without."
        ) from None


def _parses(text: str, kind: Any) -> bool:
    import pyarrow as pa

    try:
        pa.scalar(text).cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def ratings(column: Any, where: Where) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Ratings as numbers [rows], and where they are missing [rows].

    Raises:
        EarnError: a value that is no number.
    """
    column, missing = _cleaned(column)
    return numbers(column, missing, where, "rating"), missing


def numbers(column: Any, missing: NDArray[np.bool_], where: Where, role: str) -> NDArray[Any]:
    """A column as numbers [rows]: int64 where all are whole, else float64; whatever stands where they are missing.

    Raises:
        EarnError: a value that is no finite number written in ASCII digits.
    """
    import pyarrow as pa

    is_whole = pa.types.is_integer(column.type)
    bad = ~missing
    if pa.types.is_string(column.type):
        is_whole = bool((_matches(column, "-?" + WHOLE.pattern) | missing).all())
        bad &= ~_matches(column, NUMBER.pattern)
    elif is_whole or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        bad = np.zeros_like(missing)
    try:
        if not bad.any():
            values: NDArray[Any] = column.cast(pa.int64() if is_whole else pa.float64()).fill_null(0).to_numpy()
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


def _cleaned(column: Any) -> tuple[Any, NDArray[np.bool_]]:
    """The column with texts without blanks around them, and where values are missing [rows]."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = _without_dictionary(column)
    if pa.types.is_large_string(column.type) or pa.types.is_string(column.type):
        column = pc.utf8_trim_whitespace(column.cast(pa.string()))
        column = pc.if_else(pc.is_in(column, pa.array(list(MISSING))), pa.scalar(None, pa.string()), column)
    return column, column.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)


def _without_dictionary(column: Any) -> Any:
    import pyarrow as pa

    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _matches(column: Any, pattern: str) -> NDArray[np.bool_]:
    """Whether each text, as a whole, matches [rows]."""
    import pyarrow.compute as pc

    matches = pc.match_substring_regex(column, f"^(?:{pattern})$").fill_null(False)
    return np.asarray(matches.to_numpy(zero_copy_only=False))

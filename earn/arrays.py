"""Reading `.npz` files that nobody vouches for: what a file claims is checked before any memory is taken for it.

An `.npz` is a zip of `.npy` files, each a header of text (type, order, shape) and the array's bytes. numpy evaluates
that header as Python and believes its shape; here it must be of the one form that numpy writes.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

MAGIC = b"\x93NUMPY"
HEADER = re.compile(
    rb"\{'descr': '([<|][a-z]\d)', 'fortran_order': False, 'shape': \((\d{1,12}(?:, \d{1,12})*)?,?\), \} *\n"
)
MOST_HEADER = 1 << 12  # bytes


@dataclass(frozen=True)
class ArrayForm:
    """What an array of a file must be."""

    dtype: str  # as numpy writes it, such as "<f4"
    axes: int


def read_arrays(file: IO[bytes], forms: Mapping[str, ArrayForm], most_bytes: int) -> dict[str, NDArray[Any]]:
    """The arrays of an `.npz` file; those that it lacks are left out.

    Args:
        file: the opened file.
        forms: of each array that it may hold.
        most_bytes: that the arrays may have together, unpacked.

    Raises:
        ValueError: it is no such file, it is damaged, holds anything else, or more than it may.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if (unpacked := sum(member.file_size for member in members)) > most_bytes:
                raise ValueError(f"its arrays have {unpacked} bytes, where {most_bytes} may be")
            if unknown := {member.filename for member in members} - {f"{name}.npy" for name in forms}:
                raise ValueError(f"it holds {min(unknown)!r}")
            return {
                member.filename[: -len(".npy")]: _array(
                    archive.read(member), forms[member.filename[: -len(".npy")]], member.filename
                )
                for member in members
            }
    except Exception as error:  # zipfile raises nearly anything where its tables are damaged, RuntimeError among it
        raise ValueError(str(error) or type(error).__name__) from error


def _array(data: bytes, form: ArrayForm, name: str) -> NDArray[Any]:
    """The array of a `.npy` file, without a copy."""
    size = int.from_bytes(data[8:10], "little")
    match = HEADER.fullmatch(data[10 : 10 + size]) if size <= MOST_HEADER else None
    if data[:8] != MAGIC + b"\x01\x00" or match is None:
        raise ValueError(f"{name} has no header that is known")
    dtype, shape = match[1].decode(), tuple(map(int, (match[2] or b"").split(b", "))) if match[2] else ()
    if (dtype, len(shape)) != (form.dtype, form.axes):
        raise ValueError(f"{name} is {dtype} {list(shape)}, where {form.dtype} of {form.axes} axes belongs")
    if prod(shape) * np.dtype(dtype).itemsize != len(data) - 10 - size:
        raise ValueError(f"{name} claims the shape {list(shape)} and has {len(data) - 10 - size} bytes")
    return np.frombuffer(data, dtype, offset=10 + size).reshape(shape)

"""Reading `.npz` files that nobody vouches for: what a file claims is checked before any memory is taken for it.

An `.npz` is a zip of `.npy` files, each a header of text (type, order, shape) and the array's bytes. numpy evaluates
that header as Python and believes its shape; here it must be of the one form that numpy writes.

`write_arrays` packs nothing, and each array's bytes start at a multiple of 64. So `map_arrays` can map them into
memory: of large arrays only the pages that are looked at are ever read.
"""

from __future__ import annotations

import mmap
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

MAGIC = b"\x93NUMPY"
HEADER = re.compile(
    rb"\{'descr': '([<|][a-z]\d)', 'fortran_order': False, 'shape': \((\d{1,12}(?:, \d{1,12})*)?,?\), \} *\n"
)
MOST_HEADER = 1 << 12  # bytes
ALIGNMENT = 64  # bytes
LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip's member: the lengths of its name and of what is appended to it
PADDING = struct.Struct("<HH")  # an appended field of zeros: its kind, as zipalign writes it, and its length
PADDING_KIND = 0xD935
CHUNK = 1 << 20  # bytes


@dataclass(frozen=True)
class ArrayForm:
    """What an array of a file must be."""

    dtype: str  # as numpy writes it, such as "<f4"
    axes: int


def write_arrays(file: IO[bytes], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes an `.npz` file that can be mapped into memory (module docstring); the same arrays give the same bytes."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy")
            member.file_size = array.nbytes + MOST_HEADER  # at the most: it decides how its length is written
            start = file.tell() + LOCAL_HEADER.size + len(member.filename) + PADDING.size
            zeros = -start % ALIGNMENT
            member.extra = PADDING.pack(PADDING_KIND, zeros) + bytes(zeros)
            with archive.open(member, "w") as opened:
                np.lib.format.write_array(opened, array, version=(1, 0), allow_pickle=False)


def read_arrays(
    file: IO[bytes], forms: Mapping[str, ArrayForm], most_bytes: int, mapped: mmap.mmap | None = None
) -> dict[str, NDArray[Any]]:
    """The arrays of an `.npz` file; those that it lacks are left out.

    Args:
        file: the opened file.
        forms: of each array that it may hold.
        most_bytes: that the arrays may have together, unpacked.
        mapped: the file in memory, whose parts the arrays are that are not packed; their checksums are compared first.

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
            arrays = {}
            for member in members:
                if mapped is None or member.compress_type != zipfile.ZIP_STORED:
                    data: bytes | memoryview = archive.read(member)
                else:
                    data = _mapped(archive, member, mapped)
                name = member.filename.removesuffix(".npy")
                arrays[name] = _array(data, forms[name], member.filename)
            return arrays
    except Exception as error:  # zipfile raises nearly anything where its tables are damaged, RuntimeError among it
        raise ValueError(str(error) or type(error).__name__) from error


def map_arrays(path: Path, forms: Mapping[str, ArrayForm], most_bytes: int) -> dict[str, NDArray[Any]]:
    """`read_arrays` of a file that is mapped into memory.

    Raises:
        OSError: the file cannot be opened.
        ValueError: as `read_arrays`.
    """
    with path.open("rb") as file:
        return read_arrays(file, forms, most_bytes, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def forget_pages(arrays: Mapping[str, NDArray[Any]]) -> None:
    """Gives the pages of mapped arrays back that were looked at; they are read again when they are needed."""
    for array in arrays.values():
        base: Any = array
        while isinstance(base, np.ndarray):
            base = base.base
        mapped = base.obj if isinstance(base, memoryview) else base
        if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            mapped.madvise(mmap.MADV_DONTNEED)
            return


def row_blocks(array: NDArray[Any], rows: int = 1 << 16) -> Iterator[NDArray[Any]]:
    """An array's rows, some at a time; those of a mapped one do not stay in memory."""
    for first in range(0, len(array), rows):
        yield array[first : first + rows]
        forget_pages({"": array})


def _mapped(archive: zipfile.ZipFile, member: zipfile.ZipInfo, mapped: mmap.mmap) -> memoryview:
    """A member's bytes in the mapped file, once they have its checksum."""
    with archive.open(member) as opened:  # which also holds the member's own header to the archive's table
        while opened.read(CHUNK):
            pass
    name, appended = LOCAL_HEADER.unpack_from(mapped, member.header_offset)
    start = member.header_offset + LOCAL_HEADER.size + name + appended
    return memoryview(mapped)[start : start + member.file_size]


def _array(data: bytes | memoryview, form: ArrayForm, name: str) -> NDArray[Any]:
    """The array of a `.npy` file, without a copy where its bytes are aligned."""
    size = int.from_bytes(data[8:10], "little")
    match = HEADER.fullmatch(data[10 : 10 + size]) if size <= MOST_HEADER else None
    if data[:8] != MAGIC + b"\x01\x00" or match is None:
        raise ValueError(f"{name} has no header that is known")
    dtype, shape = match[1].decode(), tuple(map(int, (match[2] or b"").split(b", "))) if match[2] else ()
    if (dtype, len(shape)) != (form.dtype, form.axes):
        raise ValueError(f"{name} is {dtype} {list(shape)}, where {form.dtype} of {form.axes} axes belongs")
    if prod(shape) * np.dtype(dtype).itemsize != len(data) - 10 - size:
        raise ValueError(f"{name} claims the shape {list(shape)} and has {len(data) - 10 - size} bytes")
    array = np.frombuffer(data, dtype, offset=10 + size).reshape(shape)
    return array if array.flags.aligned else array.copy()  # numpy would copy it whole in every gather

"""Files at an address: http(s)://, file://, and what pyarrow (s3://, gs://, hdfs://) or fsspec read.

A file is fetched whole, anew each time, and kept below the cache folder:

    $EARN_CACHE/remote/<start of the address's SHA-256>/<name of the file>

Who may read is settled as usual for the service: environment variables or files of credentials.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname, urlopen

from earn.console import note
from earn.data.download import cache_folder
from earn.errors import EarnError
from earn.files import written_whole

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # of two letters or more: C:// is a drive


def local(source: str | Path) -> Path:
    """The source as a path on this machine; what an address names is fetched first.

    Raises:
        EarnError: the address names no file, or it cannot be fetched.
    """
    if not ADDRESS.match(str(source)):
        return Path(source)
    address = urlsplit(str(source))
    if address.scheme == "file":
        return Path(url2pathname(address.path))
    return _fetched(str(source), PurePosixPath(unquote(address.path)).name)


def _fetched(address: str, name: str) -> Path:
    if not name:
        raise EarnError(f"{address}: names no file. Give the address of one file.")
    path = cache_folder() / "remote" / hashlib.sha256(address.encode()).hexdigest()[:16] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _opened(address) as stream, written_whole(path) as beside, beside.open("wb") as copy:
            shutil.copyfileobj(stream, copy, 1 << 20)
    except (OSError, ValueError, ImportError) as error:  # of pyarrow, fsspec and urllib
        raise EarnError(
            f"{address}: cannot be fetched ({error}). Check the address, the network and the credentials, or copy the "
            "file here."
        ) from error
    note(f"      {address}: fetched, {path.stat().st_size / 1e6:,.1f} MB in {path}")
    return path


def _opened(address: str) -> IO[bytes] | Any:
    if address.lower().startswith(("http://", "https://")):
        return urlopen(address)
    import pyarrow as pa
    from pyarrow.fs import FileSystem

    try:
        filesystem, path = FileSystem.from_uri(address)
    except pa.ArrowInvalid:  # a service that pyarrow does not know
        import fsspec

        return fsspec.open(address, "rb").open()
    return filesystem.open_input_stream(path, compression=None)

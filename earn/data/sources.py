"""Sources of interaction data: names of data sets that are fetched, and paths.

A source is the name of a data set that is fetched (`ml-100k`), or a path to files in one of the formats that
`earn.data.formats` describes. A string that is a known name means that data set; write ./ml-100k for a folder of that
name. An address (`s3://`, `https://`, ...) is fetched. A path that does not exist is looked for in the folder that
$EARN_DATA names.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from earn.data.download import fetch_ml100k
from earn.data.formats import FORMATS, Interactions
from earn.data.remote import ADDRESS, local
from earn.errors import EarnError

NAMED: dict[str, Callable[[], Path]] = {"ml-100k": fetch_ml100k}  # name -> puts the files on this machine

DATA_VARIABLE = "EARN_DATA"  # of the environment: names a folder of data sets


def find_source(source: str | Path) -> Path:
    """Where a source's files are (module docstring); those of a known name are fetched first if need be.

    Raises:
        EarnError: no such source, or it cannot be fetched.
    """
    if isinstance(source, str) and source in NAMED:
        return NAMED[source]()
    if ADDRESS.match(str(source)):
        source = local(source)
    path, folder = Path(source).expanduser(), os.environ.get(DATA_VARIABLE)
    candidates = [path] if not folder else [path, Path(folder).expanduser() / path]
    match = next((candidate for candidate in candidates if candidate.exists()), None)
    if match is None:
        elsewhere = f"nor is it in ${DATA_VARIABLE} ({folder})" if folder else f"and ${DATA_VARIABLE} is not set"
        raise EarnError(
            f"{source}: there is no such file or folder here, {elsewhere}. Give a path that exists, set "
            f"{DATA_VARIABLE} to the folder that holds it, or give a known name: {', '.join(NAMED)}."
        )
    return match


def load_interactions(source: str | Path) -> Interactions:
    """Reads a source (module docstring).

    Raises:
        EarnError: no such source, no or several formats fit it, or its files are not right.
    """
    path = find_source(source)
    fitting = [row for row in FORMATS if row.fits(path)]
    if len(fitting) != 1:
        wanted = "; ".join(f"{row.looks_for} ({row.name})" for row in fitting or FORMATS)
        problem = "more than one format fits it" if fitting else "no known format fits it"
        raise EarnError(f"{path}: {problem}. Give exactly one of: {wanted}.")
    return fitting[0].read(path)

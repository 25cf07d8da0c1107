"""Where a bundle may be: a folder, one file (earn.packed), or a repository of the Hugging Face Hub.

    movies-bundle            a folder
    movies-bundle.zip        what `earn pack` writes
    hf://org/name            the newest state of a repository's main branch
    hf://org/name@v1.2       a branch, tag or commit

A repository is fetched through `huggingface_hub`, which keeps it in its cache; without a network the cache answers.
Only a commit, in full, names the same bundle for ever.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from earn.errors import EarnError, to_install
from earn.manifest import ENGINES_FOLDER
from earn.packed import unpacked

HUB = "hf://"
_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


@contextmanager
def bundle_at(place: str | Path) -> Iterator[Path]:
    """Yields the folder of a bundle while it is being opened.

    Raises:
        EarnError: a repository that cannot be had, or a file that is no packed bundle.
    """
    if str(place).startswith(HUB):
        yield _fetched(str(place))
    elif Path(place).is_file():
        with unpacked(Path(place)) as folder:
            yield folder
    else:
        yield Path(place)


def _fetched(place: str) -> Path:
    """The folder of the cache that holds a repository."""
    match = _REPOSITORY.fullmatch(place.removeprefix(HUB))
    if match is None:
        raise EarnError(f"{place!r} names no repository. Write {HUB}org/name or {HUB}org/name@revision.")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise EarnError(f"{place}: this needs huggingface_hub. Install it: {to_install('hub')}") from error
    repository, revision = match.groups()
    try:
        return Path(snapshot_download(repository, revision=revision, ignore_patterns=f"{ENGINES_FOLDER}/*"))
    except Exception as error:  # of the hub, of HTTP, of the disk: they have no common base
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EarnError(f"{place}: cannot be fetched ({reason}). Check name, revision, network and token.") from error

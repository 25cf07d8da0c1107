"""A user's open session: the history stays read, and a new item costs its own few tokens.

    session = recommender.session(["50", "172"])
    session.append("181")
    session.recommend(10)
    saved = session.to_bytes()                      # when the app is closed
    session = recommender.restore_session(saved)    # when it is opened again

The early stage's cache holds the history, and behind it the prompt's end as if nothing more came. A new item takes the
place of that end: its tokens and the end are read in one pass over the early layers. Recommending runs the late stage
and the search, and leaves the cache as it was.
"""

from __future__ import annotations

import io
import json
import threading
import zipfile
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from earn.errors import EarnError
from earn.runtime.decoder import Prompted

if TYPE_CHECKING:
    from earn.runtime.recommender import Recommendation, Recommender

FORMAT = 1  # of saved sessions
KEPT = 0.75  # of a full window, when it slides


class Session:
    """One user's history, read and ready. Threads may share it; they wait for each other."""

    def __init__(self, recommender: Recommender, history: Sequence[int] = ()) -> None:
        """Opens a session with a history of item indices, oldest first; the model reads the newest."""
        self._recommender = recommender
        self._lock = threading.Lock()
        self._items = list(history)
        self._start = max(0, len(self._items) - self._most)  # of the window
        limits = recommender.manifest.limits
        self._cache = recommender.decoder.early_cache(limits.prompt - limits.head + limits.generated)
        self._head = self._cache.rows
        self._prompted: Prompted | None = None
        if self._items:
            self._read(recommender.tokens(self._items[self._start :]))

    @property
    def history(self) -> list[str]:
        """The ids of all items so far, oldest first."""
        return [self._recommender.catalog.item_ids[item] for item in self._items]

    @property
    def window(self) -> list[str]:
        """The newest of them, which the model has read: recommendations follow from these."""
        return self.history[self._start :]

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory that the session holds: a cache for the longest window and the widest search."""
        return self._cache.bytes

    def append(self, item_id: str | int) -> None:
        """Adds the newest item and reads it.

        A full window slides: its oldest quarter is left out and the rest read anew, once for many further items.

        Raises:
            EarnError: the catalog has no such item.
        """
        (item,) = self._recommender.indices([item_id])
        with self._lock:
            self._items.append(item)
            window = len(self._items) - self._start
            if window > self._most:
                self._start = len(self._items) - max(1, int(KEPT * self._most))
                self._prompted = None
            if self._prompted is None:
                self._cache.shorten(self._head)
                self._read(self._recommender.tokens(self._items[self._start :]))
            else:
                self._cache.shorten(self._prompted.rows - self._recommender.decoder.prompt_rows(0))
                self._read(self._recommender.tokens(self._items[-1:], follows=True))

    def recommend(
        self,
        k: int = 10,
        beams: int | None = None,
        exclude: Collection[str | int] = (),
        exclude_history: bool = False,
    ) -> list[Recommendation]:
        """What `Recommender.recommend` gives for the window; see there. All of the history can be excluded.

        Raises:
            EarnError: an unknown item, no item yet, or a k or beam width out of range.
        """
        recommender = self._recommender
        width = recommender.search_width(k, beams)
        barred = set(recommender.indices(exclude))
        with self._lock:
            if self._prompted is None:
                raise EarnError("The session has no item yet. Append one first.")
            if exclude_history:
                barred |= set(self._items)
            try:
                return recommender.search(self._prompted, [barred], k, width)[0]
            finally:
                self._cache.shorten(self._prompted.rows)

    def to_bytes(self) -> bytes:
        """The session as bytes, to be restored by a recommender over the same bundle."""
        with self._lock:
            header = {
                "format": FORMAT,
                "bundle": self._recommender.manifest.fingerprint,
                "items": self.history,
                "start": self._start,
            }
            arrays: dict[str, Any] = {"header": np.frombuffer(json.dumps(header).encode(), np.uint8)}
            if self._prompted is not None:
                arrays |= {"cache": self._cache.past, "hidden": self._prompted.hidden}
            memory = io.BytesIO()
            np.savez(memory, **arrays)
            return memory.getvalue()

    @classmethod
    def from_bytes(cls, recommender: Recommender, saved: bytes) -> Session:
        """The session that `to_bytes` saved; nothing is computed.

        Raises:
            EarnError: these are no session's bytes, they are damaged, or another bundle's.
        """
        arrays = _arrays(saved)
        header = _header(arrays)
        if header["bundle"] != recommender.manifest.fingerprint:
            raise EarnError(f"The session was saved with another bundle. {_REMEDY}")
        session = cls(recommender)
        session._items, session._start = recommender.indices(header["items"]), header["start"]
        if "cache" in arrays:
            session._cache.shorten(0)
            session._cache.extend(arrays["cache"])
            session._prompted = Prompted(session._cache, np.zeros(1, np.int64), arrays["hidden"], session._cache.rows)
        return session

    @property
    def _most(self) -> int:
        """Items that the model reads at the most."""
        return self._recommender.manifest.limits.history

    def _read(self, tokens: Sequence[int]) -> None:
        """Reads tokens behind those of the cache, and the prompt's end."""
        self._prompted = self._recommender.decoder.read_on(self._cache, tokens)


_REMEDY = "Open a new session with the user's history."


def _arrays(saved: bytes) -> Mapping[str, Any]:
    try:
        with np.load(io.BytesIO(saved), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        raise EarnError(f"These {len(saved)} bytes are no saved session, or damaged ({error}). {_REMEDY}") from error


def _header(arrays: Mapping[str, Any]) -> dict[str, Any]:
    try:
        header: dict[str, Any] = json.loads(arrays["header"].tobytes())
        if header["format"] != FORMAT:
            raise EarnError(f"The session was saved in format {header['format']}, this is {FORMAT}. {_REMEDY}")
        return header
    except (ValueError, KeyError, TypeError) as error:
        raise EarnError(f"These are no saved session's bytes ({error!r}). {_REMEDY}") from error

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
from collections.abc import Collection, Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from earn.arrays import ArrayForm, read_arrays
from earn.errors import EarnError
from earn.filters import EVERYTHING, NOTHING, Filter, from_json, to_json
from earn.runtime.cache import KeyValueCache
from earn.runtime.decoder import ReadPrompts
from earn.runtime.item_filters import Wanted, as_filter
from earn.runtime.request import Closed, within

if TYPE_CHECKING:
    from earn.runtime.lists import Recommendation
    from earn.runtime.recommender import Recommender

FORMAT = 2  # of saved sessions; the one before had no filters
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
        self._allow, self._block = EVERYTHING, NOTHING
        self._prompt: ReadPrompts | None = None  # None: the window is empty, or its reading was broken off
        if self._items:
            self._ready()

    @property
    def history(self) -> list[str]:
        """The ids of all items so far, oldest first."""
        with self._lock:
            return self._ids(0)

    @property
    def window(self) -> list[str]:
        """The newest of them, which the model has read: recommendations follow from these."""
        with self._lock:
            return self._ids(self._start)

    @property
    def allow(self) -> Filter:
        """What alone may come back in this session's lists; set it to a filter, ids or None. It is saved.

        Raises:
            EarnError: an unknown item or tag. Items that a later catalog lacks are passed over.
        """
        return self._allow

    @allow.setter
    def allow(self, wanted: Wanted) -> None:
        self._recommender.filters.check(wanted, None)
        self._allow = as_filter(wanted, EVERYTHING)

    @property
    def block(self) -> Filter:
        """What may not come back, likewise: `session.block |= Items(["7"])` adds an item."""
        return self._block

    @block.setter
    def block(self, wanted: Wanted) -> None:
        self._recommender.filters.check(None, wanted)
        self._block = as_filter(wanted, NOTHING)

    def keep_filters(self, allow: Filter, block: Filter) -> None:
        """Takes over filters as they are, such as those of a session of another catalog."""
        self._allow, self._block = allow, block

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
        if not isinstance(item_id, (str, Integral)):
            raise EarnError(f"Got {item_id!r} where one item id belongs.")
        items = self._recommender.indices([item_id], unknown="skip")
        if not items:
            raise EarnError(f"The catalog has no item {str(item_id)!r}. Check the id.")
        (item,) = items
        with self._lock:
            items, start = [*self._items, item], self._start
            if len(items) - start > self._most:
                start = len(items) - max(1, int(KEPT * self._most))
            before, self._prompt = self._prompt, None  # should the reading break off, the old window is read anew
            if before is not None and start == self._start:
                self._cache.shorten(before.rows - self._recommender.decoder.prompt_rows(0))
                prompt = self._read([item], follows=True)
            else:
                self._cache.shorten(self._head)
                prompt = self._read(items[start:])
            self._items, self._start, self._prompt = items, start, prompt

    def recommend(
        self,
        k: int = 10,
        beams: int | None = None,
        exclude: Collection[str | int] = (),
        exclude_history: bool = False,
        allow: Wanted = None,
        block: Wanted = None,
        timeout_s: float | None = None,
    ) -> list[Recommendation]:
        """What `Recommender.recommend` gives for the window; see there. All of the history can be excluded.

        The session's own `allow` and `block` hold besides those of the request.

        Raises:
            EarnError: an unknown item or tag, no item yet, a k or beam width out of range, or a closed session.
            DeadlineError: the time was over; the session stays as it was.
        """
        recommender = self._recommender
        width = recommender.search_width(k, beams)
        recommender.filters.check(allow, block)
        allow = self.allow if allow is None else self.allow & as_filter(allow, EVERYTHING)
        block = self.block if block is None else self.block | as_filter(block, NOTHING)
        with self._lock:
            if not self._items:
                raise EarnError("The session has no item yet. Append one first.")
            single = recommender.excluded(exclude, self._items if exclude_history else ())
            excluded = recommender.filters.unwanted(single, allow, block, "skip")
            with within(timeout_s):
                prompt = self._ready()
                try:
                    return recommender.search(prompt, [self._items[self._start :]], [excluded], k, width)[0]
                finally:
                    self._cache.shorten(prompt.rows)

    def close(self) -> None:
        """Lets the session's memory go. Whoever asks a closed session gets an EarnError; its recommender stays open."""
        closed = Closed("session", "Open a new one, or restore it where it was saved.")
        with self._lock:
            self._recommender, self._cache = cast("Recommender", closed), cast(KeyValueCache, closed)
            self._prompt = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def to_bytes(self) -> bytes:
        """The session as bytes, to be restored by a recommender over the same bundle."""
        with self._lock:
            header = {
                "format": FORMAT,
                "bundle": self._recommender.manifest.fingerprint,
                "added": self._recommender.added,
                "model": self._recommender.manifest.model_fingerprint,
                "items": self._ids(0),
                "start": self._start,
                "allow": to_json(self.allow),
                "block": to_json(self.block),
            }
            arrays: dict[str, Any] = {"header": np.frombuffer(json.dumps(header).encode(), np.uint8)}
            if self._items:
                prompt = self._ready()
                device = self._recommender.decoder.device
                arrays |= {"cache": device.to_host(self._cache.past), "hidden": device.to_host(prompt.hidden)}
            memory = io.BytesIO()
            np.savez(memory, **arrays)
            return memory.getvalue()

    @classmethod
    def from_bytes(cls, recommender: Recommender, saved: bytes) -> Session:
        """The session that `to_bytes` saved. Nothing is computed if the catalog is the same; else the history is read.

        Raises:
            EarnError: these are no session's bytes, they are damaged or another bundle's, or the catalog lacks an item.
        """
        arrays, header, items, start = _parsed(saved)
        manifest = recommender.manifest
        is_bundle = header["bundle"] == manifest.fingerprint
        if not is_bundle and header.get("model") != manifest.model_fingerprint:
            raise EarnError(f"The session was saved with another bundle. {_REMEDY}")
        session = cls(recommender)
        session._allow, session._block = (from_json(header[name]) if name in header else empty for name, empty in _OWN)
        session._items, session._start = recommender.history(items), start
        if start < 0 or (items and not 0 < len(items) - start <= session._most):
            raise EarnError(f"The saved session's window starts at {start} of {len(items)} items. {_REMEDY}")
        if items and is_bundle and header.get("added", "") == recommender.added:
            session._restore(arrays.get("cache"), arrays.get("hidden"))
        elif items:
            session._ready()
        return session

    def _restore(self, cache: Any, hidden: Any) -> None:
        """Takes a saved cache over, if it is that of the window."""
        manifest, decoder = self._recommender.manifest, self._recommender.decoder
        rows = self._head + decoder.prompt_rows(len(self._recommender.tokens(self._items[self._start :])))
        wanted = {
            "cache": (np.shape(cache), (rows, *self._cache.past.shape[1:])),
            "hidden": (np.shape(hidden), (1, manifest.limits.readout, manifest.sizes.hidden)),
        }
        for name, (got, want) in wanted.items():
            if got != want:
                raise EarnError(f"The saved session's {name} is not that of its history ({got}). {_REMEDY}")
        self._cache.shorten(0)
        self._cache.extend(cache)
        kept = decoder.device.empty(hidden.shape)
        decoder.device.copy(hidden, kept)
        self._prompt = ReadPrompts(self._cache, np.zeros(1, np.int64), kept, rows)

    @property
    def _most(self) -> int:
        """Items that the model reads at the most."""
        return self._recommender.manifest.limits.history

    def _ids(self, start: int) -> list[str]:
        return [self._recommender.catalog.item_ids[item] for item in self._items[start:]]

    def _read(self, items: Sequence[int], follows: bool = False) -> ReadPrompts:
        """Reads items behind what the cache holds, and the prompt's end."""
        return self._recommender.decoder.read_on(self._cache, self._recommender.tokens(items, follows))

    def _ready(self) -> ReadPrompts:
        """The window as it was read, or read anew where that was broken off."""
        if self._prompt is None:
            self._cache.shorten(self._head)
            self._prompt = self._read(self._items[self._start :])
        return self._prompt


_FORMS = {"header": ArrayForm("|u1", 1), "cache": ArrayForm("<f4", 5), "hidden": ArrayForm("<f4", 3)}
_OWN = (("allow", EVERYTHING), ("block", NOTHING))
_REMEDY = "Open a new session with the user's history."


def _parsed(saved: bytes) -> tuple[Mapping[str, Any], dict[str, Any], list[str], int]:
    """A saved session's arrays, its header, its items, and where the window starts."""
    try:
        arrays = read_arrays(io.BytesIO(saved), _FORMS, len(saved))  # they are saved as they are, not packed
        header: dict[str, Any] = json.loads(arrays["header"].tobytes())
        form, _ = header["format"], header["bundle"]
        items, start = [str(item) for item in header["items"]], int(header["start"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise EarnError(f"This is no saved session, or a damaged one ({error!r}). {_REMEDY}") from error
    if form not in (1, FORMAT):
        raise EarnError(f"The session was saved in format {form}, this is {FORMAT}. {_REMEDY}")
    return arrays, header, items, start

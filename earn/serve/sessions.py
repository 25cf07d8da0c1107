"""Open sessions of a server, bounded in number and age. Their ids are secrets: who has one may use the session."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from earn.runtime.session import Session
from earn.serve.bundles import ServedBundle, Version
from earn.serve.limits import Refusal

ID_BYTES = 18


@dataclass
class OpenSession:
    """A session, and the version of the bundle that has read it."""

    bundle: ServedBundle
    version: Version
    session: Session
    used_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)  # held by the request that uses it

    def follow(self) -> None:
        """Moves it to the version that the bundle serves now: its history is read anew without items that are gone.

        Its filters stay; items in them that are gone change nothing.
        """
        if self.version is not self.bundle.current:
            version = self.bundle.current
            old, self.session = self.session, version.recommender.session(self.session.history, unknown="skip")
            self.session.keep_filters(old.allow, old.block)
            self.version = version


class SessionStore:
    """Sessions by id. It belongs to the event loop's thread."""

    def __init__(self, most: int, age_s: float, now: Callable[[], float] = time.monotonic) -> None:
        """Takes bounds, and a clock in seconds."""
        self._most, self._age_s, self._now = most, age_s, now
        self._sessions: dict[str, OpenSession] = {}  # the one that was used longest ago first

    def sweep(self) -> None:
        """Closes those that were not used for too long."""
        oldest = self._now() - self._age_s
        for key, opened in list(self._sessions.items()):
            if opened.used_s >= oldest:
                break
            del self._sessions[key]

    def check_room(self) -> None:
        """Says whether one more may be opened.

        Raises:
            Refusal: 503, as many as there may be are open.
        """
        self.sweep()
        if len(self._sessions) >= self._most:
            raise Refusal(503, f"{self._most} sessions are open, the most there may be. Close one, or try later.", 5)

    def add(self, opened: OpenSession) -> str:
        """Keeps a session and returns its id.

        Raises:
            Refusal: 503, as many as there may be are open.
        """
        self.check_room()
        key = secrets.token_urlsafe(ID_BYTES)
        opened.used_s = self._now()
        self._sessions[key] = opened
        return key

    def get(self, key: str) -> OpenSession:
        """An open session, which counts as used now.

        Raises:
            Refusal: 404, there is none of this id any more.
        """
        opened = self._sessions.pop(key, None)
        if opened is None or opened.used_s < self._now() - self._age_s:
            raise Refusal(404, "No session of this id is open. It was closed, or unused for too long: open a new one.")
        opened.used_s = self._now()
        self._sessions[key] = opened
        return opened

    def close(self, key: str) -> None:
        """Closes a session.

        Raises:
            Refusal: 404, there is none of this id any more.
        """
        self.get(key)
        del self._sessions[key]

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def memory_bytes(self) -> int:
        """What their caches hold."""
        return sum(opened.session.memory_bytes for opened in self._sessions.values())

"""A served bundle: loaded from a place, loaded again from it while it serves, rolled back to the version before."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from earn.errors import EarnError
from earn.places import place_name
from earn.runtime.recommender import Recommender
from earn.serve.limits import Refusal
from earn.tags import TAGS_FILE


@dataclass(frozen=True)
class Version:
    """A bundle as it was loaded at one time."""

    recommender: Recommender
    loaded_at: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    @property
    def fingerprint(self) -> str:
        """What tells its answers from those of other versions: model, catalog, and tags where there are any."""
        manifest = self.recommender.manifest
        if TAGS_FILE not in manifest.files:
            return manifest.fingerprint[:16]
        return hashlib.sha256((manifest.fingerprint + manifest.files[TAGS_FILE].sha256).encode()).hexdigest()[:16]


class ServedBundle:
    """A named bundle of which one version answers; the one before stays loaded, so that rolling back is at once."""

    def __init__(
        self, name: str, load: Callable[[], Recommender], renew: Callable[[Recommender], Recommender] | None = None
    ) -> None:
        """Loads the bundle; `renew` gives a loaded one its new catalog without loading graphs, or raises EarnError.

        Raises:
            EarnError: it cannot be loaded, or gives no list.
        """
        self.name = name
        self._load, self._renew = load, renew
        self._lock = threading.Lock()
        self.current = self._tried(self._load())
        self.previous: Version | None = None

    @classmethod
    def at(cls, place: str | Path, engine: str, threads: int | None) -> ServedBundle:
        """The bundle of a place, from which it is loaded again when it is to be."""
        load = partial(Recommender.load, place, engine, threads, arena=True)
        return cls(place_name(place), load, partial(Recommender.with_catalog, place=place))

    def reload(self) -> bool:
        """Loads what now stands in the bundle's place, tries it and serves it; says whether it is another version.

        Raises:
            Refusal: 409, it cannot be loaded or gives no list, and the version from before goes on; or another swap
                is under way.
        """
        with self._alone():
            try:
                version = self._renewed() or self._tried(self._load())
            except (EarnError, OSError) as error:
                raise Refusal(409, f"The bundle {self.name} stays as it is: {error}") from error
            if version.fingerprint == self.current.fingerprint:
                return False
            self.previous, self.current = self.current, version
            return True

    def roll_back(self) -> None:
        """Serves the version before the current one again; a second call undoes the first.

        Raises:
            Refusal: 409, there is none, or another swap is under way.
        """
        with self._alone():
            if self.previous is None:
                raise Refusal(409, f"The bundle {self.name} has no version before this one. Reload it first.")
            self.previous, self.current = self.current, self.previous

    def _renewed(self) -> Version | None:
        """The current version with the bundle's new catalog; None where more than the catalog is another one."""
        if self._renew is None:
            return None
        try:
            return self._tried(self._renew(self.current.recommender))
        except EarnError:
            return None

    def _tried(self, recommender: Recommender) -> Version:
        """The bundle, after it has answered once."""
        recommender.recommend(recommender.catalog.item_ids[:1], k=1)
        return Version(recommender)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While no other swap is under way."""
        if not self._lock.acquire(blocking=False):
            raise Refusal(409, f"The bundle {self.name} is being swapped. Try again when that is done.", 1)
        try:
            yield
        finally:
            self._lock.release()

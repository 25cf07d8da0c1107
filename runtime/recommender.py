"""Recommends items from histories: the face of the runtime.

    recommender = Recommender.load("bundle")
    for item in recommender.recommend(["50", "172"], k=10):
        print(item.item_id, item.score, item.title)

A recommender may be shared by threads: a request keeps its state to itself.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import copy
from functools import partial
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np

from earn.catalog import CATALOG_FILE, OFFERED, Catalog
from earn.config import SCORING_RULES, SET
from earn.constant_head import ConstantHead
from earn.errors import EarnError
from earn.item_neighbours import ItemNeighbours, Ranked
from earn.manifest import NEIGHBOURS_FILE, Manifest, check_graphs
from earn.new_items import NewItems, with_new_items
from earn.places import opened
from earn.prompts import history_tokens
from earn.quantizer import QUANTIZER_FILE
from earn.runtime.beam import Beams
from earn.runtime.decoder import Decoder, ReadPrompts
from earn.runtime.engine import ONE_GRAPHS, Engine, check_threads, load_engine
from earn.runtime.item_filters import Excluded, ItemFilters, Wanted, distinct, items_left, wanted_of
from earn.runtime.lists import Lists, Recommendations
from earn.runtime.onnx_engine import session_options
from earn.runtime.request import EXACT, Closed, in_order, one_each, width_of, within
from earn.runtime.search import Search
from earn.runtime.session import Session
from earn.runtime.set_scores import SetScores
from earn.specs import generated_rows
from earn.tags import TAGS_FILE, Tags, no_tags
from earn.trie import Ints

NO_ITEMS: Ints = np.zeros(0, np.int64)


class Recommender:
    """A bundle that is ready to answer."""

    def __init__(
        self,
        engine: Engine,
        manifest: Manifest,
        catalog: Catalog,
        lookahead: int | None = None,
        tags: Tags | None = None,
        head: ConstantHead | None = None,
        neighbours: ItemNeighbours | None = None,
    ) -> None:
        """Takes an engine over the bundle's graphs; `lookahead` (see earn.runtime.search) is for measurements.

        Raises:
            EarnError: the catalog is not the manifest's, or the bundle brings a constant head and none was given.
        """
        self._keep(manifest, catalog, tags, neighbours)
        self._lay_out()
        is_set = self._set is not None
        # of what histories hold
        tokens, depth = (catalog.trained, 1) if is_set else (len(catalog.tokens), catalog.depth)
        if (tokens, depth) != (len(manifest.model.token_ids), manifest.limits.depth):
            raise EarnError(
                f"The catalog has {tokens} tokens and depth {depth}, the manifest "
                f"{len(manifest.model.token_ids)} and {manifest.limits.depth}. Export the checkpoint again."
            )
        self.decoder = Decoder(engine, manifest, head)
        self.lookahead = lookahead

    def _keep(self, manifest: Manifest, catalog: Catalog, tags: Tags | None, neighbours: ItemNeighbours | None) -> None:
        """Takes what is no model."""
        self.manifest, self.catalog = manifest, catalog
        self.lists = Lists(catalog, neighbours, manifest.limits.history)
        self.added = ""  # what tells items that were added in memory, by their catalog's sum
        self.tags = tags or no_tags(len(catalog))
        offered = catalog.status == OFFERED
        self.filters = ItemFilters(len(catalog), self.tags, self.indices, None if offered.all() else offered)
        # of a model with a row per item: whose row a history reads for each item
        self._read_as = None
        if manifest.model.method == SET:
            self._read_as = np.concatenate((np.arange(catalog.trained), catalog.read_as))

    def _lay_out(self) -> None:
        """Of a model that names all codes at once: the items' digits."""
        is_set = self.manifest.model.method == SET
        self._set = SetScores.of(self.catalog, self.manifest.sizes.logits) if is_set else None
        if not is_set:
            _ = self.catalog.trie.level_tokens  # made now, not at the first request

    def _over(
        self, manifest: Manifest, catalog: Catalog, tags: Tags | None, neighbours: ItemNeighbours | None
    ) -> Recommender:
        """Another recommender over the same model."""
        other = copy(self)
        other._keep(manifest, catalog, tags, neighbours)
        other._lay_out()
        return other

    @classmethod
    def load(
        cls,
        folder: str | Path,
        engine: str = "cpu",
        threads: int | None = None,
        verify: bool = True,
        spinning: bool = False,
        arena: bool = False,
    ) -> Recommender:
        """Loads a bundle. The defaults are for an app that is idle most of the time.

        Args:
            folder: the bundle: its folder, its one file (`earn pack`), or "hf://org/name@revision" (see earn.places).
            engine: one of earn.runtime.engine's, such as "cpu", "cuda", "tensorrt"; the one asked for is the one that
                runs. "auto" takes the fastest that is ready here and says in the log which and why. "one-graph" runs
                the whole search in one call, on the CPU (see earn.runtime.one_graph).
            threads: threads of one request; the machine's physical cores if None.
            verify: check every file's SHA-256 against the manifest.
            spinning: whether threads wait for their next work at full speed.
            arena: whether working memory is kept from request to request.

        Raises:
            EarnError: the bundle is damaged or the engine is not available.
        """

        def open_now(folder: Path) -> Recommender:
            manifest = Manifest.load(folder, verify)
            check_graphs(folder, manifest)
            catalog, tags, neighbours = _items_of(folder, manifest)
            if engine in ONE_GRAPHS:
                from earn.runtime.one_graph import OneGraphRecommender

                options = partial(session_options, check_threads(threads), spinning, arena)
                return OneGraphRecommender(engine, folder, manifest, options, catalog, tags)
            loaded = load_engine(engine, folder, manifest, threads, spinning, arena)
            head = ConstantHead.load(folder, manifest)
            return cls(loaded, manifest, catalog, tags=tags, head=head, neighbours=neighbours)

        return opened(folder, open_now)

    @classmethod
    def with_engine(cls, engine: Engine, folder: Path, manifest: Manifest, lookahead: int | None = None) -> Recommender:
        """A bundle's recommender over an engine of one's own, and its manifest or a changed one: for measurements."""
        catalog, _, neighbours = _items_of(folder, manifest)
        head = ConstantHead.load(folder, manifest)
        return cls(engine, manifest, catalog, lookahead, head=head, neighbours=neighbours)

    def with_catalog(self, place: str | Path) -> Recommender:
        """A recommender over the same model with the catalog, tags and neighbours that a bundle has now.

        No graph is loaded.

        This one stays as it is, and so do the sessions that it has opened.

        Args:
            place: where the bundle is, as for `load`: the one that was loaded, after `earn catalog`.

        Raises:
            EarnError: the bundle has another model, or is damaged.
        """

        def read(folder: Path) -> tuple[Manifest, Catalog, Tags | None, ItemNeighbours | None]:
            manifest = Manifest.load(folder, verify=(CATALOG_FILE, QUANTIZER_FILE, TAGS_FILE, NEIGHBOURS_FILE))
            return manifest, *_items_of(folder, manifest)

        manifest, catalog, tags, neighbours = opened(place, read)
        if manifest.model_fingerprint != self.manifest.model_fingerprint:
            raise EarnError(f"{place}: is a bundle of another model. Load it: Recommender.load.")
        return self._over(manifest, catalog, tags, neighbours)

    def recommend(
        self,
        history: Sequence[str | int],
        k: int = 10,
        beams: int | str | None = None,
        exclude: Collection[str | int] = (),
        exclude_history: bool = False,
        unknown: str = "error",
        allow: Wanted = None,
        block: Wanted = None,
        timeout_s: float | None = None,
    ) -> Recommendations:
        """The k best next items for one history, best first; fewer only if the catalog has no more.

        Args:
            history: item ids, oldest first; beyond the model's limit the newest are kept.
            k: items to return.
            beams: width of the search, widened to k where it is smaller; 20 (or the bundle's most) if None. "exact"
                widens it until the list is that of the whole catalog, or the bundle allows no more; the list's `exact`
                says which.
            exclude: item ids that must not come back. Scores of the others stay as they are.
            exclude_history: exclude the history's items as well.
            unknown: "error" refuses ids that the catalog lacks, "skip" leaves them out.
            allow: what may come back: a filter (earn.filters) over tags and ids, or ids; None for everything.
            block: what may not come back, likewise; None for nothing.
            timeout_s: seconds that the request may take, looked at between passes of the model; None for no limit.

        Raises:
            EarnError: an unknown item or tag, an empty history, a k or beam width out of range, or it is closed.
            DeadlineError: the time was over; the recommender stays as it was.
        """
        settings = k, beams, [exclude], exclude_history, unknown, [allow], [block], timeout_s
        return self.recommend_batch([history], *settings)[0]

    def recommend_batch(
        self,
        histories: Sequence[Sequence[str | int]],
        k: int = 10,
        beams: int | str | None = None,
        exclude: Sequence[Collection[str | int]] | None = None,
        exclude_history: bool = False,
        unknown: str = "error",
        allow: Sequence[Wanted] | None = None,
        block: Sequence[Wanted] | None = None,
        timeout_s: float | None = None,
    ) -> list[Recommendations]:
        """`recommend` for many users in few passes; `exclude`, `allow` and `block` have one entry per history.

        The time is that of all of them.
        """
        widths = self._widths(k) if beams == EXACT else [self.search_width(k, beams)]
        users = len(histories)
        exclude = one_each(exclude, (), users, "exclude")
        allow, block = one_each(allow, None, users, "allow"), one_each(block, None, users, "block")
        known = [self.history(history, unknown) for history in in_order(histories, "histories")]
        for user, history in enumerate(known):
            if not history:
                raise EarnError(f"History {user} has no known item. Give at least one item of the catalog.")
        own = known if exclude_history else [()] * users
        single = [self.excluded(items, history, unknown) for items, history in zip(exclude, own, strict=True)]
        wanted = zip(single, allow, block, strict=True)
        excluded = [self.filters.unwanted(items, allows, blocks, unknown) for items, allows, blocks in wanted]
        with within(timeout_s):
            return self._lists(known, excluded, k, widths)

    def _lists(
        self, known: Sequence[Sequence[int]], excluded: Sequence[Excluded], k: int, widths: Sequence[int]
    ) -> list[Recommendations]:
        """The best items for any number of histories; those whose list is not exact are asked again with more beams."""
        results: list[Recommendations] = []
        batch = self.manifest.limits.batch
        for start in range(0, len(known), batch):
            chosen = slice(start, start + batch)
            results += self._answer(known[chosen], excluded[chosen], k, widths[0])
        for width in widths[1:]:
            again = [user for user, items in enumerate(results) if not items.exact]
            for start in range(0, len(again), batch):
                asked = again[start : start + batch]
                wider = self._answer([known[user] for user in asked], [excluded[user] for user in asked], k, width)
                for user, items in zip(asked, wider, strict=True):
                    results[user] = items
        return results

    def _widths(self, k: int) -> list[int]:
        """The widths that "exact" tries: from the usual one, twice as many each time, to the bundle's most."""
        width, most = self.search_width(k, None), self.manifest.limits.beams
        return [min(width << step, most) for step in range((most - 1).bit_length() + 1) if width << step < 2 * most]

    def _answer(
        self, histories: Sequence[Sequence[int]], excluded: Sequence[Excluded], k: int, width: int
    ) -> list[Recommendations]:
        """The best items for some histories of item indices that one pass may hold."""
        generated = generated_rows(width, self.manifest.limits.depth)
        prompts = self.decoder.read([self.tokens(history) for history in histories], generated)
        return self.search(prompts, histories, excluded, k, width)

    def session(self, history: Sequence[str | int] = (), unknown: str = "error") -> Session:
        """Opens a session: the history is read once, and each further item costs its own tokens alone.

        Raises:
            EarnError: an unknown item.
        """
        return Session(self, self.history(history, unknown))

    def close(self) -> None:
        """Lets the model go; its memory is free once the requests that are being answered have ended.

        Whoever asks a closed recommender, or a session of it, gets an EarnError.
        """
        self.decoder = cast(Decoder, Closed("recommender", "Load the bundle again."))

    def __enter__(self) -> Recommender:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def restore_session(self, saved: bytes) -> Session:
        """Opens a session that `Session.to_bytes` saved with this bundle.

        Raises:
            EarnError: these are no session's bytes, they are damaged, or another bundle's.
        """
        return Session.from_bytes(self, saved)

    def search_width(self, k: int, beams: int | str | None) -> int:
        """The beams of a search for k items.

        Raises:
            EarnError: more or fewer than the bundle allows.
        """
        return width_of(k, beams, self.manifest.limits.beams)

    def with_new_items(self, items: NewItems) -> Recommender:
        """A recommender over the same model that recommends new items too; this one stays as it is.

        See earn.new_items for how they are named and scored. A history may hold them.

        Raises:
            EarnError: items cannot be added, see `earn.new_items.with_new_items`.
        """
        catalog = with_new_items(self.catalog, items, self.manifest.model.method == SET)
        other = self._over(self.manifest, catalog, self.tags.resized(len(catalog)), self.lists.neighbours)
        other.added = catalog.sum_of_items()
        return other

    def history(self, item_ids: Sequence[str | int], unknown: str = "error") -> list[int]:
        """`indices` of a history, whose order counts."""
        return self.indices(in_order(item_ids, "a history"), unknown)

    def indices(self, item_ids: Collection[str | int], unknown: str = "error") -> list[int]:
        """The catalog's item indices of these ids; see `recommend` for `unknown`."""
        known: list[int] = self.catalog.find(item_ids, unknown).tolist()
        return known

    def excluded(self, item_ids: Collection[str | int], history: Sequence[int] = (), unknown: str = "error") -> Ints:
        """The indices of these ids and of a history of indices, ascending, each once."""
        known = NO_ITEMS if type(item_ids) is tuple and not item_ids else self.catalog.find(item_ids, unknown)
        if not len(known):
            return distinct(history) if len(history) else NO_ITEMS
        return distinct(np.concatenate((known, np.array(history, np.int64))))

    def tokens(self, items: Sequence[int], follows: bool = False) -> list[int]:
        """The tokens of a history of item indices, beyond the model's limit those of the newest.

        Args:
            follows: whether other items stand before them.
        """
        model = self.manifest.model
        separator = list(model.prompt.separator) if follows else []
        newest = np.array(items[-model.max_history :], np.int64)
        rows = self.catalog.codes[newest] if self._read_as is None else self._read_as[newest, None]
        return separator + history_tokens([[code for code in row if code >= 0] for row in rows.tolist()], model)

    def search(
        self,
        prompts: ReadPrompts,
        histories: Sequence[Sequence[int]],
        excluded: Sequence[Excluded],
        k: int,
        width: int,
    ) -> list[Recommendations]:
        """The best items of a batch whose prompts were read; they are those of these histories of item indices."""
        most, near = self.lists.most(k, width), list(map(self.lists.near, histories))
        state, first = self.decoder.prefill(prompts, generated_rows(width, self.manifest.limits.depth))
        if self._set is not None:
            if not np.isfinite(first).all():
                raise self.decoder.not_finite(state, 1)
            return [
                self.lists.of(self._set.best(logits, most, items, found[0]), -np.inf, found, items, k, width)
                for logits, found, items in zip(first, near, excluded, strict=True)
            ]
        left = items_left(self.catalog.trie, excluded)
        search = Search(self.catalog.trie, SCORING_RULES[self.manifest.scoring], width, most, self.lookahead)
        beams = search.run(self.decoder, state, first, left)
        return [
            self.lists.of(self._items(beams, user, items, most), beams.dropped[user], near[user], items, k, width)
            for user, items in enumerate(excluded)
        ]

    def _items(self, beams: Beams, user: int, excluded: Excluded, most: int) -> Ranked:
        """The items that a user's beams name, best first."""
        mine = np.flatnonzero(beams.user == user)
        named = (
            (item, score)
            for node, score in zip(beams.node[mine].tolist(), beams.score[mine].tolist(), strict=True)
            for item in wanted_of(self.catalog.trie.items(node), excluded).tolist()
        )
        return list(islice(named, most))


def _items_of(folder: Path, manifest: Manifest) -> tuple[Catalog, Tags | None, ItemNeighbours | None]:
    """The catalog of a bundle, and its tags and neighbours where it has any."""
    catalog = Catalog.load(folder / CATALOG_FILE)
    tags = Tags.load(folder / TAGS_FILE, len(catalog)) if TAGS_FILE in manifest.files else None
    return catalog, tags, ItemNeighbours.load(folder, manifest, len(catalog))

"""Recommends items from histories: the face of the runtime.

    recommender = Recommender.load("bundle")
    for item in recommender.recommend(["50", "172"], k=10):
        print(item.item_id, item.score, item.title)

A recommender may be shared by threads: a request keeps its state to itself.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from earn.catalog import CATALOG_FILE, Catalog
from earn.errors import EarnError
from earn.manifest import Manifest
from earn.prompts import history_tokens
from earn.runtime.beam import Beams, place_in_group, root_beams, step
from earn.runtime.decoder import Decoder, Decoding
from earn.runtime.engine import Engine, load_engine
from earn.runtime.trie import Ints, ItemTrie

Bools = NDArray[np.bool_]

DEFAULT_BEAMS = 20  # as in the paper


@dataclass(frozen=True)
class Recommendation:
    """One recommended item."""

    item_id: str
    score: float  # log-probability of its identifier under the bundle's scoring rule
    title: str  # "" where unknown


class Recommender:
    """A bundle that is ready to answer."""

    def __init__(self, engine: Engine, manifest: Manifest, catalog: Catalog) -> None:
        if (len(catalog.tokens), catalog.depth) != (len(manifest.model.token_ids), manifest.limits.depth):
            raise EarnError(
                f"The catalog has {len(catalog.tokens)} tokens and depth {catalog.depth}, the manifest "
                f"{len(manifest.model.token_ids)} and {manifest.limits.depth}. Export the checkpoint again."
            )
        self.manifest = manifest
        self.catalog = catalog
        self.trie = ItemTrie.build(catalog.codes)
        self._identifiers = [[code for code in row if code >= 0] for row in catalog.codes.tolist()]
        self._decoder = Decoder(engine, manifest)

    @classmethod
    def load(
        cls, folder: str | Path, engine: str = "cpu", threads: int | None = None, verify: bool = True
    ) -> Recommender:
        """Loads a bundle.

        Args:
            folder: the bundle.
            engine: one of ENGINES; the one asked for is the one that runs.
            threads: threads of one request; the machine's physical cores if None.
            verify: check every file's SHA-256 against the manifest.

        Raises:
            EarnError: the bundle is damaged or the engine is not available.
        """
        folder = Path(folder)
        manifest = Manifest.load(folder, verify)
        return cls(load_engine(engine, folder, manifest, threads), manifest, Catalog.load(folder / CATALOG_FILE))

    def recommend(
        self,
        history: Sequence[str | int],
        k: int = 10,
        beams: int | None = None,
        exclude: Collection[str | int] = (),
        exclude_history: bool = False,
        unknown: str = "error",
    ) -> list[Recommendation]:
        """The k best next items for one history, best first; fewer only if the catalog has no more.

        Args:
            history: item ids, oldest first; beyond the model's limit the newest are kept.
            k: items to return.
            beams: width of the search, widened to k where it is smaller; 20 (or the bundle's most) if None.
            exclude: item ids that must not come back. Scores of the others stay as they are.
            exclude_history: exclude the history's items as well.
            unknown: "error" refuses ids that the catalog lacks, "skip" leaves them out.

        Raises:
            EarnError: an unknown item, an empty history, or a k or beam width out of range.
        """
        return self.recommend_batch([history], k, beams, [exclude], exclude_history, unknown)[0]

    def recommend_batch(
        self,
        histories: Sequence[Sequence[str | int]],
        k: int = 10,
        beams: int | None = None,
        exclude: Sequence[Collection[str | int]] | None = None,
        exclude_history: bool = False,
        unknown: str = "error",
    ) -> list[list[Recommendation]]:
        """`recommend` for many users in few passes; `exclude` has one collection per history."""
        width = self._check_width(k, beams)
        if exclude is None:
            exclude = [()] * len(histories)
        if len(exclude) != len(histories):
            raise EarnError(f"There are {len(histories)} histories but {len(exclude)} exclusions. Give one for each.")
        known = [self._indices(history, unknown) for history in histories]
        for number, history in enumerate(known):
            if not history:
                raise EarnError(f"History {number} has no known item. Give at least one item of the catalog.")
        barred = [set(self._indices(items, unknown)) for items in exclude]
        if exclude_history:
            barred = [items | set(history) for items, history in zip(barred, known, strict=True)]
        results: list[list[Recommendation]] = []
        batch = self.manifest.limits.batch
        for start in range(0, len(known), batch):
            chosen = slice(start, start + batch)
            results += self._search(known[chosen], barred[chosen], k, width)
        return results

    def _check_width(self, k: int, beams: int | None) -> int:
        most = self.manifest.limits.beams
        if not isinstance(k, Integral) or not isinstance(beams, (Integral, type(None))):
            raise EarnError(f"k is {k!r} and beams {beams!r}. Give whole numbers.")
        if beams is None:
            beams = min(DEFAULT_BEAMS, most)
        if not 1 <= k <= most:
            raise EarnError(
                f"k is {k}. This bundle returns 1 to {most} items; export with a larger --max-beams for more."
            )
        if not 1 <= beams <= most:
            raise EarnError(
                f"beams is {beams}. This bundle takes 1 to {most}; export with a larger --max-beams for more."
            )
        return max(k, beams)

    def _indices(self, item_ids: Collection[str | int], unknown: str) -> list[int]:
        if unknown not in ("error", "skip"):
            raise EarnError(f'unknown is {unknown!r}. Take "error" or "skip".')
        if isinstance(item_ids, str):
            raise EarnError(f"Got the text {item_ids!r} where a list of item ids belongs. Write [{item_ids!r}].")
        if not isinstance(item_ids, Collection):
            raise EarnError(f"Got {item_ids!r} where a list of item ids belongs.")
        index = self.catalog.index
        indices = [index.get(str(item_id), -1) for item_id in item_ids]
        if unknown == "error" and -1 in indices:
            missing = next(item_id for item_id, place in zip(item_ids, indices, strict=True) if place < 0)
            raise EarnError(
                f'The catalog has no item {str(missing)!r}. Check the id, or pass unknown="skip" to leave it out.'
            )
        return [place for place in indices if place >= 0]

    def _search(
        self, histories: Sequence[Sequence[int]], barred: Sequence[set[int]], k: int, width: int
    ) -> list[list[Recommendation]]:
        """Beam search for one batch."""
        trie, scoring = self.trie, self.manifest.scoring
        dead = np.stack([trie.dead_nodes(sorted(items)) for items in barred]) if any(barred) else None
        identifiers = self._identifiers
        state, first = self._decoder.prefill(
            [history_tokens([identifiers[item] for item in history], self.manifest.model) for history in histories]
        )
        beams = step(root_beams(len(histories)), np.ones(len(histories), bool), first, 0, trie, scoring, width, dead)
        ancestors = np.zeros((len(histories), 0), np.int64)  # cache rows of the generated tokens that each beam sees
        generated = 0
        for depth in range(1, trie.depth):
            ancestors = ancestors[beams.parent]
            is_open = ~trie.is_leaf(beams.node)
            if not is_open.any():
                break
            slot, logits = self._feed(state, beams, is_open, ancestors, generated, depth - 1)
            ancestors = np.concatenate((ancestors, generated + slot[:, None]), axis=1)
            generated += logits.shape[1]
            logits = logits[beams.user[is_open], slot[is_open]]
            beams = step(beams, is_open, logits, depth, trie, scoring, width, dead)
        return [self._items(beams, user, items, k) for user, items in enumerate(barred)]

    def _feed(
        self, state: Decoding, beams: Beams, is_open: Bools, ancestors: Ints, generated: int, depth: int
    ) -> tuple[Ints, NDArray[np.float32]]:
        """Runs the open beams as the next rows of their users' sequences.

        Returns:
            slot [n], each beam's place among its user's rows (of closed beams: meaningless), and logits [b,m,v].
        """
        user, node, seen = beams.user[is_open], beams.node[is_open], ancestors[is_open]
        place = place_in_group(user)
        users, rows = len(state.next_position), int(place.max()) + 1
        tokens = np.zeros((users, rows), np.int64)
        tokens[user, place] = self.trie.token[node]
        sees = np.zeros((users, rows, generated + rows), bool)
        sees[user[:, None], place[:, None], seen] = True
        sees[user, place, generated + place] = True
        slot = np.zeros(len(is_open), np.int64)
        slot[is_open] = place
        return slot, self._decoder.step(state, tokens, depth, sees)

    def _items(self, beams: Beams, user: int, barred: set[int], k: int) -> list[Recommendation]:
        """The items that a user's beams name, best first."""
        mine = np.flatnonzero(beams.user == user)
        found = [
            (item, float(score))
            for node, score in zip(beams.node[mine], beams.score[mine], strict=True)
            for item in self.trie.items(node).tolist()
            if item not in barred
        ]
        return [
            Recommendation(self.catalog.item_ids[item], score, self.catalog.titles[item]) for item, score in found[:k]
        ]

"""The bundle's one graph (`earn compose`) as a recommender: one call per batch, no search in Python.

    recommender = Recommender.load("bundle", engine="one-graph")              # ONNX Runtime
    recommender = Recommender.load("bundle", engine="tensorrt-one-graph")     # after earn engine build --one-graph

It gives the lists that the bundle's stages give. The width of its search is the one it was written with (all codes at
once have none), and it keeps no sessions. The graph's inputs and outputs are described in `earn.export.one_graph`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np

from earn.catalog import Catalog
from earn.config import SET
from earn.errors import EarnError
from earn.files import read_json
from earn.item_neighbours import ItemNeighbours
from earn.manifest import ITEMS_FILE, NEIGHBOURS_FILE, ONE_GRAPH_FILE, Manifest
from earn.runtime.engine import ONE_GRAPH
from earn.runtime.engine_files import TENSORRT_ONE_GRAPH
from earn.runtime.item_filters import Excluded, indices_of
from earn.runtime.lists import Recommendations
from earn.runtime.recommender import Recommender
from earn.runtime.request import Closed, check_deadline, seconds_left, too_late
from earn.runtime.session import Session
from earn.runtime.tensorrt_graph import TensorRTGraph, padded
from earn.tags import Tags


class OnnxGraph:
    """ONNX Runtime's session over a bundle's one graph. A request whose time is over ends within its call."""

    def __init__(self, folder: Path, manifest: Manifest, options: Callable[[], Any]) -> None:
        """Loads the graph.

        Raises:
            EarnError: it cannot be loaded.
        """
        import onnxruntime

        path = folder / ONE_GRAPH_FILE
        try:
            self._session = onnxruntime.InferenceSession(str(path), options(), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises classes of its own without a common base
            raise EarnError(f"{path}: ONNX Runtime cannot load it ({error}). Write it again: earn compose.") from error
        self._run_options = onnxruntime.RunOptions

    def run(self, names: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        """The outputs of these names.

        Raises:
            DeadlineError: the time is over.
        """
        left = seconds_left()
        if left is None:
            return list(self._session.run(names, feeds))
        options = self._run_options()
        timer = Timer(left, setattr, (options, "terminate", True))
        timer.daemon = True
        timer.start()
        try:
            return list(self._session.run(names, feeds, options))
        except Exception as error:
            raise too_late() if options.terminate else error from None
        finally:
            timer.cancel()


# What runs the graph, by the engine's name: a session with `run(names of outputs, inputs)`.
SESSIONS: Mapping[str, Callable[[Path, Manifest, Callable[[], Any]], Any]] = {
    ONE_GRAPH: OnnxGraph,
    TENSORRT_ONE_GRAPH: lambda folder, manifest, options: TensorRTGraph(folder, manifest),
}


class OneGraphRecommender(Recommender):
    """A bundle whose one graph is ready to answer."""

    def __init__(
        self,
        engine: str,
        folder: Path,
        manifest: Manifest,
        options: Callable[[], Any],
        catalog: Catalog,
        tags: Tags | None,
    ) -> None:
        """Loads the one graph of a bundle; the stages, which `Recommender` drives, are not loaded.

        Args:
            engine: one of SESSIONS.
            folder: the bundle.
            manifest: the bundle's.
            options: makes options of an ONNX Runtime session.
            catalog: the bundle's.
            tags: likewise, where it has any.

        Raises:
            EarnError: the bundle has no such graph, or neighbours, or it cannot be loaded.
        """
        if NEIGHBOURS_FILE in manifest.files:
            raise EarnError(f"{folder}: has {NEIGHBOURS_FILE}, which one graph cannot blend in. Take the engine cpu.")
        if ONE_GRAPH_FILE not in manifest.files:
            raise EarnError(f"{folder}: has no {ONE_GRAPH_FILE}. Write it: earn compose {folder}")
        self._keep(manifest, catalog, tags, None)
        self._engine, self._session, self.beams = engine, SESSIONS[engine](folder, manifest, options), _beams(folder)

    def search_width(self, k: int, beams: int | str | None) -> int:
        """The beams of a search for k items: those that the graph was written with. All codes at once have none.

        Raises:
            EarnError: k is larger, or other beams are asked for.
        """
        if self.manifest.model.method == SET:
            return super().search_width(k, beams)
        if beams not in (None, self.beams):
            raise EarnError(f"beams is {beams}; this graph searches with {self.beams}. Write another: earn compose.")
        if not isinstance(k, int | Integral) or not 1 <= k <= self.beams:
            raise EarnError(f"k is {k!r}. This graph returns 1 to {self.beams} items; write a wider one: earn compose.")
        return self.beams

    def close(self) -> None:
        """Lets the graph go, see `Recommender.close`."""
        self._session = Closed("recommender", "Load the bundle again.")

    def _widths(self, k: int) -> list[int]:
        """The one width that there is: "exact" cannot widen it."""
        return [self.search_width(k, None)]

    def _over(
        self, manifest: Manifest, catalog: Catalog, tags: Tags | None, neighbours: ItemNeighbours | None
    ) -> Recommender:
        """Refused: the graph holds its catalog."""
        raise EarnError(f"The engine {ONE_GRAPH} has its catalog in its graph. Take another one, such as cpu.")

    def session(self, history: Sequence[str | int] = (), unknown: str = "error") -> Session:
        """Refused: one call has no state that could be kept."""
        raise EarnError(f"The engine {self._engine} keeps no sessions. Take another one, such as cpu.")

    def restore_session(self, saved: bytes) -> Session:
        """Refused, see `session`."""
        return self.session()

    def _answer(
        self, histories: Sequence[Sequence[int]], excluded: Sequence[Excluded], k: int, width: int
    ) -> list[Recommendations]:
        most = self.manifest.model.max_history
        newest = [history[-most:] for history in histories]
        feeds = {"history": padded(newest), "excluded": padded([indices_of(items) for items in excluded])}
        check_deadline()
        names = ["items", "scores", "count", "exact", "status"]
        run = self._session.run
        try:
            *answers, status = run(names, {**feeds, "k": np.array([k], np.int64)})
        except EarnError:
            raise
        except Exception as error:  # onnxruntime raises classes of its own without a common base
            raise EarnError(f"ONNX Runtime failed in {ONE_GRAPH_FILE} ({error}). Copy the bundle again.") from error
        if status.any():  # histories and items were checked before
            raise EarnError(f"{ONE_GRAPH_FILE} gives what is no number, so it is damaged. Copy the bundle again.")
        return [
            self.lists.named(list(zip(row[:n].tolist(), scores[:n].tolist(), strict=True)), bool(is_exact))
            for row, scores, n, is_exact in zip(*answers, strict=True)
        ]


def _beams(folder: Path) -> int:
    """The width of the search that a bundle's one graph holds, as the file of its items says."""
    told = read_json(folder / ITEMS_FILE)
    beams = told.get("beams") if isinstance(told, dict) else None
    if not isinstance(beams, int) or beams < 1:
        raise EarnError(f"{folder / ITEMS_FILE}: its beams are {beams!r}. Write it again: earn compose {folder}")
    return beams

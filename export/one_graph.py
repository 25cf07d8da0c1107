"""One graph that recommends: a history in, items and scores out, the whole search inside.

    history   int64 [b,n]  item indices, oldest first; -1 anywhere is padding. The newest `max_history` are read
    excluded  int64 [b,x]  item indices that must not come back; -1 is padding
    k         int64 [j]    items wanted, up to the graph's most, as its first number; empty: the graph's default.
                           (An input that may be left out altogether is unknown to ONNX Runtime in browsers.)

    items     int64 [b,k]  item indices, best first; -1 where the catalog has no more, or no more were wanted: the
                           forms for TensorRT give as many columns as a list can have
    scores    float [b,k]  their log-probabilities; minus infinity where there is no item
    count     int64 [b]    items found
    exact     bool  [b]    no beam was ever dropped that could still have made the list: these are the best k items of
                           the whole catalog
    status    int64 [b]    0: answered; 1: the history holds no item; 2: an index is out of range; 3: the model gave
                           what is no number, so its weights are damaged. Rows with another status than 0 hold no
                           items, and no other row suffers from them

It holds the bundle's own stages, so any precision; the catalog's trie as tables, or its digits; the keys and values of
the prompt's constant start. Standard operators alone, so that every ONNX Runtime runs it in one call. Its forms are
rows of FORMS.

A model that names all codes at once has the form "plain": one pass, no loop, the best of all items. The others search
as `earn.runtime.search` does, without its lookahead: the stage is the same function for a prompt and for beams, so the
loop's first iteration reads the prompt and each later one the rows of the beams that are still open.
Scores are added up in float32, as TensorRT and browsers can.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, helper

from earn.bundle_edit import bundle_changed
from earn.config import BEAMS, SET
from earn.errors import EarnError
from earn.export.graph_writer import BOOL, FLOAT, INT64
from earn.export.one_graph_request import Answer, Request
from earn.export.one_graph_search import beam_search, loop, unrolled
from earn.export.one_graph_set import score_all
from earn.files import write_json, written_whole
from earn.manifest import GRAPH_FILES, ITEMS_FILE, MOBILE_FILES, NEIGHBOURS_FILE, ONE_GRAPH_FILE, FileEntry, Manifest
from earn.runtime.recommender import Recommender
from earn.runtime.request import DEFAULT_BEAMS

DEFAULT_K = 10
METADATA = "earn"  # key of the graph's metadata, which holds `Choices`


@dataclass(frozen=True)
class Form:
    """How the items are found."""

    meaning: str
    method: str  # of the models that it is for
    write: Callable[[Request], Answer]
    is_fixed: bool = False  # shapes follow from the inputs' shapes alone; lists are as wide as the graph's most items


FORMS: Mapping[str, Form] = {  # the first one of a method is its default
    "loop": Form(
        "a loop over the levels, each weight once: CPUs, phones, browsers",
        BEAMS,
        partial(beam_search, levels=loop, in_pieces=True),
    ),
    "unrolled": Form(
        "the levels one after the other: TensorRT",
        BEAMS,
        partial(beam_search, levels=unrolled, in_pieces=False),
        is_fixed=True,
    ),
    "plain": Form("one pass, no loop: everywhere", SET, score_all),
    "fixed": Form("the same with lists of one width: TensorRT", SET, score_all, is_fixed=True),
}


@dataclass(frozen=True)
class Choices:
    """What a one graph is written with; it stands in the graph's metadata."""

    form: str
    beams: int  # width of the search and most items; without beams the most items alone
    k: int  # items that come back where the caller does not say

    @classmethod
    def of(cls, manifest: Manifest, form: str | None = None, beams: int | None = None, k: int | None = None) -> Choices:
        """The choices for a bundle; see `compose_bundle`."""
        method, most = manifest.model.method, manifest.limits.beams
        forms = [name for name, row in FORMS.items() if row.method == method]
        if form is None:
            form = forms[0]
        if form not in forms:
            raise EarnError(f"There is no form {form!r} for this bundle. Take one of: {', '.join(forms)}.")
        if method == SET and beams is not None:
            raise EarnError(f"beams is {beams}, but this bundle names all codes at once. Leave it out.")
        if beams is None:
            beams = most if method == SET else min(max(DEFAULT_BEAMS, k or 0), most)
        if not 1 <= beams <= most:
            raise EarnError(
                f"beams is {beams}. This bundle takes 1 to {most}; export with a larger --max-beams for more."
            )
        if k is None:
            k = min(DEFAULT_K, beams)
        if not 1 <= k <= beams:
            raise EarnError(f"k is {k}. Take 1 to {beams}, the most items that the graph gives.")
        return cls(form, beams, k)


def _model(recommender: Recommender, folder: Path, choices: Choices) -> ModelProto:
    if recommender.catalog.is_changed:
        raise EarnError(
            f"{folder}: items of its catalog were removed, blocked or added since it was exported, which one graph "
            "cannot say. Train and export again, or compose an earlier catalog: earn catalog rollback."
        )
    if recommender.lists.neighbours is not None:
        raise EarnError(
            f"{folder}: blends its lists with {NEIGHBOURS_FILE}, which one graph cannot. Take the neighbours away: "
            "earn blend --remove."
        )
    stages = {stage: onnx.load(folder / name, load_external_data=False) for stage, name in GRAPH_FILES.items()}
    graphs = {name: model.graph for name, model in stages.items()}
    form, early = FORMS[choices.form], stages["early"]
    request = Request(recommender, graphs, choices.beams, choices.k, form.is_fixed)
    model: ModelProto = helper.make_model(
        _graph(request, form.write(request)),
        opset_imports=early.opset_import,
        ir_version=early.ir_version,
        producer_name="earn-edge",
    )
    helper.set_model_props(model, {METADATA: json.dumps(asdict(choices))})
    return model


def _graph(request: Request, answer: Answer) -> Any:
    """What was written, with the inputs and outputs that the module's docstring names."""
    g, is_item = request.g, answer.is_item
    g.output("items", g.add("Where", is_item, answer.items, np.int64(-1)))
    g.output("scores", g.add("Where", is_item, answer.scores, np.float32(-np.inf)))
    g.output("count", g.add("ReduceSum", g.whole(is_item), [1], keepdims=0))
    g.output("exact", answer.exact)
    g.output("status", answer.status)
    inputs = [("history", INT64, ["b", "n"]), ("excluded", INT64, ["b", "x"]), ("k", INT64, ["j"])]
    outputs = [
        *(("items", INT64, ["b", "k"]), ("scores", FLOAT, ["b", "k"])),
        *(("count", INT64, ["b"]), ("exact", BOOL, ["b"]), ("status", INT64, ["b"])),
    ]
    return g.graph("recommend", *([helper.make_tensor_value_info(*row) for row in side] for side in (inputs, outputs)))


def _example(recommender: Recommender, choices: Choices) -> dict[str, list[int]]:
    """A history and the list that the graph must give for it: item indices, by which readers judge their processor."""
    history = list(range(min(recommender.manifest.model.max_history, len(recommender.catalog))))
    ids = [recommender.catalog.item_ids[item] for item in history]
    beams = None if recommender.manifest.model.method == SET else choices.beams
    items = [item.item_id for item in recommender.recommend(ids, choices.k, beams)]
    return {"history": history, "items": recommender.indices(items)}


def compose_bundle(folder: Path, form: str | None = None, beams: int | None = None, k: int | None = None) -> Manifest:
    """Writes a bundle's one graph and its items.json into the bundle, and lists them in its manifest.

    The bundle is replaced by one that has the graph: it is the old one or the new one at every moment. Large weights
    stay where the stages have them.

    Args:
        folder: the bundle.
        form: one of FORMS for the bundle's method; the first of them if None.
        beams: width of the search; 1 to the bundle's most; 20, or as many as `k`, if None. Not for all codes at once.
        k: items that come back where the caller does not say; 1 to `beams`; 10 if None.

    Raises:
        EarnError: the bundle is damaged, its catalog was changed, there is no such form for it, a number is out of
            range, or its folder cannot be written.
    """
    with bundle_changed(folder) as beside:  # first: the graph is of the catalog that it stands beside
        recommender = Recommender.load(folder)
        choices = Choices.of(recommender.manifest, form, beams, k)
        model, example = _model(recommender, folder, choices), _example(recommender, choices)
        manifest = Manifest.load(beside, verify=False)
        for name in MOBILE_FILES:  # of an earlier graph
            (beside / name).unlink(missing_ok=True)
        catalog = recommender.catalog
        names = {"item_ids": [*catalog.item_ids], "titles": [*catalog.titles]}
        write_json(beside / ITEMS_FILE, {"form": choices.form, "beams": choices.beams, "example": example} | names)
        with written_whole(beside / ONE_GRAPH_FILE) as graph:
            onnx.save_model(model, str(graph))
        own = {name: FileEntry.of(beside / name) for name in (ONE_GRAPH_FILE, ITEMS_FILE)}
        stages = {name: entry for name, entry in manifest.files.items() if name not in MOBILE_FILES}
        manifest = replace(manifest, files=stages | own)
        manifest.save(beside)
    return manifest

"""The one graph as one engine, from end to end on the simulated GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from earn.errors import EarnError
from earn.export.bundle import export_bundle
from earn.export.engines import build_engines
from earn.export.one_graph import FORMS, compose_bundle
from earn.manifest import Manifest
from earn.runtime import tensorrt_graph
from earn.runtime.engine_files import FIXED_FORMS, ONE_ENGINE, load_record
from earn.runtime.recommender import Recommender
from earn.shape_ranges import one_graph_profiles
from tests.cli.conftest import Earn, earn  # noqa: F401  (a fixture)
from tests.model.test_set_model import set_model
from tests.support import Agreement, histories_of, pairs, random_catalog, small_model
from tests.tensorrt.simulated_tensorrt import SimulatedTensorRT


@pytest.fixture(scope="module", params=["beams", "set"])
def composed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with its one graph in the form for TensorRT."""
    if request.param == "set":
        model = set_model("tiny-llama", "digits", max_history=6)
    else:
        model = small_model("tiny-llama", random_catalog(40, codes=3), max_history=6, early_layers=2)
    bundle = tmp_path_factory.mktemp("one") / "bundle"
    export_bundle(model, bundle, [["1", "2"]], max_batch=3, max_beams=12)
    compose_bundle(bundle, FIXED_FORMS[request.param])
    return bundle


def test_lists_are_those_of_the_stages(
    composed: Path,
    trt: SimulatedTensorRT,
    earn: Earn,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert earn("engine", "build", composed, "--one-graph", "--hardware", "ampere+").status == 0
    manifest = Manifest.load(composed)
    files = {path.name for path in (composed / ONE_ENGINE.folder).iterdir()}
    assert files == {"recommend.engine", "engines.json", "timing.cache"}
    assert load_record(composed, ONE_ENGINE).hardware == "ampere+"
    plan = json.loads((composed / ONE_ENGINE.folder / "recommend.engine").read_bytes())
    assert [profile["history"][2][1] for profile in plan["profiles"]] == [1, 3, 6]
    assert len(one_graph_profiles(manifest.limits)) == 3
    want, got = Recommender.load(composed, threads=1), Recommender.load(composed, "tensorrt-one-graph")
    agreement = Agreement()
    histories = histories_of(want.catalog, 6, 8)  # of which some are longer than is read
    for history in histories:
        for k in (3, 12):
            agreement.add(str(history), pairs(want.recommend(history, k, 12)), pairs(got.recommend(history, k)))
    excluded = [range(2 * row) for row in range(len(histories))]
    both = zip(
        want.recommend_batch(histories, 8, 12, excluded), got.recommend_batch(histories, 8, None, excluded), strict=True
    )
    for ours, theirs in both:
        assert ours.exact == theirs.exact
        agreement.add("batch", pairs(ours), pairs(theirs))
    agreement.check()
    with pytest.raises(EarnError, match="tensorrt-one-graph keeps no sessions"):
        got.session(["1"])
    monkeypatch.setattr(tensorrt_graph, "MOST_EXCLUDED", 2)
    with pytest.raises(EarnError, match="3 items are excluded"):
        got.recommend(["1"], 3, exclude=["1", "2", "3"])


def test_a_bundle_without_the_form_says_how_to_write_it(bundle: Path, trt: SimulatedTensorRT) -> None:
    for _ in range(2):
        with pytest.raises(EarnError, match=r"earn compose .* --form unrolled"):
            build_engines(bundle, kind=ONE_ENGINE)
        compose_bundle(bundle)  # another form
    with pytest.raises(EarnError, match=r"earn engine build .* --one-graph"):
        Recommender.load(bundle, "tensorrt-one-graph")


def test_the_forms_for_tensorrt_have_known_shapes() -> None:
    assert {row.method: name for name, row in FORMS.items() if row.is_fixed} == FIXED_FORMS

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from earn.bundle_edit import edit_catalog
from earn.catalog import Catalog
from earn.config import Prompt
from earn.errors import DeadlineError, EarnError
from earn.export.bundle import export_bundle
from earn.export.mobile import convert_bundle
from earn.export.one_graph import compose_bundle
from earn.export.one_graph_request import EMPTY, NO_NUMBER, OUT_OF_RANGE, piece_lengths
from earn.graph_files import MOST_ROUNDS
from earn.manifest import MOBILE_FILES, Manifest, check_graphs
from earn.runtime.lists import Recommendations
from earn.runtime.recommender import Recommender
from tests.support import RULES, histories_of, random_catalog, small_model, toy_catalog

CATALOGS = {"odd": random_catalog(60, codes=3), "single": toy_catalog(["a0"]), "flat": toy_catalog(["a", "b", "c"])}
# name: model's settings; `early_layers=4` of four is a dense model
MODELS: dict[str, dict[str, Any]] = {
    "earn": {"early_layers": 2},
    "dense": {"early_layers": 4, "prefix_registers": 0, "suffix_registers": 0},
    "words": {"early_layers": 2, "prompt": Prompt((0,), (1,), (0,))},
    "ends with the history": {"early_layers": 2, "suffix_registers": 0},
}


def made(folder: Path, model: str, catalog: Catalog, rule: str = "trie", beams: int = 20, form: str = "loop") -> Path:
    """A bundle with its one graph."""
    earn = small_model("tiny-qwen3", catalog, max_history=5, **MODELS[model])
    bundle = folder / "bundle"
    export_bundle(earn, bundle, [[str(item) for item in range(min(3, len(catalog)))]], rule)
    compose_bundle(bundle, form, beams, min(10, beams))
    return bundle


def check(bundle: Path, histories: Sequence[Sequence[int]], k: int, beams: int) -> None:
    """The one graph's lists are those of the stages, for single users and for a batch, with and without exclusions."""
    stages, graph = Recommender.load(bundle), Recommender.load(bundle, engine="one-graph")
    items = range(len(stages.catalog))
    for excluded in (items[:0], items[:1], items[::2]):
        exclude = [excluded] * len(histories)
        want = stages.recommend_batch(histories, k, beams, exclude)
        same(graph.recommend_batch(histories, k, None, exclude), want)
        same([graph.recommend(history, k, exclude=excluded) for history in histories], want)


def same(got: Sequence[Recommendations], want: Sequence[Recommendations]) -> None:
    assert [[item.item_id for item in items] for items in got] == [[item.item_id for item in items] for items in want]
    for some, others in zip(got, want, strict=True):
        np.testing.assert_allclose([item.score for item in some], [item.score for item in others], atol=1e-4)
        assert some.exact == others.exact


@pytest.mark.parametrize(
    ("model", "rule", "catalog", "form"),
    [
        *(("earn", rule, "odd", "loop") for rule in RULES),
        *(pytest.param("earn", rule, "odd", "unrolled", marks=pytest.mark.slow) for rule in RULES),
        ("dense", "trie", "odd", "loop"),
        ("words", "level", "odd", "loop"),
        ("ends with the history", "trie", "odd", "loop"),
        ("earn", "trie", "single", "loop"),
        ("dense", "vocab", "flat", "unrolled"),
    ],
)
def test_its_lists_are_those_of_the_stages(tmp_path: Path, model: str, rule: str, catalog: str, form: str) -> None:
    bundle = made(tmp_path, model, CATALOGS[catalog], rule, 6, form)
    histories = histories_of(CATALOGS[catalog], 6, 7, seed=3)
    for k in (1, 4, 6):
        check(bundle, histories, k, 6)
    onnx.checker.check_model(str(bundle / "recommend.onnx"), full_check=True)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("one"), "earn", CATALOGS["odd"])


def run(
    bundle: Path, history: Any, excluded: Any = ((-1,),), k: Sequence[int] = (), file: str = "recommend.onnx"
) -> dict[str, Any]:
    """The graph's outputs by name, from plain ONNX Runtime."""
    session = onnxruntime.InferenceSession(str(bundle / file), providers=["CPUExecutionProvider"])
    excluded = np.broadcast_to(np.array(excluded, np.int64), (len(history), np.shape(excluded)[-1]))
    feeds = {"history": np.array(history, np.int64), "excluded": excluded, "k": np.array(k, np.int64)}
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feeds), strict=True))


def test_rows_without_an_answer_say_so_and_harm_no_other(bundle: Path) -> None:
    alone = run(bundle, [[3, 5]])
    answer = run(bundle, [[-1, 3, -1, 5], [-1, -1, -1, -1], [3, 60, -1, -1], [-2, 3, 5, -1]])
    assert answer["status"].tolist() == [0, EMPTY, OUT_OF_RANGE, OUT_OF_RANGE]
    assert answer["count"].tolist() == [10, 0, 0, 0]
    assert answer["exact"].tolist()[1:] == [False] * 3
    assert (answer["items"][1:] == -1).all()
    assert np.isneginf(answer["scores"][1:]).all()
    np.testing.assert_array_equal(answer["items"][0], alone["items"][0])
    np.testing.assert_allclose(answer["scores"][0], alone["scores"][0], atol=1e-5)
    assert run(bundle, [[3]], [[10**9]])["status"].tolist() == [OUT_OF_RANGE]
    assert run(bundle, np.zeros((2, 0)))["status"].tolist() == [EMPTY] * 2


def test_k_is_optional_and_what_the_catalog_lacks_is_minus_one(bundle: Path) -> None:
    assert run(bundle, [[1]])["items"].shape == (1, 10)
    assert run(bundle, [[1]], k=[3])["items"].shape == (1, 3)
    few = run(bundle, [[1]], [list(range(57))])
    assert few["count"].tolist() == [3]
    assert sorted(few["items"][0].tolist()) == [-1] * (len(few["items"][0]) - 3) + [57, 58, 59]


def test_a_list_called_exact_is_that_of_a_search_that_drops_nothing(tmp_path: Path) -> None:
    catalog = CATALOGS["odd"]
    bundle = made(tmp_path, "earn", catalog, beams=12)
    wide = Recommender.load(bundle)
    histories = histories_of(catalog, 40, 7, seed=5)
    padded = [[*history, *[-1] * (7 - len(history))] for history in histories]
    answer = run(bundle, padded, k=[3])
    best = wide.recommend_batch(histories, 3, 60)
    is_best = [
        [catalog.item_ids[index] for index in row] == [item.item_id for item in items]
        for row, items in zip(answer["items"], best, strict=True)
    ]
    exact = answer["exact"].tolist()
    assert all(right for right, said in zip(is_best, exact, strict=True) if said)
    assert sum(exact) > 0
    compose_bundle(bundle, beams=60)
    assert run(bundle, padded)["exact"].all()


def test_large_weights_stay_in_the_files_of_the_stages(tmp_path: Path) -> None:
    model = small_model("tiny-llama", CATALOGS["odd"])
    export_bundle(model, tmp_path / "bundle", [["1"]], external_data_bytes=1)
    before = sum(path.stat().st_size for path in (tmp_path / "bundle").iterdir())
    compose_bundle(tmp_path / "bundle")
    check(tmp_path / "bundle", [[1, 2], [3]], 5, 20)
    assert (tmp_path / "bundle/recommend.onnx").stat().st_size < before


def test_what_is_no_number_is_no_answer(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    graph = onnx.load(folder / "recommend.onnx")
    weight = next(tensor for tensor in graph.graph.initializer if tensor.name.endswith("head.weight"))
    nothing = np.full(numpy_helper.to_array(weight).shape, np.nan, np.float32)
    weight.CopyFrom(numpy_helper.from_array(nothing, weight.name))
    onnx.save(graph, folder / "recommend.onnx")
    answer = run(folder, [[1], [2]])
    assert answer["status"].tolist() == [NO_NUMBER] * 2
    assert answer["count"].tolist() == [0, 0]
    Manifest.load(bundle).with_files(folder).save(folder)
    with pytest.raises(EarnError, match="no number"):
        Recommender.load(folder, engine="one-graph").recommend(["1"])


def test_every_argument_means_the_same(bundle: Path) -> None:
    stages, graph = Recommender.load(bundle), Recommender.load(bundle, engine="one-graph")
    generator, items = np.random.default_rng(7), len(stages.catalog)

    def some(most: int) -> list[str]:
        return [str(item) for item in generator.choice(items, int(generator.integers(0, most)), replace=False)]

    exact = 0
    for turn in range(24):
        users = int(generator.integers(1, 4))
        histories = [[*some(7), "no such item", "1"] for _ in range(users)]
        settings: dict[str, Any] = {
            "k": int(generator.integers(1, 21)),
            "beams": 20 if turn % 2 else None,
            "exclude": [[*some(40), "no such item"] for _ in range(users)],
            "exclude_history": bool(turn % 3),
            "unknown": "skip",
            "allow": [some(50) if turn % 5 == 0 else None for _ in range(users)],
            "block": [some(20) if turn % 4 == 0 else None for _ in range(users)],
            "timeout_s": 600,
        }
        want = stages.recommend_batch(histories, **settings)
        same(graph.recommend_batch(histories, **settings), want)
        exact += sum(items.exact for items in want)
    assert exact > 0
    for side in (stages, graph):
        with pytest.raises(EarnError, match="no such item"):
            side.recommend(["1", "no such item"])
        with pytest.raises(EarnError, match="timeout_s"):
            side.recommend(["1"], timeout_s=-1)


def test_a_request_ends_within_its_call(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recommender = Recommender.load(bundle, engine="one-graph")
    before = recommender.recommend(["1"])

    class AtOnce(Timer):
        def start(self) -> None:
            self.function(*self.args)

    with monkeypatch.context() as patch:
        patch.setattr("earn.runtime.one_graph.Timer", AtOnce)
        with pytest.raises(DeadlineError, match="within 60 s"):
            recommender.recommend(["1"], timeout_s=60)
    assert recommender.recommend(["1"], timeout_s=60) == before


def test_its_example_is_what_the_bundle_recommends(bundle: Path) -> None:
    names = json.loads((bundle / "items.json").read_text())
    ids, example = names["item_ids"], names["example"]
    items = Recommender.load(bundle).recommend([ids[item] for item in example["history"]], len(example["items"]))
    assert [item.item_id for item in items] == [ids[item] for item in example["items"]]


def test_it_belongs_to_the_bundle(bundle: Path) -> None:
    manifest = Manifest.load(bundle)
    assert {"recommend.onnx", "items.json"} <= manifest.files.keys()
    recommender = Recommender.load(bundle, engine="one-graph")
    with pytest.raises(EarnError, match="sessions"):
        recommender.session(["1"])
    with pytest.raises(EarnError, match="k is 21"):
        recommender.recommend(["1"], k=21)
    with pytest.raises(EarnError, match=r"k is 2\.5"):
        recommender.recommend(["1"], k=2.5)  # type: ignore[arg-type]
    assert recommender.recommend(["1"], beams="exact") == recommender.recommend(["1"])
    with pytest.raises(EarnError, match="beams is 5"):
        recommender.recommend(["1"], beams=5)
    with pytest.raises(EarnError, match="no known item"):
        recommender.recommend([])


@pytest.mark.parametrize(
    ("settings", "says"), [({"form": "x"}, "form"), ({"beams": 65}, "64"), ({"beams": 20, "k": 21}, "k is")]
)
def test_what_cannot_be_composed_is_refused(bundle: Path, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(EarnError, match=says):
        compose_bundle(bundle, **settings)


def test_long_prompts_are_read_in_pieces(tmp_path: Path) -> None:
    catalog = CATALOGS["odd"]
    longest = 190  # items of three tokens: up to three pieces
    earn = small_model("tiny-qwen2", catalog, max_history=longest, early_layers=2)
    export_bundle(earn, tmp_path / "bundle", [["1", "2"]])
    manifest = compose_bundle(tmp_path / "bundle")
    check_graphs(tmp_path / "bundle", manifest)
    onnx.checker.check_model(str(tmp_path / "bundle/recommend.onnx"), full_check=True)
    generator = np.random.default_rng(0)
    lengths = [1, 84, 85, 86, 170, 171, longest, 200]
    histories = [generator.integers(0, len(catalog), length).tolist() for length in lengths]
    check(tmp_path / "bundle", histories, 5, 20)


def test_pieces_are_those_of_the_decoder() -> None:
    lengths = piece_lengths(1000)
    assert lengths is not None
    assert lengths[[1, 256, 257, 512, 513, 1000]].tolist() == [1, 256, 129, 256, 171, 250]
    assert piece_lengths(256) is None
    longest = piece_lengths(100_000)
    assert longest is not None
    assert -(-100_000 // longest[-1]) <= MOST_ROUNDS


def test_the_mobile_form_gives_the_same_lists(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    manifest = convert_bundle(folder)
    assert set(MOBILE_FILES) <= manifest.files.keys()
    assert Manifest.load(folder) == manifest
    assert "ai.onnx;" in (folder / MOBILE_FILES[1]).read_text()
    plain, mobile = run(folder, [[1, 2], [3, 4]]), run(folder, [[1, 2], [3, 4]], file=MOBILE_FILES[0])
    np.testing.assert_array_equal(plain["items"], mobile["items"])
    compose_bundle(folder, k=5)  # another graph, so that the mobile files would be of an earlier one
    assert not set(MOBILE_FILES) & Manifest.load(folder).files.keys()
    assert not (folder / MOBILE_FILES[0]).exists()


def test_a_bundle_without_one_says_how_to_write_it(toy_bundle: Path) -> None:
    with pytest.raises(EarnError, match="earn compose"):
        Recommender.load(toy_bundle, engine="one-graph")
    with pytest.raises(EarnError, match="earn compose"):
        convert_bundle(toy_bundle)


def test_composing_replaces_the_bundle_at_once_and_leaves_the_old_one_whole(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fails(*arguments: object) -> None:
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        with pytest.raises(EarnError, match="another process is changing it"):  # else the graph has a former catalog
            edit_catalog(folder, lambda catalog: catalog)
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx, "save_model", fails)
    with pytest.raises(KeyboardInterrupt):
        compose_bundle(folder, beams=12, k=2)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]

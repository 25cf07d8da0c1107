"""The HTTP application over the toy bundle: lists, sessions, swaps, tokens, limits."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from earn.bundle_edit import edit_catalog, set_tags
from earn.export.bundle import export_bundle
from earn.filters import Items, Tag
from earn.live_catalog import removed
from earn.runtime.lists import Recommendations
from earn.runtime.recommender import Recommender
from earn.serve.app import create_app
from earn.serve.bundles import ServedBundle
from earn.serve.limits import Limits
from earn.serve.service import Service
from earn.tags import Tags
from tests.serve.conftest import Client
from tests.support import small_model

TOKEN = {"Authorization": "Bearer the-token-of-tests"}
HISTORIES = [["1", "2"], ["4"], ["7", "3", "1"], ["0", "5"], ["6", "6", "2"]]


Serve = Callable[..., Client]


@pytest.fixture
def events() -> list[tuple[str, Mapping[str, object]]]:
    return []


@pytest.fixture
def serve(toy_bundle: Path, events: list[tuple[str, Mapping[str, object]]]) -> Iterator[Serve]:
    clients = []

    def start(place: Path = toy_bundle, token: str | None = None, keeps_state: bool = True, **bounds: float) -> Client:
        bundle = ServedBundle("toy", partial(Recommender.load, place, threads=1))
        service = Service([bundle], Limits(**bounds))  # type: ignore[arg-type]
        app = create_app(service, token, log=lambda *event: events.append(event), keeps_state=keeps_state)
        clients.append(Client(app))
        return clients[-1]

    yield start
    for client in clients:
        client.close()


def ids(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [item["item_id"] for item in answer.json()["items"]]


def error(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    (line,) = answer.json().values()
    assert "\n" not in line
    return str(line)


def test_lists_are_those_of_the_runtime(serve: Serve, toy_bundle: Path) -> None:
    answer = serve()("POST", "/recommend", {"history": ["1", 2], "k": 3, "exclude": ["5"], "exclude_history": True})
    want = Recommender.load(toy_bundle).recommend(["1", "2"], 3, exclude=["5"], exclude_history=True)
    assert ids(answer) == [item.item_id for item in want]
    scores = [item["score"] for item in answer.json()["items"]]
    assert scores == pytest.approx([item.score for item in want], abs=1e-5)
    assert answer.json()["exact"] == want.exact


def test_requests_that_come_together_share_a_batch_and_keep_their_own_lists(serve: Serve, toy_bundle: Path) -> None:
    client, recommender = serve(), Recommender.load(toy_bundle)
    kinds: list[dict[str, object]] = [{"k": 3}, {"k": 5, "exclude_history": True}, {"k": 3, "exclude": ["1"]}]
    asked = [{"history": history, **kind} for history in HISTORIES for kind in kinds]
    client("POST", "/recommend", asked[0])
    answers = client.together([("POST", "/recommend", body) for body in asked])
    for body, answer in zip(asked, answers, strict=True):
        wanted: Any = body
        assert ids(answer) == [item.item_id for item in recommender.recommend(**wanted)]
    assert max(answer.json()["timing"]["batch"] for answer in answers) > len(HISTORIES)


def test_a_session_follows_what_is_appended(serve: Serve, toy_bundle: Path) -> None:
    client, recommender = serve(), Recommender.load(toy_bundle)
    opened = client("POST", "/session", {"history": ["1"]})
    assert opened.status_code == 201
    path = f"/session/{opened.json()['session']}"
    assert client("POST", f"{path}/append", {"item_id": "4"}).json()["history"] == ["1", "4"]
    want = [item.item_id for item in recommender.recommend(["1", "4"], 4, exclude_history=True)]
    assert ids(client("POST", f"{path}/recommend", {"k": 4, "exclude_history": True})) == want
    assert "no item 'x'" in error(client("POST", f"{path}/append", {"item_id": "x"}), 422)
    assert client("GET", path).json()["history"] == ["1", "4"]
    assert client("DELETE", path).status_code == 204
    assert "open a new one" in error(client("GET", path), 404)


def test_filters_hold_in_lists_and_sessions(serve: Serve, bundle: Path) -> None:
    catalog = Recommender.load(bundle).catalog
    having = {name: catalog.index.find(items) for name, items in (("even", "0246"), ("low", "012"))}
    set_tags(bundle, Tags.of(having, len(catalog)))
    client, recommender = serve(bundle), Recommender.load(bundle)
    allow: dict[str, object] = {"or": [{"tag": "even"}, {"items": ["7"]}]}
    want = [item.item_id for item in recommender.recommend(["1"], 3, allow=Tag("even") | Items([7]), block=["6"])]
    lists: list[dict[str, object]] = [
        {"k": 3, "allow": allow, "block": ["6"]},
        {"k": 8},
        {"k": 3, "block": {"tag": "low"}},
    ]
    filtered, whole, _ = client.together([("POST", "/recommend", {"history": ["1"], **body}) for body in lists])
    assert ids(filtered) == want
    assert len(ids(whole)) == 8
    opened = client("POST", "/session", {"history": ["1"], "block": {"tag": "low"}}).json()
    answer = client("POST", f"/session/{opened['session']}/recommend", {"k": 8, "allow": {"tag": "even"}})
    assert set(ids(answer)) == {"4", "6"}
    for odd, message in (({"tag": "evn"}, "no tag 'evn'"), (["x"], "no item 'x'"), ({"xor": []}, "is no filter")):
        assert message in error(client("POST", "/recommend", {"history": ["1"], "allow": odd}), 422)
    skipped = client("POST", "/recommend", {"history": ["1"], "allow": ["x", 7], "unknown": "skip"})
    assert ids(skipped) == ["7"]
    (shown,) = client("GET", "/catalog").json()
    assert shown["tags"] == ["even", "low"]


def test_new_tags_are_served_after_a_reload_and_sessions_are_told_which_are_gone(serve: Serve, bundle: Path) -> None:
    set_tags(bundle, Tags.of({"old": [0, 1]}, 8))
    client, token = serve(bundle, "t" * 20), {"Authorization": f"Bearer {'t' * 20}"}
    key = client("POST", "/session", {"history": ["1"], "allow": {"tag": "old"}}, token).json()["session"]
    set_tags(bundle, Tags.of({"new": [0, 1]}, 8))
    reloaded = client("POST", "/catalog/reload", {}, token).json()
    assert reloaded["tags"] == ["new"]
    assert reloaded["version"] != reloaded["previous"]
    assert "no tag 'old'" in error(client("POST", f"/session/{key}/recommend", {}, token), 422)


def test_sessions_are_bounded_in_number_and_age(serve: Serve) -> None:
    client = serve(sessions=2, session_age_s=0.2)
    assert [client("POST", "/session", {}).status_code for _ in range(3)] == [201, 201, 503]
    threading.Event().wait(0.25)
    assert client("POST", "/session", {}).status_code == 201


def test_a_bundle_is_swapped_under_its_sessions_and_rolled_back(serve: Serve, bundle: Path, tmp_path: Path) -> None:
    client = serve(bundle, "the-token-of-tests")
    body = {"history": ["1", "2"], "k": 4}
    before = ids(client("POST", "/recommend", body))
    path = f"/session/{client('POST', '/session', {'history': ['1', '2']}, TOKEN).json()['session']}"
    export_bundle(small_model("tiny-llama", early_layers=2, max_history=6), tmp_path / "other", [["1", "2"]])
    after = [item.item_id for item in Recommender.load(tmp_path / "other").recommend(["1", "2"], 4)]
    assert before != after

    shutil.rmtree(bundle)
    assert "stays as it is" in error(client("POST", "/catalog/reload", {}, TOKEN), 409)
    assert ids(client("POST", "/recommend", body)) == before
    shutil.copytree(tmp_path / "other", bundle)
    swapped = client("POST", "/catalog/reload", {}, TOKEN).json()
    assert swapped["version"] != swapped["previous"]
    assert ids(client("POST", "/recommend", body)) == after
    assert ids(client("POST", f"{path}/recommend", {"k": 4}, TOKEN)) == after
    assert client("POST", "/catalog/rollback", {}, TOKEN).json()["version"] == swapped["previous"]
    assert ids(client("POST", "/recommend", body)) == before
    assert ids(client("POST", f"{path}/recommend", {"k": 4}, TOKEN)) == before


def test_a_changed_catalog_is_served_without_loading_the_graphs(bundle: Path) -> None:
    loads = []

    def load() -> Recommender:
        loads.append(bundle)
        return Recommender.load(bundle, threads=1)

    served = ServedBundle("toy", load, partial(Recommender.with_catalog, place=bundle))
    edit_catalog(bundle, lambda catalog: removed(catalog, ["3"]))
    assert served.reload()
    assert not served.reload()
    assert len(loads) == 1
    assert "3" not in {item.item_id for item in served.current.recommender.recommend(["1", "3"], 8)}
    client = Client(create_app(Service([served], Limits())))
    assert "3" not in {item["item_id"] for item in client("GET", "/items").json()}
    client.close()
    export_bundle(small_model("tiny-llama", early_layers=2, max_history=6), bundle, [["1", "2"]])
    assert served.reload()
    assert len(loads) == 2


def test_changes_of_state_need_the_token(serve: Serve) -> None:
    client = serve(token="the-token-of-tests")
    changes: list[tuple[str, str, object]] = [
        ("POST", "/session", {}),
        ("DELETE", "/session/x", None),
        ("POST", "/session/x/append", {"item_id": "1"}),
        ("POST", "/catalog/reload", {}),
        ("POST", "/catalog/rollback", {}),
    ]
    for headers in ({}, {"Authorization": "Bearer another"}, {"Authorization": "the-token-of-tests"}):
        for method, path, body in changes:
            assert "token" in error(client(method, path, body, headers), 401)
    assert client("POST", "/recommend", {"history": ["1"]}).status_code == 200
    assert "--token-file" in error(serve()("POST", "/catalog/reload", {}), 403)


def test_one_of_several_processes_says_that_it_keeps_no_state(serve: Serve) -> None:
    client = serve(keeps_state=False)
    for path in ("/session", "/session/x/append", "/catalog/reload", "/catalog/rollback"):
        assert "several processes" in error(client("POST", path, {"history": ["1"]}), 404)
    assert client("GET", "/catalog").json()[0]["bundle"] == "toy"
    assert ids(client("POST", "/recommend", {"history": ["1"], "k": 3}))


def test_other_sites_cannot_ask_under_their_name(serve: Serve) -> None:
    client = serve()
    assert "evil.example" in error(client("GET", "/catalog", headers={"Host": "evil.example:8000"}), 400)
    assert client("GET", "/catalog", headers={"Host": "[::1]:8000"}).status_code == 200


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"history": []}, "no known item"),
        ({"history": ["1", "nobody"]}, "no item 'nobody'"),
        ({"history": ["nobody"], "unknown": "skip"}, "no known item"),
        ({"history": ["1"], "k": 25}, "k is 25"),
        ({"history": ["1"], "k": True}, "k"),
        ({"history": ["1"], "beams": 99}, "beams is 99"),
        ({"history": ["1"], "beam": 9}, "body.beam"),
        ({"history": "1"}, "body.history"),
        ({"history": ["\ud800"]}, "no item"),
        ([], "body"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_line(serve: Serve, body: object, says: str) -> None:
    assert says in error(serve().raw("POST", "/recommend", json.dumps(body).encode()), 422)


def test_capacity_deadline_and_body_are_bounded(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, events: list[tuple[str, Mapping[str, object]]]
) -> None:
    client = serve(concurrent=2, deadline_s=0.3, body_bytes=200)
    assert "200 bytes" in error(client("POST", "/recommend", {"history": ["1"] * 100}), 413)
    go, slow = threading.Event(), Recommender.recommend_batch

    def held(self: Recommender, *args: Any, **options: Any) -> list[Recommendations]:
        go.wait(5)
        return slow(self, *args, **options)

    monkeypatch.setattr(Recommender, "recommend_batch", held)
    answers = client.together([("POST", "/recommend", {"history": ["1"]})] * 5 + [("GET", "/healthz", None)])
    go.set()
    assert [answer.status_code for answer in answers] == [504, 504, 503, 503, 503, 200]
    assert answers[2].headers["retry-after"] == "1"
    times = [facts["ms"] for event, facts in events if event == "request" and facts["status"] == 503]
    assert max(float(str(ms)) for ms in times) < 200
    assert client("POST", "/recommend", {"history": ["1"]}).status_code == 200  # the server has recovered


def test_one_that_fails_spoils_no_others(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    client, honest = serve(), Recommender.recommend_batch

    def poisoned(
        self: Recommender, histories: Sequence[Sequence[str]], *args: Any, **options: Any
    ) -> list[Recommendations]:
        if any("6" in history for history in histories):
            raise ValueError("poison")
        return honest(self, histories, *args, **options)

    client("POST", "/recommend", {"history": ["1"]})
    monkeypatch.setattr(Recommender, "recommend_batch", poisoned)
    answers = client.together([("POST", "/recommend", {"history": history}) for history in HISTORIES])
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 500]
    assert "poison" not in answers[-1].text
    assert answers[-1].headers["x-request-id"] in answers[-1].json()["error"]


def test_figures_and_log_tell_of_requests_and_of_no_secret(
    serve: Serve, events: list[tuple[str, Mapping[str, object]]]
) -> None:
    client = serve()
    key = client("POST", "/session", {"history": ["1"]}).json()["session"]
    client("POST", f"/session/{key}/recommend", {})
    figures = client("GET", "/metrics").text
    assert 'earn_requests_total{route="/session",status="201"} 1.0' in figures
    assert "earn_sessions 1.0" in figures
    assert key not in f"{figures}{events}"
    assert events[0][0] == "started"


def test_items_are_found_by_title_or_id(serve: Serve, toy_bundle: Path) -> None:
    catalog = Recommender.load(toy_bundle).catalog
    found = serve()("GET", f"/items?query={catalog.item_ids[3]}").json()
    assert {"item_id": catalog.item_ids[3], "title": catalog.titles[3]} in found
    assert [item["item_id"] for item in serve()("GET", "/items?limit=2").json()] == list(catalog.item_ids[:2])

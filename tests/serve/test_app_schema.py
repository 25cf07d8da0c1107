"""Requests drawn from the application's own OpenAPI, and bent: never a 500, and every answer one that OpenAPI lists."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from earn.runtime.recommender import Recommender
from earn.serve.app import create_app
from earn.serve.bundles import ServedBundle
from earn.serve.limits import Limits
from earn.serve.service import Service
from tests.serve.conftest import Client

pytestmark = pytest.mark.slow

TOKEN = "t" * 16

IDS = st.one_of(st.sampled_from(["1", "2", "7", 3]), st.text(max_size=4), st.integers())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FILTERS = st.recursive(
    st.builds(lambda tag: {"tag": tag}, st.text(max_size=4)) | st.builds(lambda ids: {"items": ids}, st.lists(IDS)),
    lambda inner: (
        st.builds(lambda part: {"not": part}, inner) | st.builds(lambda parts: {"or": parts}, st.lists(inner))
    ),
    max_leaves=4,
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "history": st.lists(IDS, max_size=9),
    "exclude": st.lists(IDS, max_size=9),
    "item_id": IDS,
    "allow": st.none() | st.lists(IDS, max_size=9) | FILTERS,
    "block": st.none() | st.lists(IDS, max_size=9) | FILTERS,
    "k": st.integers(-1, 30),
    "beams": st.integers(-1, 30) | st.just("exact"),
    "exclude_history": st.booleans(),
    "unknown": st.sampled_from(["error", "skip"]),
    "bundle": st.sampled_from(["toy", "other", None]),
}


@pytest.fixture(scope="module")
def ask(toy_bundle: Path) -> Iterator[Callable[..., httpx.Response]]:
    bundle = ServedBundle("toy", partial(Recommender.load, toy_bundle, threads=1))
    opened = Client(create_app(Service([bundle], Limits(sessions=5)), TOKEN, log=lambda event, facts: None))
    yield partial(opened.raw, headers={"Authorization": f"Bearer {TOKEN}"})
    opened.close()


def test_no_request_makes_the_server_fail(ask: Callable[..., httpx.Response]) -> None:
    schema = ask("GET", "/openapi.json").json()
    forms = schema["components"]["schemas"]
    routes = [(method.upper(), path, what) for path, of in schema["paths"].items() for method, what in of.items()]
    session = ask("POST", "/session", b'{"history": ["1"]}').json()["session"]

    @settings(max_examples=120, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        method, path, what = data.draw(st.sampled_from(routes))
        path = re.sub(r"\{\w+\}", data.draw(st.sampled_from([session, session, "x", "%00"])), path)
        if method == "GET":
            query = data.draw(st.dictionaries(st.sampled_from(["query", "limit", "bundle"]), st.text(max_size=5)))
            path = str(httpx.URL(path, params=query))
        content = data.draw(st.binary(max_size=20))
        if body := what.get("requestBody"):
            name = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            names = list(forms[name]["properties"])
            value = {field: data.draw(FIELDS[field] | JSON) for field in names if data.draw(st.booleans())}
            content = data.draw(st.sampled_from([json.dumps(value).encode(), json.dumps([value]).encode(), content]))
        kind = data.draw(st.sampled_from(["application/json"] * 4 + ["text/plain"]))
        answer = ask(method, path, content, kind)
        assert answer.status_code < 500 or answer.status_code == 503, (method, path, content, answer.text)
        assert str(answer.status_code) in what["responses"], (method, path, content, answer.text)
        if answer.status_code >= 400:
            assert list(answer.json()) == ["error"]
            assert "\n" not in answer.json()["error"]

    holds()

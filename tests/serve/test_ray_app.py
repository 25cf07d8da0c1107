"""The application on Ray Serve: two replicas of this machine give the runtime's lists."""

from __future__ import annotations

import importlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from earn.runtime.recommender import Recommender
from tests.serve.conftest import free_port

WHY = 'Ray Serve is not installed: pip install "earn-edge[ray-serve]"'
pytest.importorskip("ray.serve", reason=WHY, exc_type=ImportError)
pytestmark = pytest.mark.slow

REQUESTS = 50


def import_serve() -> None:
    """Makes a process of Ray's ready."""
    importlib.import_module("ray.serve._private.proxy")


def test_two_replicas_give_the_lists_of_the_runtime(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")  # no request to another host
    import ray
    from ray import serve

    from earn.serve.ray_app import Settings, deployment

    draw = np.random.default_rng(0)
    histories = [[str(item) for item in draw.integers(0, 8, draw.integers(1, 7))] for _ in range(REQUESTS)]
    recommender = Recommender.load(toy_bundle, threads=1)

    def ask(history: list[str]) -> httpx.Response:
        return httpx.post(f"{url}/recommend", json={"history": history, "k": 3}, timeout=60)

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    ray.init(num_cpus=3, include_dashboard=False)
    try:
        ray.get([ray.remote(import_serve).remote() for _ in range(3)])  # Ray gives its proxy 60 s to start
        serve.start(http_options={"port": port})
        serve.run(deployment(Settings(place=str(toy_bundle), min_replicas=2, max_replicas=2)))
        with ThreadPoolExecutor(8) as clients:
            answers = list(clients.map(ask, histories))
        replicas = serve.status().applications["default"].deployments["earn"].replica_states
        session = httpx.post(f"{url}/session", json={"history": ["1"]}, timeout=60)
    finally:
        serve.shutdown()
        ray.shutdown()
    assert list(replicas.values()) == [2]
    for history, answer in zip(histories, answers, strict=True):
        assert answer.status_code == 200, answer.text
        want = [item.item_id for item in recommender.recommend(history, 3)]
        assert [item["item_id"] for item in answer.json()["items"]] == want
    assert session.status_code == 404

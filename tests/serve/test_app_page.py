"""The page of examples/app, served by `earn serve` in a process of its own, in headless Chromium."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from earn.bundle_edit import set_tags
from earn.export.bundle import export_bundle
from earn.filters import Filter, Tag
from earn.runtime.recommender import Recommender
from earn.tags import Tags
from tests.serve.chromium import Chromium
from tests.serve.conftest import free_port
from tests.support import small_model

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

CHOSEN = "[...document.querySelectorAll('#history .title')].map(title => title.textContent).reverse()"
LIST = "[...document.querySelectorAll('#list .title')].map(title => title.textContent)"
STATUS = "document.querySelector('#status').textContent"
IS_FRESH = "!document.querySelector('#list').classList.contains('old')"


class Server:
    """`earn serve` with the page."""

    def __init__(self, *bundles: Path, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "earn.cli.main", "serve", *map(str, bundles), "--port", str(port)]
        self._process = subprocess.Popen(
            [*command, "--app", "examples/app", "--threads", "1"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.DEVNULL,
        )
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{self.address}/healthz").close()
                return
            except OSError:
                assert self._process.poll() is None
                time.sleep(0.1)
        raise AssertionError("the server does not answer")

    def stop(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(30)


@pytest.fixture(scope="module")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other") / "dense"
    export_bundle(small_model("tiny-llama", early_layers=4, max_history=6), folder, [["1", "2"]])
    catalog = Recommender.load(folder).catalog
    set_tags(folder, Tags.of({"few": catalog.index.find("357")}, len(catalog)))
    return folder


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chromium]:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("Chromium is not installed here")
    opened = Chromium(program, tmp_path / "profile")
    yield opened
    opened.close()


def names(bundle: Path, history: list[str], without: list[str] | None = None, allow: Filter | None = None) -> list[str]:
    """The list that the page should show."""
    recommender = Recommender.load(bundle)
    if not history:
        items = list(zip(recommender.catalog.item_ids, recommender.catalog.titles, strict=True))[:9]
    else:
        best = recommender.recommend(history, 9, exclude=without or (), exclude_history=True, allow=allow)
        items = [(item.item_id, item.title) for item in best]
    return [title or f"item {item_id}" for item_id, title in items]


def shows(browser: Chromium, want: list[str]) -> None:
    browser.until(f"{IS_FRESH} && JSON.stringify({LIST}) === JSON.stringify({json.dumps(want)})")


def test_the_page_follows_each_choice_and_survives_its_server(
    browser: Chromium, toy_bundle: Path, other_bundle: Path
) -> None:
    catalog = Recommender.load(toy_bundle).catalog
    by_name = {
        title or f"item {item_id}": item_id for item_id, title in zip(catalog.item_ids, catalog.titles, strict=True)
    }
    port = free_port()
    server = Server(toy_bundle, other_bundle, port=port)
    try:
        browser.open(f"{server.address}/app/", width=390, height=800)
        shows(browser, names(toy_bundle, []))
        assert "Nothing chosen yet" in browser.value(STATUS)
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")  # nothing is cut off on a phone

        browser.value("document.querySelector('#list .choose').click()")
        history = [catalog.item_ids[0]]
        shows(browser, names(toy_bundle, history))
        assert "ms: search" in browser.value("document.querySelector('#time').textContent")

        second = by_name[browser.value(LIST)[1]]
        browser.press("2")  # the second of the list
        history.append(second)
        shows(browser, names(toy_bundle, history))
        browser.press("Backspace")
        shows(browser, names(toy_bundle, history[:1]))
        browser.value("document.querySelector('#list button[title=\"Never show this\"]').click()")
        first = by_name[names(toy_bundle, history[:1])[0]]
        shows(browser, names(toy_bundle, history[:1], [first]))

        browser.value("document.querySelector('input[value=dense]').click()")
        shows(browser, names(other_bundle, history[:1], [first]))
        browser.value("tag.value = 'few'; tag.dispatchEvent(new Event('change'))")
        shows(browser, names(other_bundle, history[:1], [first], Tag("few")))

        browser.value("document.querySelector('#search').value = 'no such thing'")
        browser.value("document.querySelector('#add').requestSubmit()")
        browser.until(f"{STATUS}.includes('Nothing here is called')")

        assert server.stop() == 0
        browser.value("document.querySelector('#list .choose').click()")
        browser.until(f"{STATUS}.includes('cannot be reached')")
        assert len(browser.value(CHOSEN)) == 2
        server = Server(toy_bundle, other_bundle, port=port)  # it knows nothing of the session
        browser.value("document.querySelector('#retry').click()")
        browser.until(f"{IS_FRESH} && {STATUS}.includes('2 chosen')")
    finally:
        server.stop()

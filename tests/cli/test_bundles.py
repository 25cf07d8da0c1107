"""`earn pack`, `earn compose` and `earn inspect --verify`."""

from __future__ import annotations

from pathlib import Path

import pytest

from earn.cli.inspection import CHECKS, PASSED
from earn.manifest import ITEMS_FILE, MOBILE_FILES, ONE_GRAPH_FILE
from tests.cli.conftest import Earn


def test_a_packed_bundle_is_inspected_as_its_folder_is(bundle: Path, earn: Earn) -> None:
    outcome = earn("pack", bundle)
    assert outcome.status == 0
    packed = Path(f"{bundle}.zip")
    assert str(packed) in outcome.out
    assert earn("inspect", packed, "--json").json == earn("inspect", bundle, "--json").json
    for place in (bundle, packed):
        checked = earn("inspect", place, "--verify", "--json")
        assert (checked.status, checked.json) == (0, {"passed": True, "checks": dict.fromkeys(CHECKS, PASSED)})


def test_the_one_graph_and_its_mobile_form_belong_to_the_bundle(bundle: Path, earn: Earn) -> None:
    outcome = earn("compose", bundle, "--mobile", "--beams", 2, "-k", 2)
    assert outcome.status == 0
    for name in (ONE_GRAPH_FILE, ITEMS_FILE, *MOBILE_FILES):
        assert name in outcome.out
        assert (bundle / name).exists()
    assert earn("inspect", bundle, "--verify").status == 0


@pytest.mark.parametrize(
    ("name", "change", "fails"),
    [
        ("manifest.json", lambda data: data[:-9], "manifest"),
        ("early.onnx", lambda data: data[:-1], "manifest"),
        ("late.onnx", lambda data: bytes([data[0] ^ 1]) + data[1:], "sums"),
    ],
)
def test_the_check_that_fails_is_named(bundle: Path, earn: Earn, name: str, change: object, fails: str) -> None:
    (bundle / name).write_bytes(change((bundle / name).read_bytes()))  # type: ignore[operator]
    outcome = earn("inspect", bundle, "--verify", "--json")
    passed = [*CHECKS][: [*CHECKS].index(fails)]
    assert outcome.status == 1
    assert [*outcome.json["checks"]] == [*passed, fails]
    assert name in outcome.json["checks"][fails]


def test_what_is_no_place_of_a_bundle_is_one_finding(tmp_path: Path, earn: Earn) -> None:
    outcome = earn("inspect", tmp_path / "absent", "--verify")
    assert (outcome.status, "there is no bundle" in outcome.out) == (1, True)

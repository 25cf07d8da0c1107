from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

import earn
from earn.profiling import machine

CPUINFO = "\n\n".join(
    f"processor\t: {number}\nmodel name\t: Some CPU @ 2 GHz\nphysical id\t: 0\ncore id\t\t: {number // 2}\n"
    for number in range(4)
)


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system that tells nothing, until files are written into this folder."""
    for name in ("cpu0", "cpuinfo", "board", "status", "stat"):
        monkeypatch.setattr(machine, f"_{name.upper()}", tmp_path / name)
    return tmp_path


def test_what_the_system_tells(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "logical_cores", lambda: 4)
    (system / "cpuinfo").write_text(CPUINFO)
    for index, size in enumerate(("32K", "1M", "512K")):
        (system / "cpu0" / "cache" / f"index{index}").mkdir(parents=True)
        (system / "cpu0" / "cache" / f"index{index}" / "size").write_text(f"{size}\n")
    (system / "cpu0" / "cpufreq").mkdir()
    (system / "cpu0" / "cpufreq" / "scaling_governor").write_text("powersave\n")
    (system / "status").write_text("Name:\tpython\nVmHWM:\t    2048 kB\n")
    found = machine.this_machine()
    assert (found.cpu, found.physical_cores, found.logical_cores) == ("Some CPU @ 2 GHz", 2, 4)
    assert (found.last_cache_bytes, found.governor) == (1 << 20, "powersave")
    assert found.versions.keys() == {"python", "numpy", "onnxruntime", "earn-edge"}
    assert found.versions["earn-edge"] == earn.__version__
    assert machine.peak_bytes() == 2 << 20


def test_what_the_system_does_not_tell(system: Path) -> None:
    found = machine.this_machine()
    assert found.physical_cores == found.logical_cores >= 1
    assert (found.last_cache_bytes, found.governor) == (None, None)
    assert found.cpu


def test_a_board_names_what_its_processors_do_not(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    (system / "cpuinfo").write_text("processor\t: 0\nBogoMIPS\t: 108.00\n")
    (system / "board").write_bytes(b"Raspberry Pi 5\0")
    assert machine.this_machine().cpu == "Raspberry Pi 5"


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory_has_the_systems_unit(
    platform: str, unit: int, system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(sys, "platform", platform)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    monkeypatch.setattr(resource, "getrusage", lambda who: usage)
    assert machine.peak_bytes() == usage.ru_maxrss * unit


def test_peak_memory_is_not_known_where_no_one_tells(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert machine.peak_bytes() is None


def test_what_others_took_is_all_but_what_we_took(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    (system / "stat").write_text("cpu  100 20 30 9999 999 5 5 40 0 0\ncpu0 1 1 1 1 1 1 1 1\n")
    found = machine.this_moment()
    assert found.all == 2.0  # neither idle nor waiting
    assert found.own > 0
    later = machine.Moment(found.wall + 10, found.all + 14, found.own + 9)
    assert machine.others_busy(found, later) == pytest.approx(0.5)
    assert machine.others_busy(found, machine.Moment(found.wall + 10, found.all + 1, found.own + 2)) == 0
    (system / "stat").unlink()
    assert machine.this_moment().all is None
    assert machine.others_busy(found, machine.this_moment()) is None

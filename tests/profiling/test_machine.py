from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

import earn
from earn.profiling import machine


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system that reports nothing, until files are written into this folder."""
    monkeypatch.setattr(machine, "_CPU0", tmp_path / "cpu0")
    monkeypatch.setattr(machine, "_STATUS", tmp_path / "status")
    monkeypatch.setattr("cpuinfo.get_cpu_info", lambda: {"brand_raw": "Some CPU @ 2 GHz"})
    return tmp_path


def test_what_the_system_reports(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "logical_cores", lambda: 4)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 2)
    for index, size in enumerate(("32K", "1M", "512K")):
        (system / "cpu0" / "cache" / f"index{index}").mkdir(parents=True)
        (system / "cpu0" / "cache" / f"index{index}" / "size").write_text(f"{size}\n")
    (system / "cpu0" / "cpufreq").mkdir()
    (system / "cpu0" / "cpufreq" / "scaling_governor").write_text("powersave\n")
    (system / "status").write_text("Name:\tpython\nVmHWM:\t    2048 kB\n")
    record = machine.this_machine()
    assert (record.cpu, record.physical_cores, record.logical_cores) == ("Some CPU @ 2 GHz", 2, 4)
    assert (record.last_cache_bytes, record.governor) == (1 << 20, "powersave")
    assert record.versions.keys() == {"python", "numpy", "onnxruntime", "earn-edge"}
    assert record.versions["earn-edge"] == earn.__version__
    assert machine.peak_bytes() == 2 << 20


def test_what_the_system_does_not_report(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cpuinfo.get_cpu_info", dict)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: None)
    record = machine.this_machine()
    assert record.physical_cores == record.logical_cores >= 1
    assert (record.last_cache_bytes, record.governor) == (None, None)
    assert record.cpu


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory_has_the_systems_unit(
    platform: str, unit: int, system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("resource")
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr("resource.getrusage", lambda who: SimpleNamespace(ru_maxrss=7))
    assert machine.peak_bytes() == 7 * unit
    monkeypatch.setitem(sys.modules, "resource", None)
    assert machine.peak_bytes() is None


@pytest.mark.parametrize(("steal", "own", "expected"), [(14.5, 9.0, 0.5), (1.5, 2.0, 0.0)])
def test_other_processes_take_all_time_but_ours(
    steal: float, own: float, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    times: dict[str, Any] = {"user": 1.0, "nice": 0.2, "system": 0.3, "idle": 99, "iowait": 9, "steal": 0.5, "guest": 1}
    ours = SimpleNamespace(user=1.0, system=0.5, children_user=0.0, children_system=0.0)
    now = iter((100.0, 110.0))
    monkeypatch.setattr(psutil, "cpu_times", lambda: SimpleNamespace(_asdict=lambda: times))
    monkeypatch.setattr(machine, "os", SimpleNamespace(times=lambda: ours))
    monkeypatch.setattr(machine, "time", SimpleNamespace(monotonic=lambda: next(now)))
    busy = machine.others_busy()
    times |= {"steal": steal, "idle": 150, "iowait": 20, "guest": 7}  # neither idle, nor waiting, nor counted twice
    ours.children_user = own
    assert busy() == pytest.approx(expected)

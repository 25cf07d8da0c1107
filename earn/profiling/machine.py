"""What is known of this machine: its processor, its memory, and the versions of the libraries.

What the system does not report is None, never a guess.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import earn

_CPU0, _STATUS = Path("/sys/devices/system/cpu/cpu0"), Path("/proc/self/status")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}  # of the cache sizes that Linux reports


@dataclass(frozen=True)
class Machine:
    """Where something was measured."""

    cpu: str  # the processor's name
    physical_cores: int
    logical_cores: int  # that this process may use
    last_cache_bytes: int | None  # of the largest cache
    governor: str | None  # how the processor chooses its clock: performance, schedutil, ...
    load_average: float | None  # runnable processes over the last minute, when the measurement began
    system: str
    versions: dict[str, str]


def this_machine() -> Machine:
    """The record of this machine."""
    from cpuinfo import get_cpu_info

    python = {"python": platform.python_version()}
    return Machine(
        cpu=get_cpu_info().get("brand_raw") or platform.processor() or platform.machine(),
        physical_cores=physical_cores(),
        logical_cores=logical_cores(),
        last_cache_bytes=last_cache_bytes(),
        governor=_read(_CPU0 / "cpufreq" / "scaling_governor"),
        load_average=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        versions={**python, **_versions("numpy", "onnxruntime"), "earn-edge": earn.__version__},
    )


def logical_cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def physical_cores() -> int:
    """The cores behind them, some of which run several threads; as many where the system does not report it."""
    import psutil

    return min(psutil.cpu_count(logical=False) or logical_cores(), logical_cores())


def last_cache_bytes() -> int | None:
    """The size of the largest cache, which py-cpuinfo reports wrongly on many machines."""
    texts = [_read(path) for path in _CPU0.glob("cache/index*/size")]
    sizes = [int(text[:-1]) * _UNITS[text[-1]] for text in texts if text and text[-1] in _UNITS and text[:-1].isdigit()]
    return max(sizes, default=None)


def peak_bytes() -> int | None:
    """The most memory that this process has held at once; None where the system does not report it.

    Linux reports it in /proc: there `getrusage` starts with what the parent process held. Its unit is KiB, but bytes
    on macOS, and Windows has no such call.
    """
    peaks = [line.split()[1] for line in (_read(_STATUS) or "").splitlines() if line.startswith("VmHWM:")]
    if peaks:
        return int(peaks[0]) << 10
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def others_busy() -> Callable[[], float]:
    """Begins to count; the returned function says how many processors others kept busy since then, on average.

    Others are all processes but this one and its children that have ended, and the host.
    """
    import psutil

    def others_spent() -> float:
        own, times = os.times(), psutil.cpu_times()._asdict()
        spent: float = sum(times.get(name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))
        return spent - (own.user + own.system + own.children_user + own.children_system)

    began, spent_before = time.monotonic(), others_spent()
    return lambda: max(0.0, (others_spent() - spent_before) / (time.monotonic() - began))


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _versions(*packages: str) -> dict[str, str]:
    """The versions of the installed ones; onnxruntime has another name where it runs on GPUs."""
    installed = {}
    for package in packages:
        for name in (f"{package}-gpu", package):
            try:
                installed[package] = version(name)
            except PackageNotFoundError:
                continue
    return installed

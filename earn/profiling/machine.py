"""What is known of this machine: its processor, its memory, the versions that run here. Standard library alone.

A figure that the system does not tell is None, never a guess.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import earn

_CPU0 = Path("/sys/devices/system/cpu/cpu0")
_CPUINFO, _BOARD = Path("/proc/cpuinfo"), Path("/proc/device-tree/model")
_STATUS, _STAT = Path("/proc/self/status"), Path("/proc/stat")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}  # of the sizes that Linux tells of caches


@dataclass(frozen=True)
class Moment:
    """Processor time that has been spent, in seconds; see `others_busy`."""

    wall: float
    all: float | None  # by all processes and the host, on all processors; None where the system does not tell
    own: float  # by this process and its children that have ended


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
    return Machine(
        cpu=_cpu(),
        physical_cores=physical_cores(),
        logical_cores=logical_cores(),
        last_cache_bytes=last_cache_bytes(),
        governor=_read(_CPU0 / "cpufreq" / "scaling_governor"),
        load_average=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        versions={
            "python": platform.python_version(),
            **_versions("numpy", "onnxruntime"),
            "earn-edge": earn.__version__,
        },
    )


def logical_cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def physical_cores() -> int:
    """The cores behind them, of which some run several threads; as many where the system does not tell."""
    cores = {(found.get("physical id"), found["core id"]) for found in map(_pairs, _blocks()) if "core id" in found}
    return min(len(cores) or logical_cores(), logical_cores())


def last_cache_bytes() -> int | None:
    """The size of the largest cache."""
    texts = [_read(path) for path in _CPU0.glob("cache/index*/size")]
    sizes = [int(text[:-1]) * _UNITS[text[-1]] for text in texts if text and text[-1] in _UNITS and text[:-1].isdigit()]
    return max(sizes, default=None)


def peak_bytes() -> int | None:
    """The most memory that this process has held at once; None where the system does not tell.

    Linux tells it in /proc: there `getrusage` starts with what the process held that has started this one. Its unit is
    KiB, but bytes on macOS, and Windows has no such call.
    """
    found = [line.split() for line in (_read(_STATUS) or "").splitlines() if line.startswith("VmHWM:")]
    if found:
        return int(found[0][1]) << 10
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most << 10


def this_moment() -> Moment:
    """The processor time spent until now."""
    times = os.times()
    own = times.user + times.system + times.children_user + times.children_system
    fields = ((_read(_STAT) or "").splitlines() or [""])[0].split()
    if len(fields) < 9 or fields[0] != "cpu":
        return Moment(time.monotonic(), None, own)
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen = map(int, fields[1:9])
    ticks = user + nice + system + interrupts + soft_interrupts + stolen
    return Moment(time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), own)


def others_busy(since: Moment, until: Moment) -> float | None:
    """How many processors others kept busy in between, on average: other processes, and other guests of the host."""
    if since.all is None or until.all is None:
        return None
    return max(0.0, (until.all - since.all - (until.own - since.own)) / (until.wall - since.wall))


def _cpu() -> str:
    """The processor's name, or the board's where processors have none."""
    names = [found["model name"] for found in map(_pairs, _blocks()) if "model name" in found]
    if sys.platform == "darwin":
        done = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
        names.append(done.stdout.strip())
    board = (_read(_BOARD) or "").rstrip("\0")
    return next(filter(None, [*names, board, platform.processor()]), platform.machine())


def _blocks() -> list[str]:
    """One part of /proc/cpuinfo for every processor."""
    return (_read(_CPUINFO) or "").split("\n\n")


def _pairs(block: str) -> dict[str, str]:
    lines = [line.partition(":") for line in block.splitlines()]
    return {name.strip(): value.strip() for name, _, value in lines}


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _versions(*packages: str) -> dict[str, str]:
    """The versions of those that are installed; onnxruntime has other names for other devices."""
    found = {}
    for package in packages:
        for name in (package, f"{package}-gpu"):
            try:
                found[package] = version(name)
                break
            except PackageNotFoundError:
                continue
    return found

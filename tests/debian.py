"""Files of Debian packages, unpacked into a cache: no root, nothing installed, any architecture.

For what the Python package index lacks: ONNX Runtime's C++ header, an emulator, Python for ARM. apt-get reads a list of
its own, so the machine's own packages and sources stay as they are.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

RELEASE = "trixie"  # Debian 13, the first with ONNX Runtime's header
KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "earn-edge-tests" / RELEASE
SETTINGS = """\
Dir::Etc::sourcelist "{apt}/sources.list"; Dir::Etc::sourceparts "-"; Dir::State::lists "{apt}/lists";
Dir::State::status "{apt}/status"; Dir::Cache "{apt}/cache"; Acquire::Languages "none";
APT::Architectures {{"amd64"; "arm64";}};
"""


def unpacked(name: str, packages: list[str]) -> Path:
    """Folder `name` of the cache with the files of `packages` ("zlib1g:arm64"); skips the test if they cannot be had.

    Packages that these depend on are not unpacked: list them.
    """
    folder = CACHE / name
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run beside each other, apt-get does not
        if not folder.is_dir():
            _unpack(packages, folder)
    return folder


def _unpack(packages: list[str], folder: Path) -> None:
    if not (shutil.which("apt-get") and KEYS.exists()):
        pytest.skip("Debian's packages need apt-get and Debian's keys")
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    apt, downloads = CACHE / "apt", part / "downloads"
    for needed in (downloads, apt / "lists/partial", apt / "cache/archives/partial"):
        needed.mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    (apt / "sources.list").write_text(f"deb [signed-by={KEYS}] {_mirror()} {RELEASE} main\n")
    (apt / "apt.conf").write_text(SETTINGS.format(apt=apt))
    for request in (["update"], ["download", *packages]):
        command = ["apt-get", "-c", str(apt / "apt.conf"), *request]
        run = subprocess.run(command, cwd=downloads, capture_output=True, text=True)
        if run.returncode:
            pytest.skip(f"Debian's packages cannot be reached: {run.stderr.strip()[-200:]}")
    for package in sorted(downloads.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", str(package), str(part)], check=True)
    shutil.rmtree(downloads)
    part.rename(folder)  # at once: a folder that is there is whole


def _mirror() -> str:
    """Where this machine's own apt-get fetches Debian's packages from."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Origin: Debian"]
    sites = subprocess.run(command, capture_output=True, text=True).stdout.split()
    mirror = next((site for site in sites if site.rstrip("/").endswith("/debian")), None)
    if mirror is None:
        pytest.skip("this machine's apt-get knows no mirror of Debian; run apt-get update")
    return mirror

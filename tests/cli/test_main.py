from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import earn as package
from earn.cli import data as data_command
from earn.cli.main import COMMANDS, main
from tests.cli.conftest import Earn

NAMES = [
    *("quickstart", "import", "data", "train", "evaluate", "analyze", "export"),
    *(
        "calibrate",
        "compose",
        "tags",
        "blend",
        "catalog",
        "pack",
        "engine",
        "profile",
        "recommend",
        "batch",
        "serve",
        "inspect",
    ),
]


@pytest.mark.parametrize("name", ["", *NAMES])
def test_help_lists_every_command_and_shows_examples_of_each(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main([*name.split(), "--help"])
    assert leaving.value.code == 0
    out = capsys.readouterr().out
    if name:
        assert f"examples:\n  earn {name}" in out
    else:
        assert len(COMMANDS) == len(NAMES)
        assert all(f"    {each}" in out for each in NAMES)


REFUSALS = [
    *(
        (
            ModuleNotFoundError(f"No module named {package!r}", name=f"{package}.inside"),
            f'This needs {package}. Install it: pip install "earn-edge[{extra}]" (in a clone: -e ".[{extra}]")',
        )
        for package, extra in (("torch", "train"), ("onnx", "calibrate"), ("onnxruntime", "cpu"))
    ),
    (PermissionError(13, "Permission denied", "/locked"), "/locked: Permission denied"),
]


@pytest.mark.parametrize(("error", "says"), REFUSALS)
def test_a_missing_package_and_an_unreadable_file_are_no_traceback(
    error: Exception, says: str, earn: Earn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(_: object) -> int:
        raise error

    monkeypatch.setattr(data_command, "run", run)
    assert earn("data", "any").error == says


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_is_said_in_one_line(stop: int, earn: Earn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_command, "run", lambda _: signal.raise_signal(stop))
    outcome = earn("data", "any")
    assert (outcome.status, outcome.out, outcome.err) == (130, "", "earn: interrupted\n")


def test_errors_come_from_every_process(earn: Earn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert "nowhere" in earn("data", "nowhere").error


HEAVY = ("torch", "transformers", "optimum", "sklearn", "scipy")


def test_recommending_imports_nothing_heavy(exported: Path) -> None:
    argv = ["recommend", str(exported), "--history", "i1,i2"]
    script = (
        f"import sys\nsys.modules.update(dict.fromkeys({HEAVY!r}))\n"  # None there: importing it fails
        f"from earn.cli.main import main\nsys.exit(main({argv!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(package.__file__).parents[1]
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout

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
    *("calibrate", "compose", "tags", "catalog", "pack", "engine", "profile", "recommend", "batch", "serve", "inspect"),
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


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "COMMAND"),
        (["bake"], "bake"),
        (["train", "ml-100k"], "--out"),
        (["train", "ml-100k", "--out", "x", "--epochs", "0"], "--epochs: '0' is not a finite number above 0"),
        (["train", "nowhere", "--out", "x"], "nowhere: there is no such file"),
        (["train", "nowhere", "--out", "x", "--dense", "--early-layers", "2"], "--early-layers"),
        (["train", "nowhere", "--out", "x", "--dense", "--prefix-registers", "1"], "Leave away --prefix-registers"),
        (["train", "nowhere", "--out", "x", "--dense", "--suffix-registers", "0"], "Leave away --suffix-registers"),
        (["train", "nowhere", "--out", "x", "--lora", "4"], "tiny-llama starts from random weights"),
        (["train", "nowhere", "--out", "x", "--lora-targets", "q"], "there are no adapters"),
        (["train", "nowhere", "--out", "x", "--dtype", "bfloat16"], "without lora all are"),
        (["train", "nowhere", "--out", "x", "--prefix-registers", "0", "--suffix-registers", "0"], "Pass --dense, or"),
        (["train", "nowhere", "--out", "x", "--seed", "4294967296"], "seed is 4294967296. Take 0 to 4294967295"),
        (["train", "nowhere", "--out", "."], "not empty"),
        (["data", "nowhere"], "nowhere"),
        (["recommend", "nowhere", "--history", "1"], "earn export CKPT --out nowhere"),
        (["evaluate", "nowhere", "ml-100k"], "neither a bundle"),
        (["export", "nowhere", "--out", "x"], "there is no checkpoint"),
        (["export", "nowhere", "--out", "x", "--scoring", "best"], "best"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    argv: list[str], says: str, earn: Earn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    monkeypatch.chdir(tmp_path)
    assert says in earn(*argv).error
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("option", "values", "says"),
    [
        ("--learning-rate", ("0", "-1", "nan", "inf", "fast"), "a finite number above 0"),
        ("--weight-decay", ("-0.1", "nan", "inf"), "a finite number from 0"),
        ("--dropout", ("-0.1", "1", "nan"), "a number from 0, below 1"),
        ("--warmup", ("-0.1", "1", "nan"), "a number from 0, below 1"),
    ],
)
def test_settings_out_of_range_are_refused(option: str, values: tuple[str, ...], says: str, earn: Earn) -> None:
    for value in values:
        error = earn("train", "nowhere", "--out", "x", f"{option}={value}").error
        assert f"{option}: {value!r} is not {says}" in error
    assert "nowhere: there is no such file" in earn("train", "nowhere", "--out", "x", f"{option}=0.5").error


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


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], ["recommend", "BUNDLE", "--history", "i1,i2"]])
def test_light_commands_import_nothing_heavy(argv: list[str], exported: Path) -> None:
    argv = [str(exported) if argument == "BUNDLE" else argument for argument in argv]
    script = (
        f"import sys\nsys.modules.update(dict.fromkeys({HEAVY!r}))\n"  # None there: importing it fails
        f"from earn.cli.main import main\nsys.exit(main({argv!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(package.__file__).parents[1]
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout

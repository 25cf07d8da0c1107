"""What is installed where: the wheel's files, an environment of numpy and ONNX Runtime alone, who imports whom."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from earn.errors import to_install
from earn.runtime.recommender import Recommender

ROOT = Path(__file__).parent.parent
ROOMS = {
    # room: the rooms that it may import
    "": set[str](),  # the modules of earn/ itself
    "data": {""},
    "model": {"", "data"},
    "runtime": {""},
    "export": {"", "data", "model", "runtime"},
    "calibration": {"", "data", "export", "runtime"},
    "profiling": {"", "runtime"},
    "report": {"", "model", "runtime", "calibration", "profiling"},
    "serve": {"", "runtime"},
    "cli": {"", "data", "model", "runtime", "export", "calibration", "profiling", "report", "serve"},
}
AT_THE_TOP = ("runtime", "export", "calibration")  # real folders there; earn/ has links to them
TRAINING_ONLY = {"torch", "transformers", "accelerate", "safetensors", "sklearn", "scipy"}
EXPORT_ONLY = {"onnx", "optimum"}
HEAVY = {*TRAINING_ONLY, *EXPORT_ONLY, "tokenizers", "threadpoolctl"}

RECOMMEND = """
import json, sys
from earn.runtime.recommender import Recommender

found = Recommender.load(sys.argv[1], threads=1).recommend(["1", "2"], exclude_history=True)
print(json.dumps([[item.item_id, item.score, item.title] for item in found]))
print(json.dumps(sorted({name.partition(".")[0] for name, module in sys.modules.items() if module})))
"""


def folder(room: str) -> Path:
    return ROOT / room if room in AT_THE_TOP else ROOT / "earn" / room


def modules(room: str) -> list[Path]:
    """A room's files, those of its packages too; of earn/ those that are in no room."""
    return sorted(folder(room).rglob("*.py") if room else folder(room).glob("*.py"))


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of what it is made of, links and all."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for room in ("earn", *AT_THE_TOP, "tests"):
        shutil.copytree(ROOT / room, source / room, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", source / "dist", cwd=source)
    (built,) = (source / "dist").iterdir()
    return built


def test_the_wheel_holds_every_room_and_nothing_else(wheel: Path) -> None:
    want = {"earn/py.typed", "earn/manifest.schema.json", "earn/report/page.css", "earn/report/page.html"}
    for room in ROOMS:
        want |= {(Path("earn", room) / path.relative_to(folder(room))).as_posix() for path in modules(room)}
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
        entry_points = archive.read(next(name for name in names if name.endswith("/entry_points.txt"))).decode()
    assert len(names) == len(set(names))
    information = {name for name in names if ".dist-info/" in name}
    assert set(names) - information == want
    assert {name.partition(".dist-info/")[2] for name in information} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
        "top_level.txt",
    }
    assert "Name: earn-edge\n" in metadata
    assert "earn = earn.cli.main:main" in entry_points
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert [line.split()[1].partition(">")[0] for line in needed] == ["numpy"]


@pytest.fixture(scope="module")
def lean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that holds the wheel, numpy, ONNX Runtime and what these need."""
    folder = tmp_path_factory.mktemp("lean")
    venv.create(folder)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    constraints = ROOT / "constraints.txt"
    pip("install", "--quiet", "--no-compile", "-c", constraints, f"{wheel}[cpu]", python=python)
    return python


def pip(*arguments: str | Path, python: Path) -> str:
    """Runs this environment's pip for another, which then needs none of its own."""
    return run(sys.executable, "-m", "pip", "--python", python, *arguments, cwd=python.parent)


def expected(bundle: Path) -> list[list[object]]:
    found = Recommender.load(bundle, threads=1).recommend(["1", "2"], exclude_history=True)
    return [[item.item_id, pytest.approx(item.score, abs=1e-4), item.title] for item in found]


def test_numpy_and_onnx_runtime_alone_recommend(lean_python: Path, toy_bundle: Path, tmp_path: Path) -> None:
    installed = json.loads(pip("list", "--format", "json", python=lean_python))
    names = {package["name"].lower() for package in installed}
    assert names >= {"earn-edge", "numpy", "onnxruntime"}
    assert not names & HEAVY
    output = run(lean_python, "-I", "-c", RECOMMEND, toy_bundle, cwd=tmp_path)
    assert json.loads(output.splitlines()[0]) == expected(toy_bundle)
    assert "usage: earn" in run(lean_python.parent / "earn", "--help", cwd=tmp_path)


def test_recommending_touches_no_library_of_training_or_export(toy_bundle: Path) -> None:
    """In this environment, where they are all installed, but made impossible to import."""
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in sorted(HEAVY))
    output = run(sys.executable, "-c", f"import sys\n{blocked}{RECOMMEND}", toy_bundle, cwd=ROOT)
    found, modules = map(json.loads, output.splitlines())
    assert found == expected(toy_bundle)
    assert not HEAVY & set(modules)


def test_calibrating_needs_no_torch() -> None:
    """A device can calibrate for itself, with onnx beside the runtime."""
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in sorted(TRAINING_ONLY))
    imported = "import earn.calibration.calibrate, earn.report.calibration, earn.cli.calibrate, earn.data"
    run(sys.executable, "-c", f"import sys\n{blocked}{imported}", cwd=ROOT)


def test_profiling_needs_no_torch_and_where_onnx_is_missing_leaves_out_the_limits(toy_bundle: Path) -> None:
    blocked = (  # not None in sys.modules, which scipy reads as an array library without its classes
        "class Blocked:\n"
        "    def find_spec(self, name, *rest):\n"
        f"        if name.partition('.')[0] in {HEAVY - {'scipy'}!r}: raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
    )
    options = ["--json", "--quick", "--seconds", "0.01", "--callers", "1", "--threads", "1"]
    command = f"from earn.cli.main import main; main({['profile', str(toy_bundle), *options]!r})"
    profile = json.loads(run(sys.executable, "-c", f"import sys\n{blocked}{command}", cwd=ROOT))
    assert profile["note"] == (f"Limits were left out. The matmul rate needs onnx. Install it: {to_install('profile')}")
    assert (profile["memory_bandwidth"], profile["bundles"][0]["matmul_rates"]) == (None, {})


def test_importing_the_package_imports_no_library_at_all() -> None:
    script = "import sys, earn; print(sorted({'numpy', 'torch', 'onnxruntime'} & set(sys.modules)))"
    assert run(sys.executable, "-c", script, cwd=ROOT).strip() == "[]"


def imports(path: Path, only_at_import: bool = False) -> Iterator[str]:
    """Full names of the modules that a file imports; of those below functions too, unless told otherwise."""
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        is_skipped = isinstance(node, ast.FunctionDef) or (
            isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        )
        if not (only_at_import and is_skipped):
            waiting += ast.iter_child_nodes(node)


def file_of(module: str) -> Path | None:
    """The file of a module of this package, from a name that may go on with something that the module holds."""
    parts = module.split(".")[1:]
    for end in (len(parts), len(parts) - 1):
        place = ROOT.joinpath(*([] if parts and parts[0] in AT_THE_TOP else ["earn"]), *parts[: max(end, 0)])
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.is_file():
                return path
    return None


def closure(path: Path) -> set[str]:
    """The libraries that importing a file imports, directly or through the package's own modules."""
    libraries: set[str] = set()
    waiting, seen = [path], set()
    while waiting:
        for name in imports(waiting.pop(), only_at_import=True):
            if name.partition(".")[0] != "earn":
                libraries.add(name.partition(".")[0])
            elif (own := file_of(name)) is not None and own not in seen:
                seen.add(own)
                waiting.append(own)
    return libraries - set(sys.stdlib_module_names)


FILES = [(room, path) for room in ROOMS for path in modules(room)]
IDS = [path.relative_to(ROOT).as_posix() for _, path in FILES]


@pytest.mark.parametrize(("room", "path"), FILES, ids=IDS)
def test_arrows_between_the_rooms_run_one_way(room: str, path: Path) -> None:
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "earn" and len(parts) > 1 and path != ROOT / "earn/__init__.py":  # the users' door to all rooms
            target = parts[1] if parts[1] in ROOMS else ""
            assert target in ROOMS[room] | {room}, f"imports {name}"
        assert parts[0] not in AT_THE_TOP, f"imports {name} past the package"


@pytest.mark.parametrize("path", modules("runtime"), ids=lambda path: path.name)
def test_the_runtime_imports_numpy_and_onnx_runtime_alone(path: Path) -> None:
    assert closure(path) <= {"numpy"}  # ONNX Runtime comes when an engine is loaded
    own = {name.partition(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
    assert own <= {"earn", "numpy", "onnxruntime", "tensorrt", "cuda"}  # the last two where a GPU is asked for


TORCH_FREE = [path for room in ("", "data") for path in modules(room)] + [ROOT / "earn/model/attention_figures.py"]


@pytest.mark.parametrize("path", TORCH_FREE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_is_said_to_be_free_of_torch_is(path: Path) -> None:
    assert closure(path) <= {"numpy"}


def test_the_check_sees_torch_where_it_is() -> None:
    assert "torch" in closure(ROOT / "earn/model/training.py")
    assert "onnx" in closure(ROOT / "export/bundle.py")


def test_a_command_imports_a_room_only_when_it_runs() -> None:
    assert closure(ROOT / "earn/cli/main.py") <= {"numpy"}

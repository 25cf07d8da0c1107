"""The one graph for mobile builds of ONNX Runtime: its own format, and the operators that a reduced build needs.

    recommend.ort                          the graph, optimized and with its weights; all that an app loads
    recommend.required_operators.config    for ONNX Runtime's `build.sh --minimal_build --include_ops_by_config`

Both are written by the tools of the onnxruntime package, optimized for ARM processors.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from earn.bundle_edit import bundle_changed
from earn.errors import EarnError
from earn.manifest import MOBILE_FILES, ONE_GRAPH_FILE, FileEntry, Manifest


def convert_bundle(folder: Path) -> Manifest:
    """Writes the mobile files of a bundle that has its one graph, and lists them in its manifest.

    Raises:
        EarnError: the bundle has no such graph, or ONNX Runtime cannot convert it: a file of its format holds less than
            2 GB, and its tools need the package flatbuffers.
    """
    with bundle_changed(folder) as beside, TemporaryDirectory() as converted:
        manifest = Manifest.load(beside, verify=False)
        if ONE_GRAPH_FILE not in manifest.files:
            raise EarnError(f"{folder}: has no {ONE_GRAPH_FILE}. Write it: earn compose {folder}")
        _convert(folder / ONE_GRAPH_FILE, Path(converted))
        operators = Path(converted) / MOBILE_FILES[1]
        lines = operators.read_text().splitlines(keepends=True)
        operators.write_text("".join(line for line in lines if not line.startswith("#")))  # which name a passing folder
        for name in MOBILE_FILES:
            (beside / name).unlink(missing_ok=True)
            shutil.copyfile(Path(converted) / name, beside / name)
        entries = {name: FileEntry.of(beside / name) for name in MOBILE_FILES}
        manifest = replace(manifest, files={**manifest.files, **entries})
        manifest.save(beside)
    return manifest


def _convert(graph: Path, out: Path) -> None:
    try:
        from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

        convert_onnx_models_to_ort(graph, out, [OptimizationStyle.Fixed], target_platform="arm")
    except ModuleNotFoundError as error:
        raise EarnError(f"The conversion needs {error.name}. Install it: pip install {error.name}") from error
    except Exception as error:  # onnxruntime raises classes of its own without a common base
        raise EarnError(f"{graph}: ONNX Runtime cannot convert it ({error}). Deploy {graph.name} itself.") from error

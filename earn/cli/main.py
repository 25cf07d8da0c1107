"""The `earn` command.

Results go to stdout, all else to stderr. A room, and torch with it, is imported when its command runs.
Exit status: 0 done, 1 a bundle fails the gate or a folder cannot be read (calibrate, inspect), 2 bad input or a missing
optional package (one line "earn: error: ..."), 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from io import TextIOWrapper
from typing import NoReturn

import earn
from earn.cli import (
    analyze,
    batch,
    blend,
    calibrate,
    catalog,
    compose,
    data,
    engine,
    evaluate,
    export,
    import_table,
    inspection,
    pack,
    profile,
    quickstart,
    recommend,
    serve,
    tags,
    train,
)
from earn.cli.arguments import Parser
from earn.console import complain, quiet
from earn.errors import EarnError, to_install

# In the order of --help.
COMMANDS = (
    quickstart,
    import_table,
    data,
    train,
    evaluate,
    analyze,
    export,
    calibrate,
    compose,
    tags,
    blend,
    catalog,
    pack,
    engine,
    profile,
    recommend,
    batch,
    serve,
    inspection,
)

# The optional packages that each extra installs.
EXTRAS = {
    "train": ("torch", "transformers", "accelerate", "safetensors", "tokenizers", "sklearn", "threadpoolctl"),
    "profile": ("scipy", "cpuinfo", "psutil"),
    "gguf": ("gguf",),
    "lora": ("peft",),
    "calibrate": ("onnx", "onnx_ir", "ml_dtypes"),
    "report": ("matplotlib", "jinja2"),
    "cpu": ("onnxruntime",),
    "tables": ("pyarrow",),
    "serve": ("fastapi", "pydantic", "starlette", "uvicorn", "prometheus_client"),
    "ray": ("ray",),
}


def build_parser() -> Parser:
    """The command line's grammar."""
    parser = Parser(
        prog="earn",
        description="EARN recommenders on the device: train, export to ONNX, and recommend with numpy and "
        "ONNX Runtime alone. New here? Try: earn quickstart",
    )
    parser.add_argument("--version", action="version", version=f"earn {earn.__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in COMMANDS:
        module.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (the process's own if None) and returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a title must not fail for the terminal's encoding
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)  # whoever is told to stop cleans up too
    try:
        args = build_parser().parse_args(argv)
        with quiet():
            status: int = args.run(args)
        return status
    except EarnError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        extra = next((extra for extra, packages in EXTRAS.items() if package in packages), None)
        if extra is None:
            raise
        return _fail(f"This needs {package}. Install it: {to_install(extra)}")
    except ImportError as error:  # a package that is there but too old, or lacks a part of its own
        return _fail(str(error))
    except KeyboardInterrupt:
        complain("earn: interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output has left, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _fail(message: str) -> int:
    complain(f"earn: error: {' '.join(message.split())}")
    return 2


if __name__ == "__main__":
    sys.exit(main())

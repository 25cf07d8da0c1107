"""The `tensorrt` package as it is installed here: 10.x or 11.x, from pip or with JetPack."""

from __future__ import annotations

from functools import cache
from typing import Any

from earn.errors import EarnError
from earn.runtime.cuda import shared_device
from earn.runtime.engine_files import Target

OLDEST = (10, 3)  # of JetPack 6; earlier ones lack ways to give a context its memory


@cache
def tensorrt() -> Any:
    """The package.

    Raises:
        EarnError: it is not installed, too old, or its libraries are missing.
    """
    try:
        import tensorrt as package
    except ModuleNotFoundError as error:
        raise EarnError('This needs tensorrt. Install it: pip install "tensorrt>=10.3,<12" cuda-bindings') from error
    except ImportError as error:  # a library that the package needs
        raise EarnError(f"tensorrt is installed but cannot be loaded ({error}).") from error
    version = str(package.__version__)
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        raise EarnError(f"TensorRT {version} is too old: take {OLDEST[0]}.{OLDEST[1]} or later.")
    return package


def make_log() -> Any:
    """A logger for TensorRT that keeps its errors, so that messages can say them: `.errors`, newest last."""
    package = tensorrt()

    class Log(package.ILogger):  # type: ignore[name-defined, misc]  # known at run time alone
        def __init__(self) -> None:
            package.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (package.ILogger.Severity.ERROR, package.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message.strip())

    return Log()


def last_error(log: Any) -> str:
    """The newest error of a log, in brackets, for the end of a sentence; "" if there is none."""
    return f" ({log.errors[-1]})" if log.errors else ""


def this_machine() -> Target:
    """What engines are built for and run on here.

    Raises:
        EarnError: there is no GPU, cuda-bindings or tensorrt is missing, or TensorRT is too old.
    """
    return Target(str(tensorrt().__version__), shared_device().gpu())

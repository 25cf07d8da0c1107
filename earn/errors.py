"""The one error that this package raises on purpose."""

from __future__ import annotations

from collections.abc import Iterable


class EarnError(ValueError):
    """Bad input or a state that the caller can mend; the message says what happened, with which value, and what to do.

    The command line prints it as one line and exits with status 2.
    """


class DeadlineError(EarnError):
    """A request took longer than it was given. What was asked can be asked again."""


def refuse(problems: Iterable[str]) -> None:
    """Raises the first of these problems.

    Raises:
        EarnError: there is one.
    """
    for problem in problems:
        raise EarnError(problem)


def to_install(extra: str) -> str:
    """The command lines that install one of earn-edge's extras: from the package index, and in a clone."""
    return f'pip install "earn-edge[{extra}]" (in a clone: -e ".[{extra}]")'

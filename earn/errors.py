"""The one error that this package raises on purpose."""

from __future__ import annotations


class EarnError(ValueError):
    """Bad input or a state that the caller can mend; the message says what happened, with which value, and what to do.

    The command line prints it as one line and exits with status 2.
    """

"""What stands in the place of a part that was let go: whoever asks it anything learns that its owner is closed."""

from __future__ import annotations

from typing import Any

from earn.errors import EarnError


class Closed:
    """The part of a closed object."""

    def __init__(self, owner: str, remedy: str) -> None:
        self._message = f"The {owner} is closed. {remedy}"

    def __getattr__(self, name: str) -> Any:
        raise EarnError(self._message)

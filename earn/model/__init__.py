"""The model in torch: backbones, stages, registers, training, reference search, attention analysis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from earn.model.earn_model import EarnModel

__all__ = ["EarnModel"]


def __getattr__(name: str) -> Any:
    """Imports torch when the model is asked for, and not before: figures and settings need none."""
    if name == "EarnModel":
        from earn.model.earn_model import EarnModel

        return EarnModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""EARN recommenders for the device: model, training, catalog, and the formats that the other rooms share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from earn.runtime.recommender import Recommender

__all__ = ["Recommender", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports the runtime when the recommender is asked for, and not before."""
    if name == "Recommender":
        from earn.runtime.recommender import Recommender

        return Recommender
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

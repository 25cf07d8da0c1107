"""Interaction data: formats, plain tables, sources, splits, training windows and item identifiers. No torch."""

from earn.data.dataset import Dataset, load_dataset, sample
from earn.data.formats import FORMATS, Format, Interactions
from earn.data.sources import NAMED, find_source, load_interactions
from earn.data.splits import Split, leave_one_out, popularity, popularity_ranks, split_of
from earn.metrics import Example

__all__ = [
    "FORMATS",
    "NAMED",
    "Dataset",
    "Example",
    "Format",
    "Interactions",
    "Split",
    "find_source",
    "leave_one_out",
    "load_dataset",
    "load_interactions",
    "popularity",
    "popularity_ranks",
    "sample",
    "split_of",
]

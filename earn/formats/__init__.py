"""Readers of the file formats in which sequential recommendation data is shared.

One module per format; its docstring says what is read of it:

    lcrec      LC-Rec and LETTER: JSON files in a folder
    recbole    RecBole atomic files: tables
    timesplit  AtSpeed: text files in a folder, split by time

All give `Interactions`. What is wrong in a file raises an `EarnError` that names file, line (in JSON, the key) and
remedy.
"""

from earn.formats.interactions import Interactions
from earn.formats.lcrec import is_lcrec, read_lcrec
from earn.formats.recbole import is_recbole, read_recbole
from earn.formats.timesplit import is_timesplit, read_timesplit

__all__ = [
    "Interactions",
    "is_lcrec",
    "is_recbole",
    "is_timesplit",
    "read_lcrec",
    "read_recbole",
    "read_timesplit",
]

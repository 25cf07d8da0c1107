"""Which column of a table has which role.

Names are compared without case, blanks, `_`, `-` and `.`, and without the type that RecBole appends (`user_id:token`).
A table may have several names of a role; the one that stands first below is taken.

The title of an interaction is often that of a review, so a column called `title` is an item's title only in a table
of items. Within interactions a title needs a name that says whose it is, or to be given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from earn.data.import_options import Columns
from earn.data.tables.batches import Source
from earn.errors import EarnError

ITEM_TITLES = (
    "item_title", "item_name", "product_title", "product_name", "movie_title", "movie_name", "book_title", "song_title",
    "track_name",
)  # fmt: skip
USUAL_NAMES: Mapping[str, Sequence[str]] = {  # role -> names, the preferred one first
    "user": (
        "user_id", "user", "uid", "reviewer_id", "visitor_id", "customer_id", "client_id", "account_id", "member_id",
        "profile_name", "username", "session_id", "session",
    ),
    "item": (
        "item_id", "item", "iid", "parent_asin", "asin", "movie_id", "product_id", "book_id", "track_id", "song_id",
        "artist_id", "article_id", "business_id", "gmap_id", "news_id", "video_id", "game_id", "app_id", "recipe_id",
        "sku", "sku_id", "isbn",
    ),
    "time": (
        "timestamp", "time", "unix_review_time", "ts", "unix_time", "event_time", "timestamp_ms", "datetime", "date",
        "created_at", "created", "review_time", "review_date", "event_timestamp",
    ),
    "rating": ("rating", "stars", "score", "overall", "star_rating", "book_rating", "review_rating"),
    "title": ITEM_TITLES,
}  # fmt: skip
ITEM_TABLE_TITLES = ("title", "name", *ITEM_TITLES)
RECBOLE_TYPES = ("token", "token_seq", "float", "float_seq")
WHOLE = re.compile(r"[0-9]+")
NUMBER = re.compile(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


@dataclass(frozen=True)
class Headless:
    """A usual file without a header line."""

    separators: Sequence[str]
    cells: Sequence[re.Pattern[str]]  # what each cell of the first line is
    roles: Mapping[str, str]  # role -> number of the column, from 1
    says: str


HEADLESS = (
    Headless(
        ("\t", "::"), (WHOLE, WHOLE, NUMBER, re.compile(r"[0-9]{9,}")), {"user": "1", "item": "2", "rating": "3",
        "time": "4"}, "no header; four columns of numbers, read as MovieLens has them: user, item, rating, time",
    ),
    Headless(
        (" ", "\t"), (WHOLE, WHOLE), {"user": "1", "item": "2"},
        "no header and no times; two columns of numbers, read as SASRec has them: user, item, in the order of the file",
    ),
)  # fmt: skip
HEADLESS_ITEMS = (
    Headless(("::",), (WHOLE, re.compile(r".*[^0-9].*"), re.compile(".*")), {"item": "1", "title": "2"},
             "no header; read as MovieLens has it: item, title, genres"),
    Headless(("|",), (WHOLE, re.compile(r".*[^0-9].*"), *[re.compile(".*")] * 22), {"item": "1", "title": "2"},
             "no header; read as MovieLens has it: item, title, ..."),
)  # fmt: skip


def plain(name: str) -> str:
    """A column's name as it is compared (module docstring)."""
    head, colon, type_ = name.strip().rpartition(":")
    return re.sub(r"[\s_.-]", "", head if colon and type_ in RECBOLE_TYPES else name).casefold()


def given_columns(columns: Columns) -> dict[str, str]:
    """role -> name, of the columns that the caller named."""
    return {role: name for role, name in asdict(columns).items() if name is not None}


def headless(
    first: Sequence[str], separator: str, given: Mapping[str, str], forms: Sequence[Headless] = HEADLESS
) -> Headless | None:
    """The file without a header that a text file is whose first line holds data instead of names.

    Args:
        first: the cells of the first line.
        separator: what stands between them.
        given: role -> name that the caller gave; numbers mean a file without a header.
        forms: the usual files without a header.
    """
    known = {plain(name) for name in first}
    if given and all(WHOLE.fullmatch(name) and plain(name) not in known for name in given.values()):
        return Headless((), (), {}, "no header")
    for form in forms:
        fits = separator in form.separators and len(first) == len(form.cells)
        if fits and all(pattern.fullmatch(cell.strip()) for pattern, cell in zip(form.cells, first, strict=True)):
            return form
    return None


def find(source: Source, role: str, given: Mapping[str, str], usual: Mapping[str, Sequence[str]]) -> str | None:
    """A table's column of a role: the given one, that of its kind of file, or the first of a usual name; None: none."""
    by_name = {plain(name): name for name in source.names}
    usual = {fixed: (name,) for fixed, name in source.roles.items()} or usual
    names = [given[role]] if role in given else usual.get(role, ())
    return next((by_name[plain(name)] for name in names if plain(name) in by_name), None)


def choose(
    source: Source,
    given: Mapping[str, str],
    needed: Sequence[str],
    wanted: Sequence[str] = (),
    usual: Mapping[str, Sequence[str]] = USUAL_NAMES,
) -> dict[str, str]:
    """The column of each role.

    Args:
        source: the table.
        given: role -> name that the caller gave.
        needed: roles that there must be.
        wanted: roles that there may be.
        usual: role -> usual names, the preferred one first.

    Raises:
        EarnError: a name stands twice, a given column is missing, or a needed role has no column.
    """
    seen: set[str] = set()
    for name in source.names:
        if plain(name) in seen:
            raise EarnError(f"{source.name}: the column {name!r} stands twice. Keep one of them.")
        seen.add(plain(name))
    matches = {role: find(source, role, given, usual) for role in (*needed, *wanted)}
    roles = {role: name for role, name in matches.items() if name is not None}
    missing = [role for role in matches if role not in roles and (role in given or role in needed)]
    if missing:
        raise _missing(source, given, missing)
    twice = next((name for name in roles.values() if [*roles.values()].count(name) > 1), None)
    if twice is not None:
        shared = " and ".join(role for role, name in roles.items() if name == twice)
        raise EarnError(f"{source.name}: the column {twice!r} was given twice, as {shared}. Give each role its own.")
    return roles


def _missing(source: Source, given: Mapping[str, str], roles: Sequence[str]) -> EarnError:
    """Names all roles that have no column."""
    shown = ", ".join(repr(name) for name in source.names[:12]) + (", ..." if len(source.names) > 12 else "")
    problems = [f"no column {given[role]!r}" for role in roles if role in given]
    unnamed = [role for role in roles if role not in given]
    if unnamed:
        problems.append(f"no column with a usual name for the {' and the '.join(unnamed)}")
    options = " ".join(f"--{role} COLUMN" for role in roles)
    return EarnError(
        f"{source.name}: there is {' and '.join(problems)}; there are {shown}. Name what is missing: {options}. If "
        "these are no names because the file has no header, give numbers: --user 1 --item 2 --time 4."
        + (" If the rows are in order of time and have none: --order file." if "time" in roles else "")
    )

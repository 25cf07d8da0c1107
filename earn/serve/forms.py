"""Bodies of requests and answers, as OpenAPI shows them. Unknown fields are refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

ItemId = StrictStr | StrictInt
Count = Annotated[StrictInt, Field(ge=1, le=1_000_000)]
Unknown = Literal["error", "skip"]
AnyFilter = dict[str, Any] | list[ItemId] | None
FORM = 'item ids, or {"tag": NAME}, {"items": [ID, ...]}, {"and": [...]}, {"or": [...]}, {"not": {...}}'
Allow = Annotated[AnyFilter, Field(description=f"what alone may come back: {FORM}", examples=[None])]
Block = Annotated[
    AnyFilter, Field(description="what may not come back, in the same form", examples=[{"items": ["181"]}])
]
HISTORY = Field(
    description="item ids, oldest first; beyond the model's limit the newest count", examples=[["50", "172"]]
)


class Form(BaseModel):
    """A body whose fields are all named here."""

    model_config = ConfigDict(extra="forbid")


class FilterForm(Form):
    """What lists may hold."""

    allow: Allow = None
    block: Block = None


class ListForm(FilterForm):
    """What a list shall be."""

    k: Count | None = Field(None, description="items; 10, or the bundle's most, if left out", examples=[10])
    exclude: list[ItemId] = Field([], description="items that must not come back", examples=[["181"]])
    exclude_history: StrictBool = Field(False, description="whether the history's items must not come back either")


class SessionListRequest(ListForm):
    """What a session's list shall be; its own filters hold besides."""

    beams: Count | None = Field(None, description="width of the search; 20, or the bundle's most, if left out")


class ListRequest(ListForm):
    """A history and what its list shall be."""

    history: list[ItemId] = HISTORY
    beams: Count | Literal["exact"] | None = Field(
        None, description='width of the search; "exact" widens it until the list is that of the whole catalog'
    )
    unknown: Unknown = Field("error", description="what is done with ids that the catalog lacks")
    bundle: str | None = Field(None, description="one of GET /catalog; the first if left out", examples=[None])


class SessionRequest(FilterForm):
    """How a session begins; its filters hold for all its lists."""

    history: list[ItemId] = Field([], description="item ids, oldest first", examples=[["50", "172"]])
    unknown: Unknown = Field("error", description="what is done with ids that the catalog lacks")
    bundle: str | None = Field(None, description="one of GET /catalog; the first if left out", examples=[None])


class AppendRequest(Form):
    """The newest item of a session."""

    item_id: ItemId = Field(examples=["181"])


class BundleRequest(Form):
    """Which bundle to swap."""

    bundle: str | None = Field(None, description="one of GET /catalog; the first if left out", examples=[None])


class Item(Form):
    """An item of the catalog."""

    item_id: str
    title: str


class ScoredItem(Item):
    """A recommended item."""

    score: float = Field(description="log-probability of its identifier or of a blend, or its digits' sum")


class Timing(Form):
    """Where a request's time went."""

    wait_ms: float = Field(description="until its batch began")
    compute_ms: float = Field(description="of its batch")
    batch: int = Field(description="requests that were answered together")


class ListAnswer(Form):
    """Items, best first."""

    items: list[ScoredItem]
    exact: bool = Field(description="whether this is surely the list of the whole catalog")
    skipped: list[str] = Field(description="ids of the request that the catalog lacks")
    bundle: str
    version: str
    timing: Timing


class SessionAnswer(Form):
    """An open session."""

    session: str = Field(description="its id, a secret of the client")
    history: list[str]
    bundle: str
    version: str
    idle_limit_s: float = Field(description="seconds without use after which it is closed")


class BundleAnswer(Form):
    """A served bundle."""

    bundle: str
    version: str
    previous: str | None = Field(description="the version that a rollback would serve")
    loaded_at: str
    items: int
    most_items: int = Field(description="the largest k")
    history: int = Field(description="items that the model reads")
    tags: list[str] = Field(description="names that filters may use")


class Health(Form):
    """The server answers."""

    status: Literal["ok"]
    bundles: dict[str, str] = Field(description="names and versions")


class Problem(Form):
    """Why a request was refused, in one line."""

    error: str

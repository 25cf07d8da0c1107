"""The HTTP application: routes over a `Service`.

    POST /recommend                         the list for one history
    POST /session                           opens a session; /session/{id}/append, /session/{id}/recommend, DELETE
    GET  /catalog, /items                   what is served, its versions; items by title
    POST /catalog/reload, /catalog/rollback swaps a bundle for what now stands in its place, and back
    GET  /healthz, /metrics, /docs          for probes, Prometheus, people

Errors are {"error": one line}: 401 and 403 token, 404, 409 swap, 413 body, 422 what was asked, 503 capacity, 504 time.
"""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse, Response

import earn
from earn.catalog import OFFERED
from earn.errors import EarnError
from earn.filters import EVERYTHING, NOTHING, Filter, from_json
from earn.runtime.item_filters import as_filter
from earn.serve.batcher import Answer
from earn.serve.bundles import ServedBundle, Version
from earn.serve.forms import (
    AppendRequest,
    BundleAnswer,
    BundleRequest,
    FilterForm,
    Health,
    Item,
    ListAnswer,
    ListRequest,
    Problem,
    ScoredItem,
    SessionAnswer,
    SessionListRequest,
    SessionRequest,
    Timing,
)
from earn.serve.gate import Gate, Log, log_line, problem
from earn.serve.limits import Refusal
from earn.serve.service import Service, Wanted
from earn.serve.sessions import OpenSession

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
MOST_ITEMS = 200  # of GET /items
PROBLEMS: dict[int | str, dict[str, object]] = {
    status: {"model": Problem, "description": text}
    for status, text in (
        (400, "the body is no JSON, or the Host header names another server"),
        (401, "the token is missing or wrong"),
        (403, "the server was started without a token"),
        (404, "no such bundle or session"),
        (409, "the swap failed, and the version from before goes on"),
        (413, "the body is too long"),
        (422, "what was asked cannot be answered"),
        (503, "beyond the server's capacity"),
        (504, "no answer in time"),
    )
}


def problems(*statuses: int) -> dict[int | str, dict[str, object]]:
    """Those answers of a route, for OpenAPI."""
    return {status: PROBLEMS[status] for status in statuses}


def service_of(request: Request) -> Service:
    """The application's service."""
    service: Service = request.app.state.service
    return service


def changes_state(request: Request) -> None:
    """Lets whoever has the token change state; a server without one lets everybody, on loopback alone.

    Raises:
        Refusal: 401, the token is missing or wrong.
    """
    token: str | None = request.app.state.token
    given = request.headers.get("authorization", "")
    if token is not None and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
        raise Refusal(401, "This changes the server's state. Send its token: Authorization: Bearer TOKEN.")


def changes_catalog(request: Request) -> None:
    """Lets nobody change what all users get, except with the token.

    Raises:
        Refusal: 401, the token is missing or wrong; 403, the server has none.
    """
    if request.app.state.token is None:
        raise Refusal(403, "Swaps need a token. Start the server with one: earn serve --token-file FILE.")
    changes_state(request)


Served = Annotated[Service, Depends(service_of)]
router = APIRouter()
sessions = APIRouter(prefix="/session", dependencies=[Depends(changes_state)], tags=["sessions"])
swaps = APIRouter(prefix="/catalog", dependencies=[Depends(changes_catalog)], tags=["catalog"])
without_state = APIRouter(include_in_schema=False)


@router.post("/recommend", responses=problems(400, 404, 413, 422, 503, 504), tags=["lists"])
async def recommend(asked: ListRequest, service: Served) -> ListAnswer:
    """The next items for one history, best first. Requests that come together are answered together."""
    bundle = service.bundle(asked.bundle)
    version = bundle.current
    filters = _filters(asked)
    wanted = Wanted(asked.k, asked.beams, asked.exclude, asked.exclude_history, *filters, asked.unknown)
    query, answer = await service.recommend(version, asked.history, wanted)
    return _list(bundle, version, answer, query.skipped)


@sessions.post("", status_code=201, responses=problems(400, 401, 404, 413, 422, 503, 504))
async def open_session(asked: SessionRequest, service: Served) -> SessionAnswer:
    """Reads a history and keeps it read, so that each further item costs its own tokens alone."""
    bundle = service.bundle(asked.bundle)
    key, opened = await service.open_session(bundle, asked.history, *_filters(asked), asked.unknown)
    return _session(key, opened, service)


@sessions.get("/{session}", responses=problems(401, 404))
async def show_session(session: str, service: Served) -> SessionAnswer:
    """What a session holds."""
    return _session(session, service.sessions.get(session), service)


@sessions.post("/{session}/append", responses=problems(400, 401, 404, 413, 422, 503, 504))
async def append(session: str, asked: AppendRequest, service: Served) -> SessionAnswer:
    """Adds the newest item. After a 504 it may have been added still: GET the session to see."""
    return _session(session, await service.append(session, asked.item_id), service)


@sessions.post("/{session}/recommend", responses=problems(400, 401, 404, 413, 422, 503, 504))
async def recommend_in_session(session: str, asked: SessionListRequest, service: Served) -> ListAnswer:
    """The next items for what the session holds."""
    wanted = Wanted(asked.k, asked.beams, asked.exclude, asked.exclude_history, *_filters(asked))
    opened, answer = await service.session_list(session, wanted)
    return _list(opened.bundle, opened.version, answer, ())


@sessions.delete("/{session}", status_code=204, responses=problems(401, 404))
async def close_session(session: str, service: Served) -> Response:
    """Forgets a session."""
    service.sessions.close(session)
    return Response(status_code=204)


@router.get("/catalog", tags=["catalog"])
async def show_catalog(service: Served) -> list[BundleAnswer]:
    """The bundles that are served, the default one first."""
    return [_bundle(bundle) for bundle in service.bundles.values()]


@swaps.post("/reload", responses=problems(400, 401, 403, 404, 409, 413, 422))
async def reload(asked: BundleRequest, service: Served) -> BundleAnswer:
    """Loads what now stands in the bundle's place, tries it, and serves it from the next request on."""
    bundle = service.bundle(asked.bundle)
    await service.reload(bundle)
    return _bundle(bundle)


@swaps.post("/rollback", responses=problems(400, 401, 403, 404, 409, 413, 422))
async def roll_back(asked: BundleRequest, service: Served) -> BundleAnswer:
    """Serves the version from before the last swap again, at once."""
    bundle = service.bundle(asked.bundle)
    service.roll_back(bundle)
    return _bundle(bundle)


@without_state.api_route("/session", methods=["POST"])
@without_state.api_route("/session/{path:path}", methods=["GET", "POST", "DELETE"])
@without_state.api_route("/catalog/{path:path}", methods=["POST"])
async def refuse_state() -> None:
    """Says why there is neither a session nor a swap.

    Raises:
        Refusal: 404.
    """
    raise Refusal(404, "This server has several processes, so it has no sessions and no swaps. Ask /recommend.")


@router.get("/items", responses=problems(404, 422), tags=["catalog"])
def items(
    service: Served,
    query: Annotated[str, Query(max_length=200, description="part of a title or id", examples=["star"])] = "",
    limit: Annotated[int, Query(ge=1, le=MOST_ITEMS)] = 20,
    bundle: str | None = None,
) -> list[Item]:
    """Items whose title holds a text, or whose id it is, in the catalog's order."""
    catalog = service.bundle(bundle).current.recommender.catalog
    part, found = query.casefold(), list[Item]()
    for item_id, title, status in zip(catalog.item_ids, catalog.titles, catalog.status, strict=True):
        if status == OFFERED and (part in title.casefold() or part == item_id.casefold()):
            found.append(Item(item_id=item_id, title=title))
            if len(found) == limit:
                break
    return found


@router.get("/healthz", tags=["operation"])
async def healthz(service: Served) -> Health:
    """Whether the server answers, and with which versions."""
    versions = {name: bundle.current.fingerprint for name, bundle in service.bundles.items()}
    return Health(status="ok", bundles=versions)


@router.get("/metrics", response_class=Response, tags=["operation"])
async def metrics(service: Served) -> Response:
    """Figures for Prometheus."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def create_app(
    service: Service,
    token: str | None = None,
    page: Path | None = None,
    hosts: Sequence[str] = LOOPBACK,
    log: Log = log_line,
    keeps_state: bool = True,
) -> FastAPI:
    """The application.

    Args:
        service: what it serves.
        token: needed for all that changes state; without one everybody may keep sessions, and nobody swap bundles.
        page: a folder of static files, shown under /app.
        hosts: names under which clients may ask ("*": any); other sites cannot reach a server of this machine by
            pointing a name of theirs to it.
        log: called with every event.
        keeps_state: whether there are sessions and swaps; not where requests are spread over several processes.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            log("started", {name: bundle.current.fingerprint for name, bundle in service.bundles.items()})
            yield
        log("stopped", {})

    app = FastAPI(title="earn serve", version=earn.__version__, lifespan=lifespan)
    app.state.service, app.state.token = service, token
    app.add_middleware(Gate, limits=service.limits, hosts=hosts, metrics=service.metrics, log=log)
    for part in (router, sessions, swaps) if keeps_state else (router, without_state):
        app.include_router(part)
    if page is not None:
        app.mount("/app", StaticFiles(directory=page, html=True))
        app.add_api_route("/", lambda: RedirectResponse("/app/"), include_in_schema=False)

    @app.exception_handler(EarnError)
    async def refused(request: Request, error: EarnError) -> JSONResponse:
        return problem(Refusal(422, str(error)))

    @app.exception_handler(RequestValidationError)
    async def misshapen(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return problem(Refusal(422, f"{place}: {first['msg']}. See /docs for the form of a request."))

    @app.exception_handler(Refusal)
    async def refusal(request: Request, error: Refusal) -> JSONResponse:
        return problem(error)

    @app.exception_handler(HTTPException)
    async def of_routing(request: Request, error: HTTPException) -> JSONResponse:
        answer = problem(Refusal(error.status_code, f"{request.method} here: {error.detail}. See /docs."))
        answer.headers.update(error.headers or {})
        return answer

    return app


def _filters(asked: FilterForm) -> tuple[Filter, Filter]:
    """What a request allows and blocks.

    Raises:
        EarnError: no filter.
    """
    allow, block = (from_json(each) if isinstance(each, dict) else each for each in (asked.allow, asked.block))
    return as_filter(allow, EVERYTHING), as_filter(block, NOTHING)


def _list(bundle: ServedBundle, version: Version, answer: Answer, skipped: Sequence[str]) -> ListAnswer:
    found = [ScoredItem(item_id=item.item_id, title=item.title, score=item.score) for item in answer.items]
    timing = Timing(wait_ms=round(answer.wait_ms, 3), compute_ms=round(answer.compute_ms, 3), batch=answer.batch)
    return ListAnswer(
        items=found,
        exact=answer.items.exact,
        skipped=list(skipped),
        bundle=bundle.name,
        version=version.fingerprint,
        timing=timing,
    )


def _session(key: str, opened: OpenSession, service: Service) -> SessionAnswer:
    return SessionAnswer(
        session=key,
        history=opened.session.history,
        bundle=opened.bundle.name,
        version=opened.version.fingerprint,
        idle_limit_s=service.limits.session_age_s,
    )


def _bundle(bundle: ServedBundle) -> BundleAnswer:
    current, previous = bundle.current, bundle.previous
    limits = current.recommender.manifest.limits
    return BundleAnswer(
        bundle=bundle.name,
        version=current.fingerprint,
        previous=None if previous is None else previous.fingerprint,
        loaded_at=current.loaded_at,
        items=len(current.recommender.catalog),
        most_items=limits.beams,
        history=limits.history,
        tags=list(current.recommender.tags.names),
    )

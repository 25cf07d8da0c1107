"""`earn serve`: bundles behind HTTP (earn.serve), on this machine's loopback address unless told otherwise."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing import parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earn.cli.arguments import PLACE_HELP, Subparsers, add_shared, bundle_place, command, option, positive
from earn.cli.engine import add_engine, chosen_engine
from earn.console import note
from earn.errors import EarnError
from earn.files import read_text
from earn.serve.limits import Limits, Refusal

if TYPE_CHECKING:
    from fastapi import FastAPI

    from earn.serve.service import Service

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
TOKEN_VARIABLE = "EARN_SERVE_TOKEN"
SHORTEST_TOKEN = 16
STOP_S = 30  # that begun requests get to end
UVICORN: Mapping[str, Any] = {"log_config": None, "access_log": False, "timeout_graceful_shutdown": STOP_S}
LIMITS: tuple[tuple[str, Callable[[str], float], str], ...] = (  # of earn.serve.limits
    ("batch", positive, "requests that are answered in one pass"),
    ("batch_wait_ms", float, "that the first request of a batch waits for others at the most"),
    ("concurrent", positive, "requests at one time, beyond which the answer is 503"),
    ("deadline_s", float, "for one request, then 504"),
    ("body_bytes", positive, "of one request's body, beyond which the answer is 413"),
    ("sessions", positive, "open at one time"),
    ("session_age_s", float, "without use, after which a session is closed"),
)
WORKER_S = 60  # without a sign of life, after which a worker is replaced; a new one gets as long to load its bundles


def add_parser(subparsers: Subparsers) -> None:
    """Declares the command."""
    parser = command(
        subparsers,
        "serve",
        run,
        "answer over HTTP",
        "Serves bundles over HTTP: lists in dynamic batches, sessions, swaps of a bundle while it serves, metrics. "
        "SIGTERM ends it when the requests that have begun are answered; SIGHUP loads the bundles' folders again. "
        "/docs describes the requests.",
        """
        earn serve BUNDLE
        earn serve EARN_BUNDLE DENSE_BUNDLE --app examples/app
        earn serve BUNDLE --workers 4 --threads 2
        earn serve BUNDLE --host 0.0.0.0 --allow-host shop.example --token-file token.txt
        """,
    )
    bundles = f"{PLACE_HELP}; requests name it by its last part, the first is the default"
    option(parser, "bundles BUNDLE", bundles, bundle_place, nargs="+")
    option(parser, "--host", "address to listen at", default="127.0.0.1")
    option(parser, "--port N", "", positive, 8000)
    names = "name under which clients ask, besides this machine's own; * allows any"
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME", help=names)
    token = f"file with the token that whoever changes state has to send (or ${TOKEN_VARIABLE}); beyond loopback, and "
    option(parser, "--token-file FILE", f"{token}for swaps, there must be one", Path)
    option(parser, "--app FOLDER", "page to show under /app/, such as examples/app", Path)
    option(
        parser,
        "--workers N",
        "processes that share the port, each with the bundles and limits of its own and one thread unless --threads "
        "says otherwise; one that ends is started again. Beyond 1 there are no sessions and no swaps; SIGHUP starts "
        "one after the other anew",
        positive,
        1,
    )
    for name, kind, text in LIMITS:
        option(parser, f"--{name.replace('_', '-')} N", text, kind, getattr(Limits, name))
    add_engine(parser)
    add_shared(parser, "threads")


def run(args: argparse.Namespace) -> int:
    """Serves until told to stop."""
    token = _token(args.token_file)
    if args.host not in LOOPBACK_HOSTS and token is None:
        raise EarnError(
            f"{args.host} can be reached from elsewhere, and there is no token. Write one of {SHORTEST_TOKEN} letters "
            f"or more into a file: --token-file FILE (or ${TOKEN_VARIABLE})."
        )
    if args.app is not None and not (args.app / "index.html").is_file():
        raise EarnError(f"{args.app}: has no index.html. Give the folder of a page, such as examples/app.")
    if args.app is not None and args.workers > 1:
        raise EarnError("A page needs sessions, which live in one process. Leave --app or --workers away.")
    from earn.serve.app import LOOPBACK, create_app

    if args.workers > 1 and args.threads is None:
        args.threads = 1
    limits = Limits(**{name: getattr(args, name) for name, _, _ in LIMITS})
    hosts = (*LOOPBACK, args.host, *args.allow_host)
    service = partial(_service, args.bundles, args.engine, args.threads, limits)
    ready = service()  # with several workers too, so that what cannot be served is refused at once
    listening = _listening(args.host, args.port)
    note(f"http://{args.host}:{args.port}{'/app/' if args.app else '/docs'} - end it with Ctrl-C")
    if args.workers == 1:
        return _run_one(ready, create_app(ready, token, args.app, hosts), listening)
    del ready
    return _run_workers(partial(_worker, service, hosts), args.workers, listening)


def _run_one(service: Service, app: FastAPI, listening: socket.socket) -> int:
    """Serves in this process."""
    import asyncio

    import uvicorn

    from earn.serve.gate import log_line

    server = uvicorn.Server(uvicorn.Config(app, **UVICORN))

    async def reload() -> None:
        for bundle in service.bundles.values():
            try:
                log_line("reload", {"bundle": bundle.name, "other": await service.reload(bundle)})
            except Refusal as refusal:
                log_line("reload", {"bundle": bundle.name, "error": refusal.message})

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        tasks = set[asyncio.Task[None]]()

        def reload_soon() -> None:
            task = loop.create_task(reload())
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        if hasattr(signal, "SIGHUP"):
            loop.add_signal_handler(signal.SIGHUP, reload_soon)
        await server.serve([listening])

    try:
        asyncio.run(serve())
    except KeyboardInterrupt:  # uvicorn has stopped in good order, and hands the signal on
        if not server.should_exit:
            raise
    return 0 if server.started else 2


def _run_workers(make: Callable[[], FastAPI], workers: int, listening: socket.socket) -> int:
    """Serves in several processes that accept from the same socket; uvicorn starts those again that have ended."""
    import uvicorn
    from uvicorn.supervisors import Multiprocess

    class Supervisor(Multiprocess):
        def keep_subprocess_alive(self) -> None:
            # Each worker has its own copy of this end of the pipe. While ours is open, a question to a worker that has
            # just been killed waits for its answer until WORKER_S are over.
            for process in self.processes:
                process.child_conn.close()
            super().keep_subprocess_alive()

    note(f"{workers} workers: sessions and swaps are off; SIGHUP starts one after the other anew")
    config = uvicorn.Config(make, factory=True, workers=workers, timeout_worker_healthcheck=WORKER_S, **UVICORN)
    Supervisor(config, [listening]).run()
    return 0


def _worker(make_service: Callable[[], Service], hosts: Sequence[str]) -> FastAPI:
    """What one of several processes answers with. It ends when the process that started it has."""
    from earn.serve.app import create_app
    from earn.serve.gate import log_line

    def follow() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, daemon=True).start()
    try:
        return create_app(make_service(), hosts=hosts, keeps_state=False)
    except EarnError as error:  # the bundle was good when the server started; uvicorn tries again
        log_line("worker", {"error": str(error)})
        raise SystemExit(1) from error


def _service(places: Sequence[str | Path], engine: str, threads: int | None, limits: Limits) -> Service:
    """Loads what is served."""
    from earn.serve.bundles import ServedBundle
    from earn.serve.service import Service

    bundles = [ServedBundle.at(place, chosen_engine(engine, place), threads) for place in places]
    return Service(bundles, limits)


def _listening(host: str, port: int) -> socket.socket:
    """A socket at this address, opened here because uvicorn would end the process without a word.

    Raises:
        EarnError: the address is not this machine's, or somebody listens there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=1024)
        # Headers and body are sent apart. Without this, which connections inherit, the body would wait some 40 ms for
        # the client to confirm the headers: asyncio sets it for sockets alone that were opened as TCP by name.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except (OSError, OverflowError) as error:
        raise EarnError(f"Cannot listen at {host}, port {port} ({error}). Take another one: --port N.") from error


def _token(file: Path | None) -> str | None:
    """The token of a file or of the environment.

    Raises:
        EarnError: it cannot be read, or is short.
    """
    token = os.environ.get(TOKEN_VARIABLE) if file is None else read_text(file).strip()
    if token is not None and (len(token) < SHORTEST_TOKEN or not token.isascii()):
        raise EarnError(f"The token has {len(token)} letters. Give {SHORTEST_TOKEN} or more, of ASCII.")
    return token

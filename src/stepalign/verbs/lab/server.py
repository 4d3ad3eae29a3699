"""The lab's server: loopback only, one page, four questions that the page asks.

A local port is reachable by other users of the machine and by pages in the browser that guess it. So every request must
name this very server as its host (a foreign name that resolves to the loopback address does not), must come from this
page where it says where it comes from (Origin), and must carry the token, which only the terminal shows.
"""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from stepalign.errors import ConfigError, UserError
from stepalign.outside import parse_json
from stepalign.report.page import lab_html
from stepalign.report.payload import page_data, what_ifs
from stepalign.report.text import safe_json
from stepalign.verbs.lab.request import LabRequest, read_request, read_spike
from stepalign.verbs.lab.worker import Cancelled, Worker

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HOST = "127.0.0.1"
MAX_BODY_BYTES = 4_000_000
HEADERS = {
    # The page itself names what it may load; no other page may frame it.
    "content-security-policy": "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}

Answer = Callable[[dict[str, Any]], Awaitable[Mapping[str, Any]]]


class LabScorer(Protocol):
    """The part of a ``scorer.Scorer`` that the server needs."""

    @property
    def designs(self) -> list[dict[str, str]]: ...

    def score(self, request: LabRequest, cancelled: threading.Event) -> dict[str, Any]: ...

    def fill(self, design: str, request: LabRequest) -> str: ...

    def what_if(self, request: LabRequest, token: int, count: int, cancelled: threading.Event) -> dict[str, Any]: ...


def make_app(scorer: LabScorer, beginning: Mapping[str, Any], *, token: str, port: int) -> Starlette:
    """The application.

    Args:
        beginning: what the page starts with: ``model``, ``temperature``, ``examples``.
        token: what every request must carry, in the page's address or as a header.
        port: of the server, part of the only host names it answers to.
    """
    from starlette.applications import Starlette
    from starlette.responses import HTMLResponse, PlainTextResponse, Response
    from starlette.routing import Route

    hosts = {f"{name}:{port}" for name in (HOST, "localhost")}
    html = lab_html({**beginning, "designs": scorer.designs})
    worker = Worker()

    def refusal(request: Request, given: str) -> str:
        if request.headers.get("host") not in hosts:
            return (
                f"this server answers to its own address only: forward the port with its own number, as in "
                f"ssh -L {port}:{HOST}:{port}"
            )
        origin = request.headers.get("origin")
        if origin is not None and origin.removeprefix("http://") not in hosts:
            return "this request comes from another page"
        if not secrets.compare_digest(given.encode(), token.encode()):
            return "the token is missing or wrong: use the address that the terminal shows"
        return ""

    def reply(value: Any, status: int = 200) -> Response:
        return Response(safe_json(value), status, media_type="application/json")

    async def page(request: Request) -> Response:
        refused = refusal(request, request.query_params.get("token", ""))
        return PlainTextResponse(refused, 403) if refused else HTMLResponse(html)

    def question(answer: Answer) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            refused = refusal(request, request.headers.get("x-lab-token", ""))
            if refused:
                return reply({"error": refused}, 403)
            try:
                return reply(await answer(await _body(request)))
            except UserError as error:
                return reply({"error": str(error)}, 422)
            except Cancelled:
                return reply({"cancelled": True}, 409)

        return endpoint

    async def score(body: dict[str, Any]) -> Mapping[str, Any]:
        work = partial(scorer.score, read_request(body.get("request")))
        return page_data(await worker.run(_client(body), work))

    async def fill(body: dict[str, Any]) -> Mapping[str, Any]:
        request, design = read_request(body.get("request")), str(body.get("design"))
        return {"text": await worker.run(f"{_client(body)} fill", lambda _: scorer.fill(design, request))}

    async def what_if(body: dict[str, Any]) -> Mapping[str, Any]:
        request, (token, count) = read_request(body.get("request")), read_spike(body)
        work = partial(scorer.what_if, request, token, count)
        return {"what_if": what_ifs(await worker.run(_client(body), work))}

    async def cancel(body: dict[str, Any]) -> Mapping[str, Any]:
        worker.cancel(_client(body))
        return {}

    @asynccontextmanager
    async def closing(_: Starlette):  # type: ignore[no-untyped-def]
        yield
        worker.close()

    questions = {"/score": score, "/fill": fill, "/what_if": what_if, "/cancel": cancel}
    routes = [Route(path, question(answer), methods=["POST"]) for path, answer in questions.items()]
    return Starlette(lifespan=closing, routes=[Route("/", page), *routes])


def _client(body: dict[str, Any]) -> str:
    return str(body.get("client"))[:64]


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object of a request. Raises ConfigError for anything else, and for more than MAX_BODY_BYTES."""
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > MAX_BODY_BYTES:
            raise ConfigError(f"the request is larger than {MAX_BODY_BYTES:,} bytes")
    try:
        value = parse_json(bytes(received))
    except (ValueError, RecursionError):
        raise ConfigError("the request is not valid JSON") from None
    if not isinstance(value, dict):
        raise ConfigError("the request should be one JSON object")
    return value


def bind(port: int) -> socket.socket:
    """A socket on the loopback address; any free port for 0. Raises ConfigError where the port is taken."""
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((HOST, port))
    except OSError as error:
        found.close()
        hint = "--port 0 takes any free one"
        raise ConfigError(f"cannot listen on port {port}: {error.strerror}", where=HOST, hint=hint) from None
    return found


def check_installed() -> None:
    """Raises ConfigError with the install line where the server library is missing."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise ConfigError("the lab needs starlette and uvicorn", hint="pip install 'stepalign[serve]'") from None


def serve(
    scorer: LabScorer, beginning: Mapping[str, Any], found: socket.socket, announce: Callable[[str], None]
) -> None:
    """Serve until interrupted. ``announce`` receives the address, token included, once the server answers."""
    import uvicorn

    token = secrets.token_urlsafe(24)
    port = found.getsockname()[1]

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            announce(f"http://{HOST}:{port}/?token={token}  (Ctrl-C ends it)")

    config = uvicorn.Config(
        make_app(scorer, beginning, token=token, port=port),
        log_level="warning",
        access_log=False,  # its lines would hold the token
        server_header=False,
        headers=list(HEADERS.items()),
        timeout_graceful_shutdown=1,
    )
    Server(config).run(sockets=[found])

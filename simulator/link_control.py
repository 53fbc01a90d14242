"""Control of a running proxy over HTTP, for tests and scripts; on loopback only.

::

    GET  /link                                the link as JSON
    PUT  /link    {"preset": "4g"}            or a link: {"up": {...}, "down": {...}}
    PUT  /link?seed=7   (the same)            and all chance begins anew from that seed
    POST /outage  {"seconds": 5}              nothing passes for so long
    POST /reset                               reset every connection
    GET  /stats                               bytes, connections, losses, stalls

With a seed (0 to 2^64 - 1) the same PUT makes the same noise again: jitter, losses and fades of
both ways, which are independent of each other.  Without one, each PUT draws on from the seed
before, so two equal ones meet different noise.

Errors are ``{"error": "what and where"}``: 422 for a bad body, 400 for a bad seed or another
parameter, 413 for a body that is longer than a link with two traces of the greatest length.  A
browser's requests (they carry ``Origin``) get 403, so that no page can cut the link.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from shared.errors import ConfigurationError, LinkError
from shared.transport import is_loopback
from simulator.link_presets import preset
from simulator.link_spec import LinkSpec, parse_link
from simulator.packet_trace import MAX_DIGITS, MAX_OPPORTUNITIES
from simulator.shaped_proxy import ShapedProxy, parse_address, show_address

# a trace each way may come with it: digits, a comma and a space for each opportunity
_MAX_BODY_BYTES = (1 << 20) + 2 * MAX_OPPORTUNITIES * (MAX_DIGITS + 2)
_MAX_SEED = (1 << 64) - 1


def control_app(proxy: ShapedProxy) -> Starlette:
    """The HTTP application that steers ``proxy`` (same event loop)."""

    async def get_link(_: Request) -> Response:
        return _shown(proxy.link)

    async def put_link(request: Request) -> Response:
        fields = await _object(request)
        proxy.set_link(_link_from(fields), seed=_seed_from(request))
        return _shown(proxy.link)

    async def outage(request: Request) -> Response:
        fields = await _object(request)
        seconds = fields.pop("seconds", None)
        if fields or isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise LinkError('an outage is {"seconds": number}')
        proxy.outage(seconds)
        return JSONResponse({"seconds": seconds})

    async def reset(request: Request) -> Response:
        _refuse_browsers(request)
        return JSONResponse({"reset": proxy.reset()})

    async def stats(_: Request) -> Response:
        return JSONResponse(proxy.stats().as_dict())

    return Starlette(
        routes=[
            Route("/link", get_link, methods=["GET"]),
            Route("/link", put_link, methods=["PUT"]),
            Route("/outage", outage, methods=["POST"]),
            Route("/reset", reset, methods=["POST"]),
            Route("/stats", stats, methods=["GET"]),
        ],
        exception_handlers={LinkError: _bad_link, HTTPException: _bad_request},
    )


class LinkControl:
    """Serves :func:`control_app` while ``async with`` holds it.

    Args:
        listen: ``HOST:PORT`` on loopback; port 0 takes a free one (see :attr:`address`).

    Raises:
        ConfigurationError: not an address, not loopback, or taken.
    """

    def __init__(self, proxy: ShapedProxy, listen: str = "127.0.0.1:0") -> None:
        self._host, self._port = parse_address(listen, "control address")
        if not is_loopback(self._host):
            raise ConfigurationError(f"the control address {listen!r} is not loopback")
        self._server = _Server(
            uvicorn.Config(
                control_app(proxy), log_config=None, access_log=False, lifespan="off", ws="none"
            )
        )
        self._task: asyncio.Task[None] | None = None
        self.address = ""

    async def __aenter__(self) -> Self:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self._host, self._port))
            listener.listen()
        except OSError as error:
            listener.close()
            shown = show_address(self._host, self._port)
            raise ConfigurationError(f"cannot listen on {shown}: {error.strerror}") from None
        self.address = show_address(*listener.getsockname()[:2])
        # the socket listens already: a request that comes before the task has begun waits in it
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]), name="control")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._task is not None
        self._server.should_exit = self._server.force_exit = True
        await self._task


class _Server(uvicorn.Server):
    """Leaves signals to whoever runs the event loop."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _link_from(fields: dict[str, Any]) -> LinkSpec:
    if set(fields) == {"preset"}:
        return preset(str(fields["preset"]))
    if not fields:
        raise LinkError('a link is {"up": {...}, "down": {...}} or {"preset": name}')
    return parse_link(fields)


def _seed_from(request: Request) -> int | None:
    """The parameter ``seed``, and no other."""
    seed: int | None = None
    for name, value in request.query_params.multi_items():
        if name != "seed" or seed is not None:
            raise HTTPException(400, f"the parameter {name!r} is unknown or there twice")
        if not (value.isascii() and value.isdecimal() and len(value) <= 20):
            raise HTTPException(400, f"seed {value[:40]!r} is not a whole number")
        seed = int(value)
        if seed > _MAX_SEED:
            raise HTTPException(400, f"seed {value} is above {_MAX_SEED}")
    return seed


def _shown(link: LinkSpec) -> Response:
    return Response(link.model_dump_json(), media_type="application/json")


async def _object(request: Request) -> dict[str, Any]:
    _refuse_browsers(request)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY_BYTES:
            raise HTTPException(
                413,
                f"a body has at most {_MAX_BODY_BYTES:,} bytes: room for two traces of "
                f"{MAX_OPPORTUNITIES:,} opportunities",
            )
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise LinkError(f"the body is no JSON: {error}") from None
    if not isinstance(fields, dict):
        raise LinkError("the body is no JSON object")
    return fields


def _refuse_browsers(request: Request) -> None:
    if "origin" in request.headers:
        raise HTTPException(403, "requests from web pages are refused")


async def _bad_link(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, status_code=422)


async def _bad_request(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, status_code=error.status_code)

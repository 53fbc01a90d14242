"""``/tandem``: the daemon's status, once and as it changes, and its controls; ``/health``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import fields
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from edge.control_errors import wrong_control
from edge.http_body import json_object
from edge.http_settings import HttpSettings
from edge.http_stream import EventStream, to_json, while_connected
from edge.openai_errors import RequestError
from edge.service import EdgeService, ServiceStatus
from shared.errors import BusyError, ConfigurationError


def status_record(status: ServiceStatus) -> dict[str, Any]:
    """The status as JSON has it."""
    record = {field.name: getattr(status, field.name) for field in fields(status)}
    return record | {"controls": status.controls.as_record(), "origins": dict(status.origins)}


def status_routes(service: EdgeService, settings: HttpSettings) -> Sequence[BaseRoute]:
    """What lies below ``/tandem``."""
    watching: set[_EventsResponse] = set()

    async def status(_request: Request) -> Response:
        return JSONResponse(status_record(service.status()), headers={"cache-control": "no-store"})

    async def events(_request: Request) -> Response:
        if len(watching) >= settings.max_watchers:
            raise BusyError(f"{len(watching)} clients follow the status: try again in a moment")
        return _EventsResponse(service, settings, watching)

    async def controls(request: Request) -> Response:
        changes = await json_object(request, settings)
        try:
            service.set_controls(service.controls.changed(changes))
        except ConfigurationError as error:
            wrong = wrong_control(changes)
            only = next(iter(changes)) if len(changes) == 1 else None
            param = wrong[0] if wrong else only
            raise RequestError(str(error), param=param, code="invalid_value") from None
        return JSONResponse(service.controls.as_record())

    return [
        Route("/status", status, methods=["GET"]),
        Route("/events", events, methods=["GET"]),
        Route("/controls", controls, methods=["POST"]),
    ]


def health_route(service: EdgeService) -> BaseRoute:
    """``/health``, for whoever restarts or routes: 200, or 503 while the daemon drains."""

    async def health(_request: Request) -> Response:
        if service.status().draining:
            return JSONResponse({"status": "draining"}, 503)
        return JSONResponse({"status": "ok"})

    return Route("/health", health, methods=["GET"])


class _EventsResponse(Response):
    """Every status from now on, until the client leaves or the daemon has drained."""

    def __init__(
        self, service: EdgeService, settings: HttpSettings, watching: set[_EventsResponse]
    ) -> None:
        super().__init__()
        self._service, self._settings, self._watching = service, settings, watching

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        self._watching.add(self)
        try:
            events = EventStream(send, self._settings.send_seconds)
            await while_connected(receive, self._follow(events))
        finally:
            self._watching.discard(self)

    async def _follow(self, events: EventStream) -> None:
        async with aclosing(self._service.changes()) as changes:
            while True:
                status = await self._next(changes, events)
                await events.data(to_json(status_record(status)), event="status")
                if status.draining and not status.active and not status.waiting:
                    break  # an open response would keep the server from ending
        await events.end()

    async def _next(
        self, changes: AsyncGenerator[ServiceStatus, None], events: EventStream
    ) -> ServiceStatus:
        """The next status, with a comment now and then while it does not come."""
        coming = asyncio.ensure_future(anext(changes))
        try:
            while not coming.done():
                await asyncio.wait([coming], timeout=self._settings.keepalive_seconds)
                if not coming.done():
                    await events.comment("still here")
            return coming.result()
        finally:
            if not coming.done():
                coming.cancel()
                await asyncio.wait([coming])

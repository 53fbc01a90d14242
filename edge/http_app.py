"""The daemon's HTTP application: OpenAI's API, Tandem's own status and controls.

Made for :class:`edge.service.EdgeService` and any ASGI server; ``tandem edge serve`` runs it.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount

from edge.http_guard import Guard, KeyGuard
from edge.http_settings import HttpSettings
from edge.openai_errors import tell_error, tell_http_error
from edge.openai_routes import openai_routes
from edge.service import EdgeService
from edge.status_routes import health_route, status_routes
from shared.errors import TandemError

__all__ = ["HttpSettings", "http_app"]


def http_app(
    service: EdgeService, settings: HttpSettings, routes: Sequence[BaseRoute] = ()
) -> Starlette:
    """The application around ``service``, which the caller starts and ends; ``routes`` are added,
    guarded by the Host check but by no API key."""
    key = [Middleware(KeyGuard, api_key=settings.api_key)]
    middleware = [Middleware(Guard, settings=settings)]
    if settings.cors_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["retry-after", "x-request-id"],
            )
        )
    return Starlette(
        routes=[
            Mount("/v1", routes=openai_routes(service, settings), middleware=key),
            Mount("/tandem", routes=status_routes(service, settings), middleware=key),
            health_route(service),
            *routes,
        ],
        middleware=middleware,
        exception_handlers={
            TandemError: tell_error,
            HTTPException: tell_http_error,
            ClientDisconnect: _nobody_there,
            Exception: tell_error,
        },
    )


def _nobody_there(_request: Request, _error: Exception) -> Response:
    return Response(status_code=400)

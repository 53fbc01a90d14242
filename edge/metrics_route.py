"""``GET /metrics``: a daemon's metrics in the format that Prometheus asks for."""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from edge.http_guard import KeyGuard


def metrics_route(registry: CollectorRegistry, api_key: str | None) -> BaseRoute:
    """The route; where clients must send a key, so must Prometheus."""

    async def metrics(request: Request) -> Response:
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(
            encode(registry), headers={"content-type": kind, "cache-control": "no-store"}
        )

    return Route(
        "/metrics",
        metrics,
        methods=["GET"],
        middleware=[Middleware(KeyGuard, api_key=api_key)],
    )

"""What every request passes before a route sees it: a known host, few headers, no foreign page, the
API key."""

from __future__ import annotations

import hmac
import ipaddress
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.http_settings import HttpSettings
from edge.openai_errors import RequestError, error_response


class Guard:
    """ASGI middleware: refuses foreign Host headers, too many headers and what the pages of other
    sites make a browser ask; numbers the requests.

    The number goes back as ``x-request-id``, where OpenAI's clients look for it.
    """

    def __init__(self, app: ASGIApp, settings: HttpSettings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        number = f"req_{secrets.token_hex(12)}"

        async def numbered(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = number
            await send(message)

        error = self._error(Headers(scope=scope), scope["path"])
        if error is not None:
            await error_response(error)(scope, receive, numbered)
            return
        await self._app(scope, receive, numbered)

    def _error(self, headers: Headers, path: str) -> RequestError | None:
        settings = self._settings
        if len(headers) > settings.max_headers:
            return RequestError(
                f"{len(headers)} headers are more than {settings.max_headers}",
                code="too_many_headers",
                status=431,
            )
        if headers.get("sec-fetch-site") == "cross-site" and not (
            _followed_link(headers, path) or _named(headers.get("origin"), settings.cors_origins)
        ):
            return RequestError(
                "a page of another site asks: name its origin among the CORS origins",
                code="origin_not_allowed",
                status=403,
            )
        if not settings.loopback and not settings.allowed_hosts:
            return None
        hosts = headers.getlist("host") or [""]
        for host in hosts:
            if not known_host(host, settings.allowed_hosts):
                return RequestError(
                    f"the daemon does not answer to the host {host!r}: use 127.0.0.1 or localhost, "
                    "or name it among the allowed hosts",
                    code="host_not_allowed",
                    status=403,
                )
        return None


def _named(origin: str | None, origins: tuple[str, ...]) -> bool:
    return "*" in origins or origin in origins


def _followed_link(headers: Headers, path: str) -> bool:
    """Whether somebody followed a link to the daemon's page: no other page can read it, nor what it
    asks then."""
    kind = headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")
    return kind == ("navigate", "document") and not path.startswith(("/v1", "/tandem"))


def known_host(header: str, allowed: tuple[str, ...]) -> bool:
    """Whether a Host header (``name``, ``name:port``, ``[v6]:port``) is loopback's or allowed."""
    name, bracket, _ = header.removeprefix("[").partition("]") if header[:1] == "[" else ("",) * 3
    if not bracket:
        name = header.partition(":")[0]
    name = name.lower().removesuffix(".")
    if "*" in allowed or name in (other.lower() for other in allowed):
        return True
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761: never leaves the machine
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class KeyGuard:
    """ASGI middleware: only who knows the API key comes in, where one is set."""

    def __init__(self, app: ASGIApp, api_key: str | None) -> None:
        self._app, self._key = app, api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._key is not None and not self._knows(Headers(scope=scope), self._key):
            error = RequestError(
                "send the daemon's API key as the header `Authorization: Bearer KEY`",
                code="invalid_api_key",
                status=401,
            )
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    @staticmethod
    def _knows(headers: Headers, key: str) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # in constant time, so that nobody finds the key letter by letter
        right = hmac.compare_digest(given.strip().encode(), key.encode())
        return right and scheme.lower() == "bearer"

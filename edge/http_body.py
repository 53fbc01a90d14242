"""A request's JSON body, read within limits of size, time and depth."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from edge.http_settings import HttpSettings
from edge.openai_errors import RequestError

_LINGER = 8  # times the limit that are read and dropped, so that the refusal can be read


async def json_object(request: Request, settings: HttpSettings) -> dict[str, Any]:
    """The object in the body.

    Raises:
        RequestError: it is too large or too slow, no JSON, no UTF-8, too deep or no object.
        ClientDisconnect: the client left before its end.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # others can be sent by any web page without asking
        raise RequestError(
            "send the body with the header `Content-Type: application/json`",
            code="unsupported_media_type",
            status=415,
        )
    try:
        async with asyncio.timeout(settings.body_seconds):
            body = await _read(request, settings.max_body_bytes)
    except TimeoutError:
        raise RequestError(
            f"the body did not arrive within {settings.body_seconds:g} s",
            code="request_timeout",
            status=408,
        ) from None
    try:  # refuses also what Python's own parser lets pass: NaN, lone surrogates, endless nesting
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise RequestError("the body must be a JSON object", code="invalid_json")
    return value


async def _read(request: Request, limit: int) -> bytes:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit * _LINGER:
        raise _too_large(limit)
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
        elif size > limit * _LINGER:
            break
    if size > limit:
        raise _too_large(limit)
    return b"".join(chunks)


def _too_large(limit: int) -> RequestError:
    return RequestError(
        f"the body is larger than {limit} bytes", code="request_too_large", status=413
    )


__all__ = ["ClientDisconnect", "json_object"]

"""Errors as OpenAI's API words them: a status, and ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shared.errors import (
    AuthenticationError,
    BudgetExceededError,
    BusyError,
    CloudUnavailableError,
    ConfigurationError,
    DrainingError,
    InvalidMessageError,
    PromptTooLongError,
    SessionError,
    TandemError,
)

_RETRY_SECONDS = 1
_INVALID, _BUSY, _SERVER = "invalid_request_error", "rate_limit_error", "server_error"
# the first that fits; what comes from the cloud is no fault of the client's
_KINDS: tuple[tuple[type[TandemError], int, str, str | None], ...] = (
    (DrainingError, 503, _SERVER, "draining"),
    (BusyError, 429, _BUSY, "queue_full"),
    (PromptTooLongError, 400, _INVALID, "context_length_exceeded"),
    (ConfigurationError, 400, _INVALID, None),
    (CloudUnavailableError, 503, _SERVER, "cloud_unavailable"),
    (BudgetExceededError, 503, _SERVER, "cloud_limit"),
    (AuthenticationError, 502, _SERVER, "cloud_refused"),
    (SessionError, 502, _SERVER, "cloud_session"),
    (InvalidMessageError, 502, _SERVER, "cloud_session"),
)
_CODES = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "unsupported_value": "unsupported_value",
}


class RequestError(ConfigurationError):
    """A request that is refused; ``param`` names the field at fault, if one is."""

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400
    ) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


def refusal(error: ValidationError) -> RequestError:
    """The first thing that pydantic found wrong with a request."""
    first = error.errors(include_url=False, include_input=False)[0]
    param = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]
    ).lstrip(".")
    match first["type"]:
        case "missing":
            message = f"{param} is missing"
        case "extra_forbidden":
            message = f"{param} is not a parameter of this request"
        case _:
            message = f"{param}: {first['msg']}"
    return RequestError(message, param=param, code=_CODES.get(first["type"], "invalid_value"))


def error_record(error: BaseException) -> tuple[int, dict[str, Any]]:
    """Status and body for ``error``; nothing is told of what nobody foresaw."""
    status, kind, param = 500, _SERVER, None
    code: str | None = "internal_error"
    message = "the daemon failed on this request; its log says how"
    if isinstance(error, RequestError):
        status, code, param = error.status, error.code, error.param
        kind = _SERVER if status >= 500 else _INVALID
        kind = "authentication_error" if status == 401 else kind
        message = str(error)
    elif isinstance(error, TandemError):
        message = str(error)
        for known, its_status, its_kind, its_code in _KINDS:
            if isinstance(error, known):
                status, kind, code = its_status, its_kind, its_code
                break
    body = {"message": message, "type": kind, "param": param, "code": code}
    return status, {"error": body}


def error_response(error: BaseException) -> JSONResponse:
    """What the client gets."""
    status, body = error_record(error)
    headers = {}
    if status in (429, 503):
        headers["retry-after"] = str(_RETRY_SECONDS)
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(body, status, headers)


def tell_error(_request: Request, error: Exception) -> Response:
    """Starlette's exception handler for :class:`TandemError` and what nobody foresaw."""
    return error_response(error)


def tell_http_error(_request: Request, error: Exception) -> Response:
    """The same for an unknown path or a wrong method."""
    assert isinstance(error, HTTPException)
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
    message = f"{HTTPStatus(error.status_code).phrase.lower()}: see the API's documentation"
    response = error_response(RequestError(message, code=code, status=error.status_code))
    response.headers.update(error.headers or {})
    return response

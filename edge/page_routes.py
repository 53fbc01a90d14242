"""The web page: plain files of this package, with headers that let nothing foreign in."""

from __future__ import annotations

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

# all that the page needs comes from the daemon itself; no text of an answer can become a script
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # after an upgrade, files of one version only
}
_TYPES = {
    "css": "text/css",
    "html": "text/html",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}


def page_routes() -> list[BaseRoute]:
    """``GET /`` is the page, ``GET /page/{file}`` what it is made of; neither asks for a key."""
    contents = {
        file.name: file.read_bytes()
        for file in (files("edge") / "page").iterdir()
        if file.name.rpartition(".")[2] in _TYPES
    }

    async def page(request: Request) -> Response:
        name = request.path_params.get("file", "index.html")
        if name not in contents:
            return Response("not found\n", 404, _HEADERS, "text/plain")
        kind = _TYPES[name.rpartition(".")[2]]
        return Response(contents[name], headers=_HEADERS, media_type=kind)

    return [Route("/", page, methods=["GET"]), Route("/page/{file}", page, methods=["GET"])]

"""Who may ask: hosts, API key, other pages' scripts, headers."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from edge.http_app import HttpSettings
from shared.errors import ConfigurationError
from tests.http_harness import SAY, Daemon, daemon

CHAT = "/v1/chat/completions"
SHORT: dict[str, Any] = {"messages": SAY, "max_tokens": 4}
PRIVATE = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny-0"),
    ("POST", CHAT),
    ("POST", "/v1/completions"),
    ("GET", "/tandem/status"),
    ("GET", "/tandem/events"),
    ("POST", "/tandem/controls"),
    ("GET", "/v1/nothing"),
]


async def status_for_host(edge: Daemon, host: str) -> int:
    async with edge.http() as http:
        return (await http.get("/v1/models", headers={"host": host})).status_code


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1", True),
        ("127.0.0.1:7430", True),
        ("127.8.9.1", True),
        ("localhost", True),
        ("LOCALHOST:7430", True),
        ("tandem.localhost", True),
        ("[::1]:7430", True),
        ("pi.lan", True),
        ("PI.lan.:80", True),
        ("evil.example", False),
        ("evil.example:7430", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("192.168.1.5:7430", False),
        ("[fe80::1]:7430", False),
        ("[::1", False),
        ("", False),
    ],
)
async def test_hosts_on_loopback(host: str, allowed: bool) -> None:
    async with daemon(settings=HttpSettings(allowed_hosts=("pi.lan",))) as edge:
        assert await status_for_host(edge, host) == (200 if allowed else 403)


async def test_hosts_elsewhere() -> None:
    async with daemon(settings=HttpSettings(loopback=False)) as edge:
        assert await status_for_host(edge, "192.168.1.5:7430") == 200
    settings = HttpSettings(loopback=False, allowed_hosts=("pi.lan",))
    async with daemon(settings=settings) as edge:
        assert await status_for_host(edge, "192.168.1.5:7430") == 403
        assert await status_for_host(edge, "pi.lan:7430") == 200
    async with daemon(settings=HttpSettings(allowed_hosts=("*",))) as edge:
        assert await status_for_host(edge, "anything.example") == 200


async def test_the_host_check_covers_every_route() -> None:
    async with daemon() as edge, edge.http(headers={"host": "evil.example"}) as http:
        for method, path in [*PRIVATE, ("GET", "/health"), ("GET", "/"), ("OPTIONS", CHAT)]:
            response = await http.request(method, path)
            assert response.status_code == 403
            assert response.json()["error"]["code"] == "host_not_allowed"


async def page(_request: Request) -> Response:
    return PlainTextResponse("page")


async def test_the_api_key() -> None:
    settings = HttpSettings(api_key="s3cret")
    async with daemon(settings=settings, routes=[Route("/", page)]) as edge, edge.http() as http:
        for method, path in PRIVATE:
            for header in (
                None,
                "Bearer wrong",
                "s3cret",
                "Basic s3cret",
                "Bearer s3cre",
            ):
                headers = {"authorization": header} if header else {}
                response = await http.request(method, path, headers=headers)
                assert response.status_code == 401, path
                assert response.json()["error"]["code"] == "invalid_api_key"
                assert response.headers["www-authenticate"] == "Bearer"
        assert (await http.get("/")).text == "page"
        assert (await http.get("/health")).status_code == 200
        with pytest.raises(openai.AuthenticationError):
            await edge.openai(api_key="wrong").models.list()
        client = edge.openai(api_key="s3cret")
        done = await client.chat.completions.create(model="tiny-0", messages=SAY, max_tokens=4)
        assert done.choices
        assert edge.service.status().answers == 1


async def test_a_key_that_is_not_ascii_is_refused_not_a_fault() -> None:
    async with daemon(settings=HttpSettings(api_key="s3cret")) as edge, edge.http() as http:
        headers = {"authorization": "Bearer schlüssel".encode()}
        response = await http.get("/v1/models", headers=headers)  # type: ignore[arg-type]
        assert response.status_code == 401


@pytest.mark.parametrize("key", ["", "two words", "schlüssel", "line\n"])
def test_keys_that_cannot_travel(key: str) -> None:
    with pytest.raises(ConfigurationError, match="API key"):
        HttpSettings(api_key=key)


def test_the_key_is_in_no_log() -> None:
    assert "s3cret" not in repr(HttpSettings(api_key="s3cret"))


async def preflight(http: httpx.AsyncClient, origin: str) -> httpx.Response:
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    return await http.options(CHAT, headers=headers)


async def test_no_other_page_may_ask_unless_named() -> None:
    async with daemon() as edge, edge.http() as http:
        refused = await preflight(http, "https://evil.example")
        assert refused.status_code == 405
        assert not any(name.startswith("access-control") for name in refused.headers)
        headers = {"origin": "https://evil.example"}
        plain = await http.get("/tandem/status", headers=headers)
        assert not any(name.startswith("access-control") for name in plain.headers)


async def test_pages_that_are_named() -> None:
    settings = HttpSettings(cors_origins=("https://app.example",), api_key="s3cret")
    async with daemon(settings=settings) as edge, edge.http() as http:
        allowed = await preflight(http, "https://app.example")
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://app.example"
        assert "authorization" in allowed.headers["access-control-allow-headers"]
        assert (await preflight(http, "https://evil.example")).status_code == 400
        headers = {"origin": "https://app.example", "authorization": "Bearer s3cret"}
        done = await http.post(CHAT, json=SHORT, headers=headers)
        assert done.headers["access-control-allow-origin"] == "https://app.example"
        # a refusal can be read too
        del headers["authorization"]
        refused = await http.post(CHAT, json=SHORT, headers=headers)
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://app.example"


CROSS_SITE = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
LINK = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


async def test_pages_of_other_sites_reach_nothing_without_cors_either() -> None:
    """An image or a script that names the daemon sends no preflight."""
    async with daemon(routes=[Route("/", page)]) as edge, edge.http() as http:
        for method, path in [*PRIVATE, ("GET", "/"), ("GET", "/health")]:
            for more in ({}, {"origin": "https://evil.example"}, {"sec-fetch-dest": "image"}):
                response = await http.request(method, path, headers=CROSS_SITE | more)
                assert response.status_code == 403, path
                assert response.json()["error"]["code"] == "origin_not_allowed"
        for site in ("same-origin", "same-site", "none"):
            response = await http.get("/tandem/status", headers={"sec-fetch-site": site})
            assert response.status_code == 200


async def test_a_link_elsewhere_leads_to_the_page_and_no_further() -> None:
    async with daemon(routes=[Route("/", page)]) as edge, edge.http() as http:
        assert (await http.get("/", headers=LINK)).text == "page"
        frame = LINK | {"sec-fetch-dest": "iframe"}
        assert (await http.get("/", headers=frame)).status_code == 403
        for path in ("/tandem/status", "/tandem/events", "/v1/models"):
            assert (await http.get(path, headers=LINK)).status_code == 403


@pytest.mark.parametrize("named", ["https://app.example", "https://APP.example/", "*"])
async def test_pages_of_other_sites_that_are_named(named: str) -> None:
    settings = HttpSettings(cors_origins=(named,))
    async with daemon(settings=settings) as edge, edge.http() as http:
        headers = CROSS_SITE | {"origin": "https://app.example"}
        response = await http.get("/tandem/status", headers=headers)
        assert response.status_code == 200
        allowed = response.headers["access-control-allow-origin"]
        assert allowed == ("*" if named == "*" else "https://app.example")


@pytest.mark.parametrize(
    "origin", ["app.example", "https://app.example/page", "https://", "https://a b", "null"]
)
def test_origins_that_are_none(origin: str) -> None:
    with pytest.raises(ConfigurationError, match="CORS"):
        HttpSettings(cors_origins=("https://app.example", origin))


async def test_many_headers() -> None:
    async with daemon() as edge, edge.http() as http:
        few = {f"x-{number}": "1" for number in range(50)}
        assert (await http.get("/v1/models", headers=few)).status_code == 200
        many = {f"x-{number}": "1" for number in range(80)}
        response = await http.get("/v1/models", headers=many)
        assert response.status_code == 431
        assert response.json()["error"]["code"] == "too_many_headers"


@pytest.mark.parametrize(
    "changes", [{"max_body_bytes": 0}, {"send_seconds": 0}, {"body_seconds": float("nan")}]
)
def test_settings_that_cannot_be(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(changes))):
        HttpSettings(**changes)

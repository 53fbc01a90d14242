"""``/tandem`` and ``/health``: what the page and others see and change."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import fields
from typing import Any

import httpx
import pytest

from edge.controls import Controls
from edge.generation import Mode
from edge.http_app import HttpSettings
from edge.service import ServiceStatus
from tests.cloud_harness import closed_gate, eventually
from tests.http_harness import SAY, daemon, daemon_and_cloud

SHORT: dict[str, Any] = {"messages": SAY, "max_tokens": 8}


async def statuses(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """What follows ``event: status``."""
    lines = response.aiter_lines()
    async for line in lines:
        if line == "event: status":
            data = await anext(lines)
            assert data.startswith("data: ")
            yield json.loads(data[6:])


async def test_status() -> None:
    async with daemon_and_cloud() as (edge, _), edge.http() as http:
        before = (await http.get("/tandem/status")).json()
        assert set(before) == {field.name for field in fields(ServiceStatus)}
        assert before["controls"] == {
            "mode": "collaborative",
            "threshold": None,
            "target_agreement": None,
            "aim": "latency",
            "private": False,
            "max_tokens": 1024,
        }
        assert (before["answers"], before["tokens"], before["device_share"]) == (0, 0, None)
        done = (await http.post("/v1/chat/completions", json=SHORT)).json()
        after = (await http.get("/tandem/status")).json()
        assert after["answers"] == 1
        assert after["tokens"] == done["usage"]["completion_tokens"]
        assert after["origins"] == done["tandem"]["summary"]["origins"]
        assert after["uploaded_bytes"] == done["tandem"]["summary"]["uploaded_bytes"]
        assert after["link"] == "up"


async def test_events_tell_of_every_change() -> None:
    async with daemon_and_cloud(controls=Controls(Mode.CLOUD_ONLY)) as (edge, server):  # noqa: SIM117
        async with edge.http() as http, http.stream("GET", "/tandem/events") as response:
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            events = statuses(response)
            first = await anext(events)
            assert first["active"] == 0
            with closed_gate(server.batcher.model) as gate:
                asking = asyncio.create_task(http.post("/v1/chat/completions", json=SHORT))
                while (await anext(events))["active"] == 0:
                    pass
                gate.open()
                await asking
            while (last := await anext(events))["answers"] == 0 or last["active"]:
                pass
            edge.service.set_controls(Controls(Mode.STANDALONE))
            while (await anext(events))["controls"]["mode"] != "standalone":
                pass
            # drained: the last one, and then the end
            await edge.service.drain()
            rest = [status async for status in events]
            assert rest[-1]["draining"]


async def test_events_keep_the_connection_alive() -> None:
    async with (
        daemon(settings=HttpSettings(keepalive_seconds=0.1)) as edge,
        edge.http() as http,
        http.stream("GET", "/tandem/events") as response,
    ):
        comments = 0
        async for line in response.aiter_lines():
            comments += line.startswith(":")
            if comments == 2:
                break


async def test_watchers_that_leave_are_forgotten() -> None:
    settings = HttpSettings(max_watchers=2)
    async with daemon(settings=settings) as edge:
        for _ in range(3):
            async with (
                edge.http() as http,
                http.stream("GET", "/tandem/events") as one,
                http.stream("GET", "/tandem/events") as two,
            ):
                assert (one.status_code, two.status_code) == (200, 200)
                third = await http.get("/tandem/events")
                assert third.status_code == 429
                assert "retry-after" in third.headers
            await eventually(lambda: not edge.service._watchers)


async def test_controls_for_all_answers() -> None:
    async with daemon_and_cloud() as (edge, _), edge.http() as http:
        answer = await http.post("/tandem/controls", json={"threshold": 0.4, "max_tokens": 5})
        assert answer.status_code == 200
        assert answer.json() == edge.service.controls.as_record()
        assert edge.service.controls == Controls(Mode.COLLABORATIVE, 0.4, max_tokens=5)
        done = (await http.post("/v1/chat/completions", json={"messages": SAY})).json()
        assert done["usage"]["completion_tokens"] == 5
        assert done["choices"][0]["finish_reason"] == "length"
        answer = await http.post("/tandem/controls", json={"mode": "auto", "private": True})
        assert answer.json()["threshold"] is None
        assert (await http.post("/tandem/controls", json={})).json() == answer.json()


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"mode": "turbo"}, "mode"),
        ({"mode": 5}, "mode"),
        ({"threshold": 1.5}, "threshold"),
        ({"threshold": "high"}, "threshold"),
        ({"speed": 5}, "speed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"mode": "auto"}, "mode"),
    ],
)
async def test_controls_that_cannot_be(changes: dict[str, Any], param: str | None) -> None:
    async with daemon() as edge, edge.http() as http:
        response = await http.post("/tandem/controls", json=changes)
        assert response.status_code == 400
        error = response.json()["error"]
        assert (error["param"], error["type"]) == (param, "invalid_request_error")
        assert edge.service.controls == Controls(Mode.STANDALONE)


async def test_health() -> None:
    async with daemon() as edge, edge.http() as http:
        response = await http.get("/health")
        assert (response.status_code, response.json()) == (200, {"status": "ok"})
        await edge.service.drain()
        assert (await http.get("/health")).status_code == 503

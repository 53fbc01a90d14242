"""Clients as they are: they leave, read slowly, wait in a queue, and the cloud dies on them."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest

from cloud.server import CloudServer
from edge.cloud_channel import CloudEndpoint
from edge.controls import Controls
from edge.generation import Mode
from edge.http_app import HttpSettings
from edge.service import Outcome
from shared.chat import Message
from tests.cloud_harness import WAIT_SECONDS, closed_gate, eventually, failing
from tests.http_harness import SAY, Daemon, Ended, daemon, daemon_and_cloud, sse_events, text_of

CHAT = "/v1/chat/completions"
CLOUD_ONLY = Controls(Mode.CLOUD_ONLY)
LONG: dict[str, Any] = {"messages": SAY, "max_tokens": 400}
SHORT: dict[str, Any] = {"messages": SAY, "max_tokens": 8}


async def first_text(lines: AsyncIterator[str]) -> None:
    """Read up to the first chunk with text."""
    async for line in lines:
        if line.startswith("data: ") and json.loads(line[6:])["tandem"]["pieces"]:
            return


async def free_again(
    edge: Daemon, server: CloudServer | None = None, *, dropped: bool = True
) -> None:
    """The turn is free, the cloud holds no session (where it had time to hear of it), and the next
    answers are what an undisturbed daemon's are."""
    await eventually(lambda: edge.service.status().active == 0)
    if server is not None:
        await eventually(lambda: server.service.open_streams == 0)
        await eventually(lambda: len(server.store) == 0 or not dropped)
    controls = edge.service.controls
    if controls.mode is Mode.AUTO:  # plans change with what was measured, and the text with them
        controls = CLOUD_ONLY
        edge.service.set_controls(controls)
    async with edge.http() as http:
        answers = [(await http.post(CHAT, json=SHORT)).json()["choices"] for _ in range(2)]
    assert answers[0] == answers[1]
    if server is not None:
        async with daemon_and_cloud(controls=controls) as (other, _), other.http() as http:
            assert (await http.post(CHAT, json=SHORT)).json()["choices"] == answers[0]


@pytest.mark.parametrize("mode", [Mode.CLOUD_ONLY, Mode.COLLABORATIVE, Mode.AUTO])
async def test_leaving_in_the_middle_of_a_stream(mode: Mode) -> None:
    async with daemon_and_cloud(controls=Controls(mode)) as (edge, server), edge.http() as http:
        ended = Ended(edge.service)
        async with http.stream("POST", CHAT, json=LONG | {"stream": True}) as response:
            await first_text(response.aiter_lines())
            assert edge.service.status().active == 1
            assert server.service.open_streams == 1
        record = await ended.next()
        assert record.outcome is Outcome.CANCELLED
        assert record.result is not None
        assert 1 <= len(record.result.tokens) < 400
        assert edge.service.status().cancellations == 1
        await free_again(edge, server)


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_before_the_first_word(stream: bool) -> None:
    """The cloud is still at the prompt: nothing was sent, and yet the client is missed."""
    async with daemon_and_cloud(controls=CLOUD_ONLY) as (edge, server):
        ended = Ended(edge.service)
        with closed_gate(server.batcher.model) as gate:
            async with edge.http() as http:
                asking = asyncio.create_task(http.post(CHAT, json=LONG | {"stream": stream}))
                await gate.entered.wait()
                asking.cancel()
                await asyncio.wait([asking])
            assert (await ended.next()).outcome is Outcome.CANCELLED
            await eventually(lambda: edge.service.status().active == 0)
            gate.open()
        await free_again(edge, server, dropped=False)


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_the_queue(stream: bool) -> None:
    async with daemon_and_cloud(controls=CLOUD_ONLY) as (edge, server), edge.http() as http:
        ended = Ended(edge.service)
        with closed_gate(server.batcher.model) as gate:
            first = asyncio.create_task(http.post(CHAT, json=SHORT))
            await gate.entered.wait()
            async with edge.http() as other:
                second = asyncio.create_task(other.post(CHAT, json=LONG | {"stream": stream}))
                await eventually(lambda: edge.service.status().waiting == 1)
                second.cancel()
                await asyncio.wait([second])
            await eventually(lambda: edge.service.status().waiting == 0)
            assert edge.service.status().active == 1
            gate.open()
            assert (await first).status_code == 200
        assert (await ended.next()).outcome is Outcome.FINISHED
        await free_again(edge, server)


async def test_a_stream_that_waits_is_kept_alive() -> None:
    """In the queue and before its first word; OpenAI's client passes over it."""
    settings = HttpSettings(keepalive_seconds=0.05)
    async with (
        daemon_and_cloud(controls=CLOUD_ONLY, settings=settings) as (edge, server),
        edge.http() as http,
    ):
        with closed_gate(server.batcher.model) as gate:
            first = asyncio.create_task(http.post(CHAT, json=SHORT))
            await gate.entered.wait()
            asking = asyncio.create_task(
                edge.openai().chat.completions.create(
                    model="tiny-0", messages=SAY, max_tokens=8, stream=True
                )
            )
            stream = await asking  # its status is there, though its turn is not
            assert edge.service.status().waiting == 1
            async with http.stream("POST", CHAT, json=SHORT | {"stream": True}) as response:
                lines = response.aiter_lines()
                assert [await anext(lines) for _ in range(4)] == [": waiting", ""] * 2
                gate.open()
                said = [json.loads(line[6:]) async for line in lines if line.startswith("data: {")]
            chunks = [chunk async for chunk in stream]
        text = (await first).json()["choices"][0]["message"]["content"]
        assert text_of(said) == text
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
        for roles in (
            [event["choices"][0]["delta"].get("role") for event in said],
            [chunk.choices[0].delta.role for chunk in chunks],
        ):
            assert roles[0] == "assistant"
            assert not any(roles[1:])


async def test_an_error_behind_a_comment_is_an_event() -> None:
    settings = HttpSettings(keepalive_seconds=0.05)
    async with (
        daemon_and_cloud(controls=CLOUD_ONLY, settings=settings) as (edge, server),
        edge.http() as http,
    ):
        rows = len(edge.service.engine.encode_chat([Message("user", SAY[0]["content"])]))
        model = server.batcher.model
        with failing(model, RuntimeError("broken"), rows), closed_gate(model) as gate:
            async with http.stream("POST", CHAT, json=SHORT | {"stream": True}) as response:
                lines = response.aiter_lines()
                assert await anext(lines) == ": waiting"
                gate.open()
                data = [line[6:] async for line in lines if line.startswith("data: ")]
        assert [set(json.loads(data[0])), data[1:]] == [{"error"}, ["[DONE]"]]


async def test_the_openai_client_that_closes_its_stream() -> None:
    async with daemon_and_cloud(controls=CLOUD_ONLY) as (edge, server):
        ended = Ended(edge.service)
        stream = await edge.openai().chat.completions.create(
            model="tiny-0", messages=SAY, max_tokens=400, stream=True
        )
        await anext(aiter(stream))
        await stream.close()
        assert (await ended.next()).outcome is Outcome.CANCELLED
        await free_again(edge, server)


async def test_a_queue_that_is_full() -> None:
    async with (
        daemon_and_cloud(controls=CLOUD_ONLY, queue_limit=1) as (edge, server),
        edge.http() as http,
    ):
        with closed_gate(server.batcher.model) as gate:
            first = asyncio.create_task(http.post(CHAT, json=SHORT))
            await gate.entered.wait()
            second = asyncio.create_task(http.post(CHAT, json=SHORT))
            await eventually(lambda: edge.service.status().waiting == 1)
            for stream in (False, True):
                refused = await http.post(CHAT, json=SHORT | {"stream": stream})
                assert refused.status_code == 429
                assert int(refused.headers["retry-after"]) >= 1
                assert refused.json()["error"]["code"] == "queue_full"
            with pytest.raises(openai.RateLimitError):
                await edge.openai().chat.completions.create(model="tiny-0", messages=SAY)
            # a client that tries again as it is told gets through
            patient = asyncio.create_task(
                edge.openai(max_retries=9).chat.completions.create(
                    model="tiny-0", messages=SAY, max_tokens=8
                )
            )
            gate.open()
            texts = {
                (await task).json()["choices"][0]["message"]["content"] for task in (first, second)
            }
            assert texts == {(await patient).choices[0].message.content}


async def test_draining() -> None:
    """What is under way ends properly, what comes is refused."""
    async with daemon_and_cloud(controls=CLOUD_ONLY) as (edge, server), edge.http() as http:
        with closed_gate(server.batcher.model) as gate:
            first = asyncio.create_task(http.post(CHAT, json=SHORT))
            await gate.entered.wait()
            draining = asyncio.create_task(edge.service.drain())
            await eventually(lambda: edge.service.status().draining)
            refused = await http.post(CHAT, json=SHORT)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "draining"
            assert "retry-after" in refused.headers
            assert (await http.get("/health")).status_code == 503
            assert not draining.done()
            gate.open()
            assert (await first).status_code == 200
            assert await draining


async def test_a_cloud_that_is_not_there() -> None:
    """Before the first word an error has a status of its own, streamed or not."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    endpoint = CloudEndpoint(address, connect_seconds=0.2, give_up_seconds=0.2)
    async with daemon(endpoint=endpoint, controls=CLOUD_ONLY) as edge, edge.http() as http:
        for stream in (False, True):
            failed = await http.post(CHAT, json=SHORT | {"stream": stream})
            assert failed.status_code == 503
            assert failed.json()["error"]["code"] == "cloud_unavailable"
        with pytest.raises(openai.InternalServerError):
            await edge.openai().chat.completions.create(model="tiny-0", messages=SAY)
        assert edge.service.status().failures == 3
        # what needs no cloud goes on
        alone = SHORT | {"tandem": {"mode": "standalone"}}
        assert (await http.post(CHAT, json=alone)).status_code == 200


async def test_an_error_in_the_middle_ends_the_stream_properly() -> None:
    async with daemon_and_cloud(controls=CLOUD_ONLY) as (edge, server), edge.http() as http:
        ended = Ended(edge.service)
        with failing(server.batcher.model, RuntimeError("broken"), rows=1):
            async with http.stream("POST", CHAT, json=LONG | {"stream": True}) as response:
                assert response.status_code == 200
                events = await sse_events(response)
            assert events[-1] == "[DONE]"
            assert set(events[-2]) == {"error"}
            assert set(events[-2]["error"]) == {"message", "type", "param", "code"}
            assert events[-2]["error"]["type"] == "server_error"
            assert "broken" not in json.dumps(events[-2])
            assert events[0]["choices"][0]["delta"]["role"] == "assistant"
            assert all(event["choices"][0]["finish_reason"] is None for event in events[:-2])
            assert (await ended.next()).outcome is Outcome.FAILED
            stream = await edge.openai().chat.completions.create(
                model="tiny-0", messages=SAY, stream=True
            )
            with pytest.raises(openai.APIError):
                async for _ in stream:
                    pass
        assert edge.service.status().failures == 2
        await free_again(edge, server)


async def test_a_client_that_does_not_read_keeps_nobody_waiting() -> None:
    settings = HttpSettings(send_seconds=0.5)
    async with daemon(settings=settings, send_buffer=4096) as edge:
        ended = Ended(edge.service)
        body = json.dumps(LONG | {"stream": True, "logprobs": True}).encode()
        with socket.socket() as lazy:
            lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            lazy.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(lazy, ("127.0.0.1", int(edge.url.rpartition(":")[2])))
            head = (
                f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            await loop.sock_sendall(lazy, head.encode() + body)
            record = await ended.next()
        assert record.outcome is Outcome.CANCELLED
        await free_again(edge)


async def test_a_body_that_does_not_come() -> None:
    async with daemon(settings=HttpSettings(body_seconds=0.2)) as edge:
        host, _, port = edge.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        async with asyncio.timeout(WAIT_SECONDS):
            assert (await reader.readline()).split()[1] == b"408"
        writer.close()


async def test_characters_are_never_torn() -> None:
    """Whatever bytes the model says and however the network cuts the stream: every event is whole
    UTF-8, and the texts add up to the answer's own."""
    warm = LONG | {"stream": True, "temperature": 2.0}
    wide = 0
    async with daemon() as edge, edge.http() as http:
        ended = Ended(edge.service)
        for seed in range(6):
            async with http.stream("POST", CHAT, json=warm | {"seed": seed}) as response:
                raw = b"".join([part async for part in response.aiter_raw(chunk_size=1)])
            events = []
            for event in raw.split(b"\n\n"):
                text = event.decode("utf-8")  # raises where it is torn
                if text.startswith("data: {"):
                    events.append(json.loads(text[6:]))
            result = (await ended.next()).result
            assert result is not None
            assert text_of(events) == result.text
            wide += sum(len(letter.encode()) > 1 and letter != "\ufffd" for letter in result.text)
    assert wide > 10  # of the characters that were made of several tokens


async def curl(edge: Daemon, path: str, *options: str, body: Any = None) -> tuple[int, str]:
    """curl's view: its exit code and what it prints."""
    command = ["curl", "-sS", "--fail-with-body", "--max-time", str(int(WAIT_SECONDS)), *options]
    if body is not None:
        command += ["-H", "Content-Type: application/json", "-d", "@-"]
    process = await asyncio.create_subprocess_exec(
        *command,
        edge.url + path,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate(json.dumps(body).encode())
    assert process.returncode is not None
    return process.returncode, out.decode()


async def test_curl() -> None:
    async with daemon() as edge:
        code, out = await curl(edge, CHAT, body=SHORT)
        assert code == 0
        text = json.loads(out)["choices"][0]["message"]["content"]
        code, out = await curl(edge, CHAT, "-N", body=SHORT | {"stream": True})
        assert code == 0
        events = [line[6:] for line in out.splitlines() if line.startswith("data: ")]
        assert events.pop() == "[DONE]"
        assert text_of([json.loads(event) for event in events]) == text
        code, out = await curl(edge, "/v1/models")
        assert json.loads(out)["data"][0]["id"] == "tiny-0"
        code, out = await curl(edge, CHAT, body=SHORT | {"n": 2})
        assert code == 22
        assert json.loads(out)["error"]["param"] == "n"
        # curl asks first whether so much is welcome
        code, out = await curl(edge, CHAT, body={"messages": "x" * (2 << 20)})
        assert code == 22
        assert json.loads(out)["error"]["code"] == "request_too_large"


async def test_connections_are_used_again() -> None:
    """After an answer, a stream and a refusal, on one connection."""
    async with daemon() as edge:
        ports = set()
        limits = httpx.Limits(max_connections=1)
        async with edge.http(limits=limits) as http:
            for body in (SHORT, SHORT | {"stream": True}, SHORT | {"n": 2}, SHORT):
                async with http.stream("POST", CHAT, json=body) as response:
                    stream = response.extensions["network_stream"]
                    ports.add(stream.get_extra_info("client_addr"))
                    await response.aread()
        assert len(ports) == 1

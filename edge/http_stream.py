"""Work for a client that may leave, and server-sent events for one that may stop reading."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any

from starlette.types import Message, Receive, Send

from shared.background import in_background

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold the words back
]


def to_json(value: Any) -> str:
    """JSON as it is sent: UTF-8 as it is, no spaces.

    U+2028 and U+2029 are escaped: some clients take them for ends of lines.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


async def while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Run ``work`` to its end, or cancel it as soon as the client leaves.

    The request's body must have been read, so that ``receive`` waits for the client to leave.
    """

    async def left() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working = asyncio.create_task(work, name="answer")
    watching = asyncio.create_task(left(), name="watch client")
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        watching.cancel()
        working.cancel()  # does nothing where it has ended
        await asyncio.wait({working, watching})
    if not working.cancelled():
        working.result()


def patient(send: Send, seconds: float) -> Send:
    """``send`` for a client that must take what is sent within so many seconds, or else counts as
    one that left: it must not keep others waiting."""

    async def within(message: Message) -> None:
        try:
            async with asyncio.timeout(seconds):
                await send(message)
        except TimeoutError:
            raise asyncio.CancelledError("the client takes nothing") from None

    return within


class EventStream:
    """A response of server-sent events, begun with the first of them; see :func:`patient` for
    ``seconds``."""

    def __init__(self, send: Send, seconds: float) -> None:
        self.started = False
        self._send = patient(send, seconds)
        self._writing = asyncio.Lock()
        self._written = asyncio.get_running_loop().time()

    async def data(self, text: str, event: str | None = None) -> None:
        """One event; ``text`` is a single line."""
        await self._write((f"event: {event}\n" if event else "") + f"data: {text}\n\n")

    async def comment(self, text: str) -> None:
        """A line that clients skip, so that neither side takes the other for dead."""
        await self._write(f": {text}\n\n")

    def kept_alive(self, seconds: float) -> AbstractAsyncContextManager[None]:
        """While the block runs, send a comment after each ``seconds`` of silence."""
        return in_background(self._comment_silence(seconds), "keep alive")

    async def _comment_silence(self, seconds: float) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(self._written + seconds - clock())
            if clock() >= self._written + seconds:
                await self.comment("waiting")

    async def end(self) -> None:
        """End the response."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, text: str) -> None:
        async with self._writing:
            if not self.started:
                start = {"type": "http.response.start", "status": 200, "headers": _HEADERS}
                await self._send(start)
                self.started = True
            body = {"type": "http.response.body", "body": text.encode(), "more_body": True}
            await self._send(body)
            self._written = asyncio.get_running_loop().time()

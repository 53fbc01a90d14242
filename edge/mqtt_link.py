"""The daemon's link to an MQTT broker: status, telemetry, commands.

A task of its own keeps it.  Nothing waits for it: where the broker is gone, telemetry is dropped,
and the latest status and the last acknowledgements are told when it is back.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
from collections import deque
from collections.abc import Callable
from contextlib import aclosing
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, cast

import aiomqtt

from edge.mqtt_commands import CommandDesk
from edge.mqtt_connection import Backoff, connected, subscribe
from edge.mqtt_messages import Acknowledgement, Status, Telemetry
from shared.clock import Clock, monotonic
from shared.errors import TandemError

if TYPE_CHECKING:
    from edge.mqtt_messages import Link
    from edge.mqtt_settings import MqttSettings
    from edge.service import EdgeService, ServiceStatus

_LEAST_SECONDS, _MOST_SECONDS = 1.0, 60.0  # between attempts to connect
_STEADY_SECONDS = 10.0  # a connection that held so long was a good one
_SUSPICIOUS = 3  # connections in a row that were taken and broke sooner
_FAREWELL_SECONDS = 3.0
_MOST_ACKNOWLEDGEMENTS = 64  # that wait for the broker; older ones are dropped

_LOG = logging.getLogger("tandem.edge")


class MqttLink:
    """An ``async with`` block in which the broker hears of ``service`` and may command it.

    Args:
        on_drain: called when the command ``drain`` comes; it is to end the daemon, draining it.
            Without it the service alone is drained.
        least_seconds, most_seconds: bounds of the wait between attempts to connect.

    Raises:
        ConfigurationError: certificates that do not load.
    """

    def __init__(
        self,
        service: EdgeService,
        settings: MqttSettings,
        *,
        on_drain: Callable[[], object] | None = None,
        clock: Clock = monotonic,
        source: random.Random | None = None,
        least_seconds: float = _LEAST_SECONDS,
        most_seconds: float = _MOST_SECONDS,
    ) -> None:
        settings.tls_context()  # say now what would only be said in the log later
        self._service, self._settings, self._clock = service, settings, clock
        self._desk = CommandDesk(service, self._acknowledge, on_drain, clock)
        self._backoff = Backoff(least_seconds, most_seconds, source or random.Random())  # noqa: S311
        self._started = datetime.now(UTC)
        self._answers: deque[Acknowledgement] = deque(maxlen=_MOST_ACKNOWLEDGEMENTS)
        self._answered = asyncio.Event()
        self._closing = asyncio.Event()
        self._connected = False
        self._served = False  # by the last connection
        self._complaint = ""

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._stay_connected(), name="mqtt link")
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._closing.set()
        try:
            if self._connected:
                done, _ = await asyncio.wait([self._task], timeout=_FAREWELL_SECONDS)
                if not done:
                    _LOG.warning("the broker did not take the farewell in time")
        finally:
            self._task.cancel()
            await asyncio.wait([self._task])
            await self._desk.close()

    @property
    def is_connected(self) -> bool:
        """Whether the broker hears us at this moment, as far as we know."""
        return self._connected

    # ---- connections -------------------------------------------------------------------------

    async def _stay_connected(self) -> None:
        """Connect, serve, and reconnect with jittered back-off until closed."""
        settings = self._settings
        # with two daemons of one name the broker takes turns; the back-off keeps that slow
        identifier = f"{re.sub('/', '-', settings.prefix)}-{settings.edge_id}"
        broken = 0
        while not self._closing.is_set():
            began, self._served = self._clock(), False
            will = aiomqtt.Will(
                settings.topic(settings.edge_id, "status"), self._status("offline"), 1, retain=True
            )
            try:
                async with connected(settings, identifier=identifier, will=will) as client:
                    await self._serve(client)
            except TandemError as error:
                self._complain(str(error))
            except Exception:  # ours; the daemon goes on all the same
                _LOG.exception("the link to the broker failed")
            finally:
                self._connected = False
            if self._clock() - began >= _STEADY_SECONDS:
                self._backoff.reset()
                broken = 0
            elif self._served and not self._closing.is_set():
                broken += 1
                if broken == _SUSPICIOUS:  # not every broker says why
                    _LOG.warning(
                        f"the broker ended {broken} connections in a row soon after it took them: "
                        f"is another daemon named {settings.edge_id}? Give each its own edge id"
                    )
            await self._pause(self._backoff.next())

    async def _serve(self, client: aiomqtt.Client) -> None:
        """Tell and listen on one connection until it breaks or the link is closed."""
        await subscribe(client, self._topic("command"), as_published=True)
        self._connected, self._served, self._complaint = True, True, ""
        _LOG.info("broker connected", extra={"fields": {"broker": self._settings.address}})
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(work, name=f"mqtt {name}")
                    for name, work in {
                        "commands": self._listen(client),
                        "status": self._tell_status(client),
                        "telemetry": self._tell_telemetry(client),
                        "acknowledgements": self._tell_acknowledgements(client),
                    }.items()
                ]
                await self._closing.wait()
                for task in tasks:
                    task.cancel()
        except* aiomqtt.MqttError as errors:
            first = _first(errors)
            raise first from first.__cause__
        await self._send_acknowledgements(client)
        await client.publish(self._topic("status"), self._status("offline"), 1, retain=True)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            return

    def _complain(self, message: str) -> None:
        """Say it once, not at every attempt."""
        known = message == self._complaint
        self._complaint = message
        _LOG.log(logging.DEBUG if known else logging.WARNING, message)

    # ---- what is told ------------------------------------------------------------------------

    async def _listen(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            self._desk.take(message.payload, retained=message.retain)

    async def _tell_status(self, client: aiomqtt.Client) -> None:
        told = b""
        async with aclosing(self._service.changes()) as changes:
            async for _ in changes:
                now = self._status("online")
                if now != told:
                    await client.publish(self._topic("status"), now, 1, retain=True)
                    told = now

    async def _tell_telemetry(self, client: aiomqtt.Client) -> None:
        while True:
            payload = telemetry_of(self._service.status()).payload()
            await client.publish(self._topic("telemetry"), payload, 0)
            await asyncio.sleep(self._settings.telemetry_seconds)

    def _acknowledge(self, answer: Acknowledgement) -> None:
        self._answers.append(answer)
        self._answered.set()

    async def _tell_acknowledgements(self, client: aiomqtt.Client) -> None:
        while True:
            await self._send_acknowledgements(client)
            self._answered.clear()
            await self._answered.wait()

    async def _send_acknowledgements(self, client: aiomqtt.Client) -> None:
        while self._answers:
            answer = self._answers.popleft()
            try:
                await client.publish(self._topic("acknowledgement"), answer.payload(), 1)
            except BaseException:
                self._answers.appendleft(answer)  # for the next connection
                raise

    def _topic(self, kind: str) -> str:
        return self._settings.topic(self._settings.edge_id, kind)

    def _status(self, state: Literal["online", "offline"]) -> bytes:
        status = self._service.status()
        return Status(
            state=state,
            version=version("tandem"),
            model=status.model[:200],
            mode=status.controls.mode,
            draining=status.draining,
            started=self._started,
        ).payload()


def telemetry_of(status: ServiceStatus) -> Telemetry:
    """What telemetry says of ``status``, now."""
    return Telemetry(
        at=datetime.now(UTC),
        link=cast("Link", status.link),
        active=status.active,
        waiting=status.waiting,
        tokens_per_second=status.tokens_per_second,
        device_share=status.device_share,
        rtt_seconds=status.rtt_seconds,
        answers=status.answers,
        failures=status.failures,
        cancellations=status.cancellations,
        tokens=status.tokens,
        uploaded_bytes=status.uploaded_bytes,
        downloaded_bytes=status.downloaded_bytes,
        memory_bytes=_resident_bytes(),
        uptime_seconds=status.uptime_seconds,
    )


def _resident_bytes() -> int | None:
    """Resident memory of this process; ``None`` where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def _first(errors: BaseExceptionGroup[aiomqtt.MqttError]) -> aiomqtt.MqttError:
    """Connections break for all tasks at once; any of them says why."""
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first

"""Carries out what comes over MQTT: once each, whatever the network repeats, and never in the way
of an answer."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.mqtt_messages import (
    Acknowledgement,
    BadCommandError,
    Drain,
    ErrorCode,
    Ping,
    Reload,
    SetControls,
    digest_of,
    read_command,
)
from shared.clock import Clock, monotonic
from shared.errors import TandemError

if TYPE_CHECKING:
    from pydantic import JsonValue

    from edge.service import EdgeService

_REMEMBERED = 256  # commands whose repetition is known
_MOST_AT_ONCE = 8
_LOG_SECONDS = 1.0  # of bad commands, one line in so long

_LOG = logging.getLogger("tandem.edge")


@dataclass
class _Taken:
    """A command that was taken; ``answer`` is there once it was carried out."""

    digest: bytes
    answer: Acknowledgement | None = None


class CommandDesk:
    """Takes payloads, and hands acknowledgements to ``reply`` when there are any.

    Args:
        on_drain: ends the daemon's life, draining it; called after the acknowledgement is on its
            way.  Without it the service alone is drained.
    """

    def __init__(
        self,
        service: EdgeService,
        reply: Callable[[Acknowledgement], None],
        on_drain: Callable[[], object] | None = None,
        clock: Clock = monotonic,
    ) -> None:
        self._service, self._reply, self._on_drain = service, reply, on_drain
        self._clock = clock
        self._taken: OrderedDict[str, _Taken] = OrderedDict()
        self._work: set[asyncio.Task[None]] = set()
        self._reloading = asyncio.Lock()  # two that wait for each other's turns would wait forever
        self._logged_at = clock() - _LOG_SECONDS

    def take(self, payload: bytes, *, retained: bool = False) -> None:
        """Begin what ``payload`` asks for; a bad one is refused and does nothing."""
        try:
            command = read_command(payload)
        except BadCommandError as error:
            self._log(f"bad command: {error}")
            if error.command_id is not None:
                self._refuse(error.command_id, ErrorCode.INVALID, str(error))
            return
        if retained:
            self._log("retained command ignored")
            self._refuse(
                command.id, ErrorCode.RETAINED, "it may be an old one: send it without 'retain'"
            )
            return
        known = self._taken.get(command.id)
        if known is not None:
            if known.digest != digest_of(payload):
                self._refuse(command.id, ErrorCode.REUSED_ID, "another command had this id")
            elif known.answer is not None:  # otherwise the answer is still to come
                self._reply(known.answer)
            return
        if len(self._work) >= _MOST_AT_ONCE:
            self._refuse(command.id, ErrorCode.BUSY, f"{len(self._work)} commands are at work")
            return
        taken = self._taken[command.id] = _Taken(digest_of(payload))
        if len(self._taken) > _REMEMBERED:
            self._taken.popitem(last=False)
        task = asyncio.create_task(self._carry_out(command, taken), name=f"mqtt {command.name}")
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def close(self) -> None:
        """Give up what is not done."""
        work = list(self._work)
        for task in work:
            task.cancel()
        if work:
            await asyncio.wait(work)

    async def _carry_out(self, command: SetControls | Reload | Drain | Ping, taken: _Taken) -> None:
        try:
            result = await self._do(command)
            answer = Acknowledgement(id=command.id, ok=True, result=result)
        except TandemError as error:
            message = str(error)
            answer = Acknowledgement.refusal(command.id, ErrorCode.REFUSED, message)
        except Exception:
            _LOG.exception("command failed", extra={"fields": {"command": command.name}})
            answer = Acknowledgement.refusal(
                command.id, ErrorCode.FAILED, "a fault of the daemon's own; its log says more"
            )
        taken.answer = answer
        self._reply(answer)
        outcome = {"command": command.name, "id": command.id, "ok": answer.ok}
        _LOG.info("command over MQTT", extra={"fields": outcome})
        if isinstance(command, Drain) and answer.ok:
            await self._drain()

    async def _do(self, command: SetControls | Reload | Drain | Ping) -> dict[str, JsonValue]:
        service = self._service
        match command:
            case SetControls():
                service.set_controls(service.controls.changed(command.arguments.as_changes()))
                return service.controls.as_record()
            case Reload():
                async with self._reloading:
                    await service.reload()
                manifest = service.engine.bundle.manifest
                return {"model": manifest.name, "fingerprint": manifest.fingerprint}
            case Drain():
                status = service.status()
                return {"active": status.active, "waiting": status.waiting}
            case Ping():
                return {}

    async def _drain(self) -> None:
        if self._on_drain is not None:
            self._on_drain()
        else:
            await self._service.drain()

    def _refuse(self, command_id: str, code: ErrorCode, message: str) -> None:
        self._reply(Acknowledgement.refusal(command_id, code, message))

    def _log(self, message: str) -> None:
        """A line, unless there was one a moment ago: who floods shall not fill the disk."""
        now = self._clock()
        if now - self._logged_at >= _LOG_SECONDS:
            self._logged_at = now
            _LOG.warning(message)

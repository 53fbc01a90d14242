"""Watches a fleet's edges and sends them commands, over the broker."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from collections.abc import Callable, Mapping
from typing import Any

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from pydantic import ValidationError

from edge.fleet_view import FleetView, printable
from edge.mqtt_connection import Backoff, BrokerUnavailableError, connected, subscribe
from edge.mqtt_messages import (
    COMMANDS,
    MAX_PAYLOAD_BYTES,
    Acknowledgement,
    Status,
    what_is_wrong,
)
from edge.mqtt_settings import BrokerSettings, check_edge_id
from shared.errors import ConfigurationError, TandemError

_QUEUE = 4096  # messages of a fleet that may wait to be read
_SETTLE_SECONDS = 1.0  # within which a broker has told what it keeps


class CommandRefusedError(TandemError):
    """The edge did not do what it was asked to, and said why."""


class NoAnswerError(TandemError):
    """The edge did not answer in time, or is not there."""

    exit_code = 4


async def watch(
    settings: BrokerSettings, view: FleetView, told: Callable[[str], None] = lambda _note: None
) -> None:
    """Feed ``view`` until cancelled; a broker that goes away is connected to again.

    Args:
        told: hears how the connection fares, and an empty string where it is well.

    Raises:
        BrokerUnavailableError, AuthenticationError: the first connection failed.
    """
    backoff = Backoff(0.5, 15.0, random.Random())  # noqa: S311
    once = False
    while True:
        try:
            async with connected(settings, queue=_QUEUE) as client:
                await _subscribe(client, settings)
                once = True
                backoff.reset()
                told("")
                await _feed(client, view)
        except BrokerUnavailableError:
            if not once:
                raise
            told("the broker is gone: connecting again")
        await asyncio.sleep(backoff.next())


async def look(settings: BrokerSettings, view: FleetView, seconds: float) -> None:
    """Feed ``view`` until every edge that is online has said how it fares, for ``seconds`` at most.

    Raises:
        BrokerUnavailableError, AuthenticationError: the connection failed.
    """
    clock = asyncio.get_running_loop().time
    async with connected(settings, queue=_QUEUE) as client:
        await _subscribe(client, settings)
        began = clock()

        async def until(deadline: float) -> None:
            try:
                async with asyncio.timeout_at(began + deadline):
                    async for message in client.messages:
                        view.feed(str(message.topic), message.payload, retained=message.retain)
                        if clock() - began >= _SETTLE_SECONDS and view.complete:
                            return
            except TimeoutError:
                return

        await until(min(seconds, _SETTLE_SECONDS))
        if not (view.rows() and view.complete):
            await until(seconds)


async def send(
    settings: BrokerSettings,
    edge_id: str,
    name: str,
    arguments: Mapping[str, Any],
    seconds: float,
) -> Acknowledgement:
    """Send one command and wait for its acknowledgement.

    Raises:
        ConfigurationError: it is no command.
        CommandRefusedError: the edge refused it.
        NoAnswerError: the edge is offline, or silent for ``seconds``.
        BrokerUnavailableError, AuthenticationError: the connection failed.
    """
    payload, command_id = make_command(name, arguments)
    topic = settings.topic(check_edge_id(edge_id), "command")
    expiry = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    expiry.MessageExpiryInterval = max(1, int(seconds))
    heard = False
    try:
        async with connected(settings) as client:
            answers = settings.topic(edge_id, "acknowledgement")
            states = settings.topic(edge_id, "status")
            await subscribe(client, answers, states)
            async with asyncio.timeout(seconds):
                await client.publish(topic, payload, 1, properties=expiry)
                async for message in client.messages:
                    if message.topic.matches(states):
                        heard = True
                        _check_online(edge_id, message.payload)
                    elif (answer := _answer(message.payload, command_id)) is not None:
                        return _accepted(edge_id, answer)
    except TimeoutError:
        if heard:
            raise NoAnswerError(
                f"no answer from {edge_id} in {seconds:g} s: it is busy, or the broker does not "
                "let this user send it commands"
            ) from None
        raise NoAnswerError(
            f"no answer from {edge_id} in {seconds:g} s, and the broker knows no such edge: check "
            "the name and the prefix, and that this user may read its topics"
        ) from None
    raise AssertionError("messages end with an error alone")


def make_command(name: str, arguments: Mapping[str, Any]) -> tuple[bytes, str]:
    """A command's payload and its id; :class:`ConfigurationError` names what is wrong."""
    command_id = secrets.token_hex(8)
    given = {"id": command_id, "name": name.replace("-", "_"), "arguments": dict(arguments)}
    try:
        command = COMMANDS.validate_json(json.dumps(given))
    except ValidationError as error:
        raise ConfigurationError(f"{printable(name)}: {what_is_wrong(error)}") from None
    return command.model_dump_json(exclude_unset=True).encode(), command_id


async def _subscribe(client: aiomqtt.Client, settings: BrokerSettings) -> None:
    await subscribe(client, settings.topic("+", "status"), settings.topic("+", "telemetry"))


async def _feed(client: aiomqtt.Client, view: FleetView) -> None:
    async for message in client.messages:
        view.feed(str(message.topic), message.payload, retained=message.retain)


def _check_online(edge_id: str, payload: bytes) -> None:
    try:
        status = Status.model_validate_json(payload)
    except ValidationError:
        return
    if status.state == "offline":
        raise NoAnswerError(f"{edge_id} is offline")


def _answer(payload: bytes, command_id: str) -> Acknowledgement | None:
    """The acknowledgement of ``command_id``, if ``payload`` is it."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        return None
    try:
        answer = Acknowledgement.model_validate_json(payload)
    except ValidationError:
        return None
    return answer if answer.id == command_id else None


def _accepted(edge_id: str, answer: Acknowledgement) -> Acknowledgement:
    if not answer.ok:
        why = answer.error
        said = f"{printable(why.message, 500)} ({why.code.value})" if why else "no reason given"
        raise CommandRefusedError(f"{edge_id} refused: {said}")
    return answer

"""An edge on a real broker: status, last will, telemetry, commands, and a broker that goes away."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from cloud.server import CloudServer
from edge import mqtt_connection
from edge.answer import AnswerRequest
from edge.cloud_channel import CloudEndpoint
from edge.controls import Controls
from edge.generation import Mode
from edge.mqtt_connection import BrokerUnavailableError, connected
from edge.mqtt_link import MqttLink
from edge.mqtt_messages import MAX_PAYLOAD_BYTES, Status, Telemetry
from edge.mqtt_settings import MqttSettings
from edge.service import EdgeService
from shared.errors import AuthenticationError, ConfigurationError
from tests.certificates import Authority
from tests.cloud_harness import WAIT_SECONDS, settings_for, tiny_bundle
from tests.edge_harness import PROMPTS, BreakableLink
from tests.mqtt_broker import EDGE, Broker, Ears, needs_mosquitto, password_of

pytestmark = needs_mosquitto
REQUEST = AnswerRequest(PROMPTS[3], max_tokens=24)
NO_ANSWER_SECONDS = 0.5  # waited where none will come


@pytest.fixture
async def broker() -> AsyncIterator[Broker]:
    async with Broker() as broker:
        yield broker


def service_with(
    endpoint: CloudEndpoint | None = None, mode: Mode = Mode.STANDALONE, **changes: Any
) -> EdgeService:
    return EdgeService(
        tiny_bundle(), Controls(mode), precision="float32", threads=1, endpoint=endpoint, **changes
    )


def link_of(
    service: EdgeService, settings: MqttSettings, on_drain: Callable[[], object] | None = None
) -> MqttLink:
    """One that does not wait long before it tries again."""
    return MqttLink(service, settings, on_drain=on_drain, least_seconds=0.05, most_seconds=0.2)


@asynccontextmanager
async def edge_on(broker: Broker) -> AsyncIterator[tuple[EdgeService, Ears]]:
    """A standalone edge that is online, and the operator who has heard so."""
    async with broker.ears("operator") as ears, service_with() as service:
        async with link_of(service, broker.edge_settings()):
            await ears.hear("status", online)
            yield service, ears
        await ears.hear("status", offline)


def online(status: dict[str, Any]) -> bool:
    return bool(status["state"] == "online")


def offline(status: dict[str, Any]) -> bool:
    return bool(status["state"] == "offline")


async def text_of(service: EdgeService, request: AnswerRequest = REQUEST) -> str:
    async with service.answer(request) as answer:
        async for _ in answer.pieces():
            pass
        return answer.text


# ---- what an edge says ---------------------------------------------------------------------------


async def test_status_is_retained_from_beginning_to_end(broker: Broker) -> None:
    async with service_with() as service:
        async with link_of(service, broker.edge_settings()), broker.ears() as early:
            await early.hear("status", online)
            async with broker.ears() as late:
                value, message = await late.hear("status")
            assert message.retain
            assert str(message.topic) == f"tandem/{EDGE}/status"
            status = Status.model_validate_json(message.payload)
            assert status.model == service.status().model
            assert (status.mode, status.draining) == (Mode.STANDALONE, False)
        async with broker.ears() as late:
            value, message = await late.hear("status")
    assert message.retain
    assert value["state"] == "offline"


async def test_the_broker_says_offline_for_a_process_that_was_killed(broker: Broker) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.mqtt_edge", tiny_bundle().folder, str(broker.port), EDGE,
        password_of(EDGE),
    )  # fmt: skip
    try:
        async with broker.ears() as ears:
            await ears.hear("status", online)
            process.kill()
            await ears.hear("status", offline)
        async with broker.ears() as late:
            value, message = await late.hear("status")
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    assert message.retain
    assert value["state"] == "offline"


async def test_a_cancelled_daemon_is_offline_too(broker: Broker) -> None:
    async def daemon() -> None:
        async with service_with() as service, link_of(service, broker.edge_settings()):
            await asyncio.Event().wait()

    task = asyncio.create_task(daemon())
    async with broker.ears() as ears:
        await ears.hear("status", online)
        task.cancel()
        await ears.hear("status", offline)
    with pytest.raises(asyncio.CancelledError):
        await task
    names = {other.get_name() for other in asyncio.all_tasks()}
    assert not [name for name in names if "mqtt" in name]


async def test_telemetry_tells_of_answers_and_is_not_retained(broker: Broker) -> None:
    async with edge_on(broker) as (service, ears):
        await text_of(service)
        _, message = await ears.hear("telemetry", lambda value: value["answers"] == 1)
        told, status = Telemetry.model_validate_json(message.payload), service.status()
        assert not message.retain
        assert (told.link, told.device_share) == ("none", 1.0)
        assert told.tokens == status.tokens > 0
        assert told.tokens_per_second == pytest.approx(status.tokens_per_second)
        assert told.memory_bytes is None or told.memory_bytes > 10 << 20


async def test_telemetry_tells_of_the_cloud(broker: Broker) -> None:
    async with (
        broker.ears() as ears,
        CloudServer(settings_for(tiny_bundle())) as cloud,
        service_with(CloudEndpoint(cloud.address), Mode.COLLABORATIVE) as service,
        link_of(service, broker.edge_settings()),
    ):
        await text_of(service)
        value, _ = await ears.hear("telemetry", lambda value: value["answers"] == 1)
        assert value["link"] == "up"
        assert value["uploaded_bytes"] > 0
        assert value["downloaded_bytes"] > 0
        assert value["rtt_seconds"] > 0


# ---- commands ------------------------------------------------------------------------------------


async def test_a_ping_is_acknowledged(broker: Broker) -> None:
    async with edge_on(broker) as (_, ears):
        answer = await ears.command({"id": "a1", "name": "ping", "arguments": {}})
        assert answer == {"id": "a1", "ok": True, "error": None, "result": {}}
        assert (await ears.command({"id": "a2", "name": "ping"}))["ok"]


async def test_controls_are_set_and_the_status_says_so(broker: Broker) -> None:
    async with (
        broker.ears("operator") as ears,
        CloudServer(settings_for(tiny_bundle())) as cloud,
        service_with(CloudEndpoint(cloud.address)) as service,
        link_of(service, broker.edge_settings()),
    ):
        await ears.hear("status", online)
        changes = {"mode": "auto", "target_agreement": 0.95, "max_tokens": 50}
        answer = await ears.command({"id": "1", "name": "set_controls", "arguments": changes})
        assert answer["ok"]
        assert answer["result"] == service.controls.as_record()
        assert answer["result"] | changes == answer["result"]
        value, _ = await ears.hear("status", lambda status: status["mode"] == "auto")
        assert online(value)


async def test_what_the_daemon_cannot_do_is_refused_with_its_reason(broker: Broker) -> None:
    async with edge_on(broker) as (service, ears):
        before = service.controls
        changes = {"mode": "collaborative"}
        answer = await ears.command({"id": "1", "name": "set_controls", "arguments": changes})
        assert not answer["ok"]
        assert answer["error"]["code"] == "refused"
        assert "needs a cloud" in answer["error"]["message"]
        assert service.controls == before


async def test_the_bundle_is_loaded_again_once_however_often_the_command_comes(
    broker: Broker,
) -> None:
    async with edge_on(broker) as (service, ears):
        text, first = await text_of(service), service.engine
        command = {"id": "again", "name": "reload"}
        answer = await ears.command(command)
        second = service.engine
        assert answer["result"]["fingerprint"] == tiny_bundle().manifest.fingerprint
        assert second is not first
        assert await ears.command(command) == answer
        assert service.engine is second
        assert await text_of(service) == text
        other = await ears.command(command | {"name": "ping"})
        assert (other["id"], other["error"]["code"]) == ("again", "reused_id")


async def test_draining_is_acknowledged_first_and_then_ends_the_daemon(broker: Broker) -> None:
    stop = asyncio.Event()
    async with broker.ears("operator") as ears, service_with() as service:
        async with link_of(service, broker.edge_settings(), stop.set):
            await ears.hear("status", online)
            answer = await ears.command({"id": "d", "name": "drain"})
            assert answer["result"] == {"active": 0, "waiting": 0}
            await asyncio.wait_for(stop.wait(), WAIT_SECONDS)
            assert await service.drain(WAIT_SECONDS)
            await ears.hear("status", lambda status: status["draining"])
        await ears.hear("status", offline)


async def test_without_a_daemon_around_it_the_service_drains(broker: Broker) -> None:
    async with edge_on(broker) as (service, ears):
        assert (await ears.command({"id": "d", "name": "drain"}))["ok"]
        await ears.hear("status", lambda status: status["draining"])
        assert service.status().draining


BAD = {
    "no JSON": (b"{", None),
    "no bytes": (b"", None),
    "not UTF-8": (b'{"id": "\xff"}', None),
    "no object": (b"[1]", None),
    "deep": (b"[" * 10_000, None),
    "no id": (b'{"name": "ping"}', None),
    "an id of other characters": (b'{"id": "\\u001b[2J", "name": "ping"}', None),
    "a long id": (b'{"id": "%s", "name": "ping"}' % (b"x" * 65), None),
    "too long": (b'{"id": "x", "name": "ping"}' + b" " * MAX_PAYLOAD_BYTES, None),
    "far too long": (b" " * (1 << 20), None),
    "no name": (b'{"id": "x"}', "name"),
    "an unknown name": (b'{"id": "x", "name": "format_disk"}', "the commands are set_controls"),
    "an unknown field": (b'{"id": "x", "name": "ping", "and": 1}', "and: "),
    "an unknown argument": (
        b'{"id": "x", "name": "reload", "arguments": {"folder": "/etc"}}', "arguments.folder",
    ),
    "an unknown control": (
        b'{"id": "x", "name": "set_controls", "arguments": {"max_tokens": 7, "volume": 11}}',
        "arguments.volume",
    ),
    "a number as text": (
        b'{"id": "x", "name": "set_controls", "arguments": {"max_tokens": "7"}}', "max_tokens",
    ),
    "not a number": (
        b'{"id": "x", "name": "set_controls", "arguments": {"threshold": NaN}}', None,
    ),
}  # fmt: skip


async def test_bad_commands_are_refused_and_disturb_nothing(broker: Broker) -> None:
    async with edge_on(broker) as (service, ears):
        before, text = service.controls, await text_of(service)
        for number, (name, (payload, complaint)) in enumerate(BAD.items()):
            await ears.say(f"tandem/{EDGE}/command", payload)
            if complaint is not None:
                answer, _ = await ears.hear("acknowledgement")
                assert (answer["id"], answer["ok"]) == ("x", False), name
                assert answer["error"]["code"] == "invalid", name
                assert complaint in answer["error"]["message"], name
            # those whose id cannot be read are not answered: this one's answer is the next
            answer = await ears.command({"id": f"after-{number}", "name": "ping"})
            assert answer["id"] == f"after-{number}", name
        assert service.controls == before
        assert await text_of(service) == text


async def test_a_retained_command_is_refused_sent_or_kept(broker: Broker) -> None:
    payload = {"id": "old", "name": "set_controls", "arguments": {"max_tokens": 7}}
    async with edge_on(broker) as (service, ears):
        await ears.say(f"tandem/{EDGE}/command", payload, retain=True)
        answer, _ = await ears.hear("acknowledgement")
        assert (answer["id"], answer["error"]["code"]) == ("old", "retained")
        assert service.controls.max_tokens != 7
    async with edge_on(broker) as (service, ears):  # now from the broker's store
        answer, _ = await ears.hear("acknowledgement")
        assert (answer["id"], answer["error"]["code"]) == ("old", "retained")
        assert service.controls.max_tokens != 7


async def test_a_flood_of_commands_is_bounded(broker: Broker) -> None:
    """Reloads wait for the answer; as many as may wait do, and the rest are told."""
    async with edge_on(broker) as (service, ears):
        async with service.answer(REQUEST) as answer:
            for number in range(12):
                await ears.say(f"tandem/{EDGE}/command", {"id": f"r{number}", "name": "reload"})
            busy = [(await ears.hear("acknowledgement"))[0] for _ in range(4)]
            async for _ in answer.pieces():
                pass
        assert {item["error"]["code"] for item in busy} == {"busy"}
        done = [(await ears.hear("acknowledgement"))[0] for _ in range(8)]
        assert all(item["ok"] for item in done)


async def test_the_access_list_keeps_edges_apart(broker: Broker) -> None:
    async with edge_on(broker) as (_, ears), broker.ears("hall") as hall:
        await hall.say(f"tandem/{EDGE}/command", {"id": "not-mine", "name": "ping"})
        await hall.say(f"tandem/{EDGE}/status", {"state": "forged"})
        answer = await ears.command({"id": "mine", "name": "ping"})
        assert answer["id"] == "mine"
        async with broker.ears() as late:
            value, _ = await late.hear("status")
            assert online(value)


# ---- who may -------------------------------------------------------------------------------------


async def test_a_wrong_password_is_said_once_and_answers_go_on(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "tandem.edge")
    settings = broker.edge_settings(password="wrong")
    with pytest.raises(AuthenticationError, match="refused user and password"):
        async with connected(settings):
            pass

    def complaints() -> list[logging.LogRecord]:
        return [record for record in caplog.records if "refused user" in record.message]

    async with service_with() as service, link_of(service, settings) as link:
        async with asyncio.timeout(WAIT_SECONDS):
            while len(complaints()) < 2:
                assert await text_of(service)
        assert not link.is_connected
    assert [record.levelno for record in complaints()][:2] == [logging.WARNING, logging.DEBUG]
    assert "wrong" not in caplog.text.replace("wrong number", "")


async def test_tls_with_the_right_authority_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Broker(tls=True) as broker:
        async with edge_on(broker) as (_, ears):
            assert (await ears.command({"id": "1", "name": "ping"}))["ok"]
        assert broker.authority is not None
        other = Authority(broker.authority.ca.parent / "other")
        with pytest.raises(AuthenticationError, match="not one that the CA vouches for"):
            async with connected(broker.edge_settings(ca=other.ca)):
                pass
        monkeypatch.setattr(mqtt_connection, "_ANSWER_SECONDS", NO_ANSWER_SECONDS)
        with pytest.raises(BrokerUnavailableError, match="both sides use TLS"):
            async with connected(broker.edge_settings(ca=None)):
                pass


async def test_client_certificates_instead_of_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Broker(tls=True, client_certificates=True) as broker:
        assert broker.authority is not None
        for user in ("operator", EDGE):
            broker.authority.sign(user)
        folder = broker.authority.ca.parent

        def own(user: str) -> dict[str, Any]:
            return {"certificate": folder / f"{user}.pem", "key": folder / f"{user}.key"}

        async with (
            connected(broker.settings("operator", **own("operator"))) as client,
            service_with() as service,
        ):
            ears = Ears(client)
            await client.subscribe("tandem/#", 1)
            async with link_of(service, broker.edge_settings(**own(EDGE))):
                await ears.hear("status", online)
                assert (await ears.command({"id": "1", "name": "ping"}))["ok"]
        monkeypatch.setattr(mqtt_connection, "_ANSWER_SECONDS", NO_ANSWER_SECONDS)
        with pytest.raises((AuthenticationError, BrokerUnavailableError), match="certificate"):
            async with connected(broker.settings("operator")):
                pass


async def test_certificates_that_do_not_load_stop_the_start(broker: Broker) -> None:
    junk = broker._folder / "junk.pem"
    junk.write_text("nothing")
    async with service_with() as service:
        with pytest.raises(ConfigurationError, match=r"junk\.pem is not a PEM"):
            MqttLink(service, broker.edge_settings(ca=junk))
        junk.write_text("-----BEGIN CERTIFICATE-----\nnothing\n-----END CERTIFICATE-----\n")
        with pytest.raises(ConfigurationError, match=r"junk\.pem is no certificate"):
            MqttLink(service, broker.edge_settings(ca=junk))


# ---- a broker that goes away ---------------------------------------------------------------------


async def test_a_broker_that_dies_in_an_answer_changes_no_word_and_is_found_again(
    broker: Broker,
) -> None:
    async with service_with() as service:
        undisturbed = await text_of(service)
        async with link_of(service, broker.edge_settings()):
            async with broker.ears() as ears:
                await ears.hear("status", online)
            async with service.answer(REQUEST) as answer:
                pieces = answer.pieces()
                await anext(pieces)
                await broker.stop()
                async for _ in pieces:
                    pass
            assert answer.text == undisturbed
            await broker.start()
            async with broker.ears("operator") as ears:
                await ears.hear("status", online)
                await ears.hear("telemetry", lambda value: value["answers"] == 2)
                assert (await ears.command({"id": "1", "name": "ping"}))["ok"]
            assert await text_of(service) == undisturbed


async def test_what_was_done_without_the_broker_is_acknowledged_when_it_is_back(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        BreakableLink(f"127.0.0.1:{broker.port}") as cable,
        broker.ears("operator") as ears,
        service_with() as service,
    ):
        port = int(cable.address.rpartition(":")[2])
        async with link_of(service, broker.edge_settings(port=port)):
            await ears.hear("status", online)
            async with service.answer(REQUEST):  # a reload waits for its end
                await ears.say(f"tandem/{EDGE}/command", {"id": "r", "name": "reload"})
                await ears.command({"id": "p", "name": "ping"})  # so the other has arrived too
                first = service.engine
                monkeypatch.setattr(mqtt_connection, "_ANSWER_SECONDS", NO_ANSWER_SECONDS)
                cable.block()
                cable.cut()
                await ears.hear("status", offline)
            async with asyncio.timeout(WAIT_SECONDS), aclosing(service.changes()) as changes:
                async for _ in changes:
                    if service.engine is not first:
                        break
            monkeypatch.undo()
            cable.unblock()
            cable.cut()
            answer, _ = await ears.hear("acknowledgement")
    assert (answer["id"], answer["ok"]) == ("r", True)


async def test_a_broker_that_falls_silent_blocks_neither_answers_nor_the_end(
    broker: Broker,
) -> None:
    async with service_with() as service:
        undisturbed = await text_of(service)
        async with link_of(service, broker.edge_settings()):
            async with broker.ears() as ears:
                await ears.hear("status", online)
            broker.freeze()
            assert await text_of(service) == undisturbed
            service.set_controls(service.controls.changed({"max_tokens": 9}))
        # leaving came back though no farewell was taken


async def test_two_edges_of_one_name_are_told_of_each_other(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        broker.ears() as ears,
        service_with() as service,
        link_of(service, broker.edge_settings()),
        link_of(service, broker.edge_settings()),
    ):
        async with asyncio.timeout(WAIT_SECONDS):
            while f"is another daemon named {EDGE}?" not in caplog.text:
                await ears.hear("status", online)
        assert await text_of(service)


async def test_leaving_while_nothing_answers_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt_connection, "_ANSWER_SECONDS", NO_ANSWER_SECONDS)
    silent = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    settings = MqttSettings(host="127.0.0.1", port=port, edge_id=EDGE)
    async with service_with() as service:
        async with asyncio.timeout(WAIT_SECONDS), link_of(service, settings) as link:
            assert await text_of(service)
        assert not link.is_connected
    silent.close()


async def test_a_command_that_expired_on_its_way_is_not_carried_out(broker: Broker) -> None:
    """The sender gives commands an expiry; an edge that was away hears nothing old either."""
    expiry = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    expiry.MessageExpiryInterval = 60
    payload = {"id": "early", "name": "set_controls", "arguments": {"max_tokens": 7}}
    async with broker.ears("operator") as ears:
        await ears.say(f"tandem/{EDGE}/command", payload, properties=expiry)
    async with edge_on(broker) as (service, ears):
        assert (await ears.command({"id": "now", "name": "ping"}))["id"] == "now"
        assert service.controls.max_tokens != 7

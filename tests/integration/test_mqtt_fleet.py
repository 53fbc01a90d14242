"""``tandem fleet`` as a user runs it, on a real broker with real edges."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from edge.controls import Controls
from edge.generation import Mode
from edge.mqtt_link import MqttLink
from edge.service import EdgeService
from tests.certificates import Authority
from tests.cloud_harness import WAIT_SECONDS, tiny_bundle
from tests.mqtt_broker import EDGE, Broker, needs_mosquitto, password_of

pytestmark = needs_mosquitto
COMMAND = [sys.executable, "-m", "shared.cli", "fleet"]


@pytest.fixture
async def broker() -> AsyncIterator[Broker]:
    async with Broker() as broker:
        yield broker


@asynccontextmanager
async def edge_on(broker: Broker, name: str = EDGE) -> AsyncIterator[EdgeService]:
    service = EdgeService(tiny_bundle(), Controls(Mode.STANDALONE), precision="float32", threads=1)
    async with (
        broker.ears("monitor") as ears,
        service,
        MqttLink(service, broker.edge_settings(name)),
    ):
        await ears.hear("status")
        yield service


def environment(user: str) -> dict[str, str]:
    hidden = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    return hidden | {"TANDEM_MQTT_USER": user, "TANDEM_MQTT_PASSWORD": password_of(user)}


async def fleet(
    *arguments: str | Path, user: str = "operator", expect: int = 0, **variables: str
) -> tuple[str, str]:
    """Run it; its output and its complaints."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env=environment(user) | variables,
    )  # fmt: skip
    async with asyncio.timeout(WAIT_SECONDS):
        out, err = await process.communicate()
    assert process.returncode == expect, (out.decode(), err.decode())
    assert b"Traceback" not in err
    return out.decode(), err.decode()


# ---- watch ---------------------------------------------------------------------------------------


async def test_once_as_json_tells_of_every_edge(broker: Broker) -> None:
    async with edge_on(broker), edge_on(broker, "hall"):
        out, _ = await fleet("watch", "--broker", broker.address, "--once", "--json")
    rows: list[dict[str, Any]] = json.loads(out)
    assert [(row["edge"], row["state"]) for row in rows] == [("hall", "online"), (EDGE, "online")]
    for row in rows:
        assert row["status"]["mode"] == "standalone"
        assert row["telemetry"]["link"] == "none"
        assert row["age_seconds"] >= 0


async def test_an_edge_that_left_is_offline(broker: Broker) -> None:
    async with edge_on(broker):
        pass
    out, _ = await fleet("watch", "--broker", broker.address, "--once", "--json", user="monitor")
    assert [(row["edge"], row["state"]) for row in json.loads(out)] == [(EDGE, "offline")]


async def test_once_is_a_table(broker: Broker) -> None:
    async with edge_on(broker):
        out, _ = await fleet("watch", "--broker", broker.address, "--once")
    header, row = (line for line in out.splitlines() if "edge" in line or EDGE in line)
    assert "round trip" in header
    assert row.split()[:4] == [EDGE, "online", "standalone", "none"]


async def test_a_fleet_without_edges_says_so(broker: Broker) -> None:
    options = ("--broker", broker.address, "--once", "--seconds", "1")
    assert "no edge has said anything yet" in (await fleet("watch", *options))[0]
    assert (await fleet("watch", *options, "--json"))[0] == "[]\n"


async def test_the_live_table_follows_the_fleet_through_a_broker_that_dies(broker: Broker) -> None:
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    loop, news, screen = asyncio.get_running_loop(), asyncio.Event(), bytearray()

    def hear() -> None:
        try:
            screen.extend(os.read(master, 65536))
        except OSError:
            loop.remove_reader(master)
        news.set()

    async def shows(text: str) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while text.encode() not in screen:
                news.clear()
                await news.wait()
        screen.clear()

    loop.add_reader(master, hear)
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "watch", "--broker", broker.address, stdout=slave, stderr=slave,
        env=environment("monitor") | {"COLUMNS": "140", "TERM": "xterm"},
    )  # fmt: skip
    os.close(slave)
    try:
        await shows("no edge has said anything yet")
        async with edge_on(broker):
            await shows("online")
            await broker.stop()
            await shows("the broker is gone")
            await broker.start()
            await shows("online")
        await shows("offline")
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), WAIT_SECONDS) == 130
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        loop.remove_reader(master)
        os.close(master)


async def test_hostile_messages_do_not_break_the_table() -> None:
    evil = "\x1b]0;owned\x07[bold red]\u202ex"
    online = {"version": "1", "mode": "auto", "draining": False, "started": "2026-01-01T00:00:00Z"}
    said: dict[str, bytes] = {
        "tandem/kitchen/status": json.dumps(online | {"state": "online", "model": evil}).encode(),
        "tandem/hall/status": json.dumps(online | {"state": evil, "model": "m"}).encode(),
        "tandem/cellar/status": b"\x1b[2J\xff",
        "tandem/attic/status": b"x" * 60_000,
        "tandem/[bold]/status": json.dumps(online | {"state": "online", "model": "m"}).encode(),
        "tandem/Ⅷ/status": json.dumps(online | {"state": "online", "model": "m"}).encode(),
        "tandem/a/b/status": b"{}",
        "tandem//status": b"{}",
    }
    async with Broker(lawless=True) as broker, broker.ears() as ears:
        for topic, payload in said.items():
            await ears.say(topic, payload, retain=True)
        options = ("--broker", broker.address, "--once", "--seconds", "2")
        table, _ = await fleet("watch", *options, TANDEM_MQTT_USER="anybody")
        records, _ = await fleet("watch", *options, "--json", TANDEM_MQTT_USER="anybody")
    shown = [line.split()[:2] for line in table.splitlines()[3:] if line.strip()]
    assert shown == [
        ["attic", "unknown"], ["cellar", "unknown"], ["hall", "unknown"], ["kitchen", "online"],
    ]  # fmt: skip
    assert not set(table) & set("\x1b\x07\u202e[")
    assert not set(records) & set("\x1b\x07\u202e")
    assert {row["edge"]: row["faulty_messages"] for row in json.loads(records)} == {
        "attic": 1, "cellar": 1, "hall": 1, "kitchen": 0,
    }  # fmt: skip


# ---- send ----------------------------------------------------------------------------------------


async def test_every_command_is_sent_and_acknowledged(broker: Broker) -> None:
    async with edge_on(broker) as service:
        first = service.engine
        on = ("--broker", broker.address)
        assert (await fleet("send", EDGE, "ping", *on))[0] == f"{EDGE}: done\n"
        out, _ = await fleet("send", EDGE, "set-controls", "max_tokens=77", *on)
        assert "max_tokens=77" in out
        assert service.controls.max_tokens == 77
        out, _ = await fleet("send", EDGE, "reload", *on, "--json")
        assert json.loads(out)["result"]["fingerprint"] == tiny_bundle().manifest.fingerprint
        assert service.engine is not first
        await fleet("send", EDGE, "drain", *on)
        assert service.status().draining


async def test_a_refusal_has_its_reason_and_exit_code(broker: Broker) -> None:
    async with edge_on(broker):
        _, err = await fleet(
            "send", EDGE, "set-controls", "mode=auto", "target_agreement=0.95",
            "--broker", broker.address, expect=1,
        )  # fmt: skip
    assert "kitchen refused: auto mode needs a cloud" in err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["set-controls", "mode=fast"], "arguments.mode"),
        (["set-controls", "volume=11"], "arguments.volume"),
        (["set-controls", "mode"], "not KEY=VALUE"),
        (["set-controls", "mode=auto", "mode=auto"], "given twice"),
        (["set-controls", "threshold=NaN"], "finite number"),
        (["reload", "folder=/etc"], "arguments.folder"),
        (["explode"], "the commands are"),
    ],
)
async def test_a_mistake_shows_without_a_broker(arguments: list[str], complaint: str) -> None:
    _, err = await fleet("send", EDGE, *arguments, "--broker", "localhost:1", expect=2)
    assert complaint in err


async def test_no_edge_no_answer(broker: Broker) -> None:
    on = ("--broker", broker.address, "--seconds", "1")
    _, err = await fleet("send", "cellar", "ping", *on, expect=4)
    assert "the broker knows no such edge" in err
    async with edge_on(broker):
        _, err = await fleet("send", EDGE, "ping", *on, user="monitor", expect=4)
        assert "does not let this user send it commands" in err.replace("\n", " ")
    _, err = await fleet("send", EDGE, "ping", "--broker", broker.address, expect=4)
    assert "kitchen is offline" in err


async def test_who_may_not_connect_is_told_why(broker: Broker, tmp_path: Path) -> None:
    wrong = tmp_path / "password"
    wrong.write_text("wrong\n")
    on = ("--broker", broker.address)
    for command in (["watch", "--once"], ["watch"], ["send", EDGE, "ping"]):
        _, err = await fleet(*command, *on, "--password-file", wrong, expect=3)
        assert "refused user and password" in err
        _, err = await fleet(*command, "--broker", "localhost:1", expect=4)
        assert "cannot be reached" in err
    _, err = await fleet("watch", *on, "--password-file", tmp_path / "none", expect=2)
    assert "cannot be read" in err
    _, err = await fleet("watch", "--broker", "broker.example:1883", expect=2)
    assert "would travel in the clear" in err
    _, err = await fleet("watch", "--broker", "host:x", expect=2)
    assert "is not HOST:PORT" in err


async def test_a_broker_with_tls(tmp_path: Path) -> None:
    async with Broker(tls=True) as broker:
        assert broker.authority is not None
        on = ("--broker", broker.address)
        async with edge_on(broker):
            await fleet("send", EDGE, "ping", *on, "--ca", broker.authority.ca)
            out, _ = await fleet("watch", *on, "--once", "--ca", broker.authority.ca)
            assert "online" in out
        other = Authority(tmp_path)
        _, err = await fleet("send", EDGE, "ping", *on, "--ca", other.ca, expect=3)
        assert "not one that the CA vouches for" in err
        _, err = await fleet("watch", *on, "--ca", tmp_path / "none.pem", expect=2)
        assert "none.pem cannot be read" in err

"""``tandem edge serve --mqtt``: the process reports to a real broker, and ends when told to."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiomqtt

from tests.cloud_harness import WAIT_SECONDS
from tests.edge_process import EdgeProcess
from tests.mqtt_broker import EDGE, Broker, needs_mosquitto, password_of


@needs_mosquitto
async def test_it_reports_and_a_command_drains_and_ends_it(tmp_path: Path) -> None:
    async with Broker() as broker:
        secret = tmp_path / "password"
        secret.write_text(password_of(EDGE))
        settings: dict[str, Any] = {
            "mqtt": f"127.0.0.1:{broker.port}",
            "mqtt_user": EDGE,
            "mqtt_password_file": str(secret),
            "edge_id": EDGE,
            "telemetry_seconds": 0.2,
        }
        operator = aiomqtt.Client(
            "127.0.0.1", broker.port, username="operator", password=password_of("operator")
        )
        async with asyncio.timeout(WAIT_SECONDS), operator, EdgeProcess(**settings) as edge:
            await operator.subscribe(f"tandem/{EDGE}/#", qos=1)
            heard: dict[str, dict[str, Any]] = {}
            states = []
            async for message in operator.messages:
                kind = message.topic.value.rpartition("/")[2]
                assert isinstance(message.payload, bytes)
                heard[kind] = json.loads(message.payload)
                if kind == "status":
                    states.append(heard[kind]["state"])
                if kind == "telemetry" and "acknowledgement" not in heard:
                    command = {"id": "1", "name": "drain"}
                    await operator.publish(f"tandem/{EDGE}/command", json.dumps(command), 1)
                if states[-1:] == ["offline"]:
                    break
            assert heard["acknowledgement"]["ok"]
            assert states[0] == "online"
            assert await edge.ended() == 0
            assert edge.events("draining")
            assert password_of(EDGE) not in edge.log


async def test_a_broker_that_is_not_there_stops_nothing() -> None:
    async with EdgeProcess(mqtt="127.0.0.1:1", edge_id=EDGE) as edge, edge.client() as client:
        assert (await client.get("/health")).status_code == 200
        edge.signal()
        assert await edge.ended() == 0

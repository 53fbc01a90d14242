"""``python -m tests.mqtt_edge BUNDLE PORT USER PASSWORD``: an edge with a link, until drained."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from edge.controls import Controls
from edge.generation import Mode
from edge.mqtt_link import MqttLink
from edge.mqtt_settings import MqttSettings
from edge.service import EdgeService
from shared.model_bundle import ModelBundle


async def main(bundle: Path, port: int, user: str, password: str) -> None:
    settings = MqttSettings(
        host="localhost", port=port, user=user, password=password, edge_id=user,
        telemetry_seconds=0.1,
    )  # fmt: skip
    stop = asyncio.Event()
    service = EdgeService(
        ModelBundle.load(bundle), Controls(Mode.STANDALONE), precision="float32", threads=1
    )
    async with service, MqttLink(service, settings, on_drain=stop.set):
        await stop.wait()
        await service.drain()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]))

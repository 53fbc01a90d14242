"""Asks the cloud now and then whether it is there, while no answer does."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio

from edge.cloud_channel import Channels
from edge.link_monitor import LinkMonitor
from shared.clock import Clock

_HEALTH = "/grpc.health.v1.Health/Check"
_SERVING = b"\x08\x01"  # HealthCheckResponse(status=SERVING)
_PATIENCE_SECONDS = 3.0


class LinkProbe:
    """One gRPC health check a look; ``monitor`` hears of round trips, of losses and returns."""

    def __init__(self, channels: Channels, monitor: LinkMonitor, clock: Clock) -> None:
        self._channels, self._monitor, self._clock = channels, monitor, clock

    async def look(self) -> None:
        """Ask once; raises nothing.

        A connection that was there and says nothing is given up: behind a link that comes back it
        may stay dead, and gRPC would find that out after more than a minute.
        """
        try:
            async with self._channels.use() as channel:
                check = channel.unary_unary(_HEALTH)  # bytes in, bytes out
                connected = channel.get_state() is grpc.ChannelConnectivity.READY
                began = self._clock()
                try:
                    async with asyncio.timeout(_PATIENCE_SECONDS):
                        serving = await check(b"") == _SERVING
                except TimeoutError:
                    if connected:  # one that is still being made may only be slow
                        self._channels.retire(channel)
                    raise
                took = self._clock() - began
        except (TimeoutError, grpc.aio.AioRpcError):
            serving = connected = False
        if not serving:
            self._monitor.lost()
            return
        if not self._monitor.alive:
            self._monitor.restored()
        if connected:  # making the connection takes round trips of its own
            self._monitor.round_trip(took)

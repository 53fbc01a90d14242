"""One channel for many sessions, and what becomes of one that broke."""

from __future__ import annotations

import grpc

from edge.cloud_channel import Channels, CloudEndpoint

SHUT_DOWN = grpc.ChannelConnectivity.SHUTDOWN


async def test_everybody_uses_one_channel_until_it_breaks() -> None:
    channels = Channels(CloudEndpoint("127.0.0.1:9"))
    async with channels.use() as first, channels.use() as same:
        assert first is same
        channels.retire(first)
        async with channels.use() as other:
            assert other is not first
            assert first.get_state() is not SHUT_DOWN
    assert first.get_state() is SHUT_DOWN
    assert other.get_state() is not SHUT_DOWN
    assert channels.current() is other
    await channels.close()
    assert other.get_state() is SHUT_DOWN


async def test_closing_closes_what_is_still_in_use() -> None:
    channels = Channels(CloudEndpoint("127.0.0.1:9"))
    async with channels.use() as broken:
        channels.retire(broken)
        async with channels.use() as current:
            await channels.close()
            assert broken.get_state() is SHUT_DOWN
            assert current.get_state() is SHUT_DOWN

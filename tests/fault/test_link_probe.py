"""What looks whether the cloud is there, over a link whose connections die without a word."""

from __future__ import annotations

import pytest

from edge import link_probe
from edge.link_probe import LinkProbe
from shared.clock import monotonic
from tests.cloud_harness import serving
from tests.edge_harness import BreakableLink, edge_engine


async def test_a_connection_that_died_silently_does_not_hide_a_link_that_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with (
        serving() as server,
        BreakableLink(server.address) as link,
        edge_engine(link.address) as engine,
        engine.connected(),
    ):
        assert engine.channels is not None
        probe = LinkProbe(engine.channels, engine.monitor, monotonic)
        await probe.look()
        assert engine.monitor.alive
        link.fall_silent()  # what is connected; new connections work
        with monkeypatch.context() as patch:
            patch.setattr(link_probe, "_PATIENCE_SECONDS", 0.2)
            await probe.look()
        assert not engine.monitor.alive
        await probe.look()
        assert engine.monitor.alive
        assert link.connections == 2

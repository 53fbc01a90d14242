"""A real cloud among edges that send anything: no crash, no unexpected error, nothing left over,
and an edge beside them gets its text."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import grpc.aio
import pytest

from cloud import collaboration_service
from cloud.auth import add_token
from cloud.server import CloudServer
from shared.clock import ManualClock
from shared.messages import Context, EdgeMessage, ErrorCode, edge_message_from_bytes
from tests.cloud_harness import PROMPT, edge, eventually, full_model, settings_for, tiny_bundle
from tests.fuzz_harness import Entropy, run_rounds
from tests.hostile_edge import Script, ScriptWriter, play

BUNDLE = tiny_bundle()
ARCH = BUNDLE.manifest.architecture
WANTED = full_model().continuation(PROMPT, 6)
IDLE_SECONDS = 100.0
MAX_MESSAGE_BYTES = 16384
STREAMS = 32  # at once
# what hostile edges may cause; INTERNAL and UNKNOWN are faults of the cloud's
EXPECTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.CANCELLED,  # by the edge itself
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
}
QUOTAS = """
[tenants.mallory]
sessions = 8
budget_mb = 0.6
escalations_per_second = 1000
escalation_burst = 200
"""


class Stage:
    """A cloud, and a loop that stands still between the examples."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.messages = 0
        self._tokens = {name: add_token(folder / "tokens", name) for name in ("alice", "mallory")}
        (folder / "quotas.toml").write_text(QUOTAS)
        self._settings = settings_for(
            BUNDLE,
            tokens=folder / "tokens",
            quotas=folder / "quotas.toml",
            session_ttl=IDLE_SECONDS,
            max_message_bytes=MAX_MESSAGE_BYTES,
        )
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()

    def __enter__(self) -> Stage:
        self._runner.run(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._stack.aclose())
        self._runner.close()

    def count(self, data: bytes) -> EdgeMessage:
        """Stands in the cloud's way to the parser."""
        self.messages += 1
        return edge_message_from_bytes(data)

    def play(self, entropy: Entropy) -> int:
        """Play scripts, all at once; the number of messages that the cloud has read."""
        before = self.messages
        writer = ScriptWriter(
            entropy,
            BUNDLE.manifest.fingerprint,
            ARCH.vocabulary_size,
            ARCH.hidden_size,
            MAX_MESSAGE_BYTES,
        )
        scripts = []
        while entropy:
            scripts.append(writer.script())

        async def all_at_once() -> None:
            steady = asyncio.create_task(self._steady_text())
            room = asyncio.Semaphore(STREAMS)

            async def one(script: Script) -> grpc.StatusCode | None:
                async with room:
                    return await play(self._channel, script, self._tokens["mallory"])

            codes = await asyncio.gather(*map(one, scripts))
            await steady
            for script, code in zip(scripts, codes, strict=True):
                assert code is None or code in EXPECTED, (code, script)
            await self._is_empty_again()

        self._runner.run(all_at_once())
        return self.messages - before

    async def _start(self) -> None:
        self.server = CloudServer(self._settings, clock=self.clock)
        await self._stack.enter_async_context(self.server)
        self._channel = await self._stack.enter_async_context(
            grpc.aio.insecure_channel(
                self.server.address, options=[("grpc.use_local_subchannel_pool", 1)]
            )
        )

    async def _steady_text(self) -> None:
        async with edge(self.server, BUNDLE, token=self._tokens["alice"]) as steady:
            await steady.open()
            ids = list(PROMPT)
            await steady.send(Context(0, PROMPT))
            for _ in WANTED:
                ids += await steady.decide(len(ids))
                await steady.send(Context(len(ids) - 1, (ids[-1],)))
            assert ids[len(PROMPT) :] == WANTED
            await steady.close()

    async def _is_empty_again(self) -> None:
        """Once idle sessions have expired, nothing is held, open or running."""
        server = self.server
        await eventually(lambda: server.service.open_streams == 0)
        server.store.check()
        self.clock.advance(IDLE_SECONDS)
        server.store.expire()
        assert len(server.store) == server.store.held_bytes == 0
        assert not server.metrics.registry.get_sample_value(
            "tandem_cloud_errors_total", {"code": ErrorCode.INTERNAL.name}
        )
        for tenant in self._tokens:
            for gauge in ("sessions", "streams", "held_bytes"):
                value = server.metrics.registry.get_sample_value(
                    f"tandem_cloud_{gauge}", {"tenant": tenant}
                )
                assert not value, (tenant, gauge)
        await eventually(
            lambda: (
                not [
                    task
                    for task in asyncio.all_tasks()
                    if task.get_name().startswith(("engine ", "watch "))
                ]
            )
        )


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    with Stage(tmp_path) as stage:
        monkeypatch.setattr(collaboration_service, "edge_message_from_bytes", stage.count)
        yield stage


def test_the_service(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    def fuzz_the_service(entropy: Entropy) -> int:
        messages = stage.play(entropy)
        faults = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert not faults, caplog.text
        return messages

    run_rounds(fuzz_the_service, at_least=1000, shrink=False)

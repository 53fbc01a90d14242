"""What tests of edge and cloud together share: an engine on the tiny bundle, a breakable link."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, Self

from cloud.server import CloudServer
from edge.cloud_channel import CloudEndpoint
from edge.engine import EdgeEngine
from edge.generation import Mode
from edge.generation_options import GenerationOptions
from edge.generation_result import GenerationResult
from edge.plan import Plan
from shared.model_bundle import ModelBundle
from shared.sampling import GREEDY, Sampling
from tests.cloud_harness import full_model, settings_for, tiny_bundle

PROMPTS = tuple(
    tuple((seed * 37 + i * i * 11 + 3) % 256 + 2 for i in range(3 + seed % 9)) for seed in range(20)
)


class Reckless(GenerationOptions):
    """Drafts on whether it pays or not."""

    @property
    def plan(self) -> Plan:
        return replace(super().plan, least_chance=0.0)


def options_for(mode: Mode = Mode.COLLABORATIVE, **changes: Any) -> GenerationOptions:
    plain: dict[str, Any] = {"threshold": 0.5, "max_tokens": 24}
    return GenerationOptions(mode, **(plain | changes))


def ids_of(result: GenerationResult) -> list[int]:
    return [token.token_id for token in result.tokens]


def full_answer(prompt: Sequence[int], count: int, sampling: Sampling = GREEDY) -> list[int]:
    """The unsplit model's answer, ended by the stop token as Tandem's is."""
    tokens = full_model().continuation(prompt, count, sampling)
    stop = tiny_bundle().manifest.tokenizer.stop_token_ids[0]
    return tokens[: tokens.index(stop) + 1] if stop in tokens else tokens


@asynccontextmanager
async def edge_engine(
    address: str | None, bundle: ModelBundle | None = None, **endpoint: Any
) -> AsyncIterator[EdgeEngine]:
    reached = CloudEndpoint(address, **endpoint) if address else None
    engine = EdgeEngine(bundle or tiny_bundle(), "float32", threads=1, endpoint=reached)
    try:
        yield engine
    finally:
        engine.close()


@asynccontextmanager
async def edge_and_cloud(**endpoint: Any) -> AsyncIterator[EdgeEngine]:
    async with (
        CloudServer(settings_for(tiny_bundle())) as server,
        edge_engine(server.address, **endpoint) as engine,
    ):
        yield engine


class BreakableLink:
    """A TCP relay that can be cut, or fall silent, while the edge talks through it.

    ``delay`` says how many seconds the next piece takes; the relay cuts itself after as many pieces
    as ``cuts`` names.  Connections go to the ``targets`` in turn.
    """

    def __init__(
        self,
        targets: str | Sequence[str],
        delay: Callable[[], float] | None = None,
        cuts: Collection[int] = (),
    ) -> None:
        self._targets = [targets] if isinstance(targets, str) else targets
        self._delay, self._cuts = delay, frozenset(cuts)
        self._pieces = 0
        self._blocked = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._silent = asyncio.Event()
        self._relays: set[asyncio.Task[None]] = set()
        self.connections = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        self.address = f"{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        for relay in self._relays:
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)

    def cut(self) -> None:
        """Reset every connection; new ones are taken."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def block(self) -> None:
        """From here on connections are made and nothing passes, as if a cable were pulled."""
        self._blocked = True
        self.fall_silent()

    def unblock(self) -> None:
        """The cable is back: new connections work."""
        self._blocked = False

    def fall_silent(self) -> None:
        """Keep the connections there are open, but forward nothing on them from here on."""
        self._silent.set()
        self._silent = asyncio.Event()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target = self._targets[self.connections % len(self._targets)]
        self.connections += 1
        host, _, port = target.rpartition(":")
        try:
            there_reader, there_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, there_writer}
        silent = self._silent
        if self._blocked:
            silent = asyncio.Event()
            silent.set()
        for source, sink in ((reader, there_writer), (there_reader, writer)):
            task = asyncio.create_task(self._forward(source, sink, silent))
            self._relays.add(task)
            task.add_done_callback(self._relays.discard)

    async def _forward(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, silent: asyncio.Event
    ) -> None:
        with suppress(OSError):
            while data := await source.read(1 << 16):
                if silent.is_set():
                    continue
                if self._delay is not None:
                    await asyncio.sleep(self._delay())
                self._pieces += 1
                if self._pieces in self._cuts:
                    self.cut()
                sink.write(data)
                await sink.drain()
            if not silent.is_set():  # a cable that was pulled carries no end either
                sink.close()

"""Real generations, recorded so that they can be replayed without a model: what an edge sent, when
it waited for which answer, and when it showed a token.

Edge and cloud are the real ones; a relay between them keeps the frames.  Times are the edge's own:
seconds since the session began, less what it had waited for the cloud by then.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeAlias

import grpc
import grpc.aio

from cloud.collaboration_service import SESSION_METHOD
from edge.cloud_channel import CloudEndpoint
from edge.engine import EdgeEngine
from edge.generation_options import GenerationOptions
from edge.timeline import Timeline
from protos.tandem.v1 import collaboration_pb2 as pb
from shared.chat import Message
from shared.clock import monotonic
from shared.errors import ConfigurationError
from shared.model_bundle import ModelBundle, Precision
from simulator.local_cloud import LocalCloud

VERSION = 1


@dataclass(frozen=True)
class Send:
    """At ``time`` the edge sent ``frame``, a serialized EdgeMessage."""

    time: float
    frame: bytes


@dataclass(frozen=True)
class Await:
    """From ``time`` on the edge needed the answer to ``step`` at ``position``; it was ``token``."""

    time: float
    step: int
    position: int
    token: int


@dataclass(frozen=True)
class Show:
    """At ``time`` the edge showed a token."""

    time: float


Event: TypeAlias = Send | Await | Show


@dataclass(frozen=True)
class Recording:
    """One generation in the order of its events."""

    mode: str
    prompt_ids: tuple[int, ...]
    tokens: int
    from_cloud: int
    events: tuple[Event, ...]


@dataclass(frozen=True)
class Recordings:
    """A file of them; ``about`` says what they were made with."""

    about: dict[str, Any]
    sessions: tuple[Recording, ...]

    def of(self, mode: str) -> list[Recording]:
        """Those of one mode."""
        return [recording for recording in self.sessions if recording.mode == mode]

    def write(self, path: Path) -> None:
        """As gzipped JSON lines, in one step."""
        lines = [json.dumps({"version": VERSION, **self.about})]
        lines += [json.dumps(_to_record(recording)) for recording in self.sessions]
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        part.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
        part.replace(path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raise :class:`ConfigurationError` for what is no such file."""
        try:
            head, *lines = gzip.decompress(path.read_bytes()).decode().split("\n")
            about = json.loads(head)
            if about.pop("version") != VERSION:
                raise ConfigurationError(f"{path} is of another version: --record makes a new one")
            return cls(about, tuple(_from_record(json.loads(line)) for line in lines))
        except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError) as error:
            raise ConfigurationError(f"{path} holds no recordings: {error!r}") from None


@dataclass
class _Heard:
    """What passed the relay in one session: frames up, decisions down (time, step, position,
    token)."""

    sent: list[tuple[float, bytes]] = field(default_factory=list)
    decided: list[tuple[float, int, int, int]] = field(default_factory=list)


class _Relay:
    """A gRPC server that passes every session on to the cloud and keeps what it hears."""

    def __init__(self, target: str) -> None:
        self._target = target
        self.heard = _Heard()

    async def __aenter__(self) -> Self:
        self._channel = grpc.aio.insecure_channel(self._target)
        self._server = grpc.aio.server()
        service, _, method = SESSION_METHOD[1:].partition("/")
        handler = grpc.stream_stream_rpc_method_handler(self._session)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {method: handler}),)
        )
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        self.address = f"127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)
        await self._channel.close()

    async def _session(self, requests: AsyncIterator[bytes], context: Any) -> None:
        heard = self.heard = _Heard()

        async def up() -> AsyncIterator[bytes]:
            async for frame in requests:
                heard.sent.append((monotonic(), frame))
                yield frame

        async for frame in self._channel.stream_stream(SESSION_METHOD)(up()):
            message = pb.CloudMessage.FromString(frame)
            if message.HasField("decision"):
                token = message.decision.token_id
                heard.decided.append((monotonic(), message.step, message.position, token))
            await context.write(frame)


async def record(
    bundle: ModelBundle,
    prompts: Sequence[str],
    options: Sequence[GenerationOptions],
    precision: Precision,
    about: dict[str, Any],
    advance: Callable[[], None],
) -> Recordings:
    """Generate an answer to each prompt with each of ``options``; ``advance`` follows each."""
    sessions: list[Recording] = []
    async with LocalCloud(bundle.folder) as cloud, _Relay(cloud.address) as relay:
        engine = EdgeEngine(bundle, precision, endpoint=CloudEndpoint(relay.address))
        with contextlib.closing(engine):
            warm = engine.encode_chat([Message("user", prompts[0])])
            await engine.generate(warm, options[0])
            for prompt in prompts:
                ids = engine.encode_chat([Message("user", prompt)])
                for wanted in options:
                    sessions.append(await _record(engine, ids, wanted, relay))
                    advance()
    fingerprint = {"fingerprint": bundle.manifest.fingerprint}
    return Recordings(about | fingerprint, tuple(sessions))


async def _record(
    engine: EdgeEngine, prompt_ids: tuple[int, ...], options: GenerationOptions, relay: _Relay
) -> Recording:
    timeline, shown = Timeline(), []
    generation = engine.generation(prompt_ids, options, timeline)
    async for _ in generation.run():
        shown.append(monotonic())
    heard, tokens = relay.heard, generation.result().tokens
    began = heard.sent[0][0]
    waits = [(max(wait.start, began), max(wait.stop, began)) for wait in timeline.waits]

    def own(time: float) -> float:
        """Seconds since the session began, less the waits; a token may be shown just before."""
        waited = sum(min(time, stop) - start for start, stop in waits if start < time)
        return max(0.0, time - began - waited)

    # a frame that was sent during a wait cannot depend on what was waited for
    ordered: list[tuple[float, int, Event]] = [
        (time, 0, Send(own(time), frame)) for time, frame in heard.sent
    ]
    for wait, (start, stop) in zip(timeline.waits, waits, strict=True):
        arrived = [d for d in heard.decided if d[2] == wait.position and d[0] <= stop]
        _, step, position, token = arrived[-1]
        ordered.append((stop, 1, Await(own(start), step, position, token)))
    ordered += [(time, 2, Show(own(time))) for time in shown]
    ordered.sort(key=lambda item: item[:2])
    return Recording(
        options.mode.value,
        prompt_ids,
        len(tokens),
        sum(token.origin == "cloud" for token in tokens),
        tuple(event for _, _, event in ordered),
    )


def _to_record(recording: Recording) -> dict[str, Any]:
    return {
        "mode": recording.mode,
        "prompt_ids": recording.prompt_ids,
        "tokens": recording.tokens,
        "from_cloud": recording.from_cloud,
        "events": [_event_to_record(event) for event in recording.events],
    }


def _event_to_record(event: Event) -> list[Any]:
    time = round(event.time, 6)
    match event:
        case Send(_, frame):
            return ["send", time, base64.b64encode(frame).decode()]
        case Await(_, step, position, token):
            return ["await", time, step, position, token]
        case Show():
            return ["show", time]


def _from_record(record: dict[str, Any]) -> Recording:
    return Recording(
        record["mode"],
        tuple(record["prompt_ids"]),
        record["tokens"],
        record["from_cloud"],
        tuple(_event_from_record(*event) for event in record["events"]),
    )


def _event_from_record(kind: str, time: float, *rest: Any) -> Event:
    match kind:
        case "send":
            return Send(time, base64.b64decode(rest[0]))
        case "await":
            return Await(time, *rest)
        case "show":
            return Show(time)
        case _:
            raise ValueError(f"an event of kind {kind}")

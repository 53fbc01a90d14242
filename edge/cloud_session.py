"""One session with the cloud: upload in the background, decisions on request, replay after a break.

The edge offers context as it comes; a sender task forwards it while the edge goes on.  The
connection may break at any time: a new one asks the cloud what it still holds, and only the
difference, and the questions without an answer, travel again.  What the cloud says ahead of the
questions is kept, and may answer them.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias

import grpc
import grpc.aio

from edge.cloud_channel import Channels, CloudEndpoint
from edge.lookahead import Lookahead
from edge.question import Question
from edge.timeline import Timeline
from edge.upload_backlog import Backlog
from protos.tandem.v1 import collaboration_pb2 as pb
from protos.tandem.v1.collaboration_pb2_grpc import CollaborationStub
from shared.clock import Clock, monotonic
from shared.errors import (
    AuthenticationError,
    BudgetExceededError,
    CloudInternalError,
    CloudUnavailableError,
    DeadlineExceededError,
    InvalidMessageError,
    NoRoomError,
    TandemError,
)
from shared.messages import (
    PROTOCOL_VERSION,
    SESSION_ID_BYTES,
    Ahead,
    Close,
    Closed,
    CloudMessage,
    Context,
    ContextKind,
    Decision,
    EdgeMessage,
    ErrorReply,
    Escalate,
    Open,
    Opened,
    Truncate,
    cloud_message_from_proto,
    edge_message_to_proto,
    error_of,
)
from shared.sampling import Sampling
from shared.tensor_codec import EncodedTensor

# gRPC's 5-byte prefix and one HTTP/2 frame header of 9 bytes
FRAMING_BYTES = 14
_MAX_ROWS = 256
_PATIENT_ROWS = 16
# of context in one message: what arrived of it is kept where the connection breaks
_MESSAGE_BYTES = 32 << 10
# what a cloud may say today and not tomorrow, and how long a persistent session leaves it alone
_REFUSALS = (BudgetExceededError, CloudInternalError)
_REFUSED_SECONDS = 5.0
_CLOSE_SECONDS = 1.0

_Call: TypeAlias = Any  # grpc.aio.StreamStreamCall; grpc ships no types


class ContextSource(Protocol):
    """What the edge knows of its tokens, ready for the wire, for as long as the session lives.

    What is ``patient`` is so small that it waits for a question, and travels in one message with
    what came before it.
    """

    kind: ContextKind
    bytes_per_position: int
    patient: bool

    def payload(self, start: int, stop: int) -> EncodedTensor | tuple[int, ...]:
        """Context of positions ``start`` to ``stop - 1``."""
        ...


class Observer(Protocol):
    """Is told how long things take; all times in seconds."""

    def opened(self, seconds: float) -> None:
        """From asking for the session, on a connection that was there, to hearing that it is
        open."""
        ...

    def decided(self, seconds: float, cloud_seconds: float, *, in_burst: bool) -> None:
        """From the question (in a burst: from the answer before) to its answer; ``cloud_seconds``
        of it the cloud says that it took."""
        ...

    def uploaded(self, size: int, seconds: float) -> None:
        """From the first of ``size`` bytes of context to the answer that they were needed for,
        less what the cloud took."""
        ...


@dataclass(frozen=True)
class KeptSession:
    """A session that the cloud holds without a stream, for as long as it keeps idle ones.

    Its first ``positions`` of context are those of the text as it was left; what may lie beyond is
    of drafts.  ``store_id`` names the store that held it.
    """

    session_id: bytes
    kind: ContextKind
    store_id: bytes
    positions: int


@dataclass
class WireCounter:
    """Bytes of messages with an estimate of their gRPC and HTTP/2 framing; connection set-up and
    TLS are left out."""

    uploaded: int = 0
    downloaded: int = 0


class CloudSession:
    """An ``async with`` block around one generation's dealings with the cloud.

    ``text`` are the tokens that the context is about, for what the cloud says ahead of them.
    ``channels`` outlive the session where they are given.  A ``persistent`` session is for an edge
    that can do without: it goes on trying also where the cloud is full or failed, and leaving the
    block does not wait for a cloud that is silent.  Any other goes on trying where others leave it
    no room, as long as it would with a cloud that is silent.  ``tells_guesses``: whether the cloud
    hears what the edge goes on from meanwhile; if not, it works on behind a correction until the
    edge has heard of it.  ``openings`` counts connections that the cloud took.  ``kept`` is a
    session to take up again, with its ``positions`` of the text.
    """

    def __init__(
        self,
        endpoint: CloudEndpoint,
        fingerprint: str,
        sampling: Sampling,
        source: ContextSource,
        *,
        text: Sequence[int] = (),
        clock: Clock = monotonic,
        timeline: Timeline | None = None,
        observer: Observer | None = None,
        channels: Channels | None = None,
        persistent: bool = False,
        tells_guesses: bool = True,
        kept: KeptSession | None = None,
    ) -> None:
        assert kept is None or kept.kind is source.kind
        self.wire = WireCounter()
        self.closed: Closed | None = None
        self.reconnects = 0
        self.openings = 0
        self._decisions = 0
        self.last_error: TandemError | None = None
        self._endpoint = endpoint
        self._source = source
        self._clock = clock
        self._timeline = timeline
        self._observer = observer
        self._persistent, self._tells_guesses = persistent, tells_guesses
        self._shared_channels = channels is not None
        self._channels = channels or Channels(endpoint)
        self._backlog = Backlog()
        self._answered_before = False
        self._open = Open(
            PROTOCOL_VERSION,
            kept.session_id if kept else secrets.token_bytes(SESSION_ID_BYTES),
            fingerprint,
            sampling,
            source.kind,
        )
        # by which a balancer (Ray Serve's) brings the session back to the replica that holds it
        self._affinity = ("session_id", self._open.session_id.hex())
        self._step = 0
        self._offered = kept.positions if kept else 0
        self._sent = 0
        self._unsent_truncation: int | None = None
        # until a later answer proves that the cloud has forgotten what lies behind it
        self._unproven_truncation: int | None = kept.positions if kept else None
        self._truncation_step = 0
        self._truncations: deque[tuple[int, int]] = deque()  # steps and positions, while they count
        self._ahead = Lookahead(text)
        self._flush_to = 0
        self._asked_ahead = False
        # of the store that held the session on the last connection
        self._store_id = kept.store_id if kept else b""
        self._questions: dict[int, Question] = {}  # in the order of their positions
        self._unanswered: set[int] = set()  # steps that took a credit on this connection
        # a correction has arrived, and what is offered and asked is still from before it
        self._astray = False
        self._connected = False
        self._closing = False
        self._keeping = False
        self._ended = False
        self._wake = asyncio.Event()
        self._call: _Call | None = None
        self._given_up: _Call | None = None  # the call that the watch over silence cancelled
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._channels.current()  # certificates that do not load are told here
        self._task = asyncio.create_task(self._stay_connected(), name="cloud-session")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._task is not None
        try:
            left = kind is not None and issubclass(kind, GeneratorExit | asyncio.CancelledError)
            wishes_to_close = (kind is None or left) and not self._keeping
            if wishes_to_close and (self._connected or not (self._persistent or left)):
                self._closing = True
                self._wake.set()
                hurry = self._persistent or left
                limit = _CLOSE_SECONDS if hurry else self._endpoint.answer_seconds
                await asyncio.wait([self._task], timeout=limit)
        finally:
            self._ended = True
            self._task.cancel()
            try:
                await asyncio.wait([self._task])
            finally:
                if not self._shared_channels:
                    await self._channels.close()
        fault = None if self._task.cancelled() else self._task.exception()
        if fault is not None and not isinstance(fault, TandemError):
            raise fault  # ours were told to whoever waited for a decision

    def keep(self) -> KeptSession | None:
        """Leave the session with the cloud when the block ends; ``None`` where it holds none."""
        if not self._store_id:
            return None
        self._keeping = True
        unproven = self._unproven_truncation
        positions = self._offered if unproven is None else min(self._offered, unproven)
        opened = self._open
        return KeptSession(opened.session_id, opened.context_kind, self._store_id, positions)

    @property
    def backlog_bytes(self) -> int:
        """Context that was sent since the last answer, and may still be on its way."""
        return self._backlog.size

    @property
    def shares_this_machine(self) -> bool:
        """Whether the cloud works on the edge's own cores."""
        return self._endpoint.on_this_machine

    def offer(self, positions: int) -> None:
        """Context 0 .. ``positions`` - 1 may be sent; returns at once."""
        if self._astray:
            return
        self._offered = max(self._offered, positions)
        self._wake.set()

    def said_ahead(self, position: int) -> Decision | None:
        """The cloud's token at ``position`` where it has said it already.  The text up to there is
        then sent, so that the cloud goes on."""
        decision = self._ahead.at(position)
        if decision is not None:
            self._flush_to = self._offered
            self._wake.set()
        return decision

    def ask(
        self, position: int, *, burst: int = 0, guess: int | None = None, lookahead: int = 0
    ) -> Question:
        """Ask for the token at ``position``, whose context has been offered; returns at once."""
        question = Question(position, burst, guess, lookahead)
        if not self._astray:
            assert position <= self._offered
            self._questions[position] = question
            self._wake.set()
        return question

    def truncate(self, positions: int) -> None:
        """Forget context from ``positions`` on, here and in the cloud, and every question."""
        assert positions <= self._offered
        self._questions.clear()
        self._astray = False
        self._offered = positions
        self._flush_to = min(self._flush_to, positions)
        self._ahead.truncated(positions)
        self._unsent_truncation = _lower(positions, self._unsent_truncation)
        self._unproven_truncation = _lower(positions, self._unproven_truncation)
        self._wake.set()

    def follow(self) -> None:
        """The edge has gone back to a correction, and from now on offers what the cloud's burst
        says; :meth:`truncate` to the burst's end lets the cloud listen again."""
        self._astray = False

    async def answer(self, question: Question) -> Decision:
        """Wait for the next answer to ``question``; a connection that stays silent is replaced by a
        new one.  Raises a typed error where no answer can be had.

        A decision that differs from the question's guess is a correction: the cloud has forgotten
        the context from there on and ignores what is said of it, until the edge goes back with
        :meth:`truncate` (or :meth:`follow`, where a burst comes).
        """
        if question.ready:
            return question.take()
        assert self._task is not None
        endpoint = self._endpoint
        deadline = self._clock() + endpoint.answer_seconds + endpoint.give_up_seconds
        arrival = asyncio.create_task(question.arrived.wait())
        try:
            while True:
                await asyncio.wait(
                    [arrival, self._task],
                    timeout=endpoint.answer_seconds,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if question.ready:
                    return question.take()
                if self._task.done():
                    error = None if self._task.cancelled() else self._task.exception()
                    raise error or CloudUnavailableError("the session with the cloud has ended")
                if self._clock() >= deadline:
                    raise DeadlineExceededError(
                        f"the cloud at {endpoint.address} did not decide position "
                        f"{question.next_position} in time"
                    )
                self.give_up_connection()
        finally:
            arrival.cancel()

    async def decide(self, position: int) -> Decision:
        """The cloud's token at ``position``; raises a typed error where none can be had."""
        async with aclosing(self.decide_burst(position, 0)) as decisions:
            return await anext(decisions)

    async def decide_burst(self, position: int, burst: int) -> AsyncGenerator[Decision, None]:
        """The token at ``position`` and up to ``burst`` more that the cloud decodes by itself.

        The caller stops listening at a stop token.  It offers each token that the burst goes on
        from, so that a new connection can replay it; on this one the cloud has it already.
        """
        question = self.ask(position, burst=burst)
        try:
            for _ in range(burst + 1):
                yield await self.answer(question)
        finally:
            self._questions.pop(position, None)

    def give_up_connection(self) -> None:
        """Replace a connection that stays silent by a new one."""
        if self._call is not None:
            self._given_up = self._call
            self._call.cancel()

    async def _stay_connected(self) -> None:
        """Connect, serve, and reconnect with jittered back-off until closed or given up."""
        silent_since = self._clock()
        endpoint = self._endpoint
        no_room_since: float | None = None
        attempt = 0
        while not self._ended:  # a task group may report a child's error in place of a cancellation
            openings, decisions, began = self.openings, self._decisions, self._clock()
            delay = min(2.0, 0.05 * 2**attempt)
            try:
                async with self._channels.use() as channel:
                    try:
                        await self._serve_one_connection(channel)
                    except DeadlineExceededError:
                        # the transport may be half open: another stream on it would be silent too
                        self._channels.retire(channel)
                        raise
            except CloudUnavailableError as error:
                self.last_error = error
                if self.openings > openings:
                    silent_since, attempt, delay = self._clock(), 0, 0.05
                self._check_patience(self._clock() - silent_since, error)
            except _REFUSALS as error:
                self.last_error = error
                if self._persistent:
                    delay = _REFUSED_SECONDS
                elif isinstance(error, NoRoomError):
                    silent_since = now = self._clock()
                    served = self._decisions > decisions or now - began > endpoint.answer_seconds
                    if served or no_room_since is None:
                        no_room_since, attempt, delay = now, 0, 0.05
                    if now - no_room_since >= endpoint.give_up_seconds:
                        raise
                else:
                    raise
            else:
                return
            self.reconnects += 1
            attempt += 1
            await asyncio.sleep(random.uniform(0.5, 1.0) * delay)  # noqa: S311

    def _check_patience(self, silence: float, error: CloudUnavailableError) -> None:
        """Raise where the cloud has been silent for longer than it may be."""
        endpoint = self._endpoint
        if self.wire.downloaded:
            if silence >= endpoint.give_up_seconds:
                raise CloudUnavailableError(
                    f"no answer from the cloud at {endpoint.address} for {silence:.0f} s ({error})"
                ) from error
        elif silence >= min(endpoint.connect_seconds, endpoint.give_up_seconds):
            raise CloudUnavailableError(
                f"the cloud at {endpoint.address} cannot be reached ({error}): is `tandem cloud "
                "serve` running there, and do both sides use TLS (--cloud-ca, and --client-cert "
                "where it asks for one) or neither? `tandem doctor --cloud` looks closer"
            ) from error

    async def _serve_one_connection(self, channel: grpc.aio.Channel) -> None:
        """Open, then send and receive until closed; raises a typed error where it breaks."""
        for question in self._questions.values():
            question.asked = False
        self._unanswered.clear()
        self._backlog = Backlog()
        was_ready = channel.get_state() is grpc.ChannelConnectivity.READY
        began = self._clock()
        stub = CollaborationStub(channel)  # type: ignore[no-untyped-call]
        call = stub.Session(metadata=(*self._endpoint.metadata, self._affinity))
        self._call = call
        try:
            opened = await self._open_stream(call)
            self._connected = True
            self.openings += 1
            if was_ready and self._observer is not None:
                self._observer.opened(self._clock() - began)
            async with asyncio.TaskGroup() as group:
                sender = group.create_task(self._send(call, opened), name="upload")
                group.create_task(self._receive(call, sender), name="decisions")
        except BaseExceptionGroup as errors:
            typed, rest = errors.split(TandemError)
            raise (typed or rest or errors).exceptions[0] from None
        finally:
            self._call, self._connected = None, False
            call.cancel()

    async def _open_stream(self, call: _Call) -> Opened:
        try:
            async with asyncio.timeout(self._endpoint.answer_seconds):
                with contextlib.suppress(CloudUnavailableError):  # reading tells why
                    await self._write(call, self._open)
                opened = (await self._read(call)).body
        except TimeoutError:
            raise DeadlineExceededError("the cloud did not open the session in time") from None
        if not isinstance(opened, Opened):
            raise InvalidMessageError("the cloud's first message is not Opened")
        if opened.store_id != self._store_id:
            self._store_id = opened.store_id
            if opened.held_positions:  # from before this session went on in another store
                self._unproven_truncation = 0
        self._sent = min(opened.held_positions, self._offered)
        self._unsent_truncation = self._unproven_truncation
        return opened

    async def _send(self, call: _Call, opened: Opened) -> None:
        """Forward what there is: truncation first, then questions whose context is there (as many
        as the cloud gave credits for; the others wait for answers), then context.

        One message a turn: while it is written the edge may truncate, which then comes first.
        """
        size = min(_MESSAGE_BYTES, opened.max_message_bytes - 1024)
        rows = min(max(1, size // self._source.bytes_per_position), _MAX_ROWS)
        with contextlib.suppress(CloudUnavailableError):  # the receiving task tells why
            while True:
                self._wake.clear()
                if self._unsent_truncation is not None:
                    at, self._unsent_truncation = self._unsent_truncation, None
                    self._sent = min(self._sent, at)
                    self._truncation_step = self._step + 1
                    self._truncations.append((self._truncation_step, at))
                    self._unanswered.clear()
                    await self._write(call, Truncate(at))
                elif self._closing:
                    await self._write(call, Close())
                    return
                elif (question := self._next_question(opened.credits)) is not None:
                    self._unanswered.add(self._step + 1)
                    question.asked, question.heard_at = True, self._clock()
                    self._backlog.asked(question.position, question.heard_at)
                    tell = self._tells_guesses and not question.answered
                    guess = question.guess if tell else None
                    at, rest = question.next_position, question.expected - 1
                    self._asked_ahead |= question.lookahead > 0
                    await self._write(call, Escalate(at, rest, guess, question.lookahead))
                elif self._context_is_due():
                    start, stop = self._sent, min(self._offered, self._sent + rows)
                    if stop > opened.max_positions:
                        raise BudgetExceededError(
                            f"the cloud holds {opened.max_positions} positions a session at most"
                        )
                    self._sent = stop
                    began, before = self._clock(), self.wire.uploaded
                    await self._write(call, Context(start, self._source.payload(start, stop)))
                    self._backlog.sent(began, self._clock(), self.wire.uploaded - before)
                else:
                    await self._wake.wait()

    def _next_question(self, credits: int) -> Question | None:
        """One that can be asked; what a broken burst goes on from must be offered again first."""
        if len(self._unanswered) >= credits:
            return None
        ready = (q for q in self._questions.values() if q.to_ask and q.next_position <= self._sent)
        return next(ready, None)

    def _context_is_due(self) -> bool:
        """Whether there is context to send, and, where it is worth waiting, nothing to wait for."""
        unsent = self._offered - self._sent
        if unsent <= 0 or not self._source.patient or unsent >= _PATIENT_ROWS:
            return unsent > 0
        if self._sent < self._flush_to:
            return True
        return any(question.to_ask for question in self._questions.values())

    async def _receive(self, call: _Call, sender: asyncio.Task[None]) -> None:
        while True:
            message = await self._read(call)
            match message.body:
                case Decision() as decision:
                    self._decisions += 1
                    self._unanswered.discard(message.step)
                    self._wake.set()
                    if self._unsent_truncation is not None or message.step < self._truncation_step:
                        continue  # it answers a question about text that was withdrawn since
                    self._prove_truncation(message.step)
                    self._hand_over(decision)
                case Ahead() as ahead:
                    self._take_ahead(message.step, ahead)
                case Closed() as closed:
                    self.closed = closed
                    sender.cancel()
                    return
                case _:
                    raise InvalidMessageError("the cloud opened the session twice")

    def _hand_over(self, decision: Decision) -> None:
        """Give a decision to whoever asked; one that was answered before (a replay) is dropped."""
        waiting = (q for q in self._questions.values() if q.next_position == decision.position)
        question = next(waiting, None)
        if question is None:
            return
        self._observe(question, decision)
        self._answer(question, decision)

    def _take_ahead(self, step: int, ahead: Ahead) -> None:
        """Keep what the cloud said unasked, unless it is about text that was withdrawn since.

        It may be what the oldest question waits for.
        """
        if not self._asked_ahead:
            raise InvalidMessageError("the cloud says words ahead that it was not asked for")
        self._prove_truncation(step)
        unsent = self._unsent_truncation
        withdrawn = [at for _, at in self._truncations] + ([] if unsent is None else [unsent])
        if min(withdrawn, default=ahead.base) < ahead.base:
            return
        if self._observer is not None:
            taken = ahead.decision.cloud_microseconds / 1e6
            self._observer.decided(taken, taken, in_burst=True)
        self._ahead.add(ahead)
        question = next(iter(self._questions.values()), None)
        if question is not None and not question.burst:
            decision = self.said_ahead(question.position)
            if decision is not None:
                self._backlog.answered(question.position, self._clock())
                self._answer(question, decision)

    def _prove_truncation(self, step: int) -> None:
        """The cloud has heeded all up to ``step``."""
        while self._truncations and self._truncations[0][0] <= step:
            self._truncations.popleft()
        unsent = self._unsent_truncation is not None
        if not (unsent or self._astray) and step >= self._truncation_step:
            self._unproven_truncation = None

    def _answer(self, question: Question, decision: Decision) -> None:
        question.answer(decision)
        self._ahead.answered(decision)
        if question.corrected and question.answered == 1:
            # the cloud ignores what follows, and until the edge knows, so does this side
            self._questions = {question.position: question}
            self._unanswered.clear()
            self._offered = question.position
            self._sent = min(self._sent, question.position)
            self._unproven_truncation = question.position
            self._astray = True
        if question.expected:
            # the cloud goes on from this token: it need not be sent
            self._sent = max(self._sent, decision.position + 1)
        else:
            del self._questions[question.position]

    def _observe(self, question: Question, decision: Decision) -> None:
        now, cloud_seconds = self._clock(), decision.cloud_microseconds / 1e6
        seconds, question.heard_at = now - question.heard_at, now
        in_burst = question.answered > 0
        if not in_burst:
            question.first_seconds = seconds
        upload = self._backlog.answered(question.position, now - cloud_seconds)
        first, self._answered_before = not self._answered_before, True
        if self._observer is None:
            return
        if upload is not None:
            self._observer.uploaded(*upload)
        if in_burst or not first:  # the first answer took the whole prompt along
            self._observer.decided(seconds, cloud_seconds, in_burst=in_burst)

    async def _write(self, call: _Call, body: Open | Context | Escalate | Truncate | Close) -> None:
        self._step += 1
        message = edge_message_to_proto(EdgeMessage(self._step, body))
        size = message.ByteSize() + FRAMING_BYTES
        self.wire.uploaded += size
        if self._timeline is not None and isinstance(body, Context):
            self._timeline.upload(self._clock(), body.position, body.count, size)
        with self._typed_transport_errors(call):
            await call.write(message)

    async def _read(self, call: _Call) -> CloudMessage:
        with self._typed_transport_errors(call):
            wire = await call.read()
            if wire is grpc.aio.EOF:
                raise self._error_of_status(await call.code(), await call.details())
        assert isinstance(wire, pb.CloudMessage)
        self.wire.downloaded += wire.ByteSize() + FRAMING_BYTES
        message = cloud_message_from_proto(wire)
        if isinstance(message.body, ErrorReply):
            raise error_of(message.body)
        return message

    @contextlib.contextmanager
    def _typed_transport_errors(self, call: _Call) -> Iterator[None]:
        """Turn gRPC's ways of saying that a call is over into errors of ours."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise self._error_of_status(error.code(), error.details()) from None
        except (asyncio.InvalidStateError, grpc.aio.UsageError):
            raise CloudUnavailableError("the stream has ended") from None
        except asyncio.CancelledError:
            # gRPC says so too where not the task but the call was cancelled
            if self._given_up is call:
                raise DeadlineExceededError("the cloud was silent for too long") from None
            task = asyncio.current_task()
            if task is not None and not task.cancelling():
                raise CloudUnavailableError("the call was cancelled below") from None
            raise

    def _error_of_status(self, code: grpc.StatusCode, details: str | None) -> TandemError:
        """What a stream died of that ended without an error message of ours."""
        text = details or "the stream ended"
        match code:
            case grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.PERMISSION_DENIED:
                return AuthenticationError(text)
            case grpc.StatusCode.RESOURCE_EXHAUSTED if not self._connected:
                return NoRoomError(text)  # the server takes no more streams
            case grpc.StatusCode.RESOURCE_EXHAUSTED:
                return BudgetExceededError(text)
            case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.UNIMPLEMENTED:
                return InvalidMessageError(text)
            case _:
                return CloudUnavailableError(f"{text} ({code.name})")


def _lower(position: int, other: int | None) -> int:
    return position if other is None else min(position, other)

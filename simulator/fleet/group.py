"""What the edges of one group share, and the log of their answers."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from random import Random
from typing import TYPE_CHECKING

import numpy as np

from edge.context_source import ContextCodec
from edge.steering import LEAST_PATIENCE_SECONDS
from simulator.fleet.events import Clock
from simulator.fleet.policies import Chooser, Policy
from simulator.fleet.profiles import DeviceProfile
from simulator.fleet.recordings import Recording
from simulator.fleet.tracks import Track, Tracks
from simulator.fleet.wire import WireSizes

if TYPE_CHECKING:
    from simulator.fleet.simulated_edge import SimulatedEdge

_DRAWS = 4096


class AnswerLog:
    """Answers that ended, one entry in each column; seconds and bytes as they are."""

    def __init__(self) -> None:
        self.asked_at, self.first_seconds, self.seconds = array("d"), array("d"), array("d")
        self.work_seconds = array("d")
        self.bytes_up, self.bytes_down = array("d"), array("d")
        self.tokens, self.wrong, self.alone = array("l"), array("l"), array("l")
        self.questions, self.corrections, self.discarded = array("l"), array("l"), array("l")
        self.plans: dict[str, int] = {}

    def add(self, edge: SimulatedEdge, at: float) -> None:
        """The answer of ``edge`` ended at ``at``."""
        self.asked_at.append(edge.asked_at)
        self.first_seconds.append(edge.first_at - edge.asked_at)
        self.seconds.append(at - edge.asked_at)
        self.work_seconds.append(edge.work)
        self.bytes_up.append(edge.bytes_up)
        self.bytes_down.append(edge.bytes_down)
        self.tokens.append(edge.track.length)
        self.wrong.append(edge.wrong)
        self.alone.append(edge.alone_tokens)
        self.questions.append(edge.questions)
        self.corrections.append(edge.corrections)
        self.discarded.append(edge.discarded)
        if edge.plan is not None:
            kind = edge.plan.kind
            self.plans[kind] = self.plans.get(kind, 0) + 1


class Group:
    """Edges that are alike, and what they draw from.

    Attributes:
        think: seconds from the end of an answer, at the second named, to the next question.
        horizon: answers that end later do not count, nor those that end before the warm-up has.
        message: seconds that the edge takes over a message.
        reading: seconds from a token's hidden state to the question behind it, reading the exits.
        first_context: seconds from the start of a token to its hidden state.
        token_size: bytes of a position of context that travels as a token id.
        least_patience: the least that ``auto`` waits before it goes on alone.
    """

    tokens = ContextCodec.TOKENS
    least_patience = LEAST_PATIENCE_SECONDS
    reconnect_seconds = 0.0375  # the mean of the edge's first jittered pause

    def __init__(
        self,
        env: Clock,
        name: str,
        device: DeviceProfile,
        policy: Policy,
        recording: Recording,
        tracks: Tracks,
        sizes: WireSizes,
        noise: np.random.Generator,
        think: Callable[[float, Random], float],
        *,
        horizon: float,
        max_tokens: int,
        warmup: float = 0.0,
    ) -> None:
        self.env, self.name, self.device, self.policy = env, name, device, policy
        self.recording, self.sizes = recording, sizes
        self.horizon, self.max_tokens, self._warmup = horizon, max_tokens, warmup
        self.chooser = None
        if policy.wishes is not None:
            self.chooser = Chooser(recording.model, policy.wishes)
        self.message = device.message_seconds if policy.drafts else 0.0
        self.reading = sum(device.level_seconds[1:]) + device.exit_seconds[0]
        self.first_context = device.segment_seconds[0]
        self.token_size = sizes.context[self.tokens]
        self.last_bytes = float(sizes.question)
        if policy.plan is not None:
            self.last_bytes += sizes.context[policy.plan.codec]
        self.log = AnswerLog()
        self._tracks: dict[tuple[float, int], Track] = {}
        self._made = tracks
        self._noise = noise
        self._draws: Iterator[int] = iter(())
        self._random = Random(int(noise.integers(0, 1 << 62)))  # noqa: S311
        self._think = think
        self._threshold = 0.0 if policy.plan is None else policy.plan.threshold

    def draw(self) -> int:
        """The number of a recorded answer."""
        for number in self._draws:
            return number
        self._draws = iter(self.recording.draw(self._noise, _DRAWS).tolist())
        return next(self._draws)

    def track(self, threshold: float | None, answer: int) -> Track:
        """The answer as this device drafts it, at the policy's threshold unless told."""
        key = (self._threshold if threshold is None else threshold, answer)
        track = self._tracks.get(key)
        if track is None:
            track = self._tracks[key] = self._made.get(self.device, *key)
        return track

    def context_bytes(self, codec: ContextCodec) -> float:
        """Of one position."""
        return self.sizes.context[codec]

    def begin(self, edge: SimulatedEdge) -> None:
        """The first question of ``edge`` comes as any other."""
        self.env.call_at(self._think(0.0, self._random), edge.ask)

    def finished(self, edge: SimulatedEdge, at: float) -> None:
        """An answer ended at ``at``; the next question comes when the user has thought."""
        if at > self.horizon:
            return
        if at >= self._warmup:
            self.log.add(edge, at)
        self.env.call_at(at + self._think(at, self._random), edge.ask)

"""A recorded answer as a device drafts it: where the exits are sure, and when each token is done.

Everything a simulated token costs is summed up front, so that a whole stretch of accepted tokens
is one subtraction.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge.exit_policy import ExitPolicy
from shared.errors import ConfigurationError
from simulator.fleet.profiles import DeviceProfile
from simulator.fleet.recordings import RecordedAnswer, Recording


@dataclass(frozen=True, slots=True, eq=False)
class Track:
    """One answer at one threshold on one device; lists are indexed by the answer's positions.

    Attributes:
        length: tokens of the answer; ``prompt`` tokens of its prompt.
        unsure: no exit was sure.
        agreed: the token that the edge goes on from (of the exit that was sure, else of the
            deepest) is the full model's.
        confidence: that exit's.
        next_unsure: the first position from here on that no exit is sure of, else ``length``;
            one entry more than positions.
        next_overruled: the same for tokens that were accepted and are not the full model's.
        done: seconds of the edge's own work until so many tokens are drafted, from the end of the
            prompt; one entry more than positions.
        prefill_seconds: the edge's own time for the prompt.
    """

    length: int
    prompt: int
    unsure: list[bool]
    agreed: list[bool]
    confidence: list[float]
    next_unsure: list[int]
    next_overruled: list[int]
    done: list[float]
    prefill_seconds: float

    @property
    def right(self) -> int:
        """Tokens that are the full model's where nobody is asked."""
        return sum(self.agreed)

    @property
    def accepted_right(self) -> int:
        """Tokens that are the full model's where the cloud is asked for every unsure one."""
        return sum(a or u for a, u in zip(self.agreed, self.unsure, strict=True))


def make_track(answer: RecordedAnswer, threshold: float, device: DeviceProfile) -> Track:
    """Apply the exit policy to every position, and the device's times."""
    policy = ExitPolicy(threshold)
    rows = answer.confidences.tolist()
    levels = [
        next((level for level, sure in enumerate(row) if policy.accepts(sure)), None)
        for row in rows
    ]
    deepest = len(rows[0]) - 1
    spoke = [deepest if level is None else level for level in levels]
    agrees = answer.agrees.tolist()
    unsure = [level is None for level in levels]
    agreed = [bool(agrees[i][level]) for i, level in enumerate(spoke)]
    overruled = [not (u or a) for u, a in zip(unsure, agreed, strict=True)]
    return Track(
        length=len(rows),
        prompt=answer.prompt_tokens,
        unsure=unsure,
        agreed=agreed,
        confidence=[float(rows[i][level]) for i, level in enumerate(spoke)],
        next_unsure=_next(unsure),
        next_overruled=_next(overruled),
        done=_done(spoke, answer.prompt_tokens, device),
        prefill_seconds=device.prefill_seconds * answer.prompt_tokens,
    )


def _next(marks: list[bool]) -> list[int]:
    """For each position, and the end, the first marked one from there on."""
    found = len(marks)
    nexts = [found]
    for index in range(len(marks) - 1, -1, -1):
        if marks[index]:
            found = index
        nexts.append(found)
    nexts.reverse()
    return nexts


def _done(spoke: list[int], prompt: int, device: DeviceProfile) -> list[float]:
    """Running sums of the tokens' own times.  A level that was skipped takes in later what it
    missed, prompt included; segment 0 has taken the prompt in already."""
    seen = [0] * len(device.segment_seconds)
    sums = [0.0]
    for index, level in enumerate(spoke):
        positions = prompt + index  # the text so far; the token is read at its last position
        seconds = device.step_seconds
        for at in range(level + 1):
            first = device.exit_seconds[0] if not (index or at) else device.level_seconds[at]
            seconds += first + (positions - seen[at] - 1) * device.pending_seconds[at]
            seen[at] = positions
        sums.append(sums[-1] + seconds)
    return sums


class Tracks:
    """Tracks of one recording, made when they are first asked for."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._made: dict[tuple[DeviceProfile, float, int], Track] = {}

    def get(self, device: DeviceProfile, threshold: float, answer: int) -> Track:
        """The track of answer number ``answer``."""
        key = (device, threshold, answer)
        track = self._made.get(key)
        if track is None:
            if len(device.segment_seconds) != self._recording.exits:
                raise ConfigurationError(
                    f"device {device.name} has times for {len(device.segment_seconds)} exits, the "
                    f"recording has {self._recording.exits}"
                )
            recorded = self._recording.answers[answer]
            track = self._made[key] = make_track(recorded, threshold, device)
        return track

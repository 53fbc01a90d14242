"""An edge whose model is a recording: it says what was recorded, after as long as a device takes.

Everything else of the edge is the real one: token loop, exit policy, drafting, session, wire.  So
an edge of another device, or sixteen of them, run on a machine that could not compute for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from edge.cloud_channel import CloudEndpoint
from edge.engine import EdgeEngine
from edge.exit_model import ExitModel
from shared.model_bundle import IDENTITY_CALIBRATION, Architecture, ExitInfo, ModelBundle
from simulator.fleet.profiles import DeviceProfile, Power

FloatArray = npt.NDArray[np.float32]
# of an exit's head: so many that also a low confidence is the largest probability
FEW_ROWS = 256


class FarEndpoint(CloudEndpoint):
    """A cloud that counts as another machine, though the simulated link to it begins on this."""

    @property
    def on_this_machine(self) -> bool:
        return False


@dataclass(frozen=True)
class Script:
    """One recorded answer, as an edge replays it.

    Attributes:
        prompt_ids: token ids of the prompt.
        answer_ids: what the cloud says at each position.
        confidences: ``[positions, exits]``.
        agrees: ``[positions, exits]``: whether an exit's guess is the cloud's token.
        hidden: ``[prompt + positions, hidden]``: the context that travels; without it, token ids
            do.
    """

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    confidences: FloatArray
    agrees: npt.NDArray[np.bool_]
    hidden: FloatArray | None = None


class ReplayedModel:
    """Stands for an :class:`~edge.exit_model.ExitModel`.

    An exit that is sure, at ``threshold``, says the cloud's token also where it was recorded to be
    wrong, so that the text stays the recorded one: nobody asks there, and a wrong token would cost
    as much time as a right one.  With ``threshold`` ``None`` (every token is checked) it says what
    was recorded.  ``rows`` of each exit's logits; ``None`` are as many as it has.
    """

    def __init__(
        self,
        architecture: Architecture,
        exits: Sequence[ExitInfo],
        device: DeviceProfile,
        threshold: float | None,
        *,
        rows: int | None = FEW_ROWS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.architecture = architecture
        self.exits = tuple(
            info.model_copy(update={"calibration": IDENTITY_CALIBRATION}) for info in exits
        )
        self.device, self.threshold, self.sleep = device, threshold, sleep
        self.script: Script | None = None
        self._ids = [np.arange(rows or info.vocabulary_size, dtype=np.int32) for info in exits]

    def vocabulary_ids(self, index: int) -> npt.NDArray[np.int32]:
        """Of the rows that were read last: the guess first, and others for the rest."""
        return self._ids[index]

    def open(self, max_positions: int) -> ReplayedState:
        """Begin the answer of :attr:`script`."""
        assert self.script is not None
        return ReplayedState(self, self.script, max_positions)

    def guess(self, index: int, token_id: int, confidence: float) -> FloatArray:
        """Logits ``[rows]`` by which exit ``index`` says a token with that confidence."""
        ids = self._ids[index]
        ids[0], rows = token_id, len(ids)
        best = min(max(confidence, 1.001 / rows), 1.0 - 1e-7)
        logits = np.full(rows, np.log((1.0 - best) / (rows - 1)), np.float32)
        logits[0] = np.log(best)
        return logits


class ReplayedState:
    """Stands for a :class:`~edge.exit_model.ModelState`; it sleeps where that computes."""

    def __init__(self, model: ReplayedModel, script: Script, max_positions: int) -> None:
        self.max_positions = max_positions
        self.positions = self.prefilled = 0
        self._model, self._script, self._device = model, script, model.device
        self._levels = [0] * len(model.exits)  # positions that each has taken in

    def extend(self, token_ids: Sequence[int]) -> FloatArray:
        """Take in tokens, whichever they are."""
        device, count = self._device, len(token_ids)
        each = device.segment_seconds[0] if count == 1 else device.prefill_seconds
        self._model.sleep(count * each)
        start, self.positions = self.positions, self.positions + count
        return self.hidden_states(start, self.positions)

    def hidden_states(self, start: int, stop: int) -> FloatArray:
        """``[stop - start, hidden]``, as recorded; beyond the recording its last row."""
        hidden = self._script.hidden
        if hidden is None:
            return np.zeros((stop - start, 1), np.float32)
        return hidden[np.minimum(np.arange(start, stop), len(hidden) - 1)]

    def read_exit(self, index: int) -> FloatArray:
        """Logits ``[rows]`` of exit ``index`` at the last position."""
        self._model.sleep(self._seconds(index))
        script = self._script
        at = min(self.positions - len(script.prompt_ids), len(script.answer_ids) - 1)
        confidence = float(script.confidences[at, index])
        right = bool(script.agrees[at, index])
        threshold = self._model.threshold
        if threshold is not None and confidence >= threshold:
            right = True
        wanted = script.answer_ids[at]
        return self._model.guess(index, wanted if right else self._another(at), confidence)

    def truncate(self, positions: int) -> None:
        """Forget what is behind ``positions``."""
        self.positions = positions
        self._levels = [min(level, positions) for level in self._levels]

    def _seconds(self, index: int) -> float:
        """Of the levels up to ``index`` that have not seen the last position."""
        device = self._device
        new = max(1, self.positions - self._levels[index])
        self._levels[index] = self.positions
        seconds = device.exit_seconds[index] + (new - 1) * device.pending_seconds[index]
        return seconds + (device.segment_seconds[index] if index else 0.0)

    def _another(self, at: int) -> int:
        """A token that is not the cloud's, and ends no answer: one from elsewhere in the text."""
        script = self._script
        wanted = script.answer_ids[at]
        return next(i for i in (*script.prompt_ids, *script.answer_ids[:-1]) if i != wanted)


class ReplayedEdge(EdgeEngine):
    """The edge's engine with such a model."""

    def __init__(
        self, bundle: ModelBundle, model: ReplayedModel, address: str | None = None
    ) -> None:
        endpoint = None if address is None else FarEndpoint(address)
        super().__init__(bundle, "int8", endpoint=endpoint)
        self.stop_token_ids = frozenset()  # an answer has its recorded length
        self._replayed = model

    def load_model(self) -> ExitModel:
        """The recording, in an edge model's place."""
        return cast(ExitModel, self._replayed)


def instant_device(exits: int) -> DeviceProfile:
    """A device that takes no time."""
    nothing = (0.0,) * exits
    return DeviceProfile(
        name="instant",
        source="made up",
        measured=False,
        segment_seconds=nothing,
        exit_seconds=nothing,
        pending_seconds=nothing,
        prefill_seconds=0.0,
        power=Power(idle_watts=0.0, active_watts=0.0, source="made up"),
    )

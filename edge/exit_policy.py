"""Whether an exit's token is kept: pure functions of its logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.errors import ConfigurationError
from shared.model_bundle import Calibration, ExitInfo, OperatingPoint
from shared.sampling import Choice, Sampling, choose_token

FloatArray = npt.NDArray[np.float32]

DEFAULT_THRESHOLD = 0.8


@dataclass(frozen=True)
class Judgement:
    """What an exit would say, how sure it is, and whether that is enough."""

    choice: Choice
    confidence: float
    accepted: bool


@dataclass(frozen=True)
class ExitPolicy:
    """Accept a token whose confidence reaches ``threshold`` (in [0, 1]), as CE-CoLLM does."""

    threshold: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold <= 1.0:
            raise ConfigurationError(f"threshold {self.threshold} is not within [0, 1]")

    def accepts(self, confidence: float) -> bool:
        """Whether a calibrated ``confidence`` is enough."""
        return confidence >= self.threshold

    def judge(
        self,
        info: ExitInfo,
        logits: FloatArray,
        vocabulary_ids: npt.NDArray[np.int32] | None,
        vocabulary_size: int,
        sampling: Sampling,
        position: int,
    ) -> Judgement:
        """Draw the token at ``position`` from an exit's ``logits`` (``[rows]``) and weigh it.

        The confidence is that of the exit's whole distribution, not of the token that was drawn:
        where the exit knows the distribution, its draw is as good as the full model's.
        """
        choice = choose_token(
            logits,
            sampling,
            position,
            vocabulary_ids=vocabulary_ids,
            vocabulary_size=vocabulary_size,
        )
        confidence = calibrated(info.calibration, maximum_probability(logits))
        return Judgement(choice, confidence, self.accepts(confidence))


def maximum_probability(logits: FloatArray) -> float:
    """The largest value of the softmax of ``logits`` (``[rows]``)."""
    return float(1.0 / np.exp(logits - logits.max()).sum(dtype=np.float64))


def calibrated(calibration: Calibration, raw: float) -> float:
    """Probability that the full model picks the same token, from a raw maximum probability."""
    return float(np.interp(raw, calibration.raw, calibration.confidence))


def threshold_for(points: Sequence[OperatingPoint], agreement: float) -> float:
    """The lowest measured threshold from which on the text keeps ``agreement`` with the full
    model.

    Raises:
        ConfigurationError: the table is empty, or no threshold of it reaches so far.
    """
    if not 0.0 <= agreement <= 1.0:
        raise ConfigurationError(f"target agreement {agreement} is not within [0, 1]")
    if not points:
        raise ConfigurationError(
            "this bundle has no table of agreements: name a threshold, or run `tandem prepare`"
        )
    chosen: float | None = None
    for point in reversed(points):
        if point.agreement < agreement:
            break
        chosen = point.threshold
    if chosen is None:
        best = max(point.agreement for point in points)
        raise ConfigurationError(
            f"no threshold reaches agreement {agreement:g} (the best is {best:g}): lower it, or "
            "ask the cloud for every token with --no-exits"
        )
    return chosen

"""Choosing a token from logits, the same way on both sides of the wire.

Sampling is Gumbel-max (Gumbel 1954; Maddison et al. 2014): the token that maximises
``logit / temperature + noise`` is an exact draw from the softmax.  The noise comes from the
counter-based generator Philox (Salmon et al. 2011), keyed by ``(seed, position)``: edge and cloud
draw the same token from the same logits, and a replay draws it again.  Only Philox's raw words are
used, since numpy promises them, unlike its float streams, across releases.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.errors import ConfigurationError

FloatArray = npt.NDArray[np.float32]
TokenIds = npt.NDArray[np.int32]
Words = npt.NDArray[np.uint64]
Noise = npt.NDArray[np.float64]

MAX_SEED = 2**64 - 1

# how many of the most probable rows are looked at before all: the nucleus seldom has more
_FRONTS = (256, 4096)


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn: temperature 0 is greedy; ``top_p`` in (0, 1]; ``seed`` 64 bits."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and 0.0 <= self.temperature <= 100.0):
            raise ConfigurationError(f"temperature {self.temperature} is not within [0, 100]")
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigurationError(f"top_p {self.top_p} is not within (0, 1]")
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigurationError(f"seed {self.seed} is not an unsigned 64-bit number")

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature == 0.0


GREEDY = Sampling()


@dataclass(frozen=True)
class Choice:
    """A token and its natural log-probability under the logits at temperature 1."""

    token_id: int
    logprob: float


def choose_token(
    logits: FloatArray,
    sampling: Sampling,
    position: int,
    *,
    vocabulary_ids: TokenIds | None = None,
    vocabulary_size: int | None = None,
) -> Choice:
    """Draw the token at ``position``.

    Args:
        logits: ``[rows]`` float32, unnormalised.
        position: index of the token to draw; with the seed it determines the noise.
        vocabulary_ids: ``[rows]`` int32, rising: token id of each row where the head covers a part
            of the vocabulary; noise is that of the token, not of the row.
        vocabulary_size: size of the full vocabulary; needed with ``vocabulary_ids``.
    """
    if sampling.greedy:
        row = int(np.argmax(logits))
    else:
        words = random_words(sampling.seed, position, vocabulary_size or logits.shape[0])
        row = _draw(logits, sampling, words if vocabulary_ids is None else words[vocabulary_ids])
    token = row if vocabulary_ids is None else int(vocabulary_ids[row])
    return Choice(token, log_probability(logits, row))


def log_probability(logits: FloatArray, row: int) -> float:
    """Natural log of the softmax of ``logits`` (``[rows]``) at ``row``."""
    peak = float(logits.max())
    total = float(np.exp(logits - peak, dtype=np.float32).sum(dtype=np.float64))
    return float(logits[row]) - peak - math.log(total)


def random_words(seed: int, position: int, count: int) -> Words:
    """``[count]`` words of 64 random bits that depend on ``(seed, position)`` alone."""
    # counter word 0 is what Philox itself counts up, so the position takes word 1
    philox = np.random.Philox(
        key=np.array([seed, 0x74616E64656D], dtype=np.uint64),
        counter=np.array([0, position, 0, 0], dtype=np.uint64),
    )
    return philox.random_raw(count)


def gumbel_noise(words: Words) -> Noise:
    """The standard Gumbel variate of each word, in its shape."""
    # never 0; 1, and infinite noise, once in 2^53
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return np.asarray(-np.log(-np.log(uniform)))


def _draw(logits: FloatArray, sampling: Sampling, words: Words) -> int:
    """The row that maximises ``logit / temperature + noise``, with the noise of ``words`` (one for
    each row) computed for those rows alone that can be it."""
    peak = float(logits.max())
    if not math.isfinite(peak):
        return int(np.argmax(logits))
    # relative to the best, so that no temperature, however small, makes an infinity of it
    scaled = (logits.astype(np.float64) - peak) / sampling.temperature
    if sampling.top_p < 1.0:
        rows = _nucleus(scaled, sampling.top_p)
    else:
        best = int(np.argmax(scaled))
        least, most = gumbel_noise(np.array([words[best], words.max()]))
        # with a margin far above what rounding does to a logarithm
        rows = np.flatnonzero(scaled >= least - most - 1e-6)
    return int(rows[np.argmax(scaled[rows] + gumbel_noise(words[rows]))])


def _nucleus(scaled: npt.NDArray[np.float64], top_p: float) -> npt.NDArray[np.intp]:
    """Rising indices of the smallest set of most probable rows whose probability reaches ``top_p``
    (Holtzman et al., arXiv 1904.09751); ties are kept in row order."""
    weights = np.exp(scaled)
    total = weights.sum()
    count = len(weights)
    front = np.arange(count)
    for size in _FRONTS:
        if size < count:
            # a beginning of the whole order, for ties with its last are in it
            likely = np.flatnonzero(weights >= np.partition(weights, count - size)[count - size])
            if weights[likely].sum() >= (top_p + 1e-6) * total:
                front = likely
                break
    order = front[np.argsort(-weights[front], kind="stable")]
    cumulative = np.cumsum(weights[order]) / total
    return np.sort(order[: int(np.searchsorted(cumulative, top_p)) + 1])

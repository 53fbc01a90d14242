"""What chance does to packets: extra delay that remembers itself, and loss alone or in bursts."""

from __future__ import annotations

from math import erfc, exp, log, sqrt

import numpy as np

from simulator.link_spec import DirectionSpec

_SMALLEST = 1e-300


class Jitter:
    """Extra delay with an exponential distribution and a memory.

    An Ornstein-Uhlenbeck process z (standard normal, correlation exp(-t/memory): the AR(1) process
    in continuous time) is read at each packet and mapped through its own distribution to an
    exponential one, so mean and standard deviation are both ``jitter_ms`` and no delay is negative.
    """

    def __init__(self, spec: DirectionSpec, noise: np.random.Generator) -> None:
        self._mean = spec.jitter_ms / 1e3
        self._memory = spec.jitter_memory_ms / 1e3
        self._noise = noise
        self._level = float(noise.standard_normal())
        self._time: float | None = None

    def at(self, time: float) -> float:
        """Extra seconds for a packet that leaves at ``time`` (never earlier than the last)."""
        if not self._mean:
            return 0.0
        if self._time is not None and time > self._time:
            keep = exp((self._time - time) / self._memory)
            self._level = keep * self._level + sqrt(1 - keep * keep) * float(
                self._noise.standard_normal()
            )
        self._time = time
        return -self._mean * log(max(_SMALLEST, 0.5 * erfc(self._level / sqrt(2))))


class Loss:
    """Independent losses, and bursts by Gilbert and Elliott's two states in continuous time.

    The states' path depends on the generator alone, not on the traffic that meets it.
    """

    def __init__(
        self,
        spec: DirectionSpec,
        start: float,
        noise: np.random.Generator,
        channel: np.random.Generator,
    ) -> None:
        self._loss = spec.loss
        self._burst = spec.burst_loss
        self._noise = noise
        self._channel = channel
        self._bad = False
        self._until = start
        if self._burst is not None:
            total = self._burst.good_ms + self._burst.bad_ms
            self._bad = float(channel.random()) < self._burst.bad_ms / total
            self._until = start + self._sojourn()

    def strikes(self, time: float) -> bool:
        """Whether a packet that leaves at ``time`` (never earlier than the last) is lost."""
        probability = self._loss
        if self._burst is not None:
            while self._until <= time:
                self._bad = not self._bad
                self._until += self._sojourn()
            if self._bad:
                probability = max(probability, self._burst.bad_loss)
        return probability > 0 and float(self._noise.random()) < probability

    def _sojourn(self) -> float:
        assert self._burst is not None
        mean = self._burst.bad_ms if self._bad else self._burst.good_ms
        return float(self._channel.exponential(mean)) / 1e3

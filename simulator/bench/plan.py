"""What is to be measured, in which order: pure data, before anything runs."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edge.context_source import ContextCodec
from shared.errors import ConfigurationError
from shared.model_bundle import ModelBundle, Precision
from simulator.bench.links import BenchLink
from simulator.bench.registry import Entrant, Kind

# answers begin within so many milliseconds of a link's traces and outages
_STRETCH_MS = 3_600_000


@dataclass(frozen=True)
class BenchSettings:
    """What decides a measurement besides contender, link, prompt and repeat.

    ``threads`` and ``cloud_threads`` are ``None`` for each part's own choice; ``room`` is the most
    positions that a prompt and its answer take.
    """

    max_tokens: int
    context: ContextCodec
    precision: Precision
    threads: int | None
    cloud_threads: int | None
    seed: int
    room: int = 4096

    def as_record(self, bundle: ModelBundle, machine: str) -> dict[str, Any]:
        """What two runs must share for their measurements to lie in one file."""
        record = asdict(self) | {"context": self.context.value}
        del record["room"]
        return record | {"bundle": bundle_identity(bundle), "machine": machine}


def bundle_identity(bundle: ModelBundle) -> str:
    """The bundle's recipe; one without is known by its manifest."""
    manifest = bundle.manifest
    return manifest.recipe or hashlib.sha256(manifest.model_dump_json().encode()).hexdigest()


@dataclass(frozen=True)
class BenchPrompt:
    """A prompt and the token ids that every contender gets."""

    text: str
    ids: tuple[int, ...]

    @property
    def identity(self) -> str:
        """Tells prompts apart."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Task:
    """One measurement.

    ``kind``: ``quality`` (against the full model, on the unshaped link), ``timing``, or
    ``timeline`` (events of one answer).
    """

    kind: str
    entrant: Entrant
    link: BenchLink
    prompt: BenchPrompt
    repeat: int

    @property
    def starts_at(self) -> float:
        """Seconds into the link's traces and outages at which the answer begins: the same for
        every contender, another for each prompt and repeat, whatever else the plan holds."""
        return _digest(self.prompt.identity, self.repeat) % _STRETCH_MS / 1e3

    def noise_seed(self, seed: int) -> int:
        """Of the link's chance during this answer, unsigned 64 bits: the same for every contender,
        another for each link, prompt and repeat."""
        return _digest(seed, self.link.identity, self.prompt.identity, self.repeat)

    @property
    def key(self) -> tuple[str, ...]:
        """What the journal knows it by."""
        link = self.link
        return (
            self.kind,
            self.entrant.name,
            link.name,
            link.identity,
            self.prompt.identity,
            str(self.repeat),
        )


@dataclass(frozen=True)
class Plan:
    """A benchmark: every contender on every link with every prompt."""

    entrants: tuple[Entrant, ...]
    links: tuple[BenchLink, ...]
    prompts: tuple[BenchPrompt, ...]
    repeats: int
    costly_repeats: int
    unshaped: BenchLink

    def __post_init__(self) -> None:
        names = [entrant.name for entrant in self.entrants]
        if len(set(names)) < len(names):
            raise ConfigurationError(f"a contender is named twice: {', '.join(names)}")
        if not (self.entrants and self.links and self.prompts):
            raise ConfigurationError("a benchmark needs a contender, a link and a prompt")

    def tasks(self) -> Iterator[Task]:
        """Quality first; then link by link and repeat by repeat, the contenders of a prompt right
        after one another, another one first each time; one timeline at the end."""
        for prompt in self.prompts:
            for entrant in self.entrants:
                yield Task("quality", entrant, self.unshaped, prompt, 0)
        for link in self.links:
            yield from self._timings(link)
        if (timeline := self.timeline()) is not None:
            yield timeline

    def complete_in(self, measured: Container[tuple[str, ...]]) -> bool:
        """Whether all of it is ``measured``, by :attr:`Task.key`."""
        return all(task.key in measured for task in self.tasks())

    def _timings(self, link: BenchLink) -> Iterator[Task]:
        for repeat in range(self.repeats):
            for number, prompt in enumerate(self.prompts):
                for entrant in rotated(self.entrants, repeat + number):
                    if repeat < self.repeats_of(entrant):
                        yield Task("timing", entrant, link, prompt, repeat)

    def repeats_of(self, entrant: Entrant) -> int:
        """How often an entrant is timed on each link and prompt."""
        return min(self.repeats, self.costly_repeats) if entrant.family.costly else self.repeats

    def timeline(self) -> Task | None:
        """The answer whose events are drawn: the first prompt, the first of Tandem's contenders
        that asks the cloud, on the link in the middle."""
        asks = (e for e in self.entrants if e.family.kind is Kind.OURS and e.family.uses_cloud)
        entrant = next(asks, None)
        if entrant is None:
            return None
        return Task("timeline", entrant, middle_link(self.links), self.prompts[0], 0)


def middle_link(links: Sequence[BenchLink]) -> BenchLink:
    """The link whose round trip is in the middle, the faster one where several share it."""
    order = sorted(links, key=lambda link: link.spec.rtt_ms)
    middle = order[len(order) // 2].spec.rtt_ms
    return max(
        (link for link in order if link.spec.rtt_ms == middle),
        key=lambda link: link.rate_mbit or 0.0,
    )


def rotated(entrants: Sequence[Entrant], by: int) -> list[Entrant]:
    """``entrants`` with another one first."""
    first = by % len(entrants)
    return [*entrants[first:], *entrants[:first]]


def _digest(*parts: object) -> int:
    """Unsigned 64 bits that depend on every part."""
    text = ":".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")

"""Medians over repeats, sums over prompts: from the journal to the figures of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edge.timeline import Timeline
from simulator.bench.answer import Answer, TimeSplit
from simulator.bench.journal import Journal
from simulator.bench.links import BenchLink
from simulator.bench.plan import Plan, Task, middle_link
from simulator.bench.registry import Entrant, Kind
from simulator.bench.stored import read_stored


@dataclass(frozen=True)
class StoredQuality:
    """What a record of quality must hold: positions of the full model's answer, at how many of
    them the contender agrees, whether its own answer is the same, and ROUGE-L."""

    positions: int
    agreeing: int
    exact: bool
    rouge_l: float


@dataclass(frozen=True)
class StoredTimeline:
    """What a record of a timeline must hold."""

    began: float
    events: Timeline


@dataclass(frozen=True)
class Quality:
    """Against the full model's greedy answers.

    ``agreement`` is over tokens (teacher-forced), ``exact_match`` and ``rouge_l`` are over the
    contender's own, free-running answers.
    """

    agreement: float
    exact_match: float
    rouge_l: float


@dataclass(frozen=True)
class Row:
    """One contender on one link, all prompts.

    The repeat whose total is the median stands for a prompt (the lower one of two), so its parts
    add up; prompts are summed.  ``first_token`` is the mean over prompts of the median over
    repeats.  ``cloud_busy`` is the cloud model's time, waited for or not; ``cloud_layer_share`` the
    layer-work done there relative to one full pass over prompts and answers, which is more than 1
    where a context is computed more than once.  Both are ``None`` where a session broke off, as
    it did ``broken`` times in all repeats.
    """

    contender: str
    link: str
    split: TimeSplit
    answers: int
    tokens: int
    first_token: float
    uploaded: int
    downloaded: int
    requests: int
    cloud_busy: float | None
    cloud_layer_share: float | None
    repeats: int
    slowest_over_fastest: float
    broken: int

    @property
    def seconds_per_token(self) -> float:
        """Total over tokens."""
        return self.split.total / max(1, self.tokens)

    @property
    def request_rate(self) -> float:
        """Share of tokens that the cloud decided."""
        return self.requests / max(1, self.tokens)

    def per_token(self, amount: float) -> float:
        """``amount`` over tokens."""
        return amount / max(1, self.tokens)

    def as_record(self) -> dict[str, Any]:
        """Plain data for ``results.json``."""
        return asdict(self) | {
            "total": self.split.total,
            "stall": self.split.stall,
            "seconds_per_token": self.seconds_per_token,
            "request_rate": self.request_rate,
        }


@dataclass(frozen=True)
class Results:
    """Everything the report shows."""

    entrants: tuple[Entrant, ...]
    links: tuple[BenchLink, ...]
    rows: dict[tuple[str, str], Row]
    quality: dict[str, Quality]
    timeline: tuple[Task, StoredTimeline] | None

    @property
    def middle(self) -> BenchLink:
        """The link that stands for all where one must."""
        return middle_link(self.links)

    def row(self, contender: str, link: str) -> Row | None:
        """A contender on a link, if it was measured."""
        return self.rows.get((contender, link))

    def ratio(self, contender: str, link: str, to: str = "cloud-only") -> float | None:
        """Time per token over that of ``to`` on the same link."""
        ours, theirs = self.row(contender, link), self.row(to, link)
        if ours is None or theirs is None:
            return None
        return ours.seconds_per_token / theirs.seconds_per_token

    def of_kind(self, kind: Kind) -> list[str]:
        """Names of the contenders of a kind, in the plan's order."""
        return [entrant.name for entrant in self.entrants if entrant.family.kind is kind]

    def has(self, contender: str) -> bool:
        """Whether it took part."""
        return any(entrant.name == contender for entrant in self.entrants)


def sum_up(plan: Plan, journal: Journal, layers: int) -> Results:
    """Figures of a plan whose every task is in the journal; ``layers`` is the model's depth.

    Raises:
        ConfigurationError: a record that another version of the code wrote in another form.
    """
    timings: dict[tuple[str, str], dict[str, list[Answer]]] = {}
    quality: dict[str, list[StoredQuality]] = {}
    timeline: tuple[Task, StoredTimeline] | None = None
    prompt_tokens = {prompt.identity: len(prompt.ids) for prompt in plan.prompts}
    for task in plan.tasks():
        record = journal[task.key]
        if task.kind == "timing":
            prompts = timings.setdefault((task.entrant.name, task.link.name), {})
            prompts.setdefault(task.prompt.identity, []).append(Answer.from_record(record))
        elif task.kind == "quality":
            stored = read_stored(StoredQuality, record, "a measured quality")
            quality.setdefault(task.entrant.name, []).append(stored)
        else:
            timeline = task, read_stored(StoredTimeline, record, "a measured timeline")
    return Results(
        entrants=plan.entrants,
        links=plan.links,
        rows={
            (contender, link): _row(contender, link, prompts, prompt_tokens, layers)
            for (contender, link), prompts in timings.items()
        },
        quality={name: _quality(records) for name, records in quality.items()},
        timeline=timeline,
    )


def median_answer(answers: Sequence[Answer]) -> Answer:
    """The answer whose time is the median; the lower one of two in the middle."""
    return sorted(answers, key=lambda answer: answer.seconds)[(len(answers) - 1) // 2]


def _row(
    contender: str,
    link: str,
    prompts: dict[str, list[Answer]],
    prompt_tokens: dict[str, int],
    layers: int,
) -> Row:
    chosen = {identity: median_answer(answers) for identity, answers in prompts.items()}
    answers = list(chosen.values())
    splits = [answer.split for answer in answers]
    firsts = [
        sorted(a.first_token_seconds for a in repeats)[(len(repeats) - 1) // 2]
        for repeats in prompts.values()
    ]
    work = layers * sum(
        prompt_tokens[identity] + len(answer.token_ids) for identity, answer in chosen.items()
    )
    busy = [answer.cloud_busy_seconds for answer in answers]
    positions = [answer.cloud_layer_positions for answer in answers]
    return Row(
        contender=contender,
        link=link,
        split=TimeSplit(
            sum(split.edge for split in splits),
            sum(split.cloud for split in splits),
            sum(split.link for split in splits),
        ),
        answers=len(answers),
        tokens=sum(len(answer.token_ids) for answer in answers),
        first_token=sum(firsts) / len(firsts),
        uploaded=sum(answer.uploaded_bytes for answer in answers),
        downloaded=sum(answer.downloaded_bytes for answer in answers),
        requests=sum(answer.requests for answer in answers),
        cloud_busy=_sum_of_known(busy),
        cloud_layer_share=None if (done := _sum_of_known(positions)) is None else done / work,
        repeats=min(len(repeats) for repeats in prompts.values()),
        slowest_over_fastest=max(
            max(a.seconds for a in repeats) / min(a.seconds for a in repeats)
            for repeats in prompts.values()
        ),
        broken=sum(a.cloud_busy_seconds is None for repeats in prompts.values() for a in repeats),
    )


def _sum_of_known(values: Sequence[float | int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(sum(known)) if len(known) == len(values) else None


def _quality(stored: Sequence[StoredQuality]) -> Quality:
    return Quality(
        agreement=sum(s.agreeing for s in stored) / max(1, sum(s.positions for s in stored)),
        exact_match=sum(s.exact for s in stored) / len(stored),
        rouge_l=sum(s.rouge_l for s in stored) / len(stored),
    )

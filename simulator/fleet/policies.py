"""How the edges of a fleet decide: a fixed plan, or the edge's own controller.

The controller is :func:`edge.controller.choose` itself.  Thousands of edges ask it again and again
under conditions that hardly differ, so what it is asked is rounded to steps of ``STEP`` and its
answers are remembered: the same rounded question has the same answer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from math import exp, inf, log

from edge.context_source import ContextCodec
from edge.controller import LEAST_GAIN, LEAST_GAIN_BETWEEN, Aim, Wishes, choose
from edge.exit_policy import DEFAULT_THRESHOLD
from edge.link_monitor import GUESS_MEMORY, Conditions
from edge.plan import BURST_UNLIMITED, DEFAULT_WINDOW, Plan
from simulator.fleet.recordings import ModelFacts

STEP = 0.25  # of a quantity, below which two conditions count as the same
_WIDE_STEP = 0.7  # of what hardly moves a choice
# of the six measured quantities of Conditions, in order
_STEPS = (STEP, _WIDE_STEP, STEP, _WIDE_STEP, STEP, STEP)
_SHARE_STEPS = 8
_FEW = 32
_PLAIN = Plan(burst=BURST_UNLIMITED, codec=ContextCodec.TOKENS, plain=True)


class PolicyName(Enum):
    """Who decides, and how."""

    STANDALONE = "standalone"
    CLOUD_ONLY = "cloud-only"
    BLOCKING = "blocking"
    OPTIMISTIC = "optimistic"
    VERIFIED = "verified"
    AUTO = "auto"


@dataclass(frozen=True)
class Policy:
    """A policy as edges follow it.

    Attributes:
        plan: the fixed one; of ``standalone`` its threshold alone counts, and ``auto`` has none.
    """

    name: PolicyName
    plan: Plan | None
    wishes: Wishes | None = None

    @property
    def standalone(self) -> bool:
        """Nobody is asked."""
        return self.name is PolicyName.STANDALONE

    @property
    def drafts(self) -> bool:
        """The edge runs its own part of the model."""
        return self.name is not PolicyName.CLOUD_ONLY

    @property
    def label(self) -> str:
        """For tables: ``auto`` with its aim."""
        if self.wishes is not None:
            return f"{self.name.value}-{self.wishes.aim.value}"
        return self.name.value


def make_policy(
    name: PolicyName,
    *,
    aim: Aim = Aim.LATENCY,
    threshold: float = DEFAULT_THRESHOLD,
    window: int = DEFAULT_WINDOW,
    burst: int = 0,
    lookahead: int | None = None,
    codec: ContextCodec | None = None,
    target_agreement: float | None = None,
    private: bool = False,
    cloud_token_price: float | None = None,
) -> Policy:
    """A policy with the edge's own defaults.

    Raises:
        ConfigurationError: what is asked for does not hold together.
    """
    verified = name is PolicyName.VERIFIED
    match name:
        case PolicyName.AUTO:
            wishes = Wishes(aim, target_agreement, cloud_token_price, private, codec)
            return Policy(name, None, wishes)
        case PolicyName.CLOUD_ONLY:
            return Policy(name, _PLAIN)
        case _:
            window = 0 if name is PolicyName.BLOCKING else window
            codec = codec or (ContextCodec.TOKENS if verified else ContextCodec.FP16)
            return Policy(name, Plan(threshold, window, burst, codec, verified, None, lookahead))


class Chooser:
    """The controller, asked for one group of edges."""

    def __init__(self, model: ModelFacts, wishes: Wishes) -> None:
        self._model, self._wishes = model, wishes
        self._pinned: dict[ContextCodec, Wishes] = {}
        self._known: dict[tuple[object, ...], Plan] = {}
        self._plans: dict[Plan, int] = {}
        self._numbers: dict[int, tuple[Plan, int]] = {}

    @property
    def asked(self) -> int:
        """How often the controller itself was asked."""
        return len(self._known)

    def plan(
        self,
        conditions: Conditions,
        previous: Plan | None,
        prompt_tokens: int,
        answer_tokens: int,
        *,
        within: ContextCodec | None = None,
    ) -> Plan:
        """The plan for the next answer, or (``within`` a session of that codec) from here on."""
        prompt, answer = _tokens(prompt_tokens), max(1, _tokens(answer_tokens))
        measured = (
            conditions.rtt_seconds,
            conditions.up_bytes_per_second,
            conditions.edge_token_seconds,
            conditions.edge_prefill_seconds,
            conditions.cloud_pass_seconds,
            conditions.cloud_token_seconds,
        )
        steps = tuple(map(_step, measured, _STEPS))
        agreement, guesses = _share(conditions.guess_agreement), _count(conditions.guess_count)
        unsure, judged = _share(conditions.unsure_share), _count(conditions.unsure_count)
        codec = None if within is None else within.value
        shares = (agreement, guesses, unsure, judged)
        key = (steps, shares, self._number(previous), prompt, answer, codec)
        plan = self._known.get(key)
        if plan is None:
            model = self._model
            rtt, up, token, prefill, cloud_pass, cloud_token = map(_value, steps, _STEPS)
            plan = self._known[key] = choose(
                Conditions(rtt, up, token, prefill, cloud_pass, cloud_token, *shares),
                model.operating_points,
                self._wishes if within is None else self._within(within),
                model.layers,
                model.cut,
                model.hidden_size,
                previous,
                prompt_tokens=prompt,
                answer_tokens=answer,
                least_gain=LEAST_GAIN_BETWEEN if within is None else LEAST_GAIN,
            ).plan
        return plan

    def _number(self, plan: Plan | None) -> int:
        """The same for equal plans; looked up by identity, since a plan's hash takes long."""
        if plan is None:
            return -1
        kept = self._numbers.get(id(plan))
        if kept is None:
            number = self._plans.setdefault(plan, len(self._plans))
            kept = self._numbers[id(plan)] = plan, number  # the plan lives, so its id is its own
        return kept[1]

    def _within(self, codec: ContextCodec) -> Wishes:
        wishes = self._pinned.get(codec)
        if wishes is None:
            wishes = self._pinned[codec] = replace(self._wishes, codec=codec)
        return wishes


def _step(value: float | None, step: float) -> float | None:
    """The number of the step that ``value`` belongs to; 0 and nothing have their own."""
    if not value:
        return None if value is None else -inf
    return round(log(value) / step)


def _value(number: float | None, step: float) -> float | None:
    """The value in the middle of a step; the inverse of :func:`_step`."""
    if number is None:
        return None
    return exp(number * step)  # 0 for its own


def _share(value: float | None) -> float | None:
    return None if value is None else round(value * _SHARE_STEPS) / _SHARE_STEPS


def _count(value: int) -> int:
    """None, a few, or so many that more say nothing more."""
    return 0 if not value else GUESS_MEMORY if value >= _FEW else _FEW // 2


def _tokens(value: int) -> int:
    """The next power of two."""
    return 1 << (value - 1).bit_length() if value > 0 else 0

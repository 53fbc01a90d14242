"""What a generation is asked for, whatever the mode."""

from __future__ import annotations

from dataclasses import dataclass

from edge.context_source import ContextCodec
from edge.controller import NO_WISHES, Wishes
from edge.exit_policy import DEFAULT_THRESHOLD
from edge.generation import Mode
from edge.plan import DEFAULT_WINDOW, Plan
from shared.errors import ConfigurationError
from shared.sampling import GREEDY, Sampling

_MAX_TOKENS = 1 << 20


@dataclass(frozen=True)
class GenerationOptions:
    """How to generate: see :class:`~edge.plan.Plan` for threshold to verified, which ``auto`` mode
    chooses by its ``wishes``, and :class:`~edge.generation.GenerationRequest` for use_exits and
    forced_ids."""

    mode: Mode
    threshold: float = DEFAULT_THRESHOLD
    max_tokens: int = 256
    sampling: Sampling = GREEDY
    context: ContextCodec = ContextCodec.FP16
    window: int = DEFAULT_WINDOW
    burst: int = 0
    verified: bool = False
    lookahead: int | None = None
    wishes: Wishes = NO_WISHES
    use_exits: bool = True
    forced_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.max_tokens <= _MAX_TOKENS:
            raise ConfigurationError(f"max_tokens {self.max_tokens} is not at least 1")
        _ = self.plan  # refuses what does not hold together
        if self.mode is Mode.STANDALONE and not self.use_exits:
            raise ConfigurationError("standalone mode without exits has nobody to decide")
        if self.mode is Mode.AUTO and not self.use_exits:
            raise ConfigurationError("auto mode goes on alone where it must, so it needs the exits")

    @property
    def plan(self) -> Plan:
        """How the answer is made."""
        return Plan(
            self.threshold,
            self.window,
            self.burst,
            self.context,
            self.verified,
            lookahead=self.lookahead,
        )

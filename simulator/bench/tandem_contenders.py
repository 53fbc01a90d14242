"""Tandem's own modes and schedules, and plain cloud serving through Tandem's cloud."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from edge.context_source import ContextCodec
from edge.controller import Aim, Wishes
from edge.generation import Mode
from edge.generation_options import GenerationOptions
from edge.link_monitor import LinkMonitor
from edge.plan import Plan
from edge.timeline import Timeline
from simulator.bench.answer import Answer
from simulator.bench.registry import Bench, Contender, Family, Kind, register


class EngineContender:
    """Whatever :class:`~edge.engine.EdgeEngine` does with the given options."""

    def __init__(self, bench: Bench, options: GenerationOptions) -> None:
        self._engine, self._options = bench.engine, options

    async def answer(
        self,
        prompt_ids: Sequence[int],
        max_tokens: int,
        *,
        forced_ids: tuple[int, ...] | None = None,
        timeline: Timeline | None = None,
    ) -> Answer:
        options = replace(self._options, max_tokens=max_tokens, forced_ids=forced_ids)
        return Answer.of_result(await self._engine.generate(prompt_ids, options, timeline))


class AutoContender(EngineContender):
    """``auto`` mode with what it has measured itself: nothing of what the others saw."""

    def __init__(self, bench: Bench, options: GenerationOptions) -> None:
        super().__init__(bench, options)
        self._monitor = LinkMonitor(bench.engine.clock)
        self._last_plan: Plan | None = None

    async def answer(
        self,
        prompt_ids: Sequence[int],
        max_tokens: int,
        *,
        forced_ids: tuple[int, ...] | None = None,
        timeline: Timeline | None = None,
    ) -> Answer:
        engine = self._engine
        others = engine.monitor, engine.last_plan
        engine.monitor, engine.last_plan = self._monitor, self._last_plan
        try:
            return await super().answer(
                prompt_ids, max_tokens, forced_ids=forced_ids, timeline=timeline
            )
        finally:
            self._last_plan = engine.last_plan
            engine.monitor, engine.last_plan = others


def engine_contender(
    mode: Mode, **changes: Any
) -> Callable[[Bench, float | None], AbstractAsyncContextManager[Contender]]:
    """For :attr:`Family.open`: generation in ``mode``, further options as ``changes``; what stands
    after ``@`` is the threshold."""
    return partial(_open, mode, changes)


@asynccontextmanager
async def _open(
    mode: Mode, changes: dict[str, Any], bench: Bench, threshold: float | None
) -> AsyncIterator[Contender]:
    options = GenerationOptions(mode, **({"context": bench.settings.context} | changes))
    if threshold is not None:
        options = replace(options, threshold=threshold)
    yield (AutoContender if mode is Mode.AUTO else EngineContender)(bench, options)


register(
    Family(
        name="cloud-only",
        summary="the full model in the cloud: the prompt goes up, tokens stream down",
        kind=Kind.BASELINE,
        open=engine_contender(Mode.CLOUD_ONLY),
    )
)
register(
    Family(
        name="blocking",
        summary="CE-CoLLM: the edge asks the cloud below the threshold and waits for the answer",
        kind=Kind.OURS,
        open=engine_contender(Mode.COLLABORATIVE, window=0),
        argument="threshold",
    )
)
register(
    Family(
        name="optimistic",
        summary="the same text as blocking: the edge drafts on while the answer travels, and goes "
        "back where the cloud disagrees",
        kind=Kind.OURS,
        open=engine_contender(Mode.COLLABORATIVE),
        argument="threshold",
    )
)
register(
    Family(
        name="blocking-tokens",
        summary="blocking with token ids as context: the cloud runs its own model whole",
        kind=Kind.OURS,
        open=engine_contender(Mode.COLLABORATIVE, window=0, context=ContextCodec.TOKENS),
        argument="threshold",
    )
)
register(
    Family(
        name="optimistic-tokens",
        summary="the same text as blocking-tokens: the edge drafts on, and on long round trips the "
        "cloud decodes ahead while nobody asks",
        kind=Kind.OURS,
        open=engine_contender(Mode.COLLABORATIVE, context=ContextCodec.TOKENS),
        argument="threshold",
    )
)
register(
    Family(
        name="verified",
        summary="optimistic, and every accepted token is checked too, with token ids as context: "
        "the full model's own text",
        kind=Kind.OURS,
        open=engine_contender(Mode.COLLABORATIVE, verified=True, context=ContextCodec.TOKENS),
    )
)
for _aim, _summary in {
    Aim.LATENCY: "the controller picks whatever it expects to be fastest, at an agreement of 0.9",
    Aim.COST: "the controller asks as little of the cloud as an agreement of 0.95 allows",
    Aim.QUALITY: "the controller verifies every token",
}.items():
    register(
        Family(
            name=f"auto-{_aim.value}",
            summary=_summary,
            kind=Kind.OURS,
            open=engine_contender(Mode.AUTO, wishes=Wishes(_aim)),
        )
    )
register(
    Family(
        name="standalone",
        summary="the edge alone, up to its last exit",
        kind=Kind.OURS,
        open=engine_contender(Mode.STANDALONE),
        uses_cloud=False,
    )
)

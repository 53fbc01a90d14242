"""Measures what a plan says and the journal lacks: real cloud, real proxy, the edge in this
process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path

from edge.cloud_channel import CloudEndpoint
from edge.engine import EdgeEngine
from edge.generation import Mode
from edge.generation_options import GenerationOptions
from edge.timeline import Timeline
from shared.errors import TandemError
from shared.model_bundle import ModelBundle
from simulator.bench.answer import Answer
from simulator.bench.journal import Journal, Record
from simulator.bench.links import started_later
from simulator.bench.plan import BenchPrompt, BenchSettings, Plan, Task
from simulator.bench.registry import Bench, Contender, Entrant
from simulator.bench.shaped_link import ShapedLink
from simulator.local_cloud import LocalCloud
from simulator.text_metrics import rouge_l

_WARM_UP_TOKENS = 8
# a thin link is slow, not dead: nobody reconnects in the middle of a measurement
_PATIENT_SECONDS = 120.0


class Runner:
    """Holds the processes and the contenders while :func:`measure` works off a plan."""

    def __init__(
        self, engine: EdgeEngine, link: ShapedLink, settings: BenchSettings, plan: Plan
    ) -> None:
        self._engine, self._link, self._settings, self._plan = engine, link, settings, plan
        self._contenders: dict[str, Contender] = {}
        self._references: dict[str, Answer] = {}

    async def open(self, stack: AsyncExitStack, entrants: Sequence[Entrant], bench: Bench) -> None:
        """Make the contenders and let each say a few words."""
        await self._link.become(self._plan.unshaped.spec, 0)  # it has no chance
        for entrant in entrants:
            opening = entrant.family.open(bench, entrant.argument)
            contender = await stack.enter_async_context(opening)
            self._contenders[entrant.name] = contender
            await contender.answer(self._plan.prompts[0].ids, _WARM_UP_TOKENS)

    async def measure(self, task: Task) -> Record:
        """One line of the journal."""
        later = started_later(task.link.spec, task.starts_at)
        await self._link.become(later, task.noise_seed(self._settings.seed))
        try:
            match task.kind:
                case "quality":
                    return await self._quality(task)
                case "timeline":
                    return await self._timeline(task)
                case _:
                    return (await self._answer(task)).as_record()
        except TandemError as error:
            where = f"{task.entrant.name} on {task.link.name}, prompt {task.prompt.text[:40]!r}"
            error.args = (f"{where}: {error}",)
            raise

    async def _answer(
        self,
        task: Task,
        forced_ids: tuple[int, ...] | None = None,
        timeline: Timeline | None = None,
    ) -> Answer:
        return await self._contenders[task.entrant.name].answer(
            task.prompt.ids, self._settings.max_tokens, forced_ids=forced_ids, timeline=timeline
        )

    async def _quality(self, task: Task) -> Record:
        """Against the full model's greedy answer: freely, and forced along it."""
        reference = await self._reference(task.prompt)
        if task.entrant.name == "cloud-only":
            # the reference itself; it cannot be forced, and agrees by definition
            free, said = reference, reference.token_ids
        else:
            free = await self._answer(task)
            said = (await self._answer(task, forced_ids=reference.token_ids)).token_ids
        agreeing = sum(a == b for a, b in zip(said, reference.token_ids, strict=False))
        return {
            "positions": len(reference.token_ids),
            "agreeing": agreeing,
            "exact": free.token_ids == reference.token_ids,
            "rouge_l": round(rouge_l(free.text, reference.text), 4),
            "reference_text": reference.text,
            "free": free.as_record(),
        }

    async def _reference(self, prompt: BenchPrompt) -> Answer:
        if prompt.identity not in self._references:
            options = GenerationOptions(Mode.CLOUD_ONLY, max_tokens=self._settings.max_tokens)
            result = await self._engine.generate(prompt.ids, options)
            self._references[prompt.identity] = Answer.of_result(result)
        return self._references[prompt.identity]

    async def _timeline(self, task: Task) -> Record:
        timeline = Timeline()
        began = self._engine.clock()
        answer = await self._answer(task, timeline=timeline)
        return {"began": began, "answer": answer.as_record(), "events": asdict(timeline)}


async def run_plan(
    plan: Plan,
    settings: BenchSettings,
    bundle: ModelBundle,
    gguf: Path | None,
    journal: Journal,
    advance: Callable[[Task], None],
) -> None:
    """Measure what is missing; ``advance`` is called after each.  Nothing starts where nothing is.

    Raises:
        TandemError: a contender failed; what was measured before is in the journal.
    """
    missing = [task for task in plan.tasks() if task.key not in journal]
    if not missing:
        return
    wanted = {task.entrant.name for task in missing}
    async with AsyncExitStack() as stack:
        engine, link = await stack.enter_async_context(_processes(bundle, settings))
        runner = Runner(engine, link, settings, plan)
        entrants = [entrant for entrant in plan.entrants if entrant.name in wanted]
        await runner.open(stack, entrants, Bench(engine, settings, gguf))
        for task in missing:
            journal.add(task.key, await runner.measure(task))
            advance(task)


@asynccontextmanager
async def _processes(
    bundle: ModelBundle, settings: BenchSettings
) -> AsyncIterator[tuple[EdgeEngine, ShapedLink]]:
    async with (
        LocalCloud(bundle.folder, threads=settings.cloud_threads) as cloud,
        ShapedLink(cloud.address, settings.seed) as link,
    ):
        endpoint = CloudEndpoint(link.address)
        patient = replace(
            endpoint,
            answer_seconds=_PATIENT_SECONDS,
            give_up_seconds=_PATIENT_SECONDS,
            connect_seconds=_PATIENT_SECONDS,
        )
        engine = EdgeEngine(bundle, settings.precision, threads=settings.threads, endpoint=patient)
        try:
            async with engine.connected():
                yield engine, link
        finally:
            engine.close()


def left_out(entrants: Sequence[Entrant], gguf: Path | None) -> dict[str, str]:
    """Contenders that cannot run here, and why."""
    reasons = {entrant.name: entrant.family.missing(gguf) for entrant in entrants}
    return {name: reason for name, reason in reasons.items() if reason is not None}

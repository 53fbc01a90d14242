"""Hold Tandem's text against the full model's own greedy continuation.

The reference comes from the cloud (the full model, greedy).  Agreement is teacher-forced on it:
at each of its positions Tandem says which token it would emit, then goes on with the reference's.
Exact match, ROUGE-L, requests, layer-work and bytes come from Tandem's own, free-running answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edge.engine import EdgeEngine
from edge.generation import Mode
from edge.generation_options import GenerationOptions
from edge.generation_result import GenerationResult
from shared.sampling import GREEDY
from simulator.text_metrics import rouge_l


@dataclass(frozen=True)
class PromptOutcome:
    """One prompt: the full model's answer, Tandem's own, and Tandem forced along the former."""

    reference: GenerationResult
    free: GenerationResult
    agreeing: int

    @property
    def positions(self) -> int:
        """Positions of the reference, its stop token included."""
        return len(self.reference.tokens)


@dataclass(frozen=True)
class Evaluation:
    """What ``tandem evaluate`` prints; shares and rates lie in [0, 1]."""

    mode: str
    threshold: float
    prompts: int
    tokens: int
    agreement: float
    exact_match: float
    rouge_l: float
    cloud_request_rate: float
    origin_shares: dict[str, float]
    cloud_layer_share: float | None
    uploaded_bytes_per_token: float


async def full_model_answer(
    engine: EdgeEngine, prompt_ids: Sequence[int], max_tokens: int
) -> GenerationResult:
    """The full model's greedy continuation, from the cloud."""
    options = GenerationOptions(Mode.CLOUD_ONLY, max_tokens=max_tokens, sampling=GREEDY)
    return await engine.generate(prompt_ids, options)


async def evaluate_prompt(
    engine: EdgeEngine,
    prompt_ids: Sequence[int],
    options: GenerationOptions,
    reference: GenerationResult,
) -> PromptOutcome:
    """Run one prompt freely, then forced along ``reference`` (its token ids)."""
    free = await engine.generate(prompt_ids, options)
    return await checked_against(engine, prompt_ids, options, reference, free)


async def checked_against(
    engine: EdgeEngine,
    prompt_ids: Sequence[int],
    options: GenerationOptions,
    reference: GenerationResult,
    free: GenerationResult,
) -> PromptOutcome:
    """Force a prompt that was answered (``free``) along ``reference`` and count agreement."""
    wanted = tuple(token.token_id for token in reference.tokens)
    if options.mode is Mode.CLOUD_ONLY:
        agreeing = sum(
            a.token_id == b for a, b in zip(free.tokens, wanted, strict=False)
        )  # the same model by the same path: no forcing needed, or possible
    else:
        forced = await engine.generate(prompt_ids, replace(options, forced_ids=wanted))
        agreeing = sum(a.token_id == b for a, b in zip(forced.tokens, wanted, strict=True))
    return PromptOutcome(reference, free, agreeing)


async def evaluate(
    engine: EdgeEngine,
    prompts: Sequence[Sequence[int]],
    options: GenerationOptions,
    advance: Callable[[], None],
) -> Evaluation:
    """Evaluate ``prompts`` (token ids) one by one; ``advance`` is called after each."""
    outcomes = []
    for prompt_ids in prompts:
        reference = await full_model_answer(engine, prompt_ids, options.max_tokens)
        outcomes.append(await evaluate_prompt(engine, prompt_ids, options, reference))
        advance()
    return summarize(outcomes, options, engine.bundle.manifest.architecture.layers)


def summarize(
    outcomes: Sequence[PromptOutcome], options: GenerationOptions, layers: int
) -> Evaluation:
    """Averages over all tokens (agreement, rates, shares, bytes) or all prompts (the rest)."""
    free = [outcome.free for outcome in outcomes]
    tokens = [token for result in free for token in result.tokens]
    origins = Counter(token.origin for token in tokens)
    positions = sum(result.prompt_tokens + len(result.tokens) for result in free)
    requests = sum(result.statistics.escalations for result in free)
    if options.mode is Mode.CLOUD_ONLY:
        requests = len(tokens)  # one request, but the cloud decided every token
    return Evaluation(
        mode=options.mode.value,
        threshold=options.threshold,
        prompts=len(outcomes),
        tokens=len(tokens),
        agreement=_share(sum(o.agreeing for o in outcomes), sum(o.positions for o in outcomes)),
        exact_match=_share(sum(_same(o) for o in outcomes), len(outcomes)),
        rouge_l=_share(
            sum(rouge_l(o.free.text, o.reference.text) for o in outcomes), len(outcomes)
        ),
        cloud_request_rate=_share(requests, len(tokens)),
        origin_shares={o: _share(n, len(tokens)) for o, n in sorted(origins.items())},
        cloud_layer_share=_layer_share(free, layers * positions),
        uploaded_bytes_per_token=round(
            sum(result.uploaded_bytes for result in free) / max(1, len(tokens)), 1
        ),
    )


def _layer_share(results: Sequence[GenerationResult], whole: int) -> float | None:
    """``None`` where a session broke off, so that its cost is not known."""
    computed = [result.cloud_layer_positions for result in results]
    known = [count for count in computed if count is not None]
    return _share(sum(known), whole) if len(known) == len(computed) else None


def _same(outcome: PromptOutcome) -> bool:
    left = [token.token_id for token in outcome.free.tokens]
    return left == [token.token_id for token in outcome.reference.tokens]


def _share(part: float, whole: float) -> float:
    return round(part / whole, 4) if whole else 0.0

"""SmolLM2-135M-Instruct itself: the split system against the unsplit model of transformers.

``make test`` runs a few short prompts; ``make test-slow`` the proof in full (20 prompts of 64
tokens in either kind of context).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
import transformers

from edge.cloud_channel import CloudEndpoint
from edge.context_source import ContextCodec
from edge.engine import EdgeEngine
from edge.exit_model import ExitModel
from edge.generation import Mode
from edge.generation_options import GenerationOptions
from shared.chat import Message
from shared.model_bundle import ModelBundle, Precision
from shared.sampling import GREEDY, Sampling
from simulator.evaluation import evaluate
from simulator.local_cloud import LocalCloud
from tests.edge_harness import Reckless

BUNDLE = Path(os.environ.get("TANDEM_TEST_BUNDLE", "build/test-bundle"))
PROMPTS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "Name three primary colours.",
    "What is 17 plus 25?",
    "Write a haiku about rain.",
    "How do I boil an egg?",
    "Explain gravity to a child.",
    "List the planets of the solar system.",
    "Who wrote Romeo and Juliet?",
    "Give me a synonym for happy.",
    "What does a heart do?",
    "Translate 'good morning' into French.",
    "Write a Python function that adds two numbers.",
    "What causes tides?",
    "Tell me a short story about a dog.",
    "How many days are in a leap year?",
    "What is photosynthesis?",
    "Write one sentence about winter.",
    "Why do cats purr?",
    "Compare tea and coffee.",
)

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(not BUNDLE.exists(), reason="no test bundle: run `make test-bundle`"),
]


@pytest.fixture(scope="module")
def bundle() -> ModelBundle:
    return ModelBundle.load(BUNDLE)


@pytest.fixture(scope="module")
def unsplit(bundle: ModelBundle) -> transformers.LlamaForCausalLM:
    return transformers.LlamaForCausalLM.from_pretrained(bundle.folder / "cloud")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cloud(bundle: ModelBundle) -> AsyncIterator[str]:
    async with LocalCloud(bundle.folder, threads=1) as running:
        yield running.address


def engine_for(bundle: ModelBundle, precision: Precision, cloud: str | None) -> EdgeEngine:
    endpoint = CloudEndpoint(cloud) if cloud else None
    return EdgeEngine(bundle, precision, threads=1, endpoint=endpoint)


def full_answer(model: Any, ids: tuple[int, ...], count: int) -> list[int]:
    with torch.inference_mode():
        out = model.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False)
    return [int(token) for token in out[0, len(ids) :]]


FEW = pytest.param(PROMPTS[:3], 16, id="few")
ALL = pytest.param(PROMPTS, 64, id="all", marks=pytest.mark.slow)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("prompts", "tokens"), [FEW, ALL])
async def test_split_decoding_equals_transformers_greedy_output(
    bundle: ModelBundle,
    unsplit: transformers.LlamaForCausalLM,
    cloud: str,
    prompts: tuple[str, ...],
    tokens: int,
) -> None:
    engine = engine_for(bundle, "float32", cloud)
    for prompt in prompts:
        ids = engine.encode_chat([Message("user", prompt)])
        wanted = full_answer(unsplit, ids, tokens)
        for context in (ContextCodec.FLOAT32, ContextCodec.TOKENS):
            options = GenerationOptions(
                Mode.COLLABORATIVE, max_tokens=tokens, use_exits=False, context=context
            )
            result = await engine.generate(ids, options)
            assert [token.token_id for token in result.tokens] == wanted, (prompt, context)
    engine.close()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("prompts", "tokens"), [FEW, ALL])
async def test_deep_tokens_are_unchanged_by_earlier_exits(
    bundle: ModelBundle,
    unsplit: transformers.LlamaForCausalLM,
    cloud: str,
    prompts: tuple[str, ...],
    tokens: int,
) -> None:
    """Pending fill: each escalated token is the full model's, given the text so far."""
    engine = engine_for(bundle, "float32", cloud)
    origins = set()
    for prompt in prompts:
        ids = engine.encode_chat([Message("user", prompt)])
        options = GenerationOptions(
            Mode.COLLABORATIVE, threshold=0.6, max_tokens=tokens, context=ContextCodec.FLOAT32
        )
        result = await engine.generate(ids, options)
        text = torch.tensor([[*ids, *(token.token_id for token in result.tokens)]])
        with torch.inference_mode():
            best = unsplit(text).logits[0].argmax(-1)
        for token in result.tokens:
            origins.add(token.origin)
            if token.origin == "cloud":
                assert token.token_id == int(best[token.position - 1]), (prompt, token)
    assert origins == {"exit1", "exit2", "cloud"}
    engine.close()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("prompts", "tokens"), [FEW, ALL])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.8, 0.95, 7)], ids=["greedy", "sampled"])
async def test_optimistic_says_what_blocking_says_and_verified_what_the_full_model_says(
    bundle: ModelBundle,
    unsplit: transformers.LlamaForCausalLM,
    cloud: str,
    prompts: tuple[str, ...],
    tokens: int,
    sampling: Sampling,
) -> None:
    engine = engine_for(bundle, "int8", cloud)
    rollbacks = 0
    for prompt in prompts:
        ids = engine.encode_chat([Message("user", prompt)])
        options = GenerationOptions(
            Mode.COLLABORATIVE,
            max_tokens=tokens,
            sampling=sampling,
            window=0,
            context=ContextCodec.TOKENS,
        )
        blocking = await engine.generate(ids, options)
        drafting = Reckless(**{**vars(options), "window": 6})
        optimistic = await engine.generate(ids, drafting)
        assert [t.token_id for t in optimistic.tokens] == [t.token_id for t in blocking.tokens]
        rollbacks += optimistic.statistics.rollbacks
        verified = await engine.generate(ids, replace(drafting, verified=True))
        alone = await engine.generate(ids, replace(options, mode=Mode.CLOUD_ONLY))
        assert [t.token_id for t in verified.tokens] == [t.token_id for t in alone.tokens], prompt
        if sampling.greedy:
            wanted = full_answer(unsplit, ids, tokens)
            assert [t.token_id for t in verified.tokens] == wanted[: len(verified.tokens)], prompt
    assert rollbacks > 0
    engine.close()


@pytest.mark.asyncio(loop_scope="module")
async def test_the_edge_alone_at_full_depth_equals_transformers(
    bundle: ModelBundle, unsplit: transformers.LlamaForCausalLM
) -> None:
    model = ExitModel(bundle, "float32", full_depth=True)
    engine = engine_for(bundle, "float32", None)
    ids = engine.encode_chat([Message("user", PROMPTS[1])])
    state = model.open(len(ids) + 24)
    state.extend(ids)
    found: list[int] = []
    while len(found) < 24:
        found.append(int(state.read_full().argmax()))
        state.extend(found[-1:])
    assert found == full_answer(unsplit, ids, 24)
    engine.close()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("precision", ["int8", "int4"])
async def test_quantized_edges_and_trained_exits_are_worth_having(
    bundle: ModelBundle, cloud: str, precision: Precision
) -> None:
    """Loose bounds that untrained exits, or broken weights, are far from."""
    engine = engine_for(bundle, precision, cloud)
    encoded = [engine.encode_chat([Message("user", prompt)]) for prompt in PROMPTS[:4]]
    options = GenerationOptions(Mode.COLLABORATIVE, threshold=0.9, max_tokens=24)
    report = await evaluate(engine, encoded, options, lambda: None)
    assert report.agreement >= 0.85
    assert report.cloud_request_rate <= 0.95
    assert set(report.origin_shares) >= {"exit2", "cloud"}
    engine.close()

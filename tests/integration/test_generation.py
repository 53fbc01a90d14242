"""The heart of the matter: split, skipped and escalated, the text is what it must be."""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np
import pytest

from edge.context_source import ContextCodec
from edge.engine import EdgeEngine
from edge.generation import GeneratedToken, Mode
from edge.generation_options import GenerationOptions
from shared.errors import ConfigurationError
from shared.sampling import Sampling, choose_token
from tests.cloud_harness import full_model, tiny_bundle
from tests.edge_harness import (
    PROMPTS,
    edge_and_cloud,
    edge_engine,
    full_answer,
    ids_of,
    options_for,
)

SAMPLED = Sampling(temperature=0.8, top_p=0.9, seed=42)


@pytest.mark.parametrize("context", [ContextCodec.FLOAT32, ContextCodec.TOKENS])
async def test_without_exits_split_decoding_equals_the_unsplit_model(
    context: ContextCodec,
) -> None:
    options = options_for(use_exits=False, context=context, max_tokens=32)
    async with edge_and_cloud() as engine:
        for prompt in PROMPTS:
            result = await engine.generate(prompt, options)
            assert ids_of(result) == full_answer(prompt, 32)
            assert {token.origin for token in result.tokens} == {"cloud"}


async def test_cloud_only_equals_the_unsplit_model() -> None:
    async with edge_and_cloud() as engine:
        for prompt in PROMPTS[:5]:
            result = await engine.generate(prompt, options_for(Mode.CLOUD_ONLY))
            assert ids_of(result) == full_answer(prompt, 24)
            assert result.statistics.escalations == 1


@pytest.mark.parametrize("threshold", [0.1, 0.2, 0.4])
@pytest.mark.parametrize("context", [ContextCodec.FLOAT32, ContextCodec.TOKENS])
async def test_tokens_computed_deep_do_not_depend_on_earlier_exits(
    threshold: float, context: ContextCodec
) -> None:
    """Pending positions: every escalated token is the full model's, given the text before it."""
    origins = set()
    async with edge_and_cloud() as engine:
        for prompt in PROMPTS[:10]:
            options = options_for(threshold=threshold, context=context)
            result = await engine.generate(prompt, options)
            text = list(prompt)
            for token in result.tokens:
                origins.add(token.origin)
                if token.origin == "cloud":
                    assert token.token_id == np.argmax(full_model().run(text)[1][-1])
                text.append(token.token_id)
    assert {"exit1", "cloud"} <= origins, "the threshold must let both kinds through"


async def test_tokens_of_an_exit_do_not_depend_on_how_earlier_tokens_were_decided() -> None:
    """The second exit, asked for each position anew on a fresh state, says the same."""
    async with edge_and_cloud() as engine:
        for prompt in PROMPTS[:8]:
            result = await engine.generate(prompt, options_for(threshold=0.2))
            text = list(prompt)
            for token in result.tokens:
                if token.origin == "exit2":
                    assert token.token_id == _fresh_exit(engine, text, 1)
                text.append(token.token_id)


def _fresh_exit(engine: EdgeEngine, text: list[int], index: int) -> int:
    model = engine.load_model()
    state = model.open(len(text))
    state.extend(text)
    row = int(np.argmax(state.read_exit(index)))
    ids = model.vocabulary_ids(index)
    return row if ids is None else int(ids[row])


@pytest.mark.parametrize("length", [128, 129, 300])
async def test_a_prompt_of_several_chunks_equals_the_unsplit_model(length: int) -> None:
    prompt = tuple((7 * i * i) % 250 + 2 for i in range(length))
    options = options_for(use_exits=False, context=ContextCodec.FLOAT32, max_tokens=6)
    async with edge_and_cloud() as engine:
        assert ids_of(await engine.generate(prompt, options)) == full_answer(prompt, 6)


async def test_sampling_draws_the_same_tokens_on_either_side_of_the_wire() -> None:
    async with edge_and_cloud() as engine:
        for prompt in PROMPTS[:5]:
            wanted = full_answer(prompt, 24, SAMPLED)
            split = options_for(use_exits=False, context=ContextCodec.FLOAT32, sampling=SAMPLED)
            alone = options_for(Mode.CLOUD_ONLY, sampling=SAMPLED)
            assert ids_of(await engine.generate(prompt, split)) == wanted
            assert ids_of(await engine.generate(prompt, alone)) == wanted


async def test_a_seed_repeats_a_text_and_another_changes_it() -> None:
    async with edge_and_cloud() as engine:
        texts = [
            ids_of(
                await engine.generate(
                    PROMPTS[3], options_for(sampling=Sampling(1.0, 1.0, seed), threshold=0.2)
                )
            )
            for seed in (1, 1, 2)
        ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("context", list(ContextCodec))
async def test_every_codec_carries_an_answer(context: ContextCodec) -> None:
    async with edge_and_cloud() as engine:
        result = await engine.generate(PROMPTS[4], options_for(context=context, threshold=1.0))
    assert result.tokens
    assert result.uploaded_bytes > 0
    assert result.cloud_layer_positions


async def test_coarser_codes_send_fewer_bytes() -> None:
    sizes = []
    async with edge_and_cloud() as engine:
        for context in ContextCodec:
            options = options_for(use_exits=False, context=context, max_tokens=8)
            sizes.append((await engine.generate(PROMPTS[4] * 8, options)).uploaded_bytes)
    assert sizes == sorted(sizes, reverse=True)


async def test_standalone_needs_no_cloud_and_takes_the_last_exit() -> None:
    async with edge_engine(None) as engine:
        result = await engine.generate(PROMPTS[1], options_for(Mode.STANDALONE, threshold=1.0))
    assert {token.origin for token in result.tokens} == {"exit2"}
    assert (result.uploaded_bytes, result.statistics.escalations) == (0, 0)


async def test_teacher_forcing_asks_about_the_given_text() -> None:
    forced = (9, 8, 7, 6, 5)
    async with edge_and_cloud() as engine:
        options = options_for(use_exits=False, context=ContextCodec.FLOAT32, forced_ids=forced)
        result = await engine.generate(PROMPTS[2], options)
    wanted = [
        choose_token(full_model().run([*PROMPTS[2], *forced[:i]])[1][-1], Sampling(), 0).token_id
        for i in range(len(forced))
    ]
    assert ids_of(result) == wanted


async def test_an_answer_ends_at_the_stop_token_in_every_mode() -> None:
    stop = tiny_bundle().manifest.tokenizer.stop_token_ids[0]
    seed, prompt = next(
        (seed, prompt)
        for seed in range(200)
        for prompt in PROMPTS[:2]
        if stop in full_model().continuation(prompt, 12, Sampling(1.5, 1.0, seed))
    )
    sampling = Sampling(1.5, 1.0, seed)
    async with edge_and_cloud() as engine:
        for mode in (Mode.COLLABORATIVE, Mode.CLOUD_ONLY):
            options = options_for(
                mode, sampling=sampling, use_exits=False, context=ContextCodec.FLOAT32
            )
            result = await engine.generate(prompt, options)
            assert ids_of(result)[-1] == stop
            assert stop not in ids_of(result)[:-1]


async def test_tokens_arrive_one_by_one_and_leaving_early_ends_the_session() -> None:
    async with edge_and_cloud() as engine:
        generation = engine.generation(PROMPTS[0], options_for(use_exits=False))
        stream = generation.run()
        seen: list[GeneratedToken] = []
        async for token in stream:
            seen.append(token)
            if len(seen) == 3:
                break
        await stream.aclose()
        assert [token.position - len(PROMPTS[0]) for token in seen] == [0, 1, 2]
        again = await engine.generate(PROMPTS[0], options_for(use_exits=False))
        assert ids_of(again)[:3] == [token.token_id for token in seen]


async def test_the_record_has_the_documented_fields_and_is_json() -> None:
    async with edge_and_cloud() as engine:
        result = await engine.generate(PROMPTS[0], options_for(threshold=0.3, window=0))
    record = json.loads(json.dumps(result.as_record()))
    assert list(record) == [
        "text", "token_ids", "origins", "prompt_tokens", "mode", "plan", "schedule",
        "threshold", "alone", "seconds", "first_token_seconds", "stall_seconds", "escalations",
        "rollbacks", "discarded", "uploaded_bytes", "downloaded_bytes",
    ]  # fmt: skip
    assert record["plan"] == "blocking@0.3, fp16"
    assert record["schedule"] == "blocking"
    assert len(record["token_ids"]) == len(record["origins"])
    assert record["escalations"] == record["origins"].count("cloud")


@pytest.mark.parametrize(
    ("prompt", "changes", "reason"),
    [
        ((), {}, "no tokens"),
        (PROMPTS[0], {"max_tokens": 100_000}, "--max-tokens"),
        (PROMPTS[0], {"mode": Mode.COLLABORATIVE}, "--cloud"),
        (PROMPTS[0], {"mode": Mode.CLOUD_ONLY}, "--cloud"),
    ],
)
async def test_what_cannot_work_is_said_before_it_starts(
    prompt: tuple[int, ...], changes: dict[str, Any], reason: str
) -> None:
    async with edge_engine(None) as engine:
        with pytest.raises(ConfigurationError, match=reason):
            engine.generation(prompt, options_for(**({"mode": Mode.STANDALONE} | changes)))


@pytest.mark.parametrize(
    "changes",
    [{"max_tokens": 0}, {"threshold": 1.5}, {"mode": Mode.STANDALONE, "use_exits": False}],
)
def test_options_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        GenerationOptions(**({"mode": Mode.COLLABORATIVE} | changes))


async def test_auto_explains_its_choices_in_one_line_each(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="tandem.edge")
    async with edge_and_cloud() as engine:
        for _ in range(2):
            result = await engine.generate(PROMPTS[6], GenerationOptions(Mode.AUTO, max_tokens=24))
    lines = [record.getMessage() for record in caplog.records if ": " in record.getMessage()]
    explained = [line for line in lines if line.startswith("rtt ")]
    assert explained
    assert not any("\n" in line for line in explained)
    assert "too little measured" in explained[0]
    assert f": {result.plan} (" in explained[-1]
    assert "a token" in explained[-1]

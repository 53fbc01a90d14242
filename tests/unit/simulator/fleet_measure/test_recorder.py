"""Recordings: what a real edge says at each position is what is written down."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.cloud_channel import CloudEndpoint
from edge.context_source import ContextCodec
from edge.engine import EdgeEngine
from edge.generation import Mode
from edge.generation_options import GenerationOptions
from shared.errors import ConfigurationError
from simulator.fleet.recorder import Recorded, encode_prompts, record
from simulator.fleet.recordings import load_recording, save_recording
from tests.cloud_harness import serving, tiny_bundle
from tests.edge_harness import PROMPTS, full_answer

TOKENS = 12


async def recorded(engine: EdgeEngine, prompts: int = 3) -> Recorded:
    advanced = []
    async with serving() as server:
        engine.endpoint = CloudEndpoint(server.address)
        made = await record(engine, PROMPTS[:prompts], TOKENS, lambda: advanced.append(1))
    assert len(advanced) == 2 * prompts
    return made


@pytest.fixture
def engine() -> EdgeEngine:
    return EdgeEngine(tiny_bundle(), "float32", threads=1)


async def test_answers_are_the_full_models(engine: EdgeEngine) -> None:
    made = await recorded(engine)
    for prompt, text in zip(PROMPTS, made.texts, strict=False):
        assert text.prompt_ids == prompt
        assert list(text.answer_ids) == full_answer(prompt, TOKENS)
        assert text.answer.prompt_tokens == len(prompt)
        assert text.answer.length == len(text.answer_ids)


async def test_every_reading_is_that_of_a_real_generation(engine: EdgeEngine) -> None:
    """Forced along the answer, a standalone edge reads the last exit at every position; with a
    threshold of 0 it stops at the first."""
    made = await recorded(engine)
    for index, threshold in ((1, 1.0), (0, 0.0)):
        for text in made.texts:
            options = GenerationOptions(
                Mode.STANDALONE, threshold=threshold, forced_ids=text.answer_ids
            )
            result = await engine.generate(text.prompt_ids, options)
            assert {token.origin for token in result.tokens} == {f"exit{index + 1}"}
            confidences = [token.confidence for token in result.tokens]
            assert text.answer.confidences[:, index].tolist() == pytest.approx(confidences)
            agrees = [
                token.token_id == wanted
                for token, wanted in zip(result.tokens, text.answer_ids, strict=True)
            ]
            assert text.answer.agrees[:, index].tolist() == agrees


async def test_a_recording_is_read_as_it_was_written(engine: EdgeEngine, tmp_path: Path) -> None:
    made = await recorded(engine)
    recording = made.as_recording(tiny_bundle(), "three of the tests' own")
    save_recording(recording, tmp_path / "r.npz")
    read = load_recording(tmp_path / "r.npz")
    assert read.model == recording.model
    assert read.model.fingerprint == tiny_bundle().manifest.fingerprint
    assert (read.model.layers, read.model.cut) == (6, tiny_bundle().manifest.cut)
    for mine, theirs in zip(read.answers, recording.answers, strict=True):
        assert mine.prompt_tokens == theirs.prompt_tokens
        np.testing.assert_array_equal(mine.confidences, theirs.confidences)
        np.testing.assert_array_equal(mine.agrees, theirs.agrees)


async def test_compression_is_told_by_codec(engine: EdgeEngine) -> None:
    made = await recorded(engine, prompts=1)
    assert set(made.compression) == {ContextCodec.INT8, ContextCodec.INT4}
    assert all(0.3 < share < 1.5 for share in made.compression.values())


async def test_prompts_that_leave_no_room_are_refused_before_anything_runs(
    engine: EdgeEngine, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "short"}\n{"prompt": "' + "x" * 500 + '"}\n')
    with pytest.raises(ConfigurationError, match=r"prompt 2 has \d+ tokens; \d+ fit"):
        encode_prompts(engine, path, None, 8)
    assert len(encode_prompts(engine, path, 1, 8)) == 1
    engine.endpoint = CloudEndpoint("127.0.0.1:1")
    with pytest.raises(ConfigurationError, match="leaves room"):
        await record(engine, [(5,) * 600], 8, lambda: None)

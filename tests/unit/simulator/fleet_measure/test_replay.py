"""Replayed edges: the real token loop over recorded outcomes, against a real cloud."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edge.context_source import ContextCodec
from edge.generation import Mode
from edge.generation_options import GenerationOptions
from edge.generation_result import GenerationResult
from shared.clock import monotonic
from shared.errors import ConfigurationError
from simulator.fleet.validation_edge import ConnectedEdge, load_scripts, options_of, save_scripts
from simulator.fleet.validation_real import scripts_of, turns_of
from simulator.fleet.validation_replay import ReplayedEdge, ReplayedModel, Script, instant_device
from tests.cloud_harness import serving, tiny_bundle
from tests.edge_harness import PROMPTS, edge_engine, full_answer

TOKENS = 16
DEVICE = instant_device(2).model_copy(
    update={
        "segment_seconds": (1.0, 10.0),
        "exit_seconds": (0.1, 0.2),
        "pending_seconds": (0.001, 0.01),
        "prefill_seconds": 0.5,
    }
)


def script(prompt: int = 0, seed: int = 0) -> Script:
    """The full model's answer to a prompt, and exits that are sure and right at random."""
    noise = np.random.default_rng(seed)
    answer = full_answer(PROMPTS[prompt], TOKENS)
    shape = (len(answer), 2)
    return Script(
        PROMPTS[prompt],
        tuple(answer),
        noise.uniform(0.05, 1.0, shape).astype(np.float32),
        noise.random(shape) < 0.6,
    )


def model_of(played: Script, threshold: float | None, slept: list[float]) -> ReplayedModel:
    manifest = tiny_bundle().manifest
    model = ReplayedModel(
        manifest.architecture, manifest.exits, DEVICE, threshold, sleep=slept.append
    )
    model.script = played
    return model


async def run(address: str | None, played: Script, **changes: Any) -> GenerationResult:
    plain: dict[str, Any] = {"threshold": 0.5, "max_tokens": len(played.answer_ids)}
    options = GenerationOptions(**(plain | {"mode": Mode.COLLABORATIVE} | changes))
    model = model_of(played, None if options.verified else options.threshold, [])
    edge = ReplayedEdge(tiny_bundle(), model, address)
    try:
        return await edge.generate(played.prompt_ids, options)
    finally:
        edge.close()


def test_a_state_takes_what_the_device_takes() -> None:
    slept: list[float] = []
    played = script()
    state = model_of(played, 0.5, slept).open(64)
    prompt = len(played.prompt_ids)
    state.extend(played.prompt_ids)
    state.read_exit(0)
    state.read_exit(1)
    assert slept == pytest.approx([
        0.5 * prompt,
        0.1 + 0.001 * (prompt - 1),
        10.2 + 0.01 * (prompt - 1),
    ])  # fmt: skip
    slept.clear()
    for _ in range(3):
        state.extend([7])
        state.read_exit(0)
    state.read_exit(1)
    assert slept == pytest.approx([1.0, 0.1, 1.0, 0.1, 1.0, 0.1, 10.2 + 0.02])
    slept.clear()
    state.truncate(prompt + 1)
    state.extend([7])
    state.read_exit(1)
    assert slept == pytest.approx([1.0, 10.2])


async def test_alone_it_says_what_was_recorded() -> None:
    played = script()
    result = await run(None, played, mode=Mode.STANDALONE)
    for at, token in enumerate(result.tokens):
        sure = played.confidences[at] >= 0.5
        level = 0 if sure[0] else 1
        assert token.origin == f"exit{level + 1}"
        assert token.confidence == pytest.approx(float(played.confidences[at, level]), rel=1e-4)
        # what is accepted stays on the recorded text
        right = bool(sure[level] or played.agrees[at, level])
        assert (token.token_id == played.answer_ids[at]) == right


@pytest.mark.parametrize("window", [0, 8])
async def test_with_a_cloud_the_text_is_the_recorded_one(window: int) -> None:
    async with serving() as server:
        for number in range(4):
            played = script(number, seed=number)
            result = await run(
                server.address, played, window=window, context=ContextCodec.TOKENS, lookahead=0
            )
            assert tuple(t.token_id for t in result.tokens) == played.answer_ids
            unsure = ~(played.confidences >= 0.5).any(axis=1)
            corrected = unsure & ~played.agrees[:, 1]
            cloud = [t.origin == "cloud" for t in result.tokens]
            assert cloud == unsure.tolist()
            if window == 0:
                assert result.statistics.escalations == unsure.sum()
            elif corrected[:-1].any():
                assert result.statistics.escalations >= unsure.sum()


async def test_verified_and_cloud_only_give_the_recorded_text() -> None:
    async with serving() as server:
        played = script(2, seed=3)
        for changes in (
            {"verified": True, "context": ContextCodec.TOKENS},
            {"mode": Mode.CLOUD_ONLY},
        ):
            result = await run(server.address, played, **changes)
            assert tuple(t.token_id for t in result.tokens) == played.answer_ids


async def test_from_hidden_states_the_cloud_decides_what_the_script_says() -> None:
    """Also where the states are not the text's own: there the script takes up what it says."""
    played = script(1)
    positions = len(played.prompt_ids) + len(played.answer_ids)
    states = np.random.default_rng(0).standard_normal((positions, 64)).astype(np.float32)
    async with serving() as server:
        texts = [_text_of(played)]
        scripts = await scripts_of(tiny_bundle(), server.address, texts, [states])
        assert scripts[ContextCodec.TOKENS][0].answer_ids == played.answer_ids
        by_states = scripts[ContextCodec.FP16][0]
        assert by_states.answer_ids != played.answer_ids
        result = await run(server.address, by_states, window=4, context=ContextCodec.FP16)
        assert tuple(t.token_id for t in result.tokens) == by_states.answer_ids


def _text_of(played: Script) -> Any:
    from simulator.fleet.recorder import RecordedText  # noqa: PLC0415
    from simulator.fleet.recordings import RecordedAnswer  # noqa: PLC0415

    answer = RecordedAnswer(len(played.prompt_ids), played.confidences, played.agrees)
    return RecordedText(played.prompt_ids, played.answer_ids, answer)


async def test_an_edge_answers_in_turn_and_tells_when(tmp_path: Any) -> None:
    made = [script(0), replace(script(1), hidden=np.zeros((40, 64), np.float32))]
    save_scripts(tmp_path / "s.npz", made)
    read = load_scripts(tmp_path / "s.npz")
    assert read[0].hidden is None
    assert read[1].hidden is not None
    assert [s.answer_ids for s in read] == [s.answer_ids for s in made]
    device = instant_device(2)
    async with serving() as server:
        request = {
            "policy": "cloud-only",
            "scripts": str(tmp_path / "s.npz"),
            "address": server.address,
        }
        async with ConnectedEdge(tiny_bundle(), device, request) as edge:
            begin = monotonic() + 0.2
            found = await edge.answer_all([1, 0], begin)
    assert begin <= found[0].began
    assert [len(answer.shown) for answer in found] == [len(read[i].answer_ids) for i in (1, 0)]
    times = [time for answer in found for time in (answer.began, *answer.shown)]
    assert times == sorted(times)


async def test_the_cloud_counts_as_far() -> None:
    async with edge_engine("127.0.0.1:1") as near:
        assert near.endpoint is not None
        assert near.endpoint.on_this_machine
    edge = ReplayedEdge(tiny_bundle(), model_of(script(), 0.5, []), "127.0.0.1:1")
    assert edge.endpoint is not None
    assert not edge.endpoint.on_this_machine
    edge.close()


def test_turns_begin_apart_and_cover_all_texts() -> None:
    turns = turns_of(4, 3, 2.0)
    assert [turn.begin for turn in turns] == [0.0, 0.5, 1.0, 1.5]
    assert [turn.order for turn in turns] == [(0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 1, 2)]


@pytest.mark.parametrize("name", ["", "auto", "blocking@x", "cloud-only@0.5", "blocking@2"])
def test_a_policy_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError):
        options_of(name)

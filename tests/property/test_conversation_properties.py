"""Whatever is kept between turns, an answer is the one that a fresh edge and cloud would give."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud.server import CloudServer
from edge.context_source import ContextCodec
from edge.conversations import Conversation, Conversations, shared_beginning
from edge.engine import EdgeEngine
from edge.generation import Mode
from edge.generation_options import GenerationOptions
from edge.plan import BURST_UNLIMITED
from shared.sampling import Sampling
from tests.cloud_harness import eventually, settings_for, tiny_bundle
from tests.edge_harness import BreakableLink, edge_engine, ids_of, options_for

ANSWER = 12
FIRST_PROMPT = tuple((i * i * 7 + 5 * i) % 256 + 2 for i in range(24))


@dataclass(frozen=True)
class Turn:
    """What the next prompt keeps of the text so far, what it adds, and how it is answered."""

    keeps: float
    adds: tuple[int, ...]
    options: GenerationOptions
    leaves_after: int | None
    cut: bool


@st.composite
def turns(draw: st.DrawFn) -> Turn:
    mode = draw(st.sampled_from([Mode.COLLABORATIVE, Mode.CLOUD_ONLY, Mode.STANDALONE]))
    changes: dict[str, Any] = {"max_tokens": ANSWER}
    if draw(st.booleans()):
        changes["sampling"] = Sampling(0.9, 1.0, draw(st.integers(0, 3)))
    if mode is Mode.COLLABORATIVE:
        tokens = draw(st.booleans())
        changes |= {
            "threshold": draw(st.sampled_from([0.2, 0.5, 0.9])),
            "context": ContextCodec.TOKENS if tokens else ContextCodec.FLOAT32,
            "window": draw(st.sampled_from([0, 2, 8])),
            "verified": draw(st.booleans()),
        }
        if tokens and draw(st.booleans()):
            changes["burst"] = draw(st.sampled_from([2, BURST_UNLIMITED]))
        elif tokens and changes["window"]:
            changes["lookahead"] = draw(st.sampled_from([0, 4]))
    return Turn(
        draw(st.sampled_from([1.0, 1.0, 0.9, 0.6, 0.0])),
        tuple(draw(st.lists(st.integers(2, 255), min_size=1, max_size=5))),
        options_for(mode, **changes),
        draw(st.none() | st.integers(1, ANSWER)),
        draw(st.booleans()),
    )


async def answer(
    engine: EdgeEngine, prompt: list[int], turn: Turn, link: BreakableLink
) -> list[int]:
    """The tokens that were shown; the reader may leave early, or the link be cut on the way."""
    shown = []
    stream = engine.generation(prompt, turn.options).run()
    async for token in stream:
        shown.append(token.token_id)
        if turn.cut and len(shown) == 2:
            link.cut()
        if len(shown) == turn.leaves_after:
            break
    await stream.aclose()
    return shown


async def _hold_a_conversation(conversation: list[Turn], *, forgetful: bool) -> None:
    async with (
        CloudServer(settings_for(tiny_bundle())) as server,
        CloudServer(settings_for(tiny_bundle())) as other,
        BreakableLink(server.address) as link,
        edge_engine(link.address) as keeping,
        edge_engine(other.address) as fresh,
        keeping.connected(),
        fresh.connected(),
    ):
        keeping.conversations = Conversations(2, 10_000)
        text = list(FIRST_PROMPT)
        for turn in conversation:
            prompt = [*text[: round(turn.keeps * len(text))], *turn.adds]
            shown = await answer(keeping, prompt, turn, link)
            whole = ids_of(await fresh.generate(prompt, turn.options))
            assert shown == whole[: len(shown)]
            assert len(shown) == min(len(whole), turn.leaves_after or len(whole))
            text = prompt + shown
            if forgetful:
                await eventually(lambda: server.service.open_streams == 0)
                for session in list(server.store._sessions.values()):
                    server.store.drop(session)


@settings(max_examples=60)
@given(st.lists(turns(), min_size=2, max_size=6))
def test_a_conversation_is_answered_as_if_every_turn_were_the_first(turns: list[Turn]) -> None:
    asyncio.run(_hold_a_conversation(turns, forgetful=False))


@settings(max_examples=20)
@given(st.lists(turns(), min_size=2, max_size=6))
def test_so_it_is_where_the_cloud_forgets_what_it_kept(turns: list[Turn]) -> None:
    asyncio.run(_hold_a_conversation(turns, forgetful=True))


@pytest.mark.parametrize("mode", [Mode.STANDALONE, Mode.COLLABORATIVE, Mode.CLOUD_ONLY])
async def test_only_what_is_new_is_computed_and_sent(mode: Mode) -> None:
    async with (
        CloudServer(settings_for(tiny_bundle())) as server,
        edge_engine(server.address) as engine,
        engine.connected(),
    ):
        engine.conversations = Conversations(2, 10_000)
        options = options_for(mode, max_tokens=8)
        first = await engine.generate(FIRST_PROMPT, options)
        second = await engine.generate([*FIRST_PROMPT, *ids_of(first), 7, 8], options)
        assert first.cached_tokens == 0
        kept = len(FIRST_PROMPT)  # and of an answer in token ids all but its last tokens
        assert second.cached_tokens >= kept + (6 if mode is Mode.CLOUD_ONLY else 0)
        if mode is not Mode.STANDALONE:
            await eventually(lambda: server.service.open_streams == 0)
            assert len(server.store) == 1
            assert second.uploaded_bytes < first.uploaded_bytes


def test_a_conversation_that_only_begins_alike_keeps_its_own() -> None:
    kept = Conversations(2, 1000)
    one, other = Conversation(range(100)), Conversation(range(500, 540))
    kept.put(one)
    kept.put(other)
    assert kept.take([*range(30), 7, 7]) is None
    assert kept.take([*range(10)]) is None
    assert kept.take([*range(60), 7]) is one
    assert kept.take([*range(60), 7]) is None
    assert kept.take(range(500, 541)) is other
    assert len(kept) == 0


def test_the_oldest_go_where_there_are_too_many_or_too_long() -> None:
    kept = Conversations(2, 100)
    for start in (0, 1000, 2000):
        kept.put(Conversation(range(start, start + 40)))
    assert (len(kept), kept.tokens) == (2, 80)
    assert kept.take(range(50)) is None
    kept.put(Conversation(range(3000, 3090)))
    assert (len(kept), kept.tokens) == (1, 90)
    kept.put(Conversation(range(101)))
    assert len(kept) == 0
    none = Conversations(0, 100)
    none.put(Conversation([1]))
    assert len(none) == 0


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_the_shared_beginning_is_the_longest_one(one: list[int], other: list[int]) -> None:
    shared = shared_beginning(one, other)
    assert one[:shared] == other[:shared]
    assert one[shared : shared + 1] != other[shared : shared + 1] or shared == len(one) == len(
        other
    )

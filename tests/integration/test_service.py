"""The daemon's heart: its queue, its end, its controls, another bundle under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from cloud import collaboration_service
from edge.answer import AnswerRequest, FinishReason
from edge.cloud_channel import CloudEndpoint
from edge.controller import Aim
from edge.controls import Controls
from edge.generation import Mode
from edge.service import EdgeService, Outcome
from shared.errors import BundleError, BusyError, ConfigurationError, DrainingError
from shared.messages import Context, EdgeMessage, Escalate, edge_message_from_bytes
from shared.sampling import Sampling
from tests.cloud_harness import eventually, serving, tiny_bundle
from tests.edge_harness import PROMPTS, full_answer
from tests.http_harness import Ended
from tests.tiny_bundle import write_tiny_bundle

STANDALONE = Controls(Mode.STANDALONE)
ASK = AnswerRequest(PROMPTS[0], max_tokens=12)


@asynccontextmanager
async def service(
    controls: Controls = STANDALONE, address: str | None = None, **options: Any
) -> AsyncIterator[EdgeService]:
    endpoint = CloudEndpoint(address) if address else None
    made = EdgeService(
        tiny_bundle(), controls, precision="float32", threads=1, endpoint=endpoint, **options
    )
    async with made:
        yield made


async def answered(edge: EdgeService, request: AnswerRequest = ASK) -> str:
    async with edge.answer(request) as answer:
        return "".join([piece.text async for piece in answer.pieces()])


@asynccontextmanager
async def answering(edge: EdgeService) -> AsyncIterator[None]:
    """Somebody has the turn within the block, and then answers."""
    async with edge.answer(ASK) as answer:
        yield
        async for _ in answer.pieces():
            pass


async def test_an_answer_is_counted() -> None:
    async with serving() as server, service(Controls(Mode.CLOUD_ONLY), server.address) as edge:
        ended = Ended(edge)
        text, wanted = await answered(edge), full_answer(PROMPTS[0], 12)
        assert text == edge.engine.decode(wanted)
        stopped = wanted[-1] in edge.engine.stop_token_ids
        record = await ended.next()
        assert (record.outcome, record.error) == (Outcome.FINISHED, None)
        assert record.finish_reason is (FinishReason.STOP if stopped else FinishReason.LENGTH)
        status = edge.status()
        assert (status.answers, status.failures, status.cancellations) == (1, 0, 0)
        assert status.tokens == len(wanted) == sum(status.origins.values())
        assert status.device_share == 0.0


async def test_the_queue_has_an_end() -> None:
    async with service(queue_limit=2) as edge:
        async with answering(edge):
            waiting = [asyncio.create_task(answered(edge)) for _ in range(2)]
            await eventually(lambda: edge.status().waiting == 2)
            with pytest.raises(BusyError):
                await answered(edge)
            waiting[0].cancel()  # its place is free again
            await asyncio.wait([waiting[0]])
            third = asyncio.create_task(answered(edge))
            await eventually(lambda: edge.status().waiting == 2)
        assert await waiting[1] == await third == await answered(edge)
        status = edge.status()
        assert (status.active, status.waiting) == (0, 0)
        assert (status.answers, status.cancellations, status.failures) == (4, 0, 0)


async def test_no_queue_at_all() -> None:
    async with service(queue_limit=0) as edge:
        async with answering(edge):
            with pytest.raises(BusyError):
                await answered(edge)
        assert await answered(edge)


async def test_several_at_once() -> None:
    async with service(parallel=2, queue_limit=0) as edge:
        async with answering(edge), answering(edge):
            assert edge.status().active == 2
            with pytest.raises(BusyError):
                await answered(edge)
        assert edge.status().answers == 2


@pytest.mark.parametrize(
    "request_",
    [
        AnswerRequest(()),
        AnswerRequest(PROMPTS[0] * 300),
        AnswerRequest(PROMPTS[0], changes={"mode": "cloud-only"}),
    ],
)
async def test_what_cannot_be_met_does_not_wait(request_: AnswerRequest) -> None:
    async with service() as edge, answering(edge):
        with pytest.raises(ConfigurationError):
            await answered(edge, request_)


async def test_leaving_an_answer_cancels_it() -> None:
    async with serving() as server, service(Controls(Mode.CLOUD_ONLY), server.address) as edge:
        ended = Ended(edge)
        async with edge.answer(AnswerRequest(PROMPTS[0], max_tokens=400)) as answer:
            async with aclosing(answer.pieces()) as pieces:
                await anext(pieces)
            assert answer.finish_reason is None
        record = await ended.next()
        assert record.outcome is Outcome.CANCELLED
        assert record.result is not None
        await eventually(lambda: server.service.open_streams == 0)
        async with edge.answer(ASK):  # before the first word
            pass
        record = await ended.next()
        assert (record.outcome, record.result) == (Outcome.CANCELLED, None)
        assert edge.status().cancellations == 2


async def test_draining_waits_for_what_there_is() -> None:
    async with service() as edge:
        async with answering(edge):
            waiting = asyncio.create_task(answered(edge))
            await eventually(lambda: edge.status().waiting == 1)
            draining = asyncio.create_task(edge.drain())
            await eventually(lambda: edge.status().draining)
            with pytest.raises(DrainingError):
                await answered(edge)
            assert not draining.done()
        assert await draining
        assert await waiting
        assert edge.status().answers == 2


async def test_a_drain_that_has_no_more_time_ends_answers() -> None:
    async with service() as edge:
        ended, never = Ended(edge), asyncio.Event()

        async def held() -> None:
            async with edge.answer(ASK):
                await never.wait()

        holding, waiting = asyncio.create_task(held()), asyncio.create_task(answered(edge))
        await eventually(lambda: (edge.status().active, edge.status().waiting) == (1, 1))
        assert not await edge.drain(0.01)
        for task in (holding, waiting):
            with pytest.raises(DrainingError):
                await task
        assert (await ended.next()).finish_reason is None
        assert (edge.status().active, edge.status().waiting) == (0, 0)


async def test_another_bundle_between_two_answers(tmp_path: Path) -> None:
    other = write_tiny_bundle(tmp_path, seed=3, precisions=("float32",), full_depth=False)
    async with service() as edge:
        before = await answered(edge)
        async with answering(edge):
            reloading = asyncio.create_task(edge.reload(other.folder))
            await asyncio.wait([reloading], timeout=0.01)
            assert edge.status().model == "tiny-0"
        await reloading
        assert edge.status().model == "tiny-3"
        assert await answered(edge) != before
        with pytest.raises(BundleError):
            await edge.reload(tmp_path / "nowhere")
        assert edge.status().model == "tiny-3"
        await edge.reload(tiny_bundle().folder)
        assert await answered(edge) == before


async def test_controls_count_from_the_next_answer_on() -> None:
    async with serving() as server, service(STANDALONE, server.address) as edge:
        await answered(edge)
        assert "cloud" not in edge.status().origins
        edge.set_controls(edge.controls.changed({"mode": "cloud-only", "max_tokens": 3}))
        await answered(edge)
        assert edge.status().origins["cloud"] == 3
        await answered(edge, AnswerRequest(PROMPTS[0], 5, changes={"mode": "standalone"}))
        assert edge.status().origins["cloud"] == 3


async def test_modes_that_need_a_cloud_are_refused_without_one() -> None:
    async with service() as edge:
        for mode in (Mode.COLLABORATIVE, Mode.CLOUD_ONLY, Mode.AUTO):
            with pytest.raises(ConfigurationError, match="--cloud"):
                edge.set_controls(Controls(mode))
        assert edge.controls == STANDALONE


async def test_changes_are_told() -> None:
    async with service() as edge, aclosing(edge.changes(least_seconds=0.0)) as changes:
        assert (await anext(changes)).active == 0
        async with answering(edge):
            while (await anext(changes)).active != 1:
                pass
        while (await anext(changes)).answers != 1:
            pass
        edge.set_controls(Controls(Mode.STANDALONE, max_tokens=7))
        while (await anext(changes)).controls.max_tokens != 7:
            pass


async def test_text_and_tokens_of_pieces_add_up() -> None:
    """Noise as tokens: what is torn between them comes out whole, once."""
    async with service() as edge:
        for seed in range(5):
            sampling = Sampling(temperature=2.0, seed=seed)
            request = AnswerRequest(PROMPTS[seed], max_tokens=200, sampling=sampling)
            async with edge.answer(request) as answer:
                pieces = [piece async for piece in answer.pieces()]
            assert "".join(piece.text for piece in pieces) == answer.result().text == answer.text
            assert [token for piece in pieces for token in piece.tokens] == answer.tokens


async def test_a_request_may_be_more_private_than_the_daemon_not_less() -> None:
    controls = Controls(Mode.AUTO, private=True)
    async with serving() as server, service(controls, server.address) as edge:
        for changes in ({"private": False}, {"mode": "cloud-only", "private": False}):
            with pytest.raises(ConfigurationError, match="private"):
                await answered(edge, AnswerRequest(PROMPTS[0], 5, changes=changes))
        edge.set_controls(controls.changed({"private": False}))
        await answered(edge, AnswerRequest(PROMPTS[0], 5, changes={"private": True}))


async def test_a_request_that_waits_is_made_under_the_controls_of_its_turn() -> None:
    async with serving() as server, service(Controls(Mode.AUTO), server.address) as edge:
        request = AnswerRequest(PROMPTS[0], 5, changes={"aim": "quality"})
        async with answering(edge):
            waiting = asyncio.create_task(answered(edge, request))
            await eventually(lambda: edge.status().waiting == 1)
            edge.set_controls(edge.controls.changed({"private": True}))
        with overheard() as said:
            await waiting
        assert any(isinstance(body, Escalate) for body in said)
        assert not tokens_told(said)


@pytest.mark.parametrize("aim", Aim)
async def test_nothing_private_is_told_in_token_ids(aim: Aim) -> None:
    """Neither as context nor as the guess that the edge goes on from."""
    controls = Controls(Mode.AUTO, aim=aim, private=True)
    async with serving() as server, service(controls, server.address) as edge:
        for prompt in PROMPTS[:4]:  # the later ones with what the first have measured
            with overheard() as said:
                await answered(edge, AnswerRequest(prompt, 16))
            assert any(isinstance(body, Context) for body in said)
            assert not tokens_told(said)
        edge.set_controls(controls.changed({"private": False}))
        with overheard() as said:
            await answered(edge, AnswerRequest(PROMPTS[4], 16))
        assert tokens_told(said) or aim is Aim.COST


@contextmanager
def overheard() -> Iterator[list[object]]:
    """What edges say to the cloud within the block."""
    said: list[object] = []

    def parse(data: bytes) -> EdgeMessage:
        message = edge_message_from_bytes(data)
        said.append(message.body)
        return message

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collaboration_service, "edge_message_from_bytes", parse)
        yield said


def tokens_told(said: Sequence[object]) -> list[object]:
    return [
        body
        for body in said
        if (isinstance(body, Escalate) and body.guess is not None)
        or (isinstance(body, Context) and isinstance(body.payload, tuple))
    ]

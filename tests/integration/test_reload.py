"""A daemon takes up a bundle again while it answers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from edge.answer import AnswerRequest
from edge.cloud_channel import CloudEndpoint
from edge.controls import Controls
from edge.generation import Mode
from edge.service import EdgeService
from shared.errors import BundleError, ConfigurationError
from tests.cloud_harness import WAIT_SECONDS, tiny_bundle
from tests.edge_harness import PROMPTS
from tests.tiny_bundle import write_tiny_bundle


async def answer(service: EdgeService) -> str:
    async with service.answer(AnswerRequest(PROMPTS[6], 20)) as one:
        async for _ in one.pieces():
            pass
        return one.text


@pytest.mark.parametrize("parallel", [1, 2])
async def test_reloads_at_once_and_answers_meanwhile(parallel: int) -> None:
    controls = Controls(Mode.STANDALONE)
    async with (
        EdgeService(
            tiny_bundle(), controls, precision="float32", threads=1, parallel=parallel
        ) as s,
        asyncio.timeout(WAIT_SECONDS),
    ):
        before, first = s.engine, await answer(s)
        done = await asyncio.gather(answer(s), s.reload(), answer(s), s.reload(), answer(s))
        assert [text for text in done if text is not None] == [first] * 3
        assert s.engine is not before
        assert await answer(s) == first


async def test_a_reload_that_fails_or_is_cancelled_leaves_all_as_it_was() -> None:
    controls = Controls(Mode.STANDALONE)
    async with EdgeService(tiny_bundle(), controls, precision="float32", threads=1) as s:
        before, first = s.engine, await answer(s)
        with pytest.raises(BundleError, match="no bundle"):
            await s.reload(tiny_bundle().folder / "elsewhere")
        async with s.answer(AnswerRequest(PROMPTS[6], 20)):
            reloading = asyncio.create_task(s.reload())
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reloading, 0.2)
        assert s.engine is before
        assert await answer(s) == first


async def test_a_bundle_that_the_controls_do_not_fit_is_not_taken_up(tmp_path: Path) -> None:
    bare = write_tiny_bundle(tmp_path / "bare", measured=False)
    controls = Controls(Mode.COLLABORATIVE, target_agreement=0.9)
    endpoint = CloudEndpoint("127.0.0.1:9")
    async with EdgeService(
        tiny_bundle(), controls, precision="float32", threads=1, endpoint=endpoint
    ) as s:
        before = s.engine
        with pytest.raises(ConfigurationError, match="table"):
            await s.reload(bare.folder)
        assert s.engine is before
        s.set_controls(Controls(Mode.STANDALONE))
        await s.reload(bare.folder)
        assert await answer(s)

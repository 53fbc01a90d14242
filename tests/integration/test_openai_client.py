"""OpenAI's own client against a real daemon, and every reply against OpenAI's published types."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from edge.controls import Controls
from edge.generation import Mode
from shared.chat import Message
from shared.model_bundle import ModelBundle
from tests.cloud_harness import WAIT_SECONDS, tiny_bundle
from tests.edge_harness import full_answer
from tests.http_harness import (
    SAY,
    Daemon,
    daemon,
    daemon_and_cloud,
    sse_events,
    text_of,
    validated,
)

CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"


def extra(value: Any) -> dict[str, Any]:
    """What a reply carries under ``tandem``."""
    found: dict[str, Any] = value.model_extra["tandem"]
    return found


async def chat_text(edge: Daemon, **options: Any) -> str:
    client = edge.openai()
    plain: dict[str, Any] = {"model": "tiny-0", "messages": SAY, "max_tokens": 24}
    done = await client.chat.completions.create(**(plain | options))
    return done.choices[0].message.content or ""


async def test_models() -> None:
    async with daemon() as edge:
        client = edge.openai()
        assert [model.id async for model in client.models.list()] == ["tiny-0"]
        assert (await client.models.retrieve("tiny-0")).owned_by == "tandem"
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve("gpt-5")
        assert caught.value.code == "model_not_found"
        async with edge.http() as http:
            validated(Model, (await http.get("/v1/models/tiny-0")).content)


async def test_cloud_only_answers_are_the_full_models() -> None:
    async with daemon_and_cloud(controls=Controls(Mode.CLOUD_ONLY)) as (edge, _):
        engine = edge.service.engine
        prompt = engine.encode_chat([Message("user", SAY[0]["content"])])
        wanted = full_answer(prompt, 24)
        assert await chat_text(edge) == engine.decode(wanted)
        chunks = [
            chunk
            async for chunk in await edge.openai().chat.completions.create(
                model="tiny-0",
                messages=SAY,
                max_tokens=24,
                stream=True,
                stream_options={"include_usage": True},
            )
        ]
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == engine.decode(wanted)
        assert chunks[0].choices[0].delta.role == "assistant"
        usage = chunks[-1].usage
        assert usage
        assert not chunks[-1].choices
        assert (usage.prompt_tokens, usage.completion_tokens) == (len(prompt), len(wanted))
        assert usage.total_tokens == len(prompt) + len(wanted)
        assert all(chunk.usage is None for chunk in chunks[:-1])
        last = chunks[-2].choices[0]
        assert last.finish_reason == ("stop" if wanted[-1] == 1 else "length")


async def test_sync_client() -> None:
    """The client that most people use, on threads of its own."""
    async with daemon() as edge:

        def ask() -> tuple[str, str]:
            with openai.OpenAI(
                base_url=f"{edge.url}/v1", api_key="unused", max_retries=0, timeout=WAIT_SECONDS
            ) as client:
                whole = client.chat.completions.create(
                    model="tiny-0", messages=SAY, max_completion_tokens=16
                )
                with client.chat.completions.create(
                    model="tiny-0", messages=SAY, max_completion_tokens=16, stream=True
                ) as stream:
                    parts = [chunk.choices[0].delta.content or "" for chunk in stream]
                return whole.choices[0].message.content or "", "".join(parts)

        whole, streamed = await asyncio.to_thread(ask)
        assert whole
        assert whole == streamed


async def test_the_clients_stream_helper_adds_up_a_message() -> None:
    async with daemon() as edge:
        whole = await chat_text(edge)
        async with edge.openai().chat.completions.stream(
            model="tiny-0", messages=SAY, max_tokens=24, stop=whole[8:11]
        ) as stream:
            async for _ in stream:
                pass
            done = await stream.get_final_completion()
        assert done.choices[0].message.role == "assistant"
        assert done.choices[0].message.content == whole[: whole.index(whole[8:11])]


@pytest.mark.parametrize("logprobs", [True, False])
async def test_a_chat_satisfies_the_published_schema(logprobs: bool) -> None:
    body = {"model": "tiny-0", "messages": SAY, "max_tokens": 20, "logprobs": logprobs}
    async with daemon_and_cloud() as (edge, _), edge.http() as http:
        whole = validated(ChatCompletion, (await http.post(CHAT, json=body)).content)
        choice = whole.choices[0]
        assert whole.usage
        async with http.stream("POST", CHAT, json=body | {"stream": True}) as response:
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            events = await sse_events(response)
        assert events.pop() == "[DONE]"
        chunks = [validated(ChatCompletionChunk, json.dumps(event)) for event in events]
        assert text_of(events) == choice.message.content
        assert [c.choices[0].finish_reason for c in chunks][-1] == choice.finish_reason
        assert len({chunk.id for chunk in chunks}) == 1
        if not logprobs:
            assert choice.logprobs is None
            return
        assert choice.logprobs
        assert choice.logprobs.content
        said = choice.logprobs.content
        if choice.finish_reason == "length":
            assert len(said) == whole.usage.completion_tokens
        spelled = b"".join(bytes(token.bytes or []) for token in said)
        assert spelled.decode(errors="replace") == choice.message.content
        assert all(token.logprob < 0 for token in said)
        streamed = [
            token for c in chunks if (p := c.choices[0].logprobs) for token in p.content or []
        ]
        assert [token.bytes for token in streamed] == [token.bytes for token in said]
        # batches of another size are summed in another order
        assert [token.logprob for token in streamed] == pytest.approx(
            [token.logprob for token in said], abs=1e-4
        )


async def test_a_completion_satisfies_the_published_schema() -> None:
    body = {"model": "tiny-0", "prompt": "Once upon", "max_tokens": 20, "logprobs": 0}
    async with daemon() as edge, edge.http() as http:
        whole = validated(Completion, (await http.post(COMPLETE, json=body)).content)
        async with http.stream("POST", COMPLETE, json=body | {"stream": True}) as response:
            events = await sse_events(response)
        assert events.pop() == "[DONE]"
        assert len(events) > 2
        for event in events[:-1]:
            # the schema has no word for a text that goes on; OpenAI sends null
            assert event["choices"][0]["finish_reason"] is None
            event["choices"][0]["finish_reason"] = "stop"
        chunks = [validated(Completion, json.dumps(event)) for event in events]
        assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
        logprobs = whole.choices[0].logprobs
        assert logprobs
        assert logprobs.tokens
        assert logprobs.text_offset
        assert len(logprobs.tokens) == len(logprobs.token_logprobs or []) == 20
        streamed = [
            offset for c in chunks if (p := c.choices[0].logprobs) for offset in p.text_offset or []
        ]
        assert streamed == logprobs.text_offset


async def test_offsets_behind_characters_of_several_tokens() -> None:
    """Each token is found where its offset says; parts of a character are where it is."""
    body = {"prompt": "x", "max_tokens": 120, "logprobs": 0, "temperature": 2.0}
    wide = 0
    async with daemon() as edge, edge.http() as http:
        for seed in range(8):
            answer = (await http.post(COMPLETE, json=body | {"seed": seed})).json()
            text, logprobs = answer["choices"][0]["text"], answer["choices"][0]["logprobs"]
            for offset, token in zip(logprobs["text_offset"], logprobs["tokens"], strict=True):
                if "\ufffd" not in token and not token.startswith("<|"):
                    assert text[offset : offset + len(token)] == token
            wide += sum(len(letter.encode()) > 1 and letter != "\ufffd" for letter in text)
    assert wide > 10  # of the characters that were made of several tokens


async def test_completions_of_text_and_of_its_tokens_are_the_same() -> None:
    async with daemon() as edge:
        client = edge.openai()
        ids = edge.service.engine.tokenizer.encode("Once upon").ids
        prompts: list[Any] = ["Once upon", ["Once upon"], ids, [ids]]
        texts = set()
        for prompt in prompts:
            done = await client.completions.create(model="tiny-0", prompt=prompt, max_tokens=16)
            assert done.usage
            assert done.usage.prompt_tokens == len(ids)
            texts.add(done.choices[0].text)
        assert len(texts) == 1


async def test_stop_strings_end_the_text_before_them() -> None:
    async with daemon() as edge:
        whole = await chat_text(edge)
        assert len(whole) > 12
        for stop in (whole[8:11], [whole[8:10], "never said"]):
            cut = whole[: whole.index(stop if isinstance(stop, str) else stop[0])]
            assert await chat_text(edge, stop=stop) == cut
            client = edge.openai()
            chunks = [
                chunk.choices[0]
                async for chunk in await client.chat.completions.create(
                    model="tiny-0", messages=SAY, max_tokens=24, stop=stop, stream=True
                )
            ]
            assert "".join(choice.delta.content or "" for choice in chunks) == cut
            assert chunks[-1].finish_reason == "stop"


async def test_seeds() -> None:
    async with daemon() as edge:
        warm = {"temperature": 1.5, "top_p": 0.95}
        first = await chat_text(edge, seed=1, **warm)
        assert await chat_text(edge, seed=1, **warm) == first
        assert await chat_text(edge, seed=-1, **warm) != first
        # none: a fresh one, and 24 tokens of noise do not come twice
        assert await chat_text(edge, **warm) != await chat_text(edge, **warm)
        # no temperature: the best token
        best = await chat_text(edge)
        assert best == await chat_text(edge, temperature=0) == await chat_text(edge, seed=7)
        assert best == await chat_text(edge, temperature=1.5, top_p=0)


async def test_a_conversation_of_several_turns() -> None:
    """Roles and parts reach the template as they should; an earlier reply can be sent back."""
    async with daemon() as edge:
        client = edge.openai()
        first = await client.chat.completions.create(model="tiny-0", messages=SAY, max_tokens=8)
        reply = first.choices[0].message
        messages: list[Any] = [
            {"role": "developer", "content": "Be brief."},
            *SAY,
            reply.model_dump(),
            {"role": "user", "content": [{"type": "text", "text": t} for t in ("And", "now?")]},
        ]
        second = await client.chat.completions.create(
            model="tiny-0", messages=messages, max_tokens=8
        )
        prompt = edge.service.engine.encode_chat(
            [
                Message("system", "Be brief."),
                Message("user", SAY[0]["content"]),
                Message("assistant", reply.content or ""),
                Message("user", "And\nnow?"),
            ]
        )
        done = await client.completions.create(model="tiny-0", prompt=list(prompt), max_tokens=8)
        assert second.usage
        assert second.usage.prompt_tokens == len(prompt)
        assert second.choices[0].message.content == done.choices[0].text


async def test_tandems_own_part_of_a_reply() -> None:
    async with daemon_and_cloud(controls=Controls(Mode.COLLABORATIVE, threshold=0.3)) as (edge, _):
        client = edge.openai()
        ask: dict[str, Any] = {"model": "tiny-0", "messages": SAY, "max_tokens": 32}
        whole = await client.chat.completions.create(**ask)
        pieces, summary = extra(whole)["pieces"], extra(whole)["summary"]
        assert "".join(piece["text"] for piece in pieces) == whole.choices[0].message.content
        assert set(summary) == {
            *("mode", "plan", "origins", "alone", "seconds", "first_token_seconds"),
            *("tokens_per_second", "uploaded_bytes", "downloaded_bytes", "escalations"),
            *("rollbacks", "agreement_estimate"),
        }
        assert summary["mode"] == "collaborative"
        assert summary["plan"].startswith("optimistic@0.3")
        assert sum(summary["origins"].values()) == whole.usage.completion_tokens
        assert sum(piece["tokens"] for piece in pieces) == whole.usage.completion_tokens
        assert {piece["origin"] for piece in pieces} <= set(summary["origins"])
        assert 0 < summary["agreement_estimate"] <= 1
        assert summary["uploaded_bytes"] > 0
        chunks = [c async for c in await client.chat.completions.create(**ask, stream=True)]
        for chunk in chunks[:-1]:
            said = "".join(piece["text"] for piece in extra(chunk)["pieces"])
            assert said == chunk.choices[0].delta.content
        assert set(extra(chunks[-1])) == {"summary"}
        assert set(extra(chunks[-1])["summary"]) == set(summary)


async def test_a_request_may_bring_controls_of_its_own() -> None:
    async with daemon_and_cloud() as (edge, _):
        client = edge.openai()
        ask: dict[str, Any] = {"model": "tiny-0", "messages": SAY, "max_tokens": 8}
        for body, origins in (
            ({"mode": "cloud-only"}, {"cloud"}),
            ({"mode": "standalone"}, {"exit1", "exit2"}),
            ({"threshold": 0.0}, {"exit1"}),
        ):
            done = await client.chat.completions.create(**ask, extra_body={"tandem": body})
            summary = extra(done)["summary"]
            assert set(summary["origins"]) <= origins
            assert summary["mode"] == body.get("mode", "collaborative")
        assert edge.service.controls == Controls(Mode.COLLABORATIVE)


async def test_the_same_bundle_answers_while_its_clients_come_and_go() -> None:
    """Several at once, in turn: every text is its own."""
    async with daemon() as edge:
        engine = edge.service.engine
        contents = [f"Number {number}" for number in range(6)]
        texts = await asyncio.gather(
            *(chat_text(edge, messages=[{"role": "user", "content": c}]) for c in contents)
        )
        alone = [await chat_text(edge, messages=[{"role": "user", "content": c}]) for c in contents]
        assert texts == alone
        assert len(set(texts)) > 1
        assert engine.bundle.manifest.fingerprint == tiny_bundle().manifest.fingerprint


async def test_a_bundle_whose_folder_was_moved_is_still_a_model(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle().folder, folder)
    async with daemon(ModelBundle.load(folder)) as edge, edge.http() as http:
        before = (await http.get("/v1/models/tiny-0")).json()
        folder.rename(tmp_path / "elsewhere")
        moved = validated(Model, (await http.get("/v1/models/tiny-0")).content)
        assert (moved.id, moved.object) == (before["id"], "model")
        assert len((await http.get("/v1/models")).json()["data"]) == 1

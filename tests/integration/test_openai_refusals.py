"""What is not supported is refused, by name and in OpenAI's words."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio

from edge.http_app import HttpSettings
from tests.http_harness import SAY, Daemon, daemon

CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
LIMITS = HttpSettings(max_body_bytes=4096, max_messages=4)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge() -> AsyncIterator[Daemon]:
    async with daemon(settings=LIMITS) as started:
        yield started


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def post(edge: Daemon, path: str, body: Any) -> httpx.Response:
    async with edge.http() as http:
        return await http.post(path, json=body)


def error(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    found: dict[str, Any] = body["error"]
    return found


UNSUPPORTED: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "required",
    "functions": [{"name": "f"}],
    "response_format": {"type": "json_object"},
    "n": 2,
    "logit_bias": {"5": 10},
    "presence_penalty": 0.5,
    "frequency_penalty": -1,
    "top_logprobs": 3,
    "audio": {"voice": "alloy", "format": "wav"},
    "modalities": ["text", "audio"],
    "prediction": {"type": "content", "content": "x"},
    "reasoning_effort": "high",
    "service_tier": "flex",
    "store": True,
    "verbosity": "low",
    "web_search_options": {},
}


@pytest.mark.parametrize("name", UNSUPPORTED)
async def test_unsupported_fields_of_a_chat(edge: Daemon, name: str) -> None:
    response = await post(edge, CHAT, {"messages": SAY, name: UNSUPPORTED[name]})
    assert response.status_code == 400
    found = error(response)
    assert (found["param"], found["code"]) == (name, "unsupported_parameter")
    assert found["type"] == "invalid_request_error"
    assert name in found["message"]


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("best_of", 3, "unsupported_parameter"),
        ("echo", True, "unsupported_parameter"),
        ("suffix", "the end", "unsupported_parameter"),
        ("n", 2, "unsupported_parameter"),
        ("logprobs", 2, "unsupported_value"),
        ("prompt", ["one", "two"], "unsupported_value"),
        ("prompt", {"text": "x"}, "invalid_value"),
        ("prompt", [1, "x"], "invalid_value"),
        ("prompt", [300], "invalid_value"),
        ("prompt", "", "invalid_value"),
        ("messages", SAY, "unknown_parameter"),
        ("max_completion_tokens", 5, "unknown_parameter"),
    ],
)
async def test_unsupported_fields_of_a_completion(
    edge: Daemon, name: str, value: Any, code: str
) -> None:
    response = await post(edge, COMPLETE, {"prompt": "x", name: value})
    assert response.status_code == 400
    assert (error(response)["param"], error(response)["code"]) == (name, code)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temprature": 1}, "temprature"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": SAY * 5}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [*SAY, {"role": "user"}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "name": "Ann"}]}, "messages[0].name"),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]},
            "messages[0].tool_calls",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"seed": 1.5}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": [""]}, "stop[0]"),
        ({"stop": 5}, "stop"),
        ({"logprobs": 1}, "logprobs"),
        ({"n": True}, "n"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
        ),
        ({"tandem": {"max_tokens": 5}}, "tandem.max_tokens"),
        ({"tandem": {"mode": "turbo"}}, "tandem.mode"),
        ({"tandem": {"private": False, "mode": ["auto"]}}, "tandem.mode"),
        ({"tandem": {"mode": "collaborative", "threshold": 2}}, "tandem.threshold"),
        ({"tandem": {"target_agreement": "high"}}, "tandem.target_agreement"),
        ({"tandem": {"aim": "speed"}}, "tandem.aim"),
        ({"tandem": {"private": "no"}}, "tandem.private"),
        ({"tandem": {"threshold": 0.5}}, "tandem"),
        ({"tandem": 5}, "tandem"),
        ({"model": "gpt-5"}, "model"),
    ],
)
async def test_wrong_requests(edge: Daemon, change: dict[str, Any], param: str) -> None:
    response = await post(edge, CHAT, {"messages": SAY} | change)
    assert response.status_code == (404 if param == "model" else 400), response.text
    assert error(response)["param"] == param
    assert error(response)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("audio", 0),
        ("audio", {}),
        ("audio", False),
        ("refusal", 0),
        ("tool_calls", 0),
        ("tool_calls", ""),
        ("annotations", {}),
        ("function_call", 0),
        ("function_call", {}),
    ],
)
async def test_what_an_earlier_answer_cannot_have_carried(
    edge: Daemon, name: str, value: Any
) -> None:
    said = {"role": "assistant", "content": "x", name: value}
    response = await post(edge, CHAT, {"messages": [*SAY, said, *SAY]})
    assert response.status_code == 400
    assert error(response)["param"] == f"messages[1].{name}"


async def test_what_an_earlier_answer_carried_is_let_pass(edge: Daemon) -> None:
    empty: dict[str, Any] = {"refusal": None, "annotations": [], "audio": None, "tool_calls": []}
    turn = {"role": "assistant", "content": "x"}
    answers = [
        (await post(edge, CHAT, {"messages": [*SAY, said, *SAY], "max_tokens": 4})).json()
        for said in (turn, turn | empty | {"function_call": None}, turn | {"refusal": ""})
    ]
    assert answers[0]["choices"] == answers[1]["choices"] == answers[2]["choices"]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"private": False, "threshold": 2}, "threshold"),
        ({"mode": "turbo", "max_tokens": 5}, "mode"),
        ({"mode": "standalone", "x": 1}, "x"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"threshold": 0.5}, "threshold"),
    ],
)
async def test_controls_that_cannot_be(edge: Daemon, changes: dict[str, Any], param: str) -> None:
    response = await post(edge, "/tandem/controls", changes)
    assert response.status_code == 400
    assert error(response)["param"] == param


async def test_a_mode_that_needs_a_cloud(edge: Daemon) -> None:
    response = await post(edge, CHAT, {"messages": SAY, "tandem": {"mode": "auto"}})
    assert response.status_code == 400
    assert "cloud" in error(response)["message"]


async def test_target_agreement_is_for_greedy_answers(edge: Daemon) -> None:
    tandem = {"mode": "auto", "target_agreement": 0.9}
    body = {"messages": SAY, "temperature": 1, "tandem": tandem}
    response = await post(edge, CHAT, body)
    assert (response.status_code, error(response)["param"]) == (400, "tandem.target_agreement")


async def test_what_asks_for_nothing_is_let_pass(edge: Daemon) -> None:
    harmless = {
        "user": "ann",
        "metadata": {"a": "b"},
        "safety_identifier": "x",
        "prompt_cache_key": "x",
        "n": 1,
        "tools": [],
        "tool_choice": "none",
        "logit_bias": {},
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "top_logprobs": 0,
        "audio": None,
        "functions": None,
        "stop": None,
        "seed": None,
        "stream": None,
        "max_tokens": None,
        "tandem": None,
    }
    plain = {"messages": SAY, "max_completion_tokens": 8}
    first = (await post(edge, CHAT, plain)).json()
    second = (await post(edge, CHAT, plain | harmless)).json()
    assert first["choices"] == second["choices"]
    plain = {"prompt": "x", "max_tokens": 8}
    first = (await post(edge, COMPLETE, plain)).json()
    second = (await post(edge, COMPLETE, plain | {"best_of": 1, "echo": False, "n": 1})).json()
    assert first["choices"] == second["choices"]


@pytest.mark.parametrize(
    "messages",
    [[{"role": "user", "content": "x" * 600}], [{"role": "user", "content": "x" * 450}]],
)
async def test_a_conversation_that_is_too_long(
    edge: Daemon, messages: list[dict[str, str]]
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await edge.openai().chat.completions.create(
            model="tiny-0",
            messages=messages,  # type: ignore[arg-type]
            max_tokens=100,
        )
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"


async def test_what_fits_just_so(edge: Daemon) -> None:
    """Without ``max_tokens`` the answer may take what is left."""
    body = {"prompt": [50] * 500, "logprobs": 0}
    done = (await post(edge, COMPLETE, body)).json()
    assert 1 <= done["usage"]["completion_tokens"] <= 12


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[]", "invalid_json"),
        (b'"text"', "invalid_json"),
        (b"null", "invalid_json"),
        (b'{"messages": NaN}', "invalid_json"),
        (b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}', "invalid_json"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "invalid_json"),
        (b'{"messages": ' + b"[" * 2000 + b"]" * 2000 + b"}", "invalid_json"),
        (b'{"messages": ' + b'{"a":' * 500 + b"1" + b"}" * 500 + b"}", "invalid_json"),
        ("{}".encode("utf-16"), "invalid_json"),
    ],
)
async def test_bodies_that_are_no_json(edge: Daemon, content: bytes, code: str) -> None:
    async with edge.http() as http:
        response = await http.post(
            CHAT, content=content, headers={"content-type": "application/json"}
        )
    assert response.status_code == 400, response.text
    assert error(response)["code"] == code


@pytest.mark.parametrize("size", [5_000, 30_000, 1_000_000])
@pytest.mark.parametrize("chunked", [False, True])
async def test_bodies_that_are_too_large(edge: Daemon, size: int, chunked: bool) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(size // 1000):
            yield b" " * 1000

    async with edge.http() as http:
        response = await http.post(
            CHAT,
            content=parts() if chunked else b" " * size,
            headers={"content-type": "application/json"},
        )
    assert response.status_code == 413
    assert error(response)["code"] == "request_too_large"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
async def test_other_content_types(edge: Daemon, kind: str | None) -> None:
    """Those that a web page may send anywhere without asking first."""
    async with edge.http() as http:
        headers = {"content-type": kind} if kind else {}
        for path in (CHAT, COMPLETE, "/tandem/controls"):
            response = await http.post(path, content=b"{}", headers=headers)
            assert response.status_code == 415
            assert error(response)["code"] == "unsupported_media_type"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/embeddings", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/nowhere", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models/tiny-0", 405),
        ("POST", "/health", 405),
    ],
)
async def test_unknown_paths_and_methods(edge: Daemon, method: str, path: str, status: int) -> None:
    async with edge.http() as http:
        response = await http.request(method, path)
    assert response.status_code == status
    assert error(response)["type"] == "invalid_request_error"
    assert response.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("name", ["threshold", "target_agreement"])
async def test_numbers_of_any_size_are_judged(edge: Daemon, name: str) -> None:
    big = "1" + "0" * 400
    body = f'{{"messages": [{{"role": "user", "content": "x"}}], "tandem": {{"{name}": {big}}}}}'
    async with edge.http() as http:
        headers = {"content-type": "application/json"}
        response = await http.post(CHAT, content=body, headers=headers)
    assert response.status_code == 400
    assert name in error(response)["message"]


async def test_a_prompt_that_cannot_fit_is_told_by_its_code(edge: Daemon) -> None:
    async with daemon(settings=HttpSettings()) as other:
        text = "a" * 500_000
        bodies = {
            CHAT: {"messages": [{"role": "user", "content": text}]},
            COMPLETE: {"prompt": text},
        }
        for path, body in bodies.items():
            response = await post(other, path, body)
            assert response.status_code == 400
            assert error(response)["code"] == "context_length_exceeded"

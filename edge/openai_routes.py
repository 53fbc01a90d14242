"""``/v1``: models, chats and completions, streamed and not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from edge.answer import AnswerRequest
from edge.controls import Controls
from edge.engine import EdgeEngine
from edge.http_body import json_object
from edge.http_settings import HttpSettings
from edge.http_stream import EventStream, patient, to_json, while_connected
from edge.openai_errors import RequestError, error_record
from edge.openai_replies import ChatReply, CompletionReply, Reply
from edge.openai_schema import AnswerFields, parse_chat, parse_completion
from edge.service import EdgeService
from shared.errors import BusyError, ConfigurationError, TandemError

_LOG = logging.getLogger("tandem.edge")
_SOURCES = ("page", "chat")  # clients of our own say who they are


def openai_routes(service: EdgeService, settings: HttpSettings) -> Sequence[BaseRoute]:
    """What lies below ``/v1``."""

    # one after the other, or a few long prompts would take every core
    encoder = ThreadPoolExecutor(1, thread_name_prefix="encoder")

    async def encoded(encode: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
        return await asyncio.get_running_loop().run_in_executor(encoder, encode)

    async def chat(request: Request) -> Response:
        body = await json_object(request, settings)
        fields = parse_chat(body, settings.max_messages)
        engine = _engine(service, fields)
        messages = fields.conversation()
        prompt = await encoded(lambda: engine.encode_chat(messages))
        reply = ChatReply(engine, logprobs=fields.logprobs, include_usage=fields.include_usage)
        asked = _asked(service, engine, fields, fields.limit, prompt, "messages", _source(request))
        return _AnswerResponse(service, settings, _Job(asked, engine, reply, fields.stream))

    async def completion(request: Request) -> Response:
        fields = parse_completion(await json_object(request, settings))
        engine = _engine(service, fields)
        prompt = await encoded(lambda: _encode_prompt(engine, fields.single_prompt))
        reply = CompletionReply(
            engine, logprobs=fields.logprobs is not None, include_usage=fields.include_usage
        )
        limit, source = fields.max_tokens, _source(request)
        asked = _asked(service, engine, fields, limit, prompt, "prompt", source)
        return _AnswerResponse(service, settings, _Job(asked, engine, reply, fields.stream))

    async def models(_request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model_record(service.engine)]})

    async def model(request: Request) -> Response:
        _check_model(service.engine, request.path_params["name"])
        return JSONResponse(_model_record(service.engine))

    return [
        Route("/chat/completions", chat, methods=["POST"]),
        Route("/completions", completion, methods=["POST"]),
        Route("/models", models, methods=["GET"]),
        Route("/models/{name:path}", model, methods=["GET"]),
    ]


@dataclass(frozen=True)
class _Job:
    """An answer to be made; ``engine`` is the one whose tokens the prompt is made of."""

    asked: AnswerRequest
    engine: EdgeEngine
    reply: Reply
    stream: bool


class _AnswerResponse(Response):
    """Waits for its turn, answers, and is cancelled as soon as the client leaves.

    The status is sent with the first words, so that what fails before has one of its own; a stream
    that has nothing to say for long begins with a comment.
    """

    def __init__(self, service: EdgeService, settings: HttpSettings, job: _Job) -> None:
        super().__init__()
        self._service, self._settings, self._job = service, settings, job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        job = self._job
        work = self._stream(send) if job.stream else self._whole(scope, receive, send)
        await while_connected(receive, work)

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        job = self._job
        async with self._service.answer(job.asked) as answer:
            self._check_engine()
            async with aclosing(answer.pieces()) as pieces:
                said = [piece async for piece in pieces]
        text = to_json(job.reply.whole(answer, said))
        response = Response(text, media_type="application/json")
        await response(scope, receive, patient(send, self._settings.send_seconds))

    async def _stream(self, send: Send) -> None:
        events = EventStream(send, self._settings.send_seconds)
        try:
            async with events.kept_alive(self._settings.keepalive_seconds):
                await self._events(events)
        except Exception as error:
            if not events.started:
                raise
            if not isinstance(error, TandemError):
                _LOG.exception("an answer failed")
            await events.data(to_json(error_record(error)[1]))  # OpenAI's clients raise it
        await events.data("[DONE]")
        await events.end()

    async def _events(self, events: EventStream) -> None:
        reply, opening = self._job.reply, self._job.reply.opening()
        async with self._service.answer(self._job.asked) as answer:
            self._check_engine()
            async with aclosing(answer.pieces()) as pieces:
                async for piece in pieces:
                    for chunk in opening:
                        await events.data(to_json(chunk))
                    opening = []
                    await events.data(to_json(reply.piece(piece)))
        for chunk in [*opening, *reply.closing(answer)]:
            await events.data(to_json(chunk))

    def _check_engine(self) -> None:
        """A bundle that was reloaded meanwhile may have another vocabulary."""
        then, now = self._job.engine.bundle, self._service.engine.bundle
        if then.manifest.fingerprint != now.manifest.fingerprint:
            raise BusyError("another bundle was loaded while the request waited: ask again")


def _engine(service: EdgeService, fields: AnswerFields) -> EdgeEngine:
    engine = service.engine
    if fields.model is not None:
        _check_model(engine, fields.model)
    return engine


def _check_model(engine: EdgeEngine, name: str) -> None:
    known = engine.bundle.manifest.name
    if name != known:
        raise RequestError(
            f"the model {name!r} does not exist here: {known} does",
            param="model",
            code="model_not_found",
            status=404,
        )


def _model_record(engine: EdgeEngine) -> dict[str, Any]:
    path = Path(engine.bundle.folder) / "manifest.json"
    try:
        created = int(path.stat().st_mtime)
    except OSError:  # the folder was moved or removed: what was loaded goes on
        created = 0
    return {
        "id": engine.bundle.manifest.name,
        "object": "model",
        "created": created,
        "owned_by": "tandem",
    }


def _source(request: Request) -> str:
    given = request.headers.get("x-tandem-source", "")
    return given if given in _SOURCES else "api"


def _encode_prompt(engine: EdgeEngine, prompt: str | list[int]) -> tuple[int, ...]:
    if isinstance(prompt, str):
        return engine.encode_text(prompt)
    size = engine.bundle.manifest.architecture.vocabulary_size
    for token in prompt:
        if not 0 <= token < size:
            raise RequestError(
                f"token {token} is not within [0, {size})", param="prompt", code="invalid_value"
            )
    return tuple(prompt)


def _asked(
    service: EdgeService,
    engine: EdgeEngine,
    fields: AnswerFields,
    max_tokens: int | None,
    prompt: tuple[int, ...],
    param: str,
    source: str,
) -> AnswerRequest:
    controls = _naming("tandem", lambda: service.controls.asked(fields.tandem))
    _check_room(engine, controls, max_tokens, prompt, param)
    return AnswerRequest(
        prompt,
        max_tokens,
        fields.sampling(),
        tuple(fields.stop),
        fields.tandem,
        source,
    )


def _naming(param: str, make: Callable[[], Controls]) -> Controls:
    try:
        return make()
    except ConfigurationError as error:
        raise RequestError(str(error), param=param, code="invalid_value") from None


def _check_room(
    engine: EdgeEngine,
    controls: Controls,
    max_tokens: int | None,
    prompt: tuple[int, ...],
    param: str,
) -> None:
    """The code by which clients know that a conversation has grown too long."""
    if not prompt:
        raise RequestError(f"{param} holds no tokens", param=param, code="invalid_value")
    context = engine.bundle.manifest.architecture.max_positions
    wanted = 1 if max_tokens is None else min(max_tokens, controls.max_tokens)
    if len(prompt) + wanted > context:
        raise RequestError(
            f"the model holds {context} tokens, but the {param} have {len(prompt)} and the answer "
            f"may take {wanted}: shorten them, or lower max_tokens",
            param=param,
            code="context_length_exceeded",
        )

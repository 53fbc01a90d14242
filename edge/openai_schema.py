"""Requests as OpenAI publishes them, of which all is honoured or refused by name.

A field of OpenAI's that Tandem lacks may carry the value that asks for nothing (``n`` 1, ``tools``
empty, ``null``); fields that have no effect on an answer by definition (``user``) are let pass.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from edge.answer import MAX_STOP_STRINGS
from edge.control_errors import wrong_control
from edge.openai_errors import RequestError, refusal
from shared.chat import Message
from shared.sampling import GREEDY, MAX_SEED, Sampling

_MAX_STOP_LENGTH = 256
_CONTROLS = ("mode", "threshold", "target_agreement", "aim", "private")
_HARMLESS = {"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
# what is not supported, with the values that ask for nothing
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
    "logit_bias": ({},),
    "n": (1,),
}
_NEUTRAL_CHAT: dict[str, tuple[Any, ...]] = _NEUTRAL | {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}
_NEUTRAL_COMPLETION: dict[str, tuple[Any, ...]] = _NEUTRAL | {
    "best_of": (1,),
    "echo": (False,),
    "suffix": (),
}
# what a client sends back with an earlier answer, which had nothing of it
_EMPTY_IN_MESSAGES: dict[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "refusal": ("",),
    "tool_calls": ([],),
}

Request = TypeVar("Request", bound="AnswerFields")


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def _joined(content: Any) -> Any:
    """Text parts as one text, a line each."""
    if not isinstance(content, list):
        return content
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise PydanticCustomError(
                "unsupported_value",
                "part {number} has the type {kind}, and only text is supported",
                {"number": number, "kind": repr(kind)},
            )
        text = part.get("text")
        if not isinstance(text, str) or part.keys() - {"type", "text"}:
            raise PydanticCustomError(
                "parts", "part {number} must hold type and text alone", {"number": number}
            )
        texts.append(text)
    return "\n".join(texts)


def _listed(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


def _no_alternatives(logprobs: int) -> int:
    if logprobs:
        raise PydanticCustomError(
            "unsupported_value", "only 0 is supported: the tokens' own, without alternatives"
        )
    return logprobs


def _without_padding(include: bool) -> bool:
    if include:
        raise PydanticCustomError("unsupported_value", "only false is supported")
    return include


class ChatMessage(_Strict):
    """One turn; ``developer`` is another word for ``system``."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_joined)]


class StreamOptions(_Strict):
    """What a stream carries besides text."""

    include_usage: bool = False
    include_obfuscation: Annotated[bool, AfterValidator(_without_padding)] = False


class AnswerFields(_Strict):
    """What chats and completions have in common.

    Without ``temperature`` the best token is taken, unlike at OpenAI.
    """

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0.0, le=2.0)
    top_p: float = Field(1.0, ge=0.0, le=1.0)
    seed: int | None = Field(None, ge=-(2**63), le=MAX_SEED)
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=_MAX_STOP_LENGTH)]],
        BeforeValidator(_listed),
        Field(max_length=MAX_STOP_STRINGS),
    ] = []
    stream: bool = False
    stream_options: StreamOptions | None = None
    tandem: dict[str, Any] = {}

    def sampling(self) -> Sampling:
        """How tokens are drawn; without ``seed`` differently each time."""
        if self.temperature == 0.0 or self.top_p == 0.0:
            return GREEDY
        seed = secrets.randbits(64) if self.seed is None else self.seed & MAX_SEED
        return Sampling(self.temperature, self.top_p, seed)

    def check(self) -> None:
        """Refuse what does not go together."""
        if self.stream_options is not None and not self.stream:
            raise RequestError(
                "stream_options is for stream: true", param="stream_options", code="invalid_value"
            )
        for name in self.tandem:
            if name not in _CONTROLS:
                raise RequestError(
                    f"tandem.{name} is not a control of a request: {', '.join(_CONTROLS)} are",
                    param=f"tandem.{name}",
                    code="unknown_parameter",
                )
        if wrong := wrong_control(self.tandem):
            name, error = wrong
            raise RequestError(str(error), param=f"tandem.{name}", code="invalid_value")
        if self.tandem.get("target_agreement") is not None and not self.sampling().greedy:
            raise RequestError(
                "target_agreement was measured on greedy answers: drop temperature, or set a "
                "threshold",
                param="tandem.target_agreement",
                code="invalid_value",
            )

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the count of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatFields(AnswerFields):
    """The body of ``/v1/chat/completions``."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False

    def check(self) -> None:
        """Refuse what does not go together."""
        super().check()
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise RequestError(
                "name max_completion_tokens or max_tokens, not both",
                param="max_tokens",
                code="invalid_value",
            )

    @property
    def limit(self) -> int | None:
        """The longest answer asked for."""
        return self.max_completion_tokens or self.max_tokens

    def conversation(self) -> list[Message]:
        """The turns as the chat template takes them."""
        return [
            Message("system" if turn.role == "developer" else turn.role, turn.content)
            for turn in self.messages
        ]


class CompletionFields(AnswerFields):
    """The body of ``/v1/completions``; ``prompt`` is a text or token ids, as they are or alone in a
    list."""

    prompt: Any
    logprobs: Annotated[int, AfterValidator(_no_alternatives)] | None = None

    @property
    def single_prompt(self) -> str | list[int]:
        """The one prompt.

        Raises:
            RequestError: it is something else, or there are several.
        """
        prompt = self.prompt
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
            prompt = prompt[0]
        if isinstance(prompt, str):
            return prompt
        if isinstance(prompt, list) and all(type(token) is int for token in prompt):
            return prompt
        several = isinstance(prompt, list) and all(isinstance(one, str | list) for one in prompt)
        raise RequestError(
            "one prompt a request is supported"
            if several
            else "prompt must be a text or a list of token ids",
            param="prompt",
            code="unsupported_value" if several else "invalid_value",
        )


def parse_chat(body: Mapping[str, Any], max_messages: int) -> ChatFields:
    """A validated chat; raises :class:`RequestError` that names the field at fault."""
    fields = _reduced(body, _NEUTRAL_CHAT)
    messages = fields.get("messages")
    if isinstance(messages, list):
        if len(messages) > max_messages:
            raise RequestError(
                f"{len(messages)} messages are more than {max_messages}",
                param="messages",
                code="too_many_messages",
            )
        fields["messages"] = [_without_empty(message) for message in messages]
    return _validated(ChatFields, fields)


def parse_completion(body: Mapping[str, Any]) -> CompletionFields:
    """A validated completion; raises :class:`RequestError` that names the field at fault."""
    return _validated(CompletionFields, _reduced(body, _NEUTRAL_COMPLETION))


def _validated(kind: type[Request], fields: Mapping[str, Any]) -> Request:
    try:
        request = kind.model_validate(fields)
    except ValidationError as error:
        raise refusal(error) from None
    request.check()
    return request


def _reduced(body: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """``body`` without what asks for nothing; raises for what asks for something unsupported."""
    kept = {}
    for name, value in body.items():
        if name in _HARMLESS:
            continue
        if name in neutral:
            if value is None or any(_same(value, plain) for plain in neutral[name]):
                continue
            raise RequestError(
                f"{name} is not supported: drop it", param=name, code="unsupported_parameter"
            )
        if value is None and name in (
            ChatFields.model_fields.keys() | CompletionFields.model_fields.keys()
        ):
            continue
        kept[name] = value
    return kept


def _same(value: Any, plain: Any) -> bool:
    return type(value) is type(plain) and value == plain


def _without_empty(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    return {
        name: value
        for name, value in message.items()
        if not (
            name in _EMPTY_IN_MESSAGES
            and (value is None or any(_same(value, empty) for empty in _EMPTY_IN_MESSAGES[name]))
        )
    }

"""Answers as OpenAI publishes them: whole or in chunks, with what Tandem adds under ``tandem``."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edge.answer import Answer, FinishReason, Piece
from edge.generation import GeneratedToken, Mode
from edge.token_text import TextOffsets, TokenText

if TYPE_CHECKING:
    from edge.engine import EdgeEngine
    from edge.generation_result import GenerationResult

Record = dict[str, Any]


class Reply(ABC):
    """What one answer is sent as.

    ``logprobs`` says whether tokens are sent with their natural log-probabilities.
    """

    kind: str
    chunk_kind: str
    prefix: str

    def __init__(self, engine: EdgeEngine, *, logprobs: bool, include_usage: bool) -> None:
        self._logprobs, self._include_usage = logprobs, include_usage
        self._text = TokenText(engine.tokenizer)
        self._stops = engine.stop_token_ids
        manifest = engine.bundle.manifest
        self._common = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": manifest.name,
            "system_fingerprint": f"fp_{manifest.fingerprint[:12]}",
        }

    def whole(self, answer: Answer, pieces: Sequence[Piece]) -> Record:
        """The answer in one object."""
        assert answer.finish_reason is not None
        tokens = [token for piece in pieces for token in piece.tokens]
        choice = self._choice(answer.text) | {
            "index": 0,
            "logprobs": self._logprob_record(tokens),
            "finish_reason": answer.finish_reason.value,
        }
        return self._common | {
            "object": self.kind,
            "choices": [choice],
            "usage": usage(answer),
            "tandem": {
                "pieces": [piece_record(piece) for piece in pieces],
                "summary": summary(answer.result()),
            },
        }

    def opening(self) -> list[Record]:
        """Chunks before the first text."""
        return []

    def piece(self, piece: Piece) -> Record:
        """The chunk of a piece of text."""
        return self._chunk(
            self._delta(piece.text),
            {"pieces": [piece_record(piece)]},
            self._logprob_record(piece.tokens),
        )

    def closing(self, answer: Answer) -> list[Record]:
        """Chunks after the last text."""
        assert answer.finish_reason is not None
        chunks = [
            self._chunk(
                self._delta(None), {"summary": summary(answer.result())}, None, answer.finish_reason
            )
        ]
        if self._include_usage:
            chunks.append(
                self._common | {"object": self.chunk_kind, "choices": [], "usage": usage(answer)}
            )
        return chunks

    def _chunk(
        self,
        delta: Record,
        tandem: Record,
        logprobs: Record | None = None,
        finish_reason: FinishReason | None = None,
    ) -> Record:
        choice = delta | {
            "index": 0,
            "logprobs": logprobs,
            "finish_reason": finish_reason.value if finish_reason else None,
        }
        chunk = self._common | {"object": self.chunk_kind, "choices": [choice], "tandem": tandem}
        return chunk | ({"usage": None} if self._include_usage else {})

    def _logprob_record(self, tokens: Sequence[GeneratedToken]) -> Record | None:
        if not self._logprobs:
            return None
        # the token that ends an answer is no part of its text
        return self._of_tokens([token for token in tokens if token.token_id not in self._stops])

    @abstractmethod
    def _choice(self, text: str) -> Record: ...

    @abstractmethod
    def _delta(self, text: str | None) -> Record: ...

    @abstractmethod
    def _of_tokens(self, tokens: Sequence[GeneratedToken]) -> Record: ...


class ChatReply(Reply):
    """Of ``/v1/chat/completions``."""

    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def opening(self) -> list[Record]:
        """Says who speaks."""
        return [self._chunk({"delta": {"role": "assistant", "content": ""}}, {"pieces": []})]

    def _choice(self, text: str) -> Record:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _delta(self, text: str | None) -> Record:
        return {"delta": {} if text is None else {"content": text}}

    def _of_tokens(self, tokens: Sequence[GeneratedToken]) -> Record:
        content = [
            {
                "token": self._text.text(token.token_id),
                "logprob": token.logprob,
                "bytes": self._text.bytes(token.token_id),
                "top_logprobs": [],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}


class CompletionReply(Reply):
    """Of ``/v1/completions``."""

    kind, chunk_kind, prefix = "text_completion", "text_completion", "cmpl"

    def __init__(self, engine: EdgeEngine, *, logprobs: bool, include_usage: bool) -> None:
        super().__init__(engine, logprobs=logprobs, include_usage=include_usage)
        self._offsets = TextOffsets(engine.tokenizer)

    def _choice(self, text: str) -> Record:
        return {"text": text}

    def _delta(self, text: str | None) -> Record:
        return {"text": text or ""}

    def _of_tokens(self, tokens: Sequence[GeneratedToken]) -> Record:
        return {
            "tokens": [self._text.text(token.token_id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": None,
            "text_offset": [self._offsets.next(token.token_id) for token in tokens],
        }


def usage(answer: Answer) -> Record:
    """Tokens of prompt and answer, the one that ends it included."""
    prompt, completion = answer.prompt_tokens, len(answer.tokens)
    return {
        "prompt_tokens": prompt,
        "prompt_tokens_details": {"cached_tokens": answer.result().cached_tokens},
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def piece_record(piece: Piece) -> Record:
    """A piece of text and where it came from."""
    return {
        "text": piece.text,
        "origin": piece.origin,
        "alone": piece.alone,
        "tokens": len(piece.tokens),
    }


def summary(result: GenerationResult) -> Record:
    """What an answer was made of and what it cost."""
    tokens, mode = result.tokens, result.options.mode
    return {
        "mode": mode.value,
        "plan": str(result.plan) if mode in (Mode.COLLABORATIVE, Mode.AUTO) else None,
        "origins": dict(Counter(token.origin for token in tokens)),
        "alone": sum(token.alone for token in tokens),
        "seconds": round(result.seconds, 6),
        "first_token_seconds": round(result.first_token_seconds, 6) if tokens else None,
        "tokens_per_second": round(len(tokens) / result.seconds, 3) if result.seconds else None,
        "uploaded_bytes": result.uploaded_bytes,
        "downloaded_bytes": result.downloaded_bytes,
        "escalations": result.statistics.escalations,
        "rollbacks": result.statistics.rollbacks,
        "agreement_estimate": agreement_estimate(tokens),
    }


def agreement_estimate(tokens: Sequence[GeneratedToken]) -> float | None:
    """Share of an answer's tokens that are likely the full model's own: the mean over its tokens of
    1 for the cloud's, and of the exit's calibrated confidence for the others.  An estimate from
    confidences, not a measurement; ``None`` where there is nothing to judge by."""
    shares = [
        1.0 if token.origin == "cloud" else token.confidence
        for token in tokens
        if token.origin == "cloud" or token.confidence is not None
    ]
    known = [share for share in shares if share is not None]
    return round(sum(known) / len(known), 4) if known else None

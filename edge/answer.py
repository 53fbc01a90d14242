"""One answer as text: characters are whole, stop strings are honoured, words know their origin."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from tokenizers.decoders import DecodeStream

from shared.sampling import GREEDY, Sampling

if TYPE_CHECKING:
    from edge.engine import EdgeEngine
    from edge.generation import GeneratedToken
    from edge.generation_result import GenerationResult
    from edge.generation_run import Generation

MAX_STOP_STRINGS = 4  # as OpenAI has it


class FinishReason(Enum):
    """Why an answer ended, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True)
class AnswerRequest:
    """What a client asks for.

    Attributes:
        prompt_ids: tokens of the prompt, chat template applied.
        max_tokens: longest answer; ``None`` as long as the daemon allows and the model holds.
        stop: strings before which the text ends.
        changes: to the daemon's controls as they are when it is this answer's turn, as
            :meth:`edge.controls.Controls.asked` takes them.
        source: who asks, for logs and metrics: ``api``, ``page``, ``chat``.
    """

    prompt_ids: tuple[int, ...]
    max_tokens: int | None = None
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)
    source: str = "api"


@dataclass(frozen=True)
class Piece:
    """Text that became certain, and the tokens that it is made of (none: it was held back)."""

    text: str
    tokens: tuple[GeneratedToken, ...]

    @property
    def origin(self) -> str:
        """Of the deepest of its tokens: ``cloud``, else ``exit2`` before ``exit1``."""
        origins = {token.origin for token in self.tokens}
        return "cloud" if "cloud" in origins else max(origins, default="exit1")

    @property
    def alone(self) -> bool:
        """Whether the cloud would have been asked for it, had it been there."""
        return any(token.alone for token in self.tokens)


class Answer:
    """One answer: iterate over :meth:`pieces`, then read the rest.

    ``text`` is what the pieces add up to, ``finish_reason`` is there once they have ended.
    """

    def __init__(self, engine: EdgeEngine, generation: Generation, stop: Sequence[str]) -> None:
        self.text = ""
        self.tokens: list[GeneratedToken] = []
        self.finish_reason: FinishReason | None = None
        self._engine, self._generation = engine, generation
        self._stops = StopStrings(stop)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return self._generation.prompt_tokens

    @property
    def started(self) -> bool:
        """Whether there is a result to read, finished or not."""
        return self._generation.ended

    def result(self) -> GenerationResult:
        """What it cost, once the pieces have ended or were left."""
        return self._generation.result()

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Pieces of text as they become certain; leaving early ends the generation."""
        decoder = DecodeStream(skip_special_tokens=True)
        undecoded: list[GeneratedToken] = []
        decoded = ""
        async with aclosing(self._generation.run()) as tokens:
            async for token in tokens:
                self.tokens.append(token)
                undecoded.append(token)
                text = decoder.step(self._engine.tokenizer, token.token_id)
                if not text:
                    continue
                decoded += text
                piece, undecoded = Piece(text, tuple(undecoded)), []
                for certain in self._stops.add(piece):
                    yield self._said(certain)
                if self._stops.matched:
                    self.finish_reason = FinishReason.STOP
                    return
        # a character that the answer's end left torn, and what a stop string might have begun with
        whole = self._engine.decode([token.token_id for token in self.tokens])
        rest = whole.removeprefix(decoded) if whole.startswith(decoded) else ""
        for certain in [*self._stops.add(Piece(rest, tuple(undecoded))), *self._stops.flush()]:
            yield self._said(certain)
        ended = self._stops.matched or (
            self.tokens and self.tokens[-1].token_id in self._engine.stop_token_ids
        )
        self.finish_reason = FinishReason.STOP if ended else FinishReason.LENGTH

    def _said(self, piece: Piece) -> Piece:
        self.text += piece.text
        return piece


class StopStrings:
    """Holds text back while it may be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.matched = False
        self._stops = tuple(stop for stop in stops if stop)
        self._held: deque[Piece] = deque()

    def add(self, piece: Piece) -> list[Piece]:
        """What is certain after ``piece``; once ``matched``, nothing more may be added."""
        assert not self.matched
        self._held.append(piece)
        if not self._stops:
            return self.flush()
        text = "".join(held.text for held in self._held)
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.matched = True
            certain = self._take(min(found)[1])  # what is complete first, however it came in pieces
            self._held.clear()
            return certain
        return self._take(len(text) - self._beginning(text))

    def flush(self) -> list[Piece]:
        """All that is held: no stop string came of it."""
        held, self._held = list(self._held), deque()
        return [piece for piece in held if piece.text or piece.tokens]

    def _beginning(self, text: str) -> int:
        """Characters at the end of ``text`` that a stop string may begin with."""
        longest = max(len(stop) for stop in self._stops) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0

    def _take(self, length: int) -> list[Piece]:
        """The first ``length`` characters; a piece that is cut keeps its tokens with its start."""
        taken = []
        while self._held and length >= len(self._held[0].text):
            piece = self._held.popleft()
            taken.append(piece)
            length -= len(piece.text)
        if self._held and length > 0:
            piece = self._held.popleft()
            taken.append(Piece(piece.text[:length], piece.tokens))
            self._held.appendleft(Piece(piece.text[length:], ()))
        return taken

"""One conversation with an :class:`EdgeService`: turns that can be stopped, and commands."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING

from edge.answer import Answer, AnswerRequest, FinishReason
from edge.chat_conversation import Conversation
from edge.generation import Mode
from shared.errors import CloudUnavailableError, ConfigurationError
from shared.sampling import Sampling

if TYPE_CHECKING:
    from edge.chat_display import ChatDisplay
    from edge.service import EdgeService


class Chat:
    """Its coroutines run on the service's event loop.

    Args:
        sampling: gives each answer's.
    """

    def __init__(
        self,
        service: EdgeService,
        display: ChatDisplay,
        conversation: Conversation,
        sampling: Callable[[], Sampling],
    ) -> None:
        self.service, self.display, self.conversation = service, display, conversation
        self.sampling = sampling
        self.aim = service.controls.aim  # another mode makes the controls forget it

    def turn(self, question: str) -> Turn:
        """A turn of the conversation, to be run."""
        return Turn(self, question)


class Turn:
    """A question and its answer: :meth:`run` it, and :meth:`stop` it if need be."""

    def __init__(self, chat: Chat, question: str) -> None:
        self._chat, self._question = chat, question
        self._stopped = False
        self._task: asyncio.Task[None] | None = None

    def stop(self) -> None:
        """End the answer where it is; on the event loop, and also before :meth:`run`."""
        self._stopped = True
        if self._task is not None:
            self._task.cancel()

    async def run(self) -> None:
        """Answer on the display, and remember what was said.

        Raises:
            TandemError: no answer, or no more of it, can be had.
        """
        if not self._stopped:
            self._task = asyncio.create_task(self._answer(), name="answer")
            await asyncio.wait([self._task])
            if not self._task.cancelled():
                self._task.result()
                return
        self._chat.display.notice("stopped")

    async def _answer(self) -> None:
        chat = self._chat
        request = AnswerRequest(self._prompt_ids(), sampling=chat.sampling(), source="chat")
        answer: Answer | None = None
        try:
            async with (
                chat.service.answer(request) as answer,
                aclosing(answer.pieces()) as pieces,
            ):
                async for piece in pieces:
                    chat.display.say(piece)
        except CloudUnavailableError as error:
            if chat.service.controls.mode is Mode.AUTO:
                raise
            raise CloudUnavailableError(
                f"{error}; /mode auto goes on without the cloud where it must"
            ) from None
        finally:
            chat.display.end_line()
            if answer is not None:
                self._close(answer)

    def _prompt_ids(self) -> tuple[int, ...]:
        chat, engine = self._chat, self._chat.service.engine
        prompt = chat.conversation.prompt(
            self._question,
            engine.encode_chat,
            engine.bundle.manifest.architecture.max_positions,
            chat.service.controls.max_tokens,
        )
        if prompt.forgotten:
            chat.conversation.forget(prompt.forgotten)
            turns = "turn is" if prompt.forgotten == 1 else "turns are"
            chat.display.notice(
                f"the conversation no longer fits the model: the oldest {prompt.forgotten} {turns} "
                "forgotten"
            )
        return prompt.ids

    def _close(self, answer: Answer) -> None:
        """Remember and sum up; a question that got no word is as if it had not been asked."""
        chat = self._chat
        if answer.text or answer.finish_reason is not None:
            chat.conversation.add(self._question, answer.text)
        if answer.finish_reason is FinishReason.LENGTH:
            wished = len(answer.tokens) >= chat.service.controls.max_tokens
            why = "--max-tokens" if wished else "the model holds no more"
            chat.display.notice(f"cut off after {len(answer.tokens)} tokens ({why})")
        if answer.started and answer.tokens:
            chat.display.figures(answer.result(), chat.service.status().rtt_seconds)


def checked_target(target: float | None, *, greedy: bool) -> float | None:
    """A target agreement, which holds for greedy answers alone."""
    if target is not None and not greedy:
        raise ConfigurationError(
            "a target agreement was measured on greedy answers: leave and start without "
            "--temperature"
        )
    return target

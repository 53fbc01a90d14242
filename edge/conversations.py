"""What is kept between the turns of a conversation, so that little is taken in twice.

What was kept changes no text.  A device's quantized layers give other rows for a token that was
generated, one at a time, than for one of a prompt, taken in with many others, and nobody shall be
able to tell from an answer whether a conversation was kept.  So an answer is taken in once more, as
part of the next prompt: only what was a prompt is kept on the edge, and in the cloud what was sent
of it.  (Token ids are the same either way: of them the cloud keeps all.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge.cloud_session import KeptSession
    from edge.context_source import ContextCodec
    from edge.exit_model import ModelState

# a beginning that is shorter, such as a system message alone, is taken in again soon enough
_LEAST_SHARED = 16


@dataclass(frozen=True)
class Conversation:
    """The text at the end of an answer (with drafts that were never shown, perhaps), the edge's
    state over its first ``state.positions`` tokens, and what the cloud holds of it, in that
    codec."""

    token_ids: Sequence[int]
    state: ModelState | None = None
    session: KeptSession | None = None
    codec: ContextCodec | None = None


class Conversations:
    """The last few of them, the newest last; the oldest go where there are too many.

    Args:
        limit: conversations kept at most; 0 keeps none.
        max_tokens: their texts' tokens together at most; each holds some memory of the edge's.
    """

    def __init__(self, limit: int, max_tokens: int) -> None:
        self._limit, self._max_tokens = limit, max_tokens
        self._kept: list[Conversation] = []

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def tokens(self) -> int:
        """Tokens of the texts that are kept."""
        return sum(len(each.token_ids) for each in self._kept)

    def take(self, prompt_ids: Sequence[int]) -> Conversation | None:
        """The one that ``prompt_ids`` goes on from, which is then the caller's.

        One of which less than half would stay is another conversation that begins alike.
        """
        if not self._kept:
            return None
        lengths = [shared_beginning(each.token_ids, prompt_ids) for each in self._kept]
        shared = max(lengths)
        best = self._kept[lengths.index(shared)]
        if shared < _LEAST_SHARED or 2 * shared < len(best.token_ids):
            return None
        self._kept = [each for each in self._kept if each is not best]
        return best

    def put(self, conversation: Conversation) -> None:
        """Keep a conversation as the newest."""
        self._kept.append(conversation)
        while len(self._kept) > self._limit or self.tokens > self._max_tokens:
            del self._kept[0]


def shared_beginning(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that both begin with."""
    both = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(both) if a != b), min(len(one), len(other)))

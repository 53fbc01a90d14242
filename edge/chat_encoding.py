"""Text and conversations as token ids, in which only the template writes special tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from tokenizers import Tokenizer

from shared.chat import ChatTemplate, Message
from shared.errors import PromptTooLongError

_FIRST_MARK = 0xE000  # of Unicode's private characters, which mean nothing


class ChatEncoder:
    """Encodes texts and conversations with a bundle's tokenizer and template.

    Other threads run meanwhile (in batches, even of one, the tokenizer lets go of the
    interpreter's lock).  What cannot fit into ``most_tokens`` is refused before it is looked at.

    A message that holds the text of a special token (``<|im_end|>``) could otherwise end its own
    turn and begin another's.  Such text is cut behind its first character and the pieces are
    encoded one by one, which makes ordinary tokens of it; any other conversation is encoded whole.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, most_tokens: int) -> None:
        self._tokenizer, self._template = tokenizer, template
        longest = max(map(len, tokenizer.get_vocab()), default=1)
        self._most_tokens, self._most_characters = most_tokens, most_tokens * longest
        added = tokenizer.get_added_tokens_decoder().values()
        special = sorted(re.escape(token.content) for token in added if token.special)
        self._special = re.compile(f"(?=(?:{'|'.join(special)}))") if special else None

    def encode(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Token ids up to where the assistant's words begin.

        Raises:
            BundleError: the template fails on this conversation.
            PromptTooLongError: it cannot fit.
        """
        self._check(sum(len(message.content) for message in messages))
        mark = _mark(messages)
        marked = [
            replace(message, content=self._cut(message.content, mark)) for message in messages
        ]
        first, *rest = self._template.render(marked).split(mark)
        encoded = self._tokenizer.encode_batch([first])
        encoded += self._tokenizer.encode_batch(rest, add_special_tokens=False)
        return tuple(token for piece in encoded for token in piece.ids)

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Token ids of a text as it is, special tokens in it included.

        Raises:
            PromptTooLongError: it cannot fit.
        """
        self._check(len(text))
        return tuple(self._tokenizer.encode_batch([text])[0].ids)

    def _check(self, characters: int) -> None:
        if characters > self._most_characters:
            raise PromptTooLongError(
                f"the model holds {self._most_tokens} tokens, and {characters:,} characters are "
                "more than that: shorten the prompt"
            )

    def _cut(self, text: str, mark: str) -> str:
        """``text`` with ``mark`` within each special token, those that overlap included."""
        if self._special is None:
            return text
        cuts = [found.start() + 1 for found in self._special.finditer(text)]
        return mark.join(text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True))


def _mark(messages: Sequence[Message]) -> str:
    """A character that no message has."""
    used = set().union(*(message.content for message in messages))
    code = _FIRST_MARK
    while chr(code) in used:
        code += 1
    return chr(code)

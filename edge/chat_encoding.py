"""A conversation as token ids, in which only the template writes special tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from tokenizers import Tokenizer

from shared.chat import ChatTemplate, Message

_FIRST_MARK = 0xE000  # of Unicode's private characters, which mean nothing


class ChatEncoder:
    """Encodes conversations with a bundle's tokenizer and template.

    A message that holds the text of a special token (``<|im_end|>``) could otherwise end its own
    turn and begin another's.  Such text is cut behind its first character and the pieces are
    encoded one by one, which makes ordinary tokens of it; any other conversation is encoded whole.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._tokenizer, self._template = tokenizer, template
        added = tokenizer.get_added_tokens_decoder().values()
        special = sorted(re.escape(token.content) for token in added if token.special)
        self._special = re.compile(f"(?=(?:{'|'.join(special)}))") if special else None

    def encode(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Token ids up to where the assistant's words begin.

        Raises:
            BundleError: the template fails on this conversation.
        """
        mark = _mark(messages)
        marked = [
            replace(message, content=self._cut(message.content, mark)) for message in messages
        ]
        ids: list[int] = []
        for index, piece in enumerate(self._template.render(marked).split(mark)):
            ids += self._tokenizer.encode(piece, add_special_tokens=index == 0).ids
        return tuple(ids)

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

"""Single tokens as text and as bytes, for those who ask for log-probabilities."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class TokenText:
    """Of ``tokenizer``'s tokens, which may be parts of characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def text(self, token_id: int) -> str:
        """The token alone; a part of a character is U+FFFD."""
        return str(self._tokenizer.decode([token_id], skip_special_tokens=False))

    def bytes(self, token_id: int) -> list[int] | None:
        """The token's UTF-8 bytes; ``None`` where they cannot be told."""
        text = self.text(token_id)
        if "\ufffd" not in text:
            return list(text.encode())
        spelled = self._tokenizer.id_to_token(token_id) or ""
        if all(letter in _BYTES for letter in spelled):
            return [_BYTES[letter] for letter in spelled]
        return None


class TextOffsets:
    """Where the tokens of an answer begin in its text, asked for one after the other."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._length = 0

    def next(self, token_id: int) -> int:
        """Characters before the next token; those that are parts of one character begin where it
        does, and special tokens take no room."""
        began = self._length
        added = self._decoder.step(self._tokenizer, token_id) or ""
        self._length += len(added)
        alone = self._tokenizer.decode([token_id], skip_special_tokens=True)
        if "\ufffd" not in alone and added.endswith(alone):
            # a character before it was torn, which shows only now
            return began + len(added) - len(alone)
        return began


def _byte_letters() -> dict[str, int]:
    """The letters in which byte-level vocabularies (GPT-2's) spell bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(0x100 + number): byte for number, byte in enumerate(others)}


_BYTES = _byte_letters()

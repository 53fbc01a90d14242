"""A conversation on the terminal: words coloured by origin, figures, notices and errors aside."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.style import Style
from rich.text import Text

from edge.token_display import style_of
from shared.terminal_text import harmless

if TYPE_CHECKING:
    from edge.answer import Piece
    from edge.generation_result import GenerationResult

_ALONE = Style(underline=True)  # as edge/token_display.py has it


class ChatDisplay:
    """Writes answers to standard output; all else goes there on a terminal, else to standard
    error, so that a pipe gets the answers alone."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._aside = (
            self._console
            if self._console.is_terminal
            else Console(stderr=True, highlight=False, soft_wrap=True)
        )
        self._mid_line = False

    def greet(self, model: str, mode: str, origins: Iterable[str]) -> None:
        """What talks, and what its colours mean."""
        line = Text(f"{model}, {mode} mode; words by origin: ")
        for index, origin in enumerate(origins):
            line.append(", " if index else "")
            line.append(origin, style_of(origin))
        line.append("; /help lists commands, Ctrl-C stops an answer, Ctrl-D leaves")
        self._aside.print(line, style="dim")

    def say(self, piece: Piece) -> None:
        """Part of an answer."""
        text = piece.text
        if not text:
            return
        if self._console.is_terminal:
            style = style_of(piece.origin) + (_ALONE if piece.alone else Style.null())
            self._console.print(Text(harmless(text), style), end="")
        else:  # as it is, tabs and all
            self._console.file.write(text)
        self._console.file.flush()
        self._mid_line = True

    def end_line(self) -> None:
        """The answer does not go on."""
        if self._mid_line:
            self._console.print()
            self._console.file.flush()
        self._mid_line = False

    def figures(self, result: GenerationResult, rtt_seconds: float | None) -> None:
        """What an answer took, in one line."""
        self._aside.print(figures(result, rtt_seconds), style="dim")

    def notice(self, text: str) -> None:
        """Something worth knowing."""
        self._aside.print(Text(harmless(text)), style="dim")

    def error(self, text: str) -> None:
        """Something that did not work, and what to do."""
        self._aside.print(Text.assemble(("error: ", "bold red"), harmless(text)))


class Notices(logging.Handler):
    """Keeps what the edge logs while it answers, until the answer's own lines are out."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._kept: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self._kept.append(record.getMessage())

    def take(self) -> list[str]:
        """What was kept, once each."""
        kept, self._kept = list(dict.fromkeys(self._kept)), []
        return kept


def figures(result: GenerationResult, rtt_seconds: float | None) -> Text:
    """Tokens, speed, the device's share, round trip, bytes; an answer of no tokens has no
    shares."""
    count = len(result.tokens)
    line = Text(f"{count} tokens, {count / max(result.seconds, 1e-9):.1f}/s")
    origins = Counter(token.origin for token in result.tokens)
    own = sorted(origin for origin in origins if origin != "cloud")
    if count:
        line.append(f" · {sum(origins[origin] for origin in own) / count:.0%} on this device")
        for index, origin in enumerate(own):
            line.append(", " if index else " (")
            line.append(f"{origin} {origins[origin] / count:.0%}", style_of(origin))
        line.append(")" if own else "")
    if alone := sum(token.alone for token in result.tokens):
        line.append(f" · {alone} without the cloud that would have been asked", _ALONE)
    if rtt_seconds is not None:
        line.append(f" · round trip {rtt_seconds * 1000:.0f} ms")
    if result.uploaded_bytes or result.downloaded_bytes:
        line.append(f" · {size(result.uploaded_bytes)} up, {size(result.downloaded_bytes)} down")
    return line


def size(count: int) -> str:
    """Bytes for people."""
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.1f} kB" if count < 1_000_000 else f"{count / 1e6:.1f} MB"


def is_conversation() -> bool:
    """Whether a person sits at both ends of the terminal."""
    return sys.stdin.isatty() and sys.stdout.isatty()

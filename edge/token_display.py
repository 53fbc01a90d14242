"""Tokens on a terminal as they come, coloured by origin, and a line that sums them up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.style import Style
from rich.text import Text
from tokenizers.decoders import DecodeStream

from shared.terminal_text import harmless

if TYPE_CHECKING:
    from edge.engine import EdgeEngine
    from edge.generation import GeneratedToken
    from edge.generation_options import GenerationOptions
    from edge.generation_result import GenerationResult

_STYLES = {
    "exit1": Style(color="green"),
    "exit2": Style(color="yellow"),
    "cloud": Style(color="magenta", bold=True),
}
_ALONE = Style(underline=True)  # the cloud would have been asked, had it been there


def style_of(origin: str) -> Style:
    """Colour of an origin; deeper exits than the second share its colour."""
    return _STYLES.get(origin, _STYLES["exit2"])


class TokenDisplay:
    """Writes an answer piece by piece; a character of several tokens appears when it is whole."""

    def __init__(self, engine: EdgeEngine, console: Console | None = None) -> None:
        self._engine = engine
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._stream = DecodeStream(skip_special_tokens=True)
        self._mid_line = False

    def show(self, token: GeneratedToken) -> None:
        """Print what ``token`` adds to the text."""
        piece = self._stream.step(self._engine.tokenizer, token.token_id)
        if piece:
            style = style_of(token.origin) + (_ALONE if token.alone else Style.null())
            if self._console.is_terminal:  # a pipe gets it as it is
                piece = harmless(piece)
            self._console.print(Text(piece, style), end="")
            self._console.file.flush()
            self._mid_line = True

    def break_off(self) -> None:
        """End the line of an answer that does not go on."""
        if self._mid_line:
            self._console.print()

    def finish(self, result: GenerationResult) -> None:
        """End the line and print the summary below it (to standard error where text is piped)."""
        self._console.print()
        aside = self._console if self._console.is_terminal else Console(stderr=True)
        aside.print(summary(result), style="dim", highlight=False)


async def show_answer(
    engine: EdgeEngine,
    prompt_ids: Sequence[int],
    options: GenerationOptions,
    console: Console | None = None,
) -> GenerationResult:
    """Generate on the terminal, token by token; an answer that breaks off ends its line."""
    generation = engine.generation(prompt_ids, options)
    display = TokenDisplay(engine, console)
    try:
        async for token in generation.run():
            display.show(token)
    except BaseException:
        display.break_off()
        raise
    result = generation.result()
    display.finish(result)
    return result


def summary(result: GenerationResult) -> Text:
    """One line: tokens, speed, share by origin, waiting, bytes."""
    count = len(result.tokens)
    origins = Counter(token.origin for token in result.tokens)
    line = Text(f"{count} tokens, {count / max(result.seconds, 1e-9):.1f}/s · ")
    for index, (origin, times) in enumerate(sorted(origins.items(), key=lambda x: _order(x[0]))):
        line.append(", " if index else "")
        line.append(f"{origin} {times / count:.0%}", style_of(origin))
    if alone := sum(token.alone for token in result.tokens):
        line.append(f" · {alone} without the cloud that would have been asked", _ALONE)
    if result.statistics.escalations:
        line.append(f" · {result.statistics.stall_seconds:.2f} s waiting for the cloud")
        line.append(
            f" · {_bytes(result.uploaded_bytes)} up, {_bytes(result.downloaded_bytes)} down"
        )
    return line


def _order(origin: str) -> tuple[bool, str]:
    return origin == "cloud", origin


def _bytes(count: int) -> str:
    return f"{count} B" if count < 1000 else f"{count / 1000:.1f} kB"

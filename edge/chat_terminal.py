"""The main thread of ``tandem chat``: read a line, run it on the loop, until there are no more."""

from __future__ import annotations

from edge.chat import Chat
from edge.chat_commands import run_command
from edge.chat_display import Notices
from edge.chat_input import Lines
from edge.chat_loop import Interrupts, LoopThread
from shared.errors import TandemError


class ChatTerminal:
    """Errors are shown and the conversation goes on; with a pipe (not ``interactive``) the first
    error ends it, since what follows rests on what went before."""

    def __init__(
        self, loop: LoopThread, chat: Chat, lines: Lines, notices: Notices, *, interactive: bool
    ) -> None:
        self._loop, self._chat, self._lines, self._notices = loop, chat, lines, notices
        self._interactive = interactive
        self._interrupts = Interrupts()
        self._left = 0  # Ctrl-C in a row

    def converse(self) -> None:
        """Return when the user leaves.

        Raises:
            TandemError: an error that came through a pipe.
            KeyboardInterrupt: Ctrl-C, where lines come through a pipe.
        """
        with self._interrupts:
            going = True
            while going:
                try:
                    line = self._lines.read()
                    going = line is not None and self._run(line)
                except KeyboardInterrupt:
                    going = self._interrupted()
                except TandemError as error:
                    if not self._interactive:
                        raise
                    self._chat.display.error(str(error))

    def _run(self, line: str) -> bool:
        if not line.strip():
            return True
        self._left = 0
        if line.startswith("/") and not line.startswith("//"):
            return self._loop.run(self._command(line))
        turn = self._chat.turn(line.removeprefix("/") if line.startswith("//") else line)
        try:
            with self._interrupts.stopping(lambda: self._loop.call(turn.stop)):
                self._loop.run(turn.run())
        finally:
            for notice in self._notices.take():
                self._chat.display.notice(notice)
        if self._interrupts.stopped:
            if not self._interactive:
                raise KeyboardInterrupt
            self._left = 1
        return True

    async def _command(self, line: str) -> bool:
        return run_command(self._chat, line)

    def _interrupted(self) -> bool:
        """The second Ctrl-C in a row leaves; the first may have stopped an answer."""
        if not self._interactive:
            raise KeyboardInterrupt
        self._left += 1
        print()
        if self._left == 1:
            self._chat.display.notice("Ctrl-C again, Ctrl-D or /quit leaves")
        return self._left == 1

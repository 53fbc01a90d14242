"""What others say reaches the terminal as text alone."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from edge import doctor_report
from edge.chat_display import ChatDisplay
from edge.doctor import fail
from shared.terminal_text import harmless

EVIL = "\x1b]0;title\x07\x1b[2J\x9b31mhello"


def test_control_characters_are_replaced_and_lines_stay() -> None:
    assert harmless("a\tb\nc\r\x1b\x7f\x9bü") == "a\tb\nc����ü"


def check(written: str) -> None:
    assert "hello" in written
    assert not {"\x1b", "\x07", "\x9b"} & set(written)


def test_errors_and_notices_of_a_chat() -> None:
    display, out = ChatDisplay(), io.StringIO()
    display._aside = Console(file=out, force_terminal=True, color_system=None, soft_wrap=True)
    display.error(EVIL)
    check(out.getvalue())
    display.notice(EVIL)
    check(out.getvalue())


def test_findings_of_the_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    doctor_report.show([fail("cloud TLS", f"it says {EVIL}", f"ask {EVIL}")])
    check(capsys.readouterr().out)

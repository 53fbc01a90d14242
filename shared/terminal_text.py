"""Text of others (models, clouds, brokers, files) for the terminal, which it must not steer."""

from __future__ import annotations

_CONTROLS = {code: "�" for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}


def harmless(text: str) -> str:
    """``text`` with U+FFFD for each control character but line feeds and tabs."""
    return text.translate(_CONTROLS)

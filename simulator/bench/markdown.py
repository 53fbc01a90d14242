"""Markdown from figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; columns of figures to the right, others to the left."""
    body = [[_cell(cell) for cell in row] for row in rows]
    figures = [
        bool(body) and all(_is_figure(row[index]) for row in body) for index in range(len(head))
    ]
    lines = [
        "| " + " | ".join(head) + " |",
        "|" + "|".join("---:" if right else "---" for right in figures) + "|",
    ]
    lines += ["| " + " | ".join(row) + " |" for row in body]
    return "\n".join(lines)


def either(names: Sequence[str]) -> str:
    """Names as code, with "or" between them."""
    return " or ".join(f"`{name}`" for name in names)


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").split())


def _is_figure(text: str) -> bool:
    return text.strip("*")[:1].isdigit() or text in ("", "?")

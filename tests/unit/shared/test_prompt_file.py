from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import ConfigurationError
from shared.prompt_file import Exchange, read_exchanges


def test_reads_prompts_and_first_turns(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n\n{"turns": ["c", "d"]}\n')
    assert read_exchanges(path) == [Exchange("a", "b"), Exchange("c")]
    assert read_exchanges(path, 1) == [Exchange("a", "b")]


def test_a_line_separator_inside_text_does_not_end_the_line(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "one\u2028two"}\n', encoding="utf-8")
    assert read_exchanges(path)[0].prompt == "one\u2028two"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"prompt": 3}', "no text"),
        ('{"turns": []}', "no text"),
        ('{"prompt": " "}', "no text"),
        ('{"prompt": "a", "response": 1}', "response"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "fine"}\n' + line + "\n")
    with pytest.raises(ConfigurationError, match=f"line 2.*{reason}"):
        read_exchanges(path)


def test_missing_empty_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_exchanges(tmp_path / "none")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ConfigurationError, match="no prompts"):
        read_exchanges(tmp_path / "empty")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_exchanges(tmp_path / "binary")

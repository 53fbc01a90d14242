"""A container's limit of cores, and what the cloud makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cloud.cloud_core import _threads_within
from shared.cpu_quota import cores_allowed, cpu_quota


@pytest.mark.parametrize(
    ("text", "cores"), [("150000 100000\n", 1.5), ("max 100000\n", None), ("", None)]
)
def test_a_limit_is_in_cores(tmp_path: Path, text: str, cores: float | None) -> None:
    assert cores_allowed(text) == cores
    (tmp_path / "cpu.max").write_text(text)
    assert cpu_quota(tmp_path / "cpu.max") == cores


def test_where_no_limit_can_be_read_there_is_none(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "none") is None
    (tmp_path / "cpu.max").write_text("all of them")
    assert cpu_quota(tmp_path / "cpu.max") is None


def test_the_model_has_no_more_threads_than_the_limit_has_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert _threads_within(None) is None
    assert _threads_within(8.0) is None
    assert [_threads_within(cores) for cores in (0.5, 2.0, 3.9)] == [1, 2, 3]

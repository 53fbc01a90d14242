"""Recordings: stored, read, drawn from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.context_source import ContextCodec
from shared.errors import ConfigurationError
from simulator.fleet.recordings import (
    RecordedAnswer,
    Recording,
    load_recording,
    save_recording,
)
from tests.fleet_harness import invented_recording


def test_a_recording_survives_its_file(tmp_path: Path) -> None:
    made = invented_recording()
    save_recording(made, tmp_path / "r.npz")
    read = load_recording(tmp_path / "r.npz")
    assert read.model == made.model
    assert len(read.answers) == len(made.answers)
    for one, other in zip(made.answers, read.answers, strict=True):
        assert one.prompt_tokens == other.prompt_tokens
        np.testing.assert_array_equal(one.confidences, other.confidences)
        np.testing.assert_array_equal(one.agrees, other.agrees)


def test_the_shipped_one_is_of_real_answers() -> None:
    shipped = load_recording()
    assert shipped.exits == 2
    assert len(shipped.answers) >= 32
    assert shipped.model.operating_points
    assert shipped.mean_length > 20


def test_whole_answers_are_drawn_by_seed() -> None:
    made = invented_recording()
    one, same, other = (made.draw(np.random.default_rng(s), 200) for s in (1, 1, 2))
    assert one.tolist() == same.tolist() != other.tolist()
    assert set(one.tolist()) == set(range(len(made.answers)))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"no archive at all"])
def test_a_file_that_is_no_recording(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.npz"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"r\.npz"):
        load_recording(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_recording(tmp_path / "none.npz")


def test_arrays_that_do_not_fit_together(tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    save_recording(invented_recording(), path)
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    for name, value in (
        ("lengths", arrays["lengths"] + 1),
        ("agrees", arrays["agrees"][:-1]),
        ("confidences", arrays["confidences"] + 2),
        ("prompt_tokens", arrays["prompt_tokens"] * 0),
        ("prompt_tokens", arrays["prompt_tokens"] + 0.5),
        ("lengths", arrays["lengths"].astype(np.float64)),
        ("lengths", np.array(arrays["lengths"].sum())),
        ("lengths", arrays["lengths"][:, None]),
        ("agrees", arrays["agrees"].astype(np.float32)),
        ("confidences", arrays["confidences"] * np.float32("nan")),
        ("model", np.frombuffer(b"{}", np.uint8)),
    ):
        np.savez(path, **(arrays | {name: value}))
        with pytest.raises(ConfigurationError, match="record"):
            load_recording(path)


def test_a_recording_without_exits_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    save_recording(invented_recording(), path)
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    none = {name: arrays[name][:, :0] for name in ("confidences", "agrees")}
    np.savez(path, **(arrays | none))
    with pytest.raises(ConfigurationError, match="no exit"):
        load_recording(path)


def test_one_array_is_no_recording(tmp_path: Path) -> None:
    np.save(tmp_path / "r.npy", np.zeros(3))
    with pytest.raises(ConfigurationError, match="one array"):
        load_recording(tmp_path / "r.npy")


def test_a_damaged_byte_is_told_or_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    save_recording(invented_recording(), path)
    whole, told = path.read_bytes(), 0
    for at in range(0, len(whole), max(1, len(whole) // 400)):
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        path.write_bytes(damaged)
        try:
            load_recording(path)
        except ConfigurationError:
            told += 1
    assert told > 100


def test_an_empty_recording_is_refused() -> None:
    made = invented_recording()
    with pytest.raises(ConfigurationError, match="one answer"):
        Recording(made.model, ())
    nothing = RecordedAnswer(5, np.empty((0, 2), np.float32), np.empty((0, 2), np.bool_))
    with pytest.raises(ConfigurationError, match="no token"):
        Recording(made.model, (nothing,))


def test_bytes_of_context_are_the_codecs_own() -> None:
    model = invented_recording().model
    sizes = [model.context_bytes(codec) for codec in ContextCodec]
    assert sizes == [4 * 576, 2 * 576, 18 * 34, 18 * 18, 3]
    assert model.deep_share == pytest.approx(14 / 30)

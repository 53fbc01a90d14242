"""Lessons on disk: shards that are written once, whole, and read for many epochs.

Shard i's text depends on the plan and i alone (on one kind of device: rounding differs between
kinds), so an interrupted run goes on where it stopped.
Hidden states are kept by layer; further layers can be added to a shard without decoding again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from prepare.exit_training.teacher import Lesson, States
from shared.errors import ConfigurationError

_STATES = "hidden."  # then the layer: float16 [tokens of the shard, hidden]


class TeacherCache:
    """A folder of shards and ``plan.json``, which says what their text was made from."""

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "plan.json"
        text = json.dumps(plan, indent=2, sort_keys=True) + "\n"
        if path.exists() and path.read_text() != text:
            raise ConfigurationError(
                f"{folder} was made with other settings (see plan.json): name another folder with "
                "--teacher-cache, or delete this one"
            )
        path.write_text(text)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]

    def layers(self, index: int) -> frozenset[int] | None:
        """Layers whose states shard ``index`` holds; ``None`` where there is no such shard."""
        if not self._path(index).exists():
            return None
        with self._open(index) as file:
            names = [name for name in file.keys() if name.startswith(_STATES)]  # noqa: SIM118
        return frozenset(int(name.removeprefix(_STATES)) for name in names)

    def write(self, index: int, lessons: Sequence[Lesson], layers: Sequence[int]) -> None:
        """Write shard ``index``, whose lessons hold the states of ``layers``; it appears whole or
        not at all."""
        lengths = [
            (len(x.token_ids), x.prompt_length, len(x.top_ids), int(x.human)) for x in lessons
        ]
        tensors = {
            "lengths": np.asarray(lengths, np.int32),
            "token_ids": np.concatenate([x.token_ids for x in lessons]),
            "top_ids": np.concatenate([x.top_ids for x in lessons]),
            "top_logprobs": np.concatenate([x.top_logprobs for x in lessons]),
        }
        for slot, layer in enumerate(layers):
            states = np.concatenate([x.hidden[:, slot] for x in lessons])
            tensors[f"{_STATES}{layer}"] = states
        self._save(index, tensors)

    def add_states(self, index: int, states: Sequence[States], layers: Sequence[int]) -> None:
        """Add ``[length, layers, hidden]`` per lesson to shard ``index``."""
        tensors = self._load(index)
        for slot, layer in enumerate(layers):
            tensors[f"{_STATES}{layer}"] = np.concatenate([x[:, slot] for x in states])
        self._save(index, tensors)

    def shards(self) -> list[int]:
        """Indices of the complete shards, rising."""
        return sorted(int(p.stem.split("-")[1]) for p in self.folder.glob("shard-*.safetensors"))

    def read(self, index: int, layers: Sequence[int]) -> list[Lesson]:
        """The lessons of shard ``index`` with the states of ``layers``, in that order."""
        with self._open(index) as file:
            try:
                tensors = [file.get_tensor(f"{_STATES}{layer}") for layer in layers]
                lengths, token_ids, top_ids, top_logprobs = (
                    file.get_tensor(name)
                    for name in ("lengths", "token_ids", "top_ids", "top_logprobs")
                )
            except SafetensorError as error:
                raise ConfigurationError(f"{self._path(index)}: {error}: delete it") from None
        lessons = []
        at = row = 0
        for length, prompt, answer, human in lengths.tolist():
            lessons.append(
                Lesson(
                    token_ids[at : at + length],
                    prompt,
                    np.stack([states[at : at + length] for states in tensors], axis=1)
                    if tensors
                    else np.zeros((length, 0, 0), np.float16),
                    top_ids[row : row + answer],
                    top_logprobs[row : row + answer],
                    bool(human),
                )
            )
            at += length
            row += answer
        return lessons

    def tops(
        self, shards: Sequence[int]
    ) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.float16]]]:
        """Per shard of ``shards``, the teacher's most probable tokens of every taught position and
        their log-probabilities, both ``[positions, top]``."""
        for index in shards:
            with self._open(index) as file:
                yield file.get_tensor("top_ids"), file.get_tensor("top_logprobs")

    def _path(self, index: int) -> Path:
        return self.folder / f"shard-{index:05d}.safetensors"

    def _open(self, index: int) -> Any:  # safetensors has no types
        path = self._path(index)
        try:
            return safe_open(path, framework="np")
        except (OSError, SafetensorError) as error:
            raise ConfigurationError(f"{path} is damaged ({error}): delete it") from None

    def _load(self, index: int) -> dict[str, npt.NDArray[Any]]:
        path = self._path(index)
        try:
            tensors: dict[str, npt.NDArray[Any]] = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ConfigurationError(f"{path} is damaged ({error}): delete it") from None
        return tensors

    def _save(self, index: int, tensors: dict[str, npt.NDArray[Any]]) -> None:
        path = self._path(index)
        partial = path.with_suffix(".partial")
        save_file(tensors, partial)
        partial.replace(path)

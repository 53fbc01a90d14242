"""Lessons on disk: shards that are written once, whole, and read for many epochs.

Shard i depends on the plan and i alone, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from prepare.exit_training.teacher import Lesson
from shared.errors import ConfigurationError


class TeacherCache:
    """A folder of shards and ``plan.json``, which says what they were made from."""

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

    def has(self, index: int) -> bool:
        """Whether shard ``index`` is complete."""
        return self._path(index).exists()

    def write(self, index: int, lessons: Sequence[Lesson]) -> None:
        """Write shard ``index``; it appears whole or not at all."""
        lengths = [(len(x.token_ids), x.prompt_length, len(x.top_ids)) for x in lessons]
        tensors = {
            "lengths": np.asarray(lengths, np.int32),
            "token_ids": np.concatenate([x.token_ids for x in lessons]),
            "hidden": np.concatenate([x.hidden for x in lessons]),
            "top_ids": np.concatenate([x.top_ids for x in lessons]),
            "top_logprobs": np.concatenate([x.top_logprobs for x in lessons]),
        }
        path = self._path(index)
        partial = path.with_suffix(".partial")
        save_file(tensors, partial)
        partial.rename(path)

    def shards(self) -> list[int]:
        """Indices of the complete shards, rising."""
        return sorted(int(p.stem.split("-")[1]) for p in self.folder.glob("shard-*.safetensors"))

    def read(self, index: int) -> list[Lesson]:
        """The lessons of shard ``index``."""
        path = self._path(index)
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ConfigurationError(f"{path} is damaged ({error}): delete it") from None
        lessons = []
        at = row = 0
        for length, prompt, answer in tensors["lengths"].tolist():
            lessons.append(
                Lesson(
                    tensors["token_ids"][at : at + length],
                    prompt,
                    tensors["hidden"][at : at + length],
                    tensors["top_ids"][row : row + answer],
                    tensors["top_logprobs"][row : row + answer],
                )
            )
            at += length
            row += answer
        return lessons

    def answer_tokens(self) -> Iterator[np.ndarray[Any, np.dtype[np.int32]]]:
        """Per shard, the teacher's most probable token of every taught position."""
        for index in self.shards():
            with safe_open(self._path(index), framework="np") as file:
                yield file.get_tensor("top_ids")[:, 0]

    def _path(self, index: int) -> Path:
        return self.folder / f"shard-{index:05d}.safetensors"

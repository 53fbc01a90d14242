"""What exits say in the runtime that will run them: the edge's own graphs, forced along the full
model's answers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge.exit_model import ExitModel
from edge.exit_policy import maximum_probability
from prepare.base_model import BaseModel
from prepare.bundle_writer import write_bundle
from prepare.exit_training.teacher import Lesson
from prepare.exit_weights import ExitSet
from shared.model_bundle import Precision


@dataclass(frozen=True)
class ExitReading:
    """One exit at every position of some answers.

    Attributes:
        raw: ``[positions]`` float32, its largest probability.
        right: ``[positions]`` bool, whether that token is the full model's.
        answer: ``[positions]`` int32, which answer a position belongs to.
    """

    raw: npt.NDArray[np.float32]
    right: npt.NDArray[np.bool_]
    answer: npt.NDArray[np.int32]


def read_exits(
    model: ExitModel, lessons: Sequence[Lesson], advance: Callable[[], None]
) -> list[ExitReading]:
    """Read every exit at every position of ``lessons``; ``advance`` is called after each lesson."""
    exits = range(len(model.exits))
    raw: list[list[float]] = [[] for _ in exits]
    right: list[list[bool]] = [[] for _ in exits]
    answer: list[int] = []
    for number, lesson in enumerate(lessons):
        state = model.open(len(lesson.token_ids))
        state.extend(lesson.token_ids[: lesson.prompt_length].tolist())
        following = lesson.token_ids[lesson.prompt_length :].tolist()
        for row, wanted in enumerate(lesson.top_ids[:, 0].tolist()):
            for index in exits:
                logits = state.read_exit(index)
                ids, best = model.vocabulary_ids(index), int(logits.argmax())
                raw[index].append(maximum_probability(logits))
                right[index].append((best if ids is None else int(ids[best])) == wanted)
            answer.append(number)
            state.extend(following[row : row + 1])
        advance()
    return [
        ExitReading(np.array(r, np.float32), np.array(ok, np.bool_), np.array(answer, np.int32))
        for r, ok in zip(raw, right, strict=True)
    ]


def read_unwritten(
    model: BaseModel,
    exits: ExitSet,
    precision: Precision,
    lessons: Sequence[Lesson],
    folder: Path,
    advance: Callable[[], None],
) -> list[ExitReading]:
    """Like :func:`read_exits`, through a bundle that lives below ``folder`` for the while."""
    with tempfile.TemporaryDirectory(prefix="edge.", dir=folder) as scratch:
        bundle = write_bundle(
            model,
            exits,
            Path(scratch) / "bundle",
            precisions=[precision],
            full_depth=False,
            cloud=False,
        )
        return read_exits(ExitModel(bundle, precision), lessons, advance)

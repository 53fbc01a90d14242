"""Train exits from beginning to end: lessons, training, calibration, files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from prepare.base_model import BaseModel
from prepare.exit_training.calibration import calibration_error, fit_calibration
from prepare.exit_training.lessons import LessonMaker, LessonPlan
from prepare.exit_training.teacher import Teacher
from prepare.exit_training.teacher_cache import TeacherCache
from prepare.exit_training.trainer import ExitTrainer, TrainingSettings, frequent_tokens
from prepare.exit_weights import ExitSet, ExitWeights, untrained_exits
from shared.errors import ConfigurationError
from shared.prompt_file import read_exchanges


@dataclass(frozen=True)
class ExitRecipe:
    """Everything that decides what exits come out (and the device's rounding).

    ``lots`` cuts the lessons to the first so many lots; being shuffled, they are a fair sample.
    """

    text: tuple[Path, ...]
    invented: int
    layers: tuple[int, ...]
    blocks: tuple[int, ...]
    vocabulary: tuple[int, ...]
    max_tokens: int = 144
    epochs: int = 6
    learning_rate: float = 1e-3
    max_seconds: float = 0.0
    held_out_shards: int = 3
    lot_size: int = 128
    lots: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not len(self.layers) == len(self.blocks) == len(self.vocabulary):
            raise ConfigurationError("layers, blocks and vocabulary must name as many exits")
        if not self.text and not self.invented:
            raise ConfigurationError("nothing to learn from: name --text, or --invented prompts")


def train_exits(
    model: BaseModel,
    recipe: ExitRecipe,
    out: Path,
    lessons_folder: Path,
    device_name: str,
    console: Console,
) -> ExitSet:
    """Train and calibrate; write ``exits.safetensors`` and ``exits.json`` into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    device = _device(device_name)
    cache = fill_lessons(model, recipe, lessons_folder, device, console)
    start = _initial_exits(model, recipe, cache)
    settings = TrainingSettings(
        learning_rate=recipe.learning_rate,
        epochs=recipe.epochs,
        max_seconds=recipe.max_seconds,
        held_out_shards=recipe.held_out_shards,
        max_shards=recipe.lots,
        seed=recipe.seed,
    )
    trainer = ExitTrainer(model, start, cache, recipe.layers, settings, device)
    if device.type == "cpu":  # exits are trained side by side, each in a thread
        torch.set_num_threads(max(1, torch.get_num_threads() // len(start)))
    _run(trainer, out / "training.checkpoint", console)
    weights, figures = _calibrated(trainer, console)
    record = {**asdict(recipe), "text": [path.name for path in recipe.text]}
    record["steps"] = trainer.step
    record["taught_tokens"] = sum(len(tokens) for tokens in cache.answer_tokens())
    exits = ExitSet(weights, model.source.sha256, {**record, "figures": figures})
    exits.save(out)
    console.print(f"exits written to {out}")
    return exits


def fill_lessons(
    model: BaseModel, recipe: ExitRecipe, folder: Path, device: torch.device, console: Console
) -> TeacherCache:
    """Make the lessons that are missing."""
    exchanges = [exchange for path in recipe.text for exchange in read_exchanges(path)]
    plan = LessonPlan(
        invented=recipe.invented,
        max_tokens=recipe.max_tokens,
        lot_size=recipe.lot_size,
        seed=recipe.seed,
    )
    teacher = Teacher(model, recipe.layers, device=device)
    maker = LessonMaker(model, teacher, exchanges, plan)
    cache = TeacherCache(folder, maker.describe())
    with _progress(console) as progress:
        task = progress.add_task("teacher's lessons", total=len(maker.lots[: recipe.lots]))
        maker.fill(cache, lambda count: progress.advance(task, count), recipe.lots)
    if len(cache.shards()) <= recipe.held_out_shards:
        raise ConfigurationError("too few lessons to hold some out: give more prompts")
    return cache


def _initial_exits(
    model: BaseModel, recipe: ExitRecipe, cache: TeacherCache
) -> tuple[ExitWeights, ...]:
    size = model.architecture.vocabulary_size
    made = []
    for index, layer in enumerate(recipe.layers):
        rows = recipe.vocabulary[index]
        ids = frequent_tokens(cache, rows, size, model.stop_token_ids) if 0 < rows < size else None
        one = untrained_exits(model, [layer], blocks=recipe.blocks[index], vocabulary_ids=ids)
        info = one.exits[0].info.model_copy(update={"name": f"exit{index + 1}"})
        made.append(ExitWeights(info, one.exits[0].blocks, one.exits[0].norm, ids))
    return tuple(made)


def _run(trainer: ExitTrainer, checkpoint: Path, console: Console) -> None:
    with _progress(console) as progress:
        task = progress.add_task("training", total=1000)

        def report(done: float, losses: Sequence[float]) -> None:
            shown = " ".join(f"{loss:.3f}" for loss in losses)
            progress.update(task, completed=int(done * 1000), description=f"training, loss {shown}")
            if trainer.shards_done % 25 == 0:
                held = trainer.predictions(trainer.held_out[:1])
                agreement = " ".join(f"{right.mean():.3f}" for _, right in held)
                progress.console.print(
                    f"step {trainer.step}: loss {shown}, held-out agreement {agreement}"
                )

        trainer.train(checkpoint, report)
        progress.update(task, completed=1000)


def _calibrated(
    trainer: ExitTrainer, console: Console
) -> tuple[tuple[ExitWeights, ...], dict[str, Any]]:
    """Fit on one half of the held-out lessons, report the error on the other."""
    exits: list[ExitWeights] = []
    figures: dict[str, Any] = {}
    for module, (raw, right) in zip(
        trainer.modules, trainer.predictions(trainer.held_out), strict=True
    ):
        half = np.arange(len(raw)) % 2 == 0
        fitted = fit_calibration(raw[half], right[half])
        shown = np.interp(raw[~half], fitted.raw, fitted.confidence)
        error = calibration_error(shown, right[~half])
        name = module.info.name
        figures[name] = {
            "held_out_agreement": round(float(right.mean()), 4),
            "held_out_calibration_error": round(error, 4),
            "held_out_tokens": len(raw),
        }
        console.print(f"{name}: agreement {right.mean():.3f}, calibration error {error:.3f}")
        weights = module.weights()
        info = weights.info.model_copy(update={"calibration": fit_calibration(raw, right)})
        exits.append(ExitWeights(info, weights.blocks, weights.norm, weights.vocabulary_ids))
    return tuple(exits), figures


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(f"device {name!r} cannot be used: {error}") from None
    return device


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )

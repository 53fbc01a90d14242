"""Train exits from beginning to end: lessons, training, calibration, files."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event

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
from prepare.exit_training.calibration import calibrate
from prepare.exit_training.edge_reading import read_unwritten
from prepare.exit_training.lessons import LessonMaker, LessonPlan, answered_prompts
from prepare.exit_training.reliability import draw_reliability
from prepare.exit_training.teacher import Lesson, Teacher
from prepare.exit_training.teacher_cache import TeacherCache
from prepare.exit_training.trainer import ExitTrainer, TrainingSettings, frequent_tokens
from prepare.exit_weights import ExitSet, ExitWeights, untrained_exits
from shared.errors import ConfigurationError
from shared.model_bundle import MAX_BLOCKS, Precision
from shared.prompt_file import read_exchanges

_LOOK_EVERY = 20  # shards between two looks at held-out lessons
_CALIBRATED_ON: Precision = "int8"  # what edges run unless told otherwise
_CALIBRATION_TOKENS = 24_000


@dataclass(frozen=True)
class ExitRecipe:
    """Everything that decides what exits come out (and the device's rounding).

    ``lots`` cuts the lessons to the first so many lots; being shuffled, they are a fair sample.
    ``max_seconds`` is one limit for all exits, or one for each.  ``calibrate_on`` names prompts
    whose answers confidences are fitted on; without it, they are fitted on held-out lessons.
    """

    text: tuple[Path, ...]
    invented: int
    layers: tuple[int, ...]
    blocks: tuple[int, ...]
    vocabulary: tuple[int, ...]
    max_tokens: int = 144
    epochs: int = 6
    learning_rate: float = 4e-3
    batch_sequences: int = 8
    max_seconds: tuple[float, ...] = (0.0,)
    calibrate_on: Path | None = None
    held_out_shards: int = 3
    lot_size: int = 128
    lots: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not len(self.layers) == len(self.blocks) == len(self.vocabulary):
            raise ConfigurationError("layers, blocks and vocabulary must name as many exits")
        if list(self.layers) != sorted(set(self.layers)) or not min(self.layers, default=0) >= 1:
            raise ConfigurationError(f"exit layers {self.layers}: name rising layers from 1 on")
        if not all(0 <= blocks <= MAX_BLOCKS for blocks in self.blocks):
            raise ConfigurationError(f"blocks {self.blocks}: an exit has at most {MAX_BLOCKS}")
        if any(rows < 0 or rows == 1 for rows in self.vocabulary):
            raise ConfigurationError(f"head rows {self.vocabulary}: 0 (all), or at least 2")
        if self.held_out_shards < 1 or min(self.epochs, self.max_tokens, self.lot_size) < 1:
            raise ConfigurationError("epochs, tokens, lots and what is held out start at 1")
        if self.lots is not None and self.lots <= self.held_out_shards:
            raise ConfigurationError(
                f"{self.lots} lots: {self.held_out_shards} are held out, so name at least "
                f"{self.held_out_shards + 1}"
            )
        if len(self.max_seconds) not in (1, len(self.layers)):
            raise ConfigurationError("name one time limit for all exits, or one for each")
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
    """Train and calibrate; write ``exits.safetensors``, ``exits.json`` and ``reliability.png``
    into ``out``."""
    if recipe.layers[-1] >= model.architecture.layers:
        raise ConfigurationError(
            f"an exit after layer {recipe.layers[-1]}: this model has {model.architecture.layers}"
        )
    out.mkdir(parents=True, exist_ok=True)
    device = _device(device_name)
    cache = fill_lessons(model, recipe, lessons_folder, device, console)
    trainers = [
        ExitTrainer(model, weights, cache, _settings(recipe, index), device)
        for index, weights in enumerate(_initial_exits(model, recipe, cache))
    ]
    _train_all(trainers, out, console)
    record = {**asdict(recipe), "text": [path.name for path in recipe.text]}
    record["calibrate_on"] = recipe.calibrate_on.name if recipe.calibrate_on else None
    record["steps"] = [trainer.step for trainer in trainers]
    record["epochs_done"] = [
        round(trainer.shards_done / len(trainer.training), 2) for trainer in trainers
    ]
    record["trained_minutes"] = [round(trainer.seconds / 60, 1) for trainer in trainers]
    record["taught_tokens"] = sum(len(ids) for ids, _ in cache.tops(trainers[0].training))
    trained = ExitSet(tuple(t.module.weights() for t in trainers), model.source.sha256, record)
    figures = _held_out_figures(trainers)
    trained = replace(trained, training={**record, "held_out_agreement": figures})
    if recipe.calibrate_on is None:
        held_out = trainers[0].held_out
        lessons = [x for shard in held_out for x in cache.read(shard, ()) if not x.human]
    else:
        lessons = _answered(model, recipe.calibrate_on, device, console)
    exits = calibrated_exits(model, trained, lessons, out, console)
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
    if maker.too_long:
        console.print(f"{maker.too_long} prompts are too long to learn from: left out")
    if len(maker.lots[: recipe.lots]) <= recipe.held_out_shards:
        least = recipe.held_out_shards * recipe.lot_size + 1
        raise ConfigurationError(
            f"too few lessons to hold {recipe.held_out_shards} lots of {recipe.lot_size} out: give "
            f"at least {least} prompts, with --text or --invented"
        )
    cache = TeacherCache(folder, maker.describe())
    with _progress(console) as progress:
        task = progress.add_task("teacher's lessons", total=len(maker.lots[: recipe.lots]))
        maker.fill(cache, lambda count: progress.advance(task, count), recipe.lots)
    return cache


def _settings(recipe: ExitRecipe, index: int) -> TrainingSettings:
    limits = recipe.max_seconds
    return TrainingSettings(
        learning_rate=recipe.learning_rate,
        batch_sequences=recipe.batch_sequences,
        epochs=recipe.epochs,
        max_seconds=limits[index] if len(limits) > 1 else limits[0],
        held_out_shards=recipe.held_out_shards,
        max_shards=recipe.lots,
        seed=recipe.seed,
    )


def _initial_exits(
    model: BaseModel, recipe: ExitRecipe, cache: TeacherCache
) -> tuple[ExitWeights, ...]:
    size = model.architecture.vocabulary_size
    shards = cache.shards()[: recipe.lots][: -recipe.held_out_shards]
    made = []
    for index, layer in enumerate(recipe.layers):
        rows = recipe.vocabulary[index]
        ids = None
        if 0 < rows < size:
            ids = frequent_tokens(cache, shards, rows, size, model.stop_token_ids)
        one = untrained_exits(model, [layer], blocks=recipe.blocks[index], vocabulary_ids=ids)
        info = one.exits[0].info.model_copy(update={"name": f"exit{index + 1}"})
        made.append(ExitWeights(info, one.exits[0].blocks, one.exits[0].norm, ids))
    return tuple(made)


def _train_all(trainers: Sequence[ExitTrainer], out: Path, console: Console) -> None:
    """Train the exits side by side, on a CPU each in a thread of its own: matrices this small gain
    little from threads, which would have to wait for each other at every operation."""
    threads = torch.get_num_threads()
    stop = Event()

    with _progress(console) as progress:

        def run(trainer: ExitTrainer) -> None:
            torch.set_num_threads(max(1, threads // len(trainers)))
            name = trainer.module.info.name
            task = progress.add_task(name, total=1000)
            held = "?"

            for done, loss in trainer.rounds(out / f"{name}.checkpoint", stop):
                if trainer.shards_done % _LOOK_EVERY == 1:
                    _, right = trainer.predictions(trainer.held_out[:1])
                    held = f"{right.mean():.3f}"
                    progress.console.print(
                        f"{name}, step {trainer.step}: loss {loss:.3f}, held-out agreement {held}"
                    )
                shown = f"{name}: loss {loss:.3f}, agreement {held}"
                progress.update(task, completed=int(done * 1000), description=shown)
            if not stop.is_set():
                progress.update(task, completed=1000)

        with ThreadPoolExecutor(len(trainers), thread_name_prefix="exit") as pool:
            try:
                futures = [pool.submit(run, trainer) for trainer in trainers]
                wait(futures, return_when=FIRST_EXCEPTION)
                for future in futures:
                    if future.done():
                        future.result()
            except BaseException:
                stop.set()
                raise
            finally:
                torch.set_num_threads(threads)


def _held_out_figures(trainers: Sequence[ExitTrainer]) -> dict[str, float]:
    """Share of held-out positions at which each exit says the teacher's token."""
    return {
        trainer.module.info.name: round(float(trainer.predictions(trainer.held_out)[1].mean()), 4)
        for trainer in trainers
    }


def _answered(model: BaseModel, path: Path, device: torch.device, console: Console) -> list[Lesson]:
    """The full model's greedy answers to the prompts of ``path``."""
    prompts = [exchange.prompt for exchange in read_exchanges(path)]
    teacher = Teacher(model, (1,), device=device)
    with _progress(console) as progress:
        task = progress.add_task("answers to calibrate on", total=len(prompts))
        return answered_prompts(
            model, teacher, prompts, max_tokens=128, advance=partial(progress.advance, task)
        )


def calibrated_exits(
    model: BaseModel, exits: ExitSet, lessons: Sequence[Lesson], out: Path, console: Console
) -> ExitSet:
    """``exits`` with the confidence and the table of operating points that the edge's own graphs
    give on ``lessons`` (answered by the full model, none of them trained on); draws
    ``out/reliability.png``."""
    chosen = _sample(lessons)
    with _progress(console) as progress:
        task = progress.add_task("calibrating on the edge", total=len(chosen))
        readings = read_unwritten(
            model, exits, _CALIBRATED_ON, chosen, out, lambda: progress.advance(task)
        )
    fitted = calibrate(readings)
    names = [weights.info.name for weights in exits.exits]
    rights = [reading.right for reading in readings]
    draw_reliability(names, fitted.confidence, rights, out / "reliability.png")
    figures = {}
    for name, right, error in zip(names, rights, fitted.errors, strict=True):
        figures[name] = {
            "agreement": round(float(right.mean()), 4),
            "calibration_error": round(error, 4),
            "tokens": len(right),
        }
        console.print(f"{name}: agreement {right.mean():.3f}, calibration error {error:.3f}")
    weights = tuple(
        replace(w, info=w.info.model_copy(update={"calibration": calibration}))
        for w, calibration in zip(exits.exits, fitted.calibrations, strict=True)
    )
    record = {**exits.training, "calibration": figures}
    return ExitSet(weights, exits.base_sha256, record, fitted.operating_points)


def _sample(lessons: Sequence[Lesson]) -> list[Lesson]:
    """As many of ``lessons``, evenly spread, as hold about ``_CALIBRATION_TOKENS`` positions."""
    total = sum(len(lesson.top_ids) for lesson in lessons)
    return list(lessons[:: max(1, round(total / _CALIBRATION_TOKENS))])


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

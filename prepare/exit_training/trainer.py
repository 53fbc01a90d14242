"""Distil an exit from cached lessons: the backbone is never run, so an epoch is cheap.

An exit is a few transformer blocks and a norm over the hidden state at its layer; its head is rows
of the model's own embedding.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cloud.llama_block import Rotary
from prepare.base_model import BaseModel
from prepare.exit_training.checkpoint import TrainingProgress, load_checkpoint, save_checkpoint
from prepare.exit_training.distillation import kl_to_teacher
from prepare.exit_training.exit_module import ExitModule
from prepare.exit_training.teacher import Lesson
from prepare.exit_training.teacher_cache import TeacherCache
from prepare.exit_weights import ExitWeights
from shared.library_settings import make_setting

# oneDNN keeps a compiled kernel, with its buffers, for each of the last 1,024 shapes that it met:
# gigabytes where every batch has a shape of its own.  It reads this when it is first used.
make_setting("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")

_WARM_UP_STEPS = 50
_LAST_RATE = 0.05  # of the peak


@dataclass(frozen=True)
class TrainingSettings:
    """How exits are trained.

    Attributes:
        learning_rate: peak; linear warm-up, cosine to a twentieth of it.
        batch_sequences: sequences per step.
        epochs: passes over the cache (the last one may be cut by ``max_seconds``).
        max_seconds: stop (with the schedule drawn in) after so many seconds; 0 is no limit.
        held_out_shards: shards kept for agreement and calibration.
        save_seconds: least time between two checkpoints, which are written after whole shards.
        max_shards: use only the first so many shards of the cache, held-out ones included.
    """

    learning_rate: float = 4e-3
    batch_sequences: int = 8
    epochs: int = 6
    max_seconds: float = 0.0
    held_out_shards: int = 3
    save_seconds: float = 60.0
    max_shards: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class _Batch:
    """Padded hidden states at the exit's layer, and the taught positions among them."""

    hidden: Tensor  # [batch, time, hidden]
    taught: Tensor  # [rows] indices into batch * time
    top_ids: Tensor  # [rows, top]
    top_logprobs: Tensor  # [rows, top]


def frequent_tokens(
    cache: TeacherCache,
    shards: Sequence[int],
    size: int,
    vocabulary_size: int,
    always: Sequence[int],
) -> npt.NDArray[np.int32]:
    """The ``size`` tokens that the teacher gives most probability to (and ``always``), rising
    (frequency-ranked heads: Zhao et al., FR-Spec, arXiv 2502.14856)."""
    mass = np.zeros(vocabulary_size)
    for ids, logprobs in cache.tops(shards):
        weights = np.exp(logprobs.astype(np.float64))
        mass += np.bincount(ids.ravel(), weights.ravel(), minlength=vocabulary_size)
    mass[list(always)] = np.inf
    # byte-pair encodings number their tokens by frequency: what was never seen comes in that order
    order = np.argsort(-mass, kind="stable")[:size]
    return np.sort(order).astype(np.int32)


class ExitTrainer:
    """Trains one exit."""

    def __init__(
        self,
        model: BaseModel,
        weights: ExitWeights,
        cache: TeacherCache,
        settings: TrainingSettings,
        device: torch.device,
        *,
        module: type[ExitModule] = ExitModule,
    ) -> None:
        self.module = module(model, weights).to(device)
        self._layer = weights.info.layer
        self._row_of_token = _rows_of(model, weights.vocabulary_ids).to(device)
        self._rotary = Rotary(model.architecture, device)
        self._cache = cache
        self._settings = settings
        self._device = device
        shards = cache.shards()[: settings.max_shards]
        self.held_out = shards[-settings.held_out_shards :]
        self.training = shards[: -settings.held_out_shards]
        self.step = 0
        self.shards_done = 0
        self.seconds = 0.0  # spent in training, over all runs
        self._optimizer = self._new_optimizer()

    def share_blocks(self, other: ExitTrainer) -> None:
        """Train the blocks of ``other`` instead of own ones."""
        self.module.blocks = other.module.blocks
        self._optimizer = self._new_optimizer()

    def rounds(self, checkpoint: Path, stop: Event | None = None) -> Iterator[tuple[float, float]]:
        """Train to the end of the schedule, resuming from ``checkpoint`` where it exists.

        After every shard it yields the share of the run that was done before it, and the mean loss
        over it.  ``stop``, once set, ends the run at the next batch; what the checkpoint lacks then
        (``save_seconds`` and a shard at most) is learnt again by the next run.
        """
        self._resume(checkpoint)
        total = self._settings.epochs * len(self.training)
        started = time.monotonic() - self.seconds
        saved = time.monotonic()
        for done in range(self.shards_done, total):
            epoch, at = divmod(done, len(self.training))
            rng = np.random.default_rng([self._settings.seed, epoch])
            shard = self.training[int(rng.permutation(len(self.training))[at])]
            progress = done / total
            limit = self._settings.max_seconds
            if limit:
                progress = max(progress, self.seconds / limit)
            if progress >= 1.0:
                break
            self._set_learning_rate(progress)
            loss = self._train_shard(self._cache.read(shard, [self._layer]), rng, stop)
            if loss is None:
                return
            self.shards_done = done + 1
            self.seconds = time.monotonic() - started
            stopped = stop is not None and stop.is_set()
            if stopped or time.monotonic() - saved >= self._settings.save_seconds:
                self._save(checkpoint)
                saved = time.monotonic()
            if stopped:
                return
            yield progress, loss
        self._save(checkpoint)

    @torch.no_grad()
    def predictions(
        self, shards: Sequence[int], cache: TeacherCache | None = None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """On ``shards`` of ``cache`` (``None``: of the trained one), raw maximum probability
        ``[n]`` and whether its token is the teacher's."""
        raw: list[Tensor] = []
        right: list[Tensor] = []
        for shard in shards:
            for batch in self._batches((cache or self._cache).read(shard, [self._layer]), None):
                logits = self.module.logits(self._states(batch)).float()
                best, row = logits.softmax(-1).max(-1)
                wanted = self._row_of_token[batch.top_ids[:, 0]]
                raw.append(best.cpu())
                right.append((row == wanted).cpu())
        return torch.cat(raw).numpy(), torch.cat(right).numpy()

    def _train_shard(
        self, lessons: list[Lesson], rng: np.random.Generator, stop: Event | None
    ) -> float | None:
        """The mean loss; ``None`` where it was stopped."""
        losses = []
        for batch in self._batches(lessons, rng):
            if stop is not None and stop.is_set():
                return None
            self.step += 1
            for group in self._optimizer.param_groups:
                group["lr"] = self._rate * min(1.0, self.step / _WARM_UP_STEPS)
            rows = self._row_of_token[batch.top_ids]
            logits = self.module.logits(self._states(batch))
            loss = kl_to_teacher(logits, rows.clamp_min(0), rows >= 0, batch.top_logprobs)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())
        return float(torch.stack(losses).mean())

    def _states(self, batch: _Batch) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16):
            positions = torch.arange(batch.hidden.shape[1], device=self._device)
            cos, sin = self._rotary.at(positions, torch.bfloat16)
            states: Tensor = self.module(batch.hidden.bfloat16(), cos, sin)
        return states.flatten(0, 1)[batch.taught].bfloat16()

    def _batches(self, lessons: list[Lesson], rng: np.random.Generator | None) -> Iterator[_Batch]:
        """Batches of like lengths; their order is shuffled where ``rng`` is given."""
        size = self._settings.batch_sequences
        lessons = sorted(lessons, key=lambda x: len(x.token_ids))
        starts = list(range(0, len(lessons), size))
        if rng is not None:
            rng.shuffle(starts)
        for start in starts:
            yield self._collate(lessons[start : start + size])

    def _collate(self, lessons: list[Lesson]) -> _Batch:
        longest = max(len(x.hidden) for x in lessons)
        hidden = np.zeros((len(lessons), longest, lessons[0].hidden.shape[-1]), np.float16)
        taught = []
        for row, lesson in enumerate(lessons):
            hidden[row, : len(lesson.hidden)] = lesson.hidden[:, 0]
            first = row * longest + lesson.prompt_length - 1
            taught.append(np.arange(first, first + len(lesson.top_ids)))
        move = self._device
        return _Batch(
            torch.from_numpy(hidden).to(move),
            torch.from_numpy(np.concatenate(taught)).to(move),
            torch.from_numpy(np.concatenate([x.top_ids for x in lessons])).long().to(move),
            torch.from_numpy(np.concatenate([x.top_logprobs for x in lessons])).to(move),
        )

    def _new_optimizer(self) -> torch.optim.AdamW:
        return torch.optim.AdamW(
            self.module.parameters(),
            lr=self._settings.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=0.01,
        )

    def _set_learning_rate(self, progress: float) -> None:
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        self._rate = self._settings.learning_rate * (_LAST_RATE + (1 - _LAST_RATE) * cosine)

    def _save(self, path: Path) -> None:
        progress = TrainingProgress(self._describe(), self.step, self.shards_done, self.seconds)
        save_checkpoint(path, self.module, self._optimizer, progress)

    def _describe(self) -> str:
        """What a checkpoint must have been made for to be gone on with."""
        settings, info = self._settings, self.module.info
        ids = self.module.vocabulary_ids
        parts = (
            f"layer {info.layer}, {info.blocks} blocks",
            "all tokens" if ids is None else hashlib.sha256(ids.tobytes()).hexdigest(),
            f"rate {settings.learning_rate}, batch {settings.batch_sequences}",
            f"seed {settings.seed}, shards {self.training} of {self._cache.fingerprint}",
        )
        return "; ".join(parts)

    def _resume(self, path: Path) -> None:
        progress = load_checkpoint(path, self.module, self._optimizer, self._describe())
        self.step, self.shards_done = progress.step, progress.shards_done
        self.seconds = progress.seconds


def _rows_of(model: BaseModel, vocabulary_ids: npt.NDArray[np.int32] | None) -> Tensor:
    """``[vocabulary]`` int64: head row of each token, -1 where the head leaves it out."""
    size = model.architecture.vocabulary_size
    if vocabulary_ids is None:
        return torch.arange(size)
    rows = torch.full((size,), -1, dtype=torch.int64)
    rows[torch.from_numpy(vocabulary_ids).long()] = torch.arange(len(vocabulary_ids))
    return rows

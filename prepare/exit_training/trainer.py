"""Distil exits from cached lessons: the backbone is never run, so an epoch is cheap.

An exit is a few transformer blocks and a norm over the hidden state at its layer; its head is rows
of the model's own embedding.  The loss is the Kullback-Leibler divergence from the teacher's
distribution, exact on its top tokens, with everything else (and what the head leaves out) lumped
into one remainder: an exit learns to be unsure where the answer is outside its vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cloud.llama_block import Rotary, causal_attention
from prepare.base_model import EMBEDDING, BaseModel
from prepare.exit_training.blocks import block_from_weights, norm_from_weights, weights_of_block
from prepare.exit_training.teacher import Lesson
from prepare.exit_training.teacher_cache import TeacherCache
from prepare.exit_weights import ExitWeights


@dataclass(frozen=True)
class TrainingSettings:
    """How exits are trained.

    Attributes:
        learning_rate: peak; linear warm-up, cosine to a tenth of it.
        batch_sequences: sequences per step.
        epochs: passes over the cache (the last one may be cut by ``max_seconds``).
        max_seconds: stop (with the schedule drawn in) after so many seconds; 0 is no limit.
        held_out_shards: shards kept for agreement and calibration.
        max_shards: use only the first so many shards of the cache, held-out ones included.
    """

    learning_rate: float = 1e-3
    batch_sequences: int = 8
    epochs: int = 6
    max_seconds: float = 0.0
    held_out_shards: int = 3
    max_shards: int | None = None
    seed: int = 0


class ExitModule(nn.Module):
    """A trainable exit; weights start from ``weights`` in float32."""

    def __init__(self, model: BaseModel, weights: ExitWeights) -> None:
        super().__init__()
        arch = model.architecture
        self.info = weights.info
        self.vocabulary_ids = weights.vocabulary_ids
        self.blocks = nn.ModuleList(block_from_weights(arch, b) for b in weights.blocks)
        self.norm = norm_from_weights(arch, weights.norm)
        embedding = torch.from_numpy(model.weights[EMBEDDING])
        if weights.vocabulary_ids is not None:
            embedding = embedding[torch.from_numpy(weights.vocabulary_ids).long()]
        self.register_buffer("head", embedding.clone(), persistent=False)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """``[batch, time, hidden]`` → normed states that the head reads, same shape."""
        for block in self.blocks:
            hidden = block(hidden, cos, sin, causal_attention)
        normed: Tensor = self.norm(hidden)
        return normed

    def logits(self, states: Tensor) -> Tensor:
        """``[rows, hidden]`` → ``[rows, vocabulary]`` in the states' dtype."""
        head: Tensor = self.get_buffer("head")
        return states @ head.to(states.dtype).T

    def weights(self) -> ExitWeights:
        """A copy of what was learnt."""
        return ExitWeights(
            self.info,
            tuple(weights_of_block(b) for b in self.blocks),  # type: ignore[arg-type]
            self.norm.weight.detach().float().cpu().numpy().copy(),
            self.vocabulary_ids,
        )


@dataclass(frozen=True)
class _Batch:
    """Padded hidden states of all layers, and the taught positions among them."""

    hidden: Tensor  # [batch, time, layers, hidden]
    taught: Tensor  # [rows] indices into batch * time
    top_ids: Tensor  # [rows, top]
    top_logprobs: Tensor  # [rows, top]


def frequent_tokens(
    cache: TeacherCache, size: int, vocabulary_size: int, always: Sequence[int]
) -> npt.NDArray[np.int32]:
    """The ``size`` tokens that the teacher most often prefers (and ``always``), rising
    (frequency-ranked heads: Zhao et al., FR-Spec, arXiv 2502.14856)."""
    counts = np.zeros(vocabulary_size, np.int64)
    for tokens in cache.answer_tokens():
        counts += np.bincount(tokens, minlength=vocabulary_size)
    counts[list(always)] = counts.max() + 1
    order = np.argsort(-counts, kind="stable")[:size]
    return np.sort(order).astype(np.int32)


def kl_to_teacher(logits: Tensor, rows: Tensor, inside: Tensor, top_logprobs: Tensor) -> Tensor:
    """Mean KL(teacher ‖ exit) over ``[n]`` positions.

    Args:
        logits: ``[n, vocabulary]`` of the exit.
        rows: ``[n, top]`` head rows of the teacher's top tokens (any row where not ``inside``).
        inside: ``[n, top]`` bool, whether the head has the token.
        top_logprobs: ``[n, top]`` of the teacher.
    """
    logits = logits.float()
    log_q = logits.gather(1, rows) - logits.logsumexp(-1, keepdim=True)
    p = top_logprobs.float().exp() * inside
    rest_p = (1.0 - p.sum(-1)).clamp_min(1e-6)
    rest_q = (1.0 - (log_q.exp() * inside).sum(-1)).clamp_min(1e-6)
    known = (p * (top_logprobs.float() - log_q)).masked_fill(~inside, 0.0).sum(-1)
    return (known + rest_p * (rest_p.log() - rest_q.log())).mean()


class ExitTrainer:
    """Trains all exits of a model side by side; they share batches, not weights."""

    def __init__(
        self,
        model: BaseModel,
        exits: Sequence[ExitWeights],
        cache: TeacherCache,
        cached_layers: Sequence[int],
        settings: TrainingSettings,
        device: torch.device,
    ) -> None:
        self.modules = [ExitModule(model, weights).to(device) for weights in exits]
        self._slots = [list(cached_layers).index(weights.info.layer) for weights in exits]
        self._row_of_token = [_rows_of(model, m.vocabulary_ids).to(device) for m in self.modules]
        self._rotary = Rotary(model.architecture, device)
        # an exit a thread: small matrices gain less from threads of their own, which would have to
        # wait for each other at every operation
        self._pool = ThreadPoolExecutor(len(self.modules), thread_name_prefix="exit")
        self._cache = cache
        self._settings = settings
        self._device = device
        shards = cache.shards()[: settings.max_shards]
        self.held_out = shards[-settings.held_out_shards :]
        self.training = shards[: -settings.held_out_shards]
        self.step = 0
        self.shards_done = 0
        self._optimizer = torch.optim.AdamW(
            [p for m in self.modules for p in m.parameters()],
            lr=settings.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=0.01,
        )

    def train(self, checkpoint: Path, report: Callable[[float, list[float]], None]) -> None:
        """Run to the end of the schedule, resuming from ``checkpoint`` where it exists.

        ``report`` hears after every shard: the share of the run that is done, and the loss of each
        exit over that shard.
        """
        spent, losses = self._resume(checkpoint), [0.0] * len(self.modules)
        total = self._settings.epochs * len(self.training)
        started = time.monotonic() - spent
        saved = time.monotonic()
        for done in range(self.shards_done, total):
            epoch, at = divmod(done, len(self.training))
            rng = np.random.default_rng([self._settings.seed, epoch])
            shard = self.training[int(rng.permutation(len(self.training))[at])]
            progress = done / total
            limit = self._settings.max_seconds
            if limit:
                progress = max(progress, (time.monotonic() - started) / limit)
            if progress >= 1.0:
                break
            self._set_learning_rate(progress)
            losses = self._train_shard(self._cache.read(shard), rng)
            self.shards_done = done + 1
            report(progress, losses)
            if time.monotonic() - saved > 60:
                self._save(checkpoint, time.monotonic() - started)
                saved = time.monotonic()
        self._save(checkpoint, time.monotonic() - started)

    @torch.no_grad()
    def predictions(
        self, shards: Sequence[int]
    ) -> list[tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]]:
        """Per exit: raw maximum probability ``[n]`` and whether its token is the teacher's."""
        raw: list[list[Tensor]] = [[] for _ in self.modules]
        right: list[list[Tensor]] = [[] for _ in self.modules]
        for shard in shards:
            for batch in self._batches(self._cache.read(shard), None):
                for index, module in enumerate(self.modules):
                    logits = module.logits(self._states(index, batch)).float()
                    best, row = logits.softmax(-1).max(-1)
                    wanted = self._row_of_token[index][batch.top_ids[:, 0]]
                    raw[index].append(best.cpu())
                    right[index].append((row == wanted).cpu())
        return [
            (torch.cat(r).numpy(), torch.cat(ok).numpy()) for r, ok in zip(raw, right, strict=True)
        ]

    def _train_shard(self, lessons: list[Lesson], rng: np.random.Generator) -> list[float]:
        sums = np.zeros(len(self.modules))
        count = 0
        for batch in self._batches(lessons, rng):
            self.step += 1
            for group in self._optimizer.param_groups:
                group["lr"] = self._rate * min(1.0, self.step / 50)
            learn = partial(self._learn, batch)
            sums += list(self._pool.map(learn, range(len(self.modules))))
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            count += 1
        return list(sums / max(1, count))

    def _learn(self, batch: _Batch, index: int) -> float:
        """Gradients of one exit on one batch; its loss."""
        module = self.modules[index]
        rows = self._row_of_token[index][batch.top_ids]
        logits = module.logits(self._states(index, batch))
        loss = kl_to_teacher(logits, rows.clamp_min(0), rows >= 0, batch.top_logprobs)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        return float(loss.detach())

    def _states(self, index: int, batch: _Batch) -> Tensor:
        hidden = batch.hidden[:, :, self._slots[index]]
        with torch.autocast(self._device.type, torch.bfloat16):
            positions = torch.arange(hidden.shape[1], device=self._device)
            cos, sin = self._rotary.at(positions, torch.bfloat16)
            states: Tensor = self.modules[index](hidden.bfloat16(), cos, sin)
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
        hidden = np.zeros((len(lessons), longest, *lessons[0].hidden.shape[1:]), np.float16)
        taught = []
        for row, lesson in enumerate(lessons):
            hidden[row, : len(lesson.hidden)] = lesson.hidden
            first = row * longest + lesson.prompt_length - 1
            taught.append(np.arange(first, first + len(lesson.top_ids)))
        move = self._device
        return _Batch(
            torch.from_numpy(hidden).to(move),
            torch.from_numpy(np.concatenate(taught)).to(move),
            torch.from_numpy(np.concatenate([x.top_ids for x in lessons])).long().to(move),
            torch.from_numpy(np.concatenate([x.top_logprobs for x in lessons])).to(move),
        )

    def _set_learning_rate(self, progress: float) -> None:
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        self._rate = self._settings.learning_rate * (0.1 + 0.9 * cosine)

    def _save(self, path: Path, seconds: float) -> None:
        partial = path.with_suffix(".partial")
        torch.save(
            {
                "modules": [m.state_dict() for m in self.modules],
                "optimizer": self._optimizer.state_dict(),
                "step": self.step,
                "shards_done": self.shards_done,
                "seconds": seconds,
            },
            partial,
        )
        partial.rename(path)

    def _resume(self, path: Path) -> float:
        self.shards_done = 0
        if not path.exists():
            return 0.0
        state = torch.load(path, map_location=self._device, weights_only=True)
        for module, saved in zip(self.modules, state["modules"], strict=True):
            module.load_state_dict(saved)
        self._optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.shards_done = state["shards_done"]
        return float(state["seconds"])


def _rows_of(model: BaseModel, vocabulary_ids: npt.NDArray[np.int32] | None) -> Tensor:
    """``[vocabulary]`` int64: head row of each token, -1 where the head leaves it out."""
    size = model.architecture.vocabulary_size
    if vocabulary_ids is None:
        return torch.arange(size)
    rows = torch.full((size,), -1, dtype=torch.int64)
    rows[torch.from_numpy(vocabulary_ids).long()] = torch.arange(len(vocabulary_ids))
    return rows

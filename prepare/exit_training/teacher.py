"""The frozen full model as a teacher: batched decoding that keeps what exits learn from.

One pass yields a sequence's tokens, its hidden states after the exits' layers and the full model's
most probable next tokens, so that training runs for many epochs without touching the teacher again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from cloud.llama_block import LlamaBlock, Rotary, causal_attention
from prepare.base_model import EMBEDDING, FINAL_NORM, BaseModel, layer_names
from prepare.exit_training.blocks import block_from_weights, norm_from_weights
from shared.errors import ConfigurationError

TOP_TOKENS = 16
_SAMPLED_FROM = 64  # a draw from the whole vocabulary costs as much as the model's matrices
_READ_TOGETHER = 16  # texts of like lengths in one pass
_COMPACT_BELOW = 0.75  # share of live sequences at which a batch is copied into a smaller one


States = npt.NDArray[np.float16]


@dataclass(frozen=True)
class Lesson:
    """What the teacher says about one sequence.

    Attributes:
        token_ids: ``[length]`` int32, prompt and answer (without a token that nothing follows).
        prompt_length: tokens of the prompt; answers are taught, prompts only attended to.
        hidden: ``[length, layers, hidden]`` float16, after each exit's layer.
        top_ids: ``[answer, TOP_TOKENS]`` int32; row r is about token ``prompt_length + r``.
        top_logprobs: like ``top_ids``, float16 natural log-probabilities, falling.
        human: whether the answer was given, not the model's own.
    """

    token_ids: npt.NDArray[np.int32]
    prompt_length: int
    hidden: npt.NDArray[np.float16]
    top_ids: npt.NDArray[np.int32]
    top_logprobs: npt.NDArray[np.float16]
    human: bool = False


@dataclass(frozen=True)
class _Step:
    """One decoded token, its captured states (``None`` where decoding ended) and the top."""

    token_id: int
    hidden: npt.NDArray[np.float16] | None
    top_ids: npt.NDArray[np.int32]
    top_logprobs: npt.NDArray[np.float16]


class _BatchCache:
    """Keys and values of a batch, ``[batch, kv_heads, capacity, head_size]`` per layer."""

    def __init__(self, teacher: Teacher, batch: int, capacity: int) -> None:
        arch = teacher.arch
        shape = (batch, arch.kv_heads, capacity, arch.head_size)
        blank = torch.zeros(shape, dtype=teacher.dtype, device=teacher.device)
        self.keys = [blank.clone() for _ in range(arch.layers)]
        self.values = [blank.clone() for _ in range(arch.layers)]

    def keep(self, rows: Tensor) -> None:
        """Drop every sequence but ``rows``."""
        self.keys = [k[rows] for k in self.keys]
        self.values = [v[rows] for v in self.values]


class Teacher:
    """The full model in ``dtype`` on ``device``; hidden states are kept after ``layers``."""

    def __init__(
        self,
        model: BaseModel,
        layers: Sequence[int],
        *,
        device: torch.device,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self.arch = model.architecture
        self.layers = tuple(sorted(layers))
        self.device = device
        self.dtype = dtype
        self.embedding = torch.from_numpy(model.weights[EMBEDDING]).to(device, dtype)
        self._blocks: list[LlamaBlock] = []
        for layer in range(self.arch.layers):
            tensors = {short: model.weights[name] for short, name in layer_names(layer).items()}
            block = block_from_weights(self.arch, tensors).to(device, dtype)
            self._blocks.append(block.requires_grad_(False))
        self._norm = norm_from_weights(self.arch, model.weights[FINAL_NORM]).to(device, dtype)
        self._rotary = Rotary(self.arch, device)
        self._stop = torch.tensor(model.stop_token_ids, device=device)

    @torch.inference_mode()
    def teach(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
    ) -> list[Lesson]:
        """Lessons about given answers (human text): one causal pass, no decoding."""
        sequences = [[*p, *a] for p, a in zip(prompts, answers, strict=True)]
        ids = _padded(sequences)
        positions = torch.arange(ids.shape[1], device=self.device).expand(len(sequences), -1)
        captured, final = self._forward(ids.to(self.device), positions, None)
        lessons = []
        for row, (sequence, prompt) in enumerate(zip(sequences, prompts, strict=True)):
            first, last = len(prompt) - 1, len(sequence) - 1
            top_ids, top_logprobs = _top_of((final[row, first:last] @ self.embedding.T).float())
            lessons.append(
                Lesson(
                    np.asarray(sequence, np.int32),
                    len(prompt),
                    _half(captured[row, : len(sequence)]),
                    top_ids,
                    top_logprobs,
                    human=True,
                )
            )
        return lessons

    @torch.inference_mode()
    def embed(self, token_ids: npt.NDArray[np.int32]) -> States:
        """``[length, hidden]``: what the first layer reads."""
        return _half(F.embedding(torch.from_numpy(token_ids).long(), self.embedding.cpu()))

    @torch.inference_mode()
    def hidden_states(
        self, states: Sequence[States], start: int, layers: Sequence[int]
    ) -> list[States]:
        """Go on from the states ``[length, hidden]`` of whole texts after layer ``start`` (0: the
        embedding) to those after ``layers``, all deeper: ``[length, layers, hidden]`` each."""
        order = sorted(range(len(states)), key=lambda i: len(states[i]))
        out: list[States] = [np.zeros(0, np.float16)] * len(states)
        for first in range(0, len(order), _READ_TOGETHER):
            rows = order[first : first + _READ_TOGETHER]
            longest = len(states[rows[-1]])
            hidden = torch.zeros((len(rows), longest, self.arch.hidden_size), dtype=torch.float16)
            for at, i in enumerate(rows):
                hidden[at, : len(states[i])] = torch.from_numpy(states[i])
            captured, _ = self._run(
                hidden.to(self.device, self.dtype),
                torch.arange(longest, device=self.device).expand(len(rows), -1),
                None,
                range(start, max(layers)),
                layers,
            )
            for at, i in enumerate(rows):
                out[i] = _half(captured[at, : len(states[i])])
        return out

    @torch.inference_mode()
    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        temperature: float,
        generator: torch.Generator,
    ) -> list[Lesson]:
        """Let the model answer each prompt (temperature 0 is greedy) and keep its lessons.

        Sequences that ended are dropped from the batch as it shrinks, so a few long answers do not
        hold up many short ones.
        """
        batch = len(prompts)
        if max(map(len, prompts)) + max_tokens > self.arch.max_positions:
            raise ConfigurationError(
                f"{max(map(len, prompts))} tokens of prompt and {max_tokens} of answer: this model "
                f"holds {self.arch.max_positions}"
            )
        lengths = torch.tensor([len(p) for p in prompts], device=self.device)
        ids = _padded(prompts)
        longest = ids.shape[1]
        cache = _BatchCache(self, batch, longest + max_tokens)
        positions = torch.arange(longest, device=self.device).expand(batch, -1)
        captured, final = self._forward(ids.to(self.device), positions, cache)
        prefill = [_half(captured[row, : len(p)]) for row, p in enumerate(prompts)]

        rows = torch.arange(batch, device=self.device)  # original index of each sequence held
        live = torch.ones(batch, dtype=torch.bool, device=self.device)
        final = final[rows, lengths - 1]
        steps: list[list[_Step]] = [[] for _ in prompts]
        for step in range(max_tokens):
            logits = (final @ self.embedding.T).float()
            tokens = _draw(logits, temperature, generator)
            top_ids, top_logprobs = _top_of(logits)
            ended = torch.isin(tokens, self._stop)
            hidden: npt.NDArray[np.float16] | None = None
            if step + 1 < max_tokens and bool((live & ~ended).any()):
                captured, out = self._forward(tokens[:, None], lengths[:, None] + step, cache)
                hidden, final = _half(captured[:, 0]), out[:, 0]
            for at in live.nonzero()[:, 0].tolist():
                state = None if hidden is None else hidden[at]
                steps[int(rows[at])].append(
                    _Step(int(tokens[at]), state, top_ids[at], top_logprobs[at])
                )
            live = live & ~ended
            if hidden is None:
                break
            if int(live.sum()) <= _COMPACT_BELOW * len(live):
                cache.keep(live)
                rows, lengths, final = rows[live], lengths[live], final[live]
                live = live[live]
        return [_lesson(p, prefill[i], steps[i]) for i, p in enumerate(prompts)]

    def _forward(
        self, ids: Tensor, positions: Tensor, cache: _BatchCache | None
    ) -> tuple[Tensor, Tensor]:
        """``[batch, time]`` → captured ``[batch, time, layers, hidden]`` and normed final rows."""
        hidden = F.embedding(ids, self.embedding)
        captured, hidden = self._run(hidden, positions, cache, range(self.arch.layers), self.layers)
        return captured, self._norm(hidden)

    def _run(
        self,
        hidden: Tensor,
        positions: Tensor,
        cache: _BatchCache | None,
        span: range,
        layers: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        """Run the layers of ``span``: states after ``layers``, ``[batch, time, layers, hidden]``,
        and after the last one, ``[batch, time, hidden]``."""
        cos, sin = self._rotary.at(positions, self.dtype)
        captured = []
        for index in span:

            def attend(q: Tensor, k: Tensor, v: Tensor, index: int = index) -> Tensor:
                if cache is None:
                    return causal_attention(q, k, v)
                return _attend_cached(q, k, v, cache.keys[index], cache.values[index], positions)

            hidden = self._blocks[index](hidden, cos, sin, attend)
            if index + 1 in layers:
                captured.append(hidden)
        return torch.stack(captured, dim=2), hidden


def _padded(sequences: Sequence[Sequence[int]]) -> Tensor:
    """``[sequences, longest]`` int64, zeros behind the shorter ones."""
    ids = torch.zeros((len(sequences), max(map(len, sequences))), dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
    return ids


def _attend_cached(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, positions: Tensor
) -> Tensor:
    """Causal attention that writes ``k``, ``v`` at ``positions`` and, for one new token a row,
    reads the row's own past only."""
    batch, time = positions.shape
    if time > 1:
        keys[:, :, :time] = k.transpose(1, 2)
        values[:, :, :time] = v.transpose(1, 2)
        return causal_attention(q, k, v)
    rows, at = torch.arange(batch, device=q.device), positions[:, 0]
    keys[rows, :, at] = k[:, 0]
    values[rows, :, at] = v[:, 0]
    used = int(at.max()) + 1
    mask = torch.arange(used, device=q.device)[None, :] <= at[:, None]
    kv_heads, size = keys.shape[1], keys.shape[3]
    grouped = q.reshape(batch, kv_heads, -1, size)
    out = F.scaled_dot_product_attention(
        grouped, keys[:, :, :used], values[:, :, :used], attn_mask=mask[:, None, None, :]
    )
    return out.reshape(batch, 1, -1, size)


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    if temperature == 0.0:
        return logits.argmax(-1)
    top, ids = logits.topk(min(_SAMPLED_FROM, logits.shape[-1]), dim=-1)
    drawn = torch.multinomial((top / temperature).softmax(-1), 1, generator=generator)
    return ids.gather(1, drawn)[:, 0]


def _top_of(logits: Tensor) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float16]]:
    values, ids = logits.topk(min(TOP_TOKENS, logits.shape[-1]), dim=-1)
    values = values - logits.logsumexp(-1, keepdim=True)
    return ids.int().cpu().numpy(), values.half().cpu().numpy()


def _half(hidden: Tensor) -> npt.NDArray[np.float16]:
    limit = float(np.finfo(np.float16).max)
    return hidden.float().clamp(-limit, limit).half().cpu().numpy()


def _lesson(
    prompt: Sequence[int], prefill: npt.NDArray[np.float16], steps: Sequence[_Step]
) -> Lesson:
    """Join prefill and decoding; the last token's state is left out, since nothing follows it."""
    hidden = [step.hidden for step in steps[:-1] if step.hidden is not None]
    answered = [step.token_id for step in steps[: len(hidden)]]
    return Lesson(
        token_ids=np.asarray([*prompt, *answered], np.int32),
        prompt_length=len(prompt),
        hidden=np.concatenate([prefill, np.stack(hidden)]) if hidden else prefill,
        top_ids=np.stack([step.top_ids for step in steps]),
        top_logprobs=np.stack([step.top_logprobs for step in steps]),
    )

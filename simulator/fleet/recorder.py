"""Recording real generations: at every position of the full model's own answer, how sure each exit
of the real edge is and whether its guess is the full model's token.

The answers are the full model's greedy ones, decoded by a real cloud (cloud-only mode).  The real
edge then reads prompt and answer token by token, every exit at every position, which gives what an
exit would have said there: skipped layers are filled before a deeper exit is read, so a reading
does not depend on what earlier tokens stopped at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge.context_source import ContextCodec
from edge.engine import EdgeEngine
from edge.exit_model import ExitModel, ModelState
from edge.exit_policy import calibrated, maximum_probability
from edge.generation import Mode
from edge.generation_options import GenerationOptions
from shared.chat import Message
from shared.errors import ConfigurationError
from shared.model_bundle import ModelBundle
from shared.prompt_file import read_exchanges
from shared.sampling import GREEDY, choose_token
from shared.tensor_codec import Encoding, encode, encoded_size
from simulator.fleet.recordings import ModelFacts, RecordedAnswer, Recording

# answers that the cloud decodes at a time
_TOGETHER = 8
_COMPRESSED = {ContextCodec.INT8: Encoding.INT8, ContextCodec.INT4: Encoding.INT4}


@dataclass(frozen=True)
class RecordedText:
    """An answer with its words: token ids of prompt and answer, and what the exits said of it."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    answer: RecordedAnswer


@dataclass(frozen=True)
class Recorded:
    """Texts in the order of their prompts; coded bytes after compression over those before."""

    texts: tuple[RecordedText, ...]
    compression: dict[ContextCodec, float]

    def as_recording(self, bundle: ModelBundle, prompts: str) -> Recording:
        """Without the words; ``prompts`` says where the prompts are from."""
        manifest = bundle.manifest
        facts = ModelFacts(
            bundle=manifest.name,
            fingerprint=manifest.fingerprint,
            prompts=prompts,
            layers=manifest.architecture.layers,
            cut=manifest.cut,
            hidden_size=manifest.architecture.hidden_size,
            operating_points=manifest.operating_points,
            compression=self.compression,
        )
        return Recording(facts, tuple(text.answer for text in self.texts))


async def record(
    engine: EdgeEngine,
    prompts: Sequence[tuple[int, ...]],
    max_tokens: int,
    advance: Callable[[], None],
) -> Recorded:
    """Record an answer to each of ``prompts`` (token ids), whose cloud is the engine's;
    ``advance`` is called twice a prompt.

    Raises:
        ConfigurationError: a prompt that leaves no room for so many tokens, or a bundle without
            exits.
    """
    if not engine.bundle.manifest.exits:
        raise ConfigurationError("the bundle has no exits: run `tandem prepare --force`")
    options = GenerationOptions(Mode.CLOUD_ONLY, max_tokens=max_tokens)
    for ids in prompts:
        engine.generation(ids, options)  # refuses what does not fit before anything is decoded
    turns = asyncio.Semaphore(_TOGETHER)

    async def decode(ids: tuple[int, ...]) -> tuple[int, ...]:
        async with turns:
            result = await engine.generate(ids, options)
        advance()
        return tuple(token.token_id for token in result.tokens)

    async with engine.connected():
        answers = await asyncio.gather(*map(decode, prompts))
    model = await asyncio.to_thread(engine.load_model)
    texts, sizes = [], {codec: [0, 0] for codec in _COMPRESSED}
    for prompt_ids, answer_ids in zip(prompts, answers, strict=True):
        state = model.open(len(prompt_ids) + len(answer_ids))
        answer = await asyncio.to_thread(read_exits, model, state, prompt_ids, answer_ids)
        texts.append(RecordedText(prompt_ids, answer_ids, answer))
        for codec, size in sizes.items():
            after, before = _coded_bytes(state, codec)
            size[:] = size[0] + after, size[1] + before
        advance()
    shares = {codec: round(after / before, 4) for codec, (after, before) in sizes.items()}
    return Recorded(tuple(texts), shares)


def read_exits(
    model: ExitModel, state: ModelState, prompt_ids: Sequence[int], answer_ids: Sequence[int]
) -> RecordedAnswer:
    """What each exit says at each position of a given answer (``state`` is new)."""
    shape = (len(answer_ids), len(model.exits))
    confidences, agrees = np.zeros(shape, np.float32), np.zeros(shape, np.bool_)
    state.extend(prompt_ids)
    for at, wanted in enumerate(answer_ids):
        for index, info in enumerate(model.exits):
            logits = state.read_exit(index)
            choice = choose_token(
                logits,
                GREEDY,
                state.positions,
                vocabulary_ids=model.vocabulary_ids(index),
                vocabulary_size=model.architecture.vocabulary_size,
            )
            confidences[at, index] = calibrated(info.calibration, maximum_probability(logits))
            agrees[at, index] = choice.token_id == wanted
        state.extend([wanted])
    return RecordedAnswer(len(prompt_ids), confidences, agrees)


def _coded_bytes(state: ModelState, codec: ContextCodec) -> tuple[int, int]:
    """Bytes of all positions coded one by one, as they travel while an answer grows: after
    compression, and before."""
    after = before = 0
    for at in range(state.positions):
        encoding = _COMPRESSED[codec]
        row = state.hidden_states(at, at + 1)
        after += len(encode(row, encoding, compress=True).data)
        before += encoded_size(1, row.shape[1], encoding)
    return after, before


def encode_prompts(
    engine: EdgeEngine, path: Path, limit: int | None, max_tokens: int
) -> list[tuple[int, ...]]:
    """Token ids of the prompts in a JSONL file, as a chat's first message.

    Raises:
        ConfigurationError: no such file, or a prompt that leaves no room for the answer.
    """
    room = engine.bundle.manifest.architecture.max_positions - max_tokens
    encoded = []
    for number, exchange in enumerate(read_exchanges(path, limit), start=1):
        ids = engine.encode_chat([Message("user", exchange.prompt)])
        if len(ids) > room:
            raise ConfigurationError(f"prompt {number} has {len(ids)} tokens; {room} fit")
        encoded.append(ids)
    return encoded

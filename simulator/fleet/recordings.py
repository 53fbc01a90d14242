"""Real generations, as far as a fleet needs them: how sure the exits were, and whether rightly.

An answer is recorded along the full model's own text: at each position every exit is read (all of
them, also where a shallow one was sure) and its best guess held against the full model's token.
A simulated edge decides by these with the real policy.  Where it accepts a wrong token the real
text would go on otherwise; the simulated one goes on with the recorded figures.

Stored as ``.npz`` without pickle: ``prompt_tokens`` int32 ``[answers]``, ``lengths`` int32
``[answers]``, ``confidences`` float32 ``[positions, exits]``, ``agrees`` bool
``[positions, exits]`` (all answers, one behind the other), ``model`` uint8: JSON of
:class:`ModelFacts`.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edge.context_source import ContextCodec
from shared.errors import ConfigurationError
from shared.model_bundle import OperatingPoint
from shared.tensor_codec import Encoding, encoded_size

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

DEFAULT_RECORDING = "recording.npz"
_ENCODINGS = {
    ContextCodec.FLOAT32: Encoding.FLOAT32,
    ContextCodec.FP16: Encoding.FLOAT16,
    ContextCodec.INT8: Encoding.INT8,
    ContextCodec.INT4: Encoding.INT4,
}
TOKEN_ID_BYTES = 3  # a token id of this size of vocabulary as a varint, at the most


class ModelFacts(BaseModel):
    """What a fleet must know of the bundle that was recorded.

    Attributes:
        bundle: its name; ``fingerprint`` its fingerprint.
        prompts: where the prompts are from, in a sentence.
        compression: coded bytes after Zstandard over those before, by codec; 1 where not named.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    bundle: str
    fingerprint: str
    prompts: str
    layers: int = Field(gt=0)
    cut: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    operating_points: tuple[OperatingPoint, ...] = ()
    compression: dict[ContextCodec, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _cut_within(self) -> Self:
        if self.cut >= self.layers:
            raise ValueError("the cut leaves the cloud no layer")
        return self

    def context_bytes(self, codec: ContextCodec) -> float:
        """Payload bytes of one position of context."""
        if codec is ContextCodec.TOKENS:
            return TOKEN_ID_BYTES
        size = encoded_size(1, self.hidden_size, _ENCODINGS[codec])
        return size * self.compression.get(codec, 1.0)

    @property
    def deep_share(self) -> float:
        """Share of the layers that the cloud runs from hidden states."""
        return (self.layers - self.cut) / self.layers


@dataclass(frozen=True)
class RecordedAnswer:
    """One answer.

    Attributes:
        prompt_tokens: length of its prompt.
        confidences: float32 ``[positions, exits]``, calibrated.
        agrees: bool ``[positions, exits]``: the exit's best guess is the full model's token.
    """

    prompt_tokens: int
    confidences: FloatArray
    agrees: BoolArray

    @property
    def length(self) -> int:
        """Tokens of the answer."""
        return len(self.confidences)


@dataclass(frozen=True)
class Recording:
    """Answers of one bundle; a fleet draws whole ones, with replacement."""

    model: ModelFacts
    answers: tuple[RecordedAnswer, ...]

    def __post_init__(self) -> None:
        if not self.answers:
            raise ConfigurationError("a recording holds one answer at least")
        exits = self.exits
        for number, answer in enumerate(self.answers):
            shape = (answer.length, exits)
            if answer.prompt_tokens < 1 or not answer.length:
                raise ConfigurationError(f"recorded answer {number}: no prompt, or no token")
            if answer.confidences.shape != shape or answer.agrees.shape != shape:
                raise ConfigurationError(f"recorded answer {number}: its arrays differ in shape")
            if not ((answer.confidences >= 0) & (answer.confidences <= 1)).all():
                raise ConfigurationError(
                    f"recorded answer {number}: a confidence is not within [0, 1]"
                )

    @cached_property
    def exits(self) -> int:
        """How many exits were read."""
        return int(self.answers[0].confidences.shape[1])

    @cached_property
    def mean_length(self) -> float:
        """Tokens of an answer, on average."""
        return sum(answer.length for answer in self.answers) / len(self.answers)

    def draw(self, noise: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
        """Indices of ``count`` answers, drawn with replacement."""
        return noise.integers(0, len(self.answers), count)


def save_recording(recording: Recording, path: Path) -> None:
    """Write what :func:`load_recording` reads."""
    answers = recording.answers
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            prompt_tokens=np.array([a.prompt_tokens for a in answers], np.int32),
            lengths=np.array([a.length for a in answers], np.int32),
            confidences=np.concatenate([a.confidences for a in answers]).astype(np.float32),
            agrees=np.concatenate([a.agrees for a in answers]).astype(np.bool_),
            model=np.frombuffer(recording.model.model_dump_json().encode(), np.uint8),
        )


def load_recording(path: Path | None = None) -> Recording:
    """The shipped recording, or the one at ``path``.

    Raises:
        ConfigurationError: it cannot be read, or is none.
    """
    if path is None:
        path = Path(str(files("simulator.fleet") / "data" / DEFAULT_RECORDING))
    try:
        stored = np.load(path, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise ConfigurationError(f"{path} is no recording: it holds one array, not several")
        with stored as arrays:
            return _parse({name: arrays[name] for name in arrays.files})
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}") from None
    except (
        ValueError, KeyError, EOFError, NotImplementedError, RuntimeError,
        zipfile.BadZipFile, zlib.error, ValidationError,
    ) as error:  # fmt: skip
        raise ConfigurationError(f"{path} is no recording: {error}") from None


def _parse(arrays: dict[str, npt.NDArray[Any]]) -> Recording:
    model = ModelFacts.model_validate_json(arrays["model"].astype(np.uint8).tobytes())
    confidences, agrees = arrays["confidences"], arrays["agrees"]
    if confidences.dtype != np.float32 or agrees.dtype != np.bool_:
        raise ValueError("confidences are float32, and agrees true or false")
    prompts, lengths = (_counts(name, arrays[name]) for name in ("prompt_tokens", "lengths"))
    return Recording(model, tuple(_answers(prompts, lengths, confidences, agrees)))


def _counts(name: str, values: npt.NDArray[Any]) -> list[int]:
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ValueError(f"{name} is no row of whole numbers")
    counts: list[int] = values.tolist()
    return counts


def _answers(
    prompts: Sequence[int], lengths: Sequence[int], confidences: FloatArray, agrees: BoolArray
) -> list[RecordedAnswer]:
    if confidences.ndim != 2 or confidences.shape != agrees.shape:
        raise ValueError("confidences and agrees differ in shape")
    if not confidences.shape[1]:
        raise ValueError("no exit was read")
    if min(lengths, default=0) < 1 or sum(lengths) != len(confidences):
        raise ValueError("the lengths do not add up to the positions")
    answers, at = [], 0
    for prompt, length in zip(prompts, lengths, strict=True):
        rows = slice(at, at + length)
        answers.append(RecordedAnswer(prompt, confidences[rows], agrees[rows]))
        at += length
    return answers

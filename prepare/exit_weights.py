"""The exits' weights: what training writes, what the exporter reads, what the repository keeps.

``exits.safetensors`` holds, for each exit, ``<exit>.blocks.<i>.<tensor>`` (the short names of
:func:`prepare.base_model.layer_names`), ``<exit>.norm`` and, for a head over a part of the
vocabulary, ``<exit>.vocabulary_ids`` (int32, rising).  The head's rows are the model's own
embedding.  ``exits.json`` holds the :class:`ExitInfo` list and how they were trained.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from prepare.base_model import FINAL_NORM, BaseModel, FloatArray, layer_names
from shared.errors import BundleError
from shared.model_bundle import ExitInfo, OperatingPoint

_EXIT_LIST = TypeAdapter(tuple[ExitInfo, ...])
_POINT_LIST = TypeAdapter(tuple[OperatingPoint, ...])
BLOCK_TENSORS = tuple(layer_names(0))


@dataclass(frozen=True)
class ExitWeights:
    """One exit.

    Attributes:
        blocks: per block, short tensor name → float32 array.
        norm: ``[hidden]`` float32.
        vocabulary_ids: ``[rows]`` int32 token ids of the head's rows; ``None`` is all of them.
    """

    info: ExitInfo
    blocks: tuple[dict[str, FloatArray], ...]
    norm: FloatArray
    vocabulary_ids: np.ndarray[Any, np.dtype[np.int32]] | None = None


@dataclass(frozen=True)
class ExitSet:
    """All exits of a model, bound to the base model's weights by ``base_sha256``."""

    exits: tuple[ExitWeights, ...]
    base_sha256: str
    training: dict[str, Any] = field(default_factory=dict)
    operating_points: tuple[OperatingPoint, ...] = ()

    def save(self, folder: Path) -> None:
        """Write ``exits.safetensors`` (float16) and ``exits.json`` into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, np.ndarray[Any, Any]] = {}
        for weights in self.exits:
            name = weights.info.name
            for index, block in enumerate(weights.blocks):
                for short, values in block.items():
                    tensors[f"{name}.blocks.{index}.{short}"] = values.astype(np.float16)
            tensors[f"{name}.norm"] = weights.norm.astype(np.float16)
            if weights.vocabulary_ids is not None:
                tensors[f"{name}.vocabulary_ids"] = weights.vocabulary_ids.astype(np.int32)
        save_file(tensors, folder / "exits.safetensors")
        record = {
            "base_sha256": self.base_sha256,
            "exits": _EXIT_LIST.dump_python(tuple(w.info for w in self.exits), mode="json"),
            "operating_points": _POINT_LIST.dump_python(self.operating_points, mode="json"),
            "training": self.training,
        }
        (folder / "exits.json").write_text(json.dumps(record, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> ExitSet:
        """Read what :meth:`save` wrote; raise :class:`BundleError` where it does not fit."""
        try:
            record = json.loads((folder / "exits.json").read_bytes())
            tensors = load_file(folder / "exits.safetensors")
            infos = _EXIT_LIST.validate_python(record["exits"])
            exits = tuple(_weights_of(info, tensors) for info in infos)
            points = _POINT_LIST.validate_python(record.get("operating_points", ()))
            return cls(exits, str(record["base_sha256"]), dict(record.get("training", {})), points)
        except (OSError, ValueError, KeyError, SafetensorError, ValidationError) as error:
            raise BundleError(f"the exits in {folder} cannot be read: {error}") from None


def _weights_of(info: ExitInfo, tensors: dict[str, np.ndarray[Any, Any]]) -> ExitWeights:
    blocks = tuple(
        {
            short: tensors[f"{info.name}.blocks.{index}.{short}"].astype(np.float32)
            for short in BLOCK_TENSORS
        }
        for index in range(info.blocks)
    )
    return ExitWeights(
        info,
        blocks,
        tensors[f"{info.name}.norm"].astype(np.float32),
        tensors.get(f"{info.name}.vocabulary_ids"),
    )


def untrained_exits(
    model: BaseModel,
    layers: Sequence[int],
    *,
    blocks: int = 1,
    vocabulary_ids: np.ndarray[Any, np.dtype[np.int32]] | None = None,
) -> ExitSet:
    """Exits whose blocks are copies of the layers that follow: where training starts."""
    arch = model.architecture
    rows = arch.vocabulary_size if vocabulary_ids is None else len(vocabulary_ids)
    exits = []
    for index, layer in enumerate(layers, start=1):
        copies = tuple(
            {
                short: model.weights[tensor]
                for short, tensor in layer_names(min(layer + i, arch.layers - 1)).items()
            }
            for i in range(blocks)
        )
        info = ExitInfo(name=f"exit{index}", layer=layer, blocks=blocks, vocabulary_size=rows)
        exits.append(ExitWeights(info, copies, model.weights[FINAL_NORM], vocabulary_ids))
    return ExitSet(tuple(exits), model.source.sha256)

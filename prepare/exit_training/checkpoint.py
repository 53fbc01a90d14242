"""Where a training run stands, on disk: one safetensors file, replaced as a whole."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from shared.errors import ConfigurationError

_MODULE, _OPTIMIZER, _PROGRESS = "module.", "optimizer.", "progress"


@dataclass(frozen=True)
class TrainingProgress:
    """How far a run is; ``described`` says what it trains, and with which settings."""

    described: str
    step: int = 0
    shards_done: int = 0
    seconds: float = 0.0


def save_checkpoint(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, progress: TrainingProgress
) -> None:
    """Write weights, the optimizer's moments and ``progress``."""
    tensors = {f"{_MODULE}{name}": value for name, value in module.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            tensors[f"{_OPTIMIZER}{index}.{name}"] = value
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, {_PROGRESS: json.dumps(asdict(progress))})
    partial.replace(path)


def load_checkpoint(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, described: str
) -> TrainingProgress:
    """Put a checkpoint's weights and moments back; a fresh start where there is none.

    Raises:
        ConfigurationError: a damaged file, or one that was ``described`` otherwise.
    """
    if not path.exists():
        return TrainingProgress(described)
    device = str(next(module.parameters()).device)
    try:
        with safe_open(path, framework="pt", device=device) as file:
            progress = TrainingProgress(**json.loads(file.metadata()[_PROGRESS]))
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{path} is damaged ({error}): delete it") from None
    if progress.described != described:
        raise ConfigurationError(
            f"{path} was made with other settings: name another folder with --out, or delete it"
        )
    weights: dict[str, Tensor] = {}
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(_MODULE):
            weights[name.removeprefix(_MODULE)] = value
        else:
            index, moment = name.removeprefix(_OPTIMIZER).split(".", 1)
            # a step count on the GPU would be fetched from it at every step
            moments.setdefault(int(index), {})[moment] = value.cpu() if moment == "step" else value
    module.load_state_dict(weights)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return progress

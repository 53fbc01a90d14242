"""One replayed edge in a process of its own (``python -m``): it answers one recorded prompt after
the other, and says when it showed each token.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge.context_source import ContextCodec
from edge.generation import Mode
from edge.generation_options import GenerationOptions
from shared.clock import monotonic
from shared.errors import ConfigurationError, TandemError
from shared.model_bundle import ModelBundle
from simulator.bench.worker_process import Reply, serve
from simulator.fleet.profiles import DeviceProfile
from simulator.fleet.validation_replay import ReplayedEdge, ReplayedModel, Script
from simulator.precise_loop import new_event_loop

_WARM_UP_TOKENS = 2


def options_of(policy: str) -> GenerationOptions:
    """How an edge generates by a policy's name: ``cloud-only``, ``verified``, or ``blocking`` or
    ``optimistic`` with a threshold behind ``@``.

    Raises:
        ConfigurationError: none of these.
    """
    name, _, threshold = policy.partition("@")
    if name == "cloud-only" and not threshold:
        return GenerationOptions(Mode.CLOUD_ONLY)
    if name == "verified" and not threshold:
        return GenerationOptions(Mode.COLLABORATIVE, verified=True, context=ContextCodec.TOKENS)
    windows = {"blocking": {"window": 0}, "optimistic": {}}
    if name in windows:
        changes: dict[str, Any] = dict(windows[name])
        if threshold:
            try:
                changes["threshold"] = float(threshold)
            except ValueError:
                raise ConfigurationError(f"{policy}: {threshold!r} is no threshold") from None
        return GenerationOptions(Mode.COLLABORATIVE, **changes)
    raise ConfigurationError(
        f"no policy {policy!r} to validate: cloud-only, blocking@0.8, optimistic@0.8, verified"
    )


@dataclass(frozen=True)
class TimedAnswer:
    """When an answer began and when each of its tokens was shown, in seconds of the machine's
    monotonic clock."""

    began: float
    shown: tuple[float, ...]


async def answer_all(
    edge: ReplayedEdge,
    model: ReplayedModel,
    options: GenerationOptions,
    scripts: Sequence[Script],
    begin: float,
) -> list[TimedAnswer]:
    """From ``begin`` on answer one script after the other.

    The connection is made before: by a first short answer, which does not count.
    """
    async with edge.connected():
        await _answer(edge, model, options, scripts[0], _WARM_UP_TOKENS)
        await asyncio.sleep(max(0.0, begin - monotonic()))
        return [
            await _answer(edge, model, options, script, len(script.answer_ids))
            for script in scripts
        ]


async def _answer(
    edge: ReplayedEdge,
    model: ReplayedModel,
    options: GenerationOptions,
    script: Script,
    tokens: int,
) -> TimedAnswer:
    model.script = script
    wanted = {**vars(options), "max_tokens": min(tokens, len(script.answer_ids))}
    shown = []
    generation = edge.generation(script.prompt_ids, GenerationOptions(**wanted))
    began = monotonic()
    async for _ in generation.run():
        shown.append(monotonic())
    return TimedAnswer(began, tuple(shown))


def save_scripts(path: Path, scripts: Sequence[Script]) -> None:
    """For :func:`load_scripts`, without pickle."""
    arrays: dict[str, Any] = {}
    for number, script in enumerate(scripts):
        fields = vars(script).items()
        arrays |= {f"{number}.{name}": value for name, value in fields if value is not None}
    np.savez(path, count=len(scripts), **arrays)


def load_scripts(path: Path) -> list[Script]:
    """What :func:`save_scripts` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return [
            Script(
                tuple(arrays[f"{number}.prompt_ids"].tolist()),
                tuple(arrays[f"{number}.answer_ids"].tolist()),
                arrays[f"{number}.confidences"],
                arrays[f"{number}.agrees"],
                arrays.get(f"{number}.hidden"),
            )
            for number in range(int(arrays["count"]))
        ]


def main(arguments: Sequence[str]) -> None:
    """``BUNDLE DEVICE``; the device as JSON."""
    bundle = ModelBundle.load(Path(arguments[0]))
    device = DeviceProfile.model_validate_json(arguments[1])

    def answer(request: Reply) -> Reply:
        options = options_of(request["policy"])
        scripts = load_scripts(Path(request["scripts"]))
        threshold = None if options.verified else options.threshold
        manifest = bundle.manifest
        model = ReplayedModel(manifest.architecture, manifest.exits, device, threshold)
        edge = ReplayedEdge(bundle, model, request["address"])
        try:
            with asyncio.Runner(loop_factory=new_event_loop) as runner:
                found = runner.run(
                    answer_all(
                        edge,
                        model,
                        options,
                        [scripts[index] for index in request["order"]],
                        request["begin"],
                    )
                )
        except TandemError as error:
            return {"error": str(error)}
        finally:
            edge.close()
        return {"answers": [[timed.began, *timed.shown] for timed in found]}

    serve({"ready": True}, answer)


if __name__ == "__main__":
    main(sys.argv[1:])

"""One replayed edge in a process of its own (``python -m``): it answers one recorded prompt after
the other, and says when it showed each token.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

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


class ConnectedEdge:
    """An edge that is connected to the cloud and has answered once, shortly, which does not count;
    so it begins when it is told to.  ``async with``."""

    def __init__(self, bundle: ModelBundle, device: DeviceProfile, request: Reply) -> None:
        self._options = options_of(request["policy"])
        self._scripts = load_scripts(Path(request["scripts"]))
        threshold = None if self._options.verified else self._options.threshold
        manifest = bundle.manifest
        self._model = ReplayedModel(manifest.architecture, manifest.exits, device, threshold)
        self._edge = ReplayedEdge(bundle, self._model, request["address"])

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.callback(self._edge.close)
            await stack.enter_async_context(self._edge.connected())
            await self._answer(self._scripts[0], _WARM_UP_TOKENS)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def answer_all(self, order: Sequence[int], begin: float) -> list[TimedAnswer]:
        """From ``begin`` on (seconds of the monotonic clock) answer one script after the other."""
        await asyncio.sleep(max(0.0, begin - monotonic()))
        scripts = [self._scripts[index] for index in order]
        return [await self._answer(script, len(script.answer_ids)) for script in scripts]

    async def _answer(self, script: Script, tokens: int) -> TimedAnswer:
        self._model.script = script
        wanted = {**vars(self._options), "max_tokens": min(tokens, len(script.answer_ids))}
        shown = []
        generation = self._edge.generation(script.prompt_ids, GenerationOptions(**wanted))
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


class Worker:
    """Answers the parent, first with a connected edge, then with what it said."""

    def __init__(self, bundle: ModelBundle, device: DeviceProfile, runner: asyncio.Runner) -> None:
        self._bundle, self._device, self._runner = bundle, device, runner
        self._edge: ConnectedEdge | None = None

    def answer(self, request: Reply) -> Reply:
        """``{"policy", "scripts", "address"}`` connects; ``{"begin", "order"}`` answers, and
        disconnects."""
        try:
            if self._edge is None:
                edge = ConnectedEdge(self._bundle, self._device, request)
                self._edge = self._runner.run(edge.__aenter__())
                return {}
            return {"answers": self._runner.run(self._answers(request))}
        except TandemError as error:
            return {"error": str(error)}

    async def _answers(self, request: Reply) -> list[list[float]]:
        assert self._edge is not None
        try:
            found = await self._edge.answer_all(request["order"], request["begin"])
        finally:
            edge, self._edge = self._edge, None
            await edge.__aexit__()
        return [[timed.began, *timed.shown] for timed in found]


def main(arguments: Sequence[str]) -> None:
    """``BUNDLE DEVICE``; the device as JSON."""
    bundle = ModelBundle.load(Path(arguments[0]))
    device = DeviceProfile.model_validate_json(arguments[1])
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        serve({"ready": True}, Worker(bundle, device, runner).answer)


if __name__ == "__main__":
    main(sys.argv[1:])

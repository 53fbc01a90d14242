"""What keeping a conversation between its turns is worth: time to the first word, and bytes.

    python -m benchmarks.conversation_reuse --turns 5 --repeats 3

Holds one conversation twice, turn by turn: with an engine that keeps what it has taken in (its
own layers' keys and values, and the session in the cloud), and with one that begins anew each time.
Medians over the repeats.  The last line counts the answers that were not the same: the cloud's sums
are grouped otherwise, so two words that are very nearly alike may change places.
"""

from __future__ import annotations

import argparse
import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from statistics import median

from rich.console import Console
from rich.table import Table

from edge.cloud_channel import CloudEndpoint
from edge.conversations import Conversations
from edge.engine import EdgeEngine
from edge.generation import Mode
from edge.generation_options import GenerationOptions
from edge.generation_result import GenerationResult
from shared.chat import Message
from shared.model_bundle import ModelBundle, default_bundle_folder
from simulator.local_cloud import LocalCloud

_QUESTIONS = (
    "Why is the sky blue? Answer in a few sentences.",
    "And why is it red in the evening?",
    "Does the same happen on Mars?",
    "Give me an experiment that shows it at home, with a glass of water, milk and a torch.",
    "Write a short summary of all that for a child of six.",
    "Which of this did Lord Rayleigh find out?",
    "Name three books about light.",
)


@dataclass(frozen=True)
class Turn:
    """One turn, answered by both."""

    kept: GenerationResult
    anew: GenerationResult


async def hold(
    keeping: EdgeEngine, fresh: EdgeEngine, options: GenerationOptions, turns: int
) -> list[Turn]:
    """One conversation."""
    messages: list[Message] = []
    held = []
    keeping.conversations = Conversations(4, 1 << 16)
    for question in _QUESTIONS[:turns]:
        messages.append(Message("user", question))
        prompt = keeping.encode_chat(messages)
        turn = Turn(await keeping.generate(prompt, options), await fresh.generate(prompt, options))
        messages.append(Message("assistant", turn.anew.text))
        held.append(turn)
    return held


async def run(turns: int, repeats: int, max_tokens: int) -> None:
    """Measure and print one table a mode."""
    bundle = ModelBundle.load(default_bundle_folder())
    async with AsyncExitStack() as stack:
        cloud = await stack.enter_async_context(LocalCloud(bundle.folder))
        engines = [
            EdgeEngine(bundle, "int8", endpoint=CloudEndpoint(cloud.address)) for _ in range(2)
        ]
        for engine in engines:
            stack.callback(engine.close)
            await stack.enter_async_context(engine.connected())
        for mode in (Mode.STANDALONE, Mode.COLLABORATIVE, Mode.CLOUD_ONLY):
            options = GenerationOptions(mode, max_tokens=max_tokens)
            for engine in engines:  # once for warmth
                await engine.generate(engine.encode_chat([Message("user", "Hello")]), options)
            rounds = [await hold(engines[0], engines[1], options, turns) for _ in range(repeats)]
            show(mode, [list(turn) for turn in zip(*rounds, strict=True)])


def show(mode: Mode, turns: list[list[Turn]]) -> None:
    """One row a turn."""
    table = Table(title=f"{mode.value}, medians of {len(turns[0])}")
    for column in ("turn", "prompt", "kept", "first word, ms", "anew", "ratio", "B up", "anew "):
        table.add_column(column, justify="right")
    for number, repeats in enumerate(turns, 1):
        kept, anew = [t.kept for t in repeats], [t.anew for t in repeats]
        first = [median(r.first_token_seconds * 1e3 for r in side) for side in (kept, anew)]
        table.add_row(
            str(number),
            str(kept[0].prompt_tokens),
            str(kept[0].cached_tokens),
            *(f"{ms:.0f}" for ms in first),
            f"{first[0] / first[1]:.2f}",
            *(f"{median(r.uploaded_bytes for r in side):,.0f}" for side in (kept, anew)),
        )
    Console().print(table)
    every = [turn for repeats in turns for turn in repeats]
    parted = sum(turn.kept.text != turn.anew.text for turn in every)
    print(f"{parted} of {len(every)} answers parted")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else "")
    parser.add_argument("--turns", type=int, default=5, choices=range(2, len(_QUESTIONS) + 1))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=64)
    arguments = parser.parse_args()
    asyncio.run(run(arguments.turns, arguments.repeats, arguments.max_tokens))


if __name__ == "__main__":
    main()

"""Is a draft by prompt lookup worth having beside the exits' own guess?

    python -m benchmarks.draft_sources --limit 20

Walks along the full model's own answers and looks at the tokens that no exit is sure of: how often
the deepest exit guesses them right, and how often the continuation of the longest earlier match of
the last words would (prompt lookup; Saxena 2023, "Prompt lookup decoding").
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.cloud_channel import CloudEndpoint
from edge.engine import EdgeEngine
from edge.exit_policy import DEFAULT_THRESHOLD, ExitPolicy
from edge.generation import Mode
from edge.generation_options import GenerationOptions
from shared.chat import Message
from shared.model_bundle import ModelBundle, default_bundle_folder
from shared.prompt_file import read_exchanges
from shared.sampling import GREEDY
from simulator.local_cloud import LocalCloud

_LONGEST, _SHORTEST = 4, 2


@dataclass
class Tally:
    """Counts over unsure tokens."""

    tokens: int = 0
    unsure: int = 0
    exit_right: int = 0
    found: int = 0
    lookup_right: int = 0
    only_lookup_right: int = 0
    lookup_instead: int = 0


def looked_up(text: Sequence[int]) -> int | None:
    """The token after the latest earlier place where the last few tokens stand already."""
    for length in range(_LONGEST, _SHORTEST - 1, -1):
        tail = list(text[-length:])
        for at in range(len(text) - length - 1, -1, -1):
            if list(text[at : at + length]) == tail:
                return text[at + length]
    return None


def tally(engine: EdgeEngine, prompt: Sequence[int], answer: Sequence[int], counts: Tally) -> None:
    """Add one answer of the full model's."""
    model = engine.load_model()
    state = model.open(len(prompt) + len(answer))
    text = list(prompt)
    state.extend(text)
    policy = ExitPolicy(DEFAULT_THRESHOLD)
    for wanted in answer:
        counts.tokens += 1
        for index, info in enumerate(model.exits):
            judgement = policy.judge(
                info,
                state.read_exit(index),
                model.vocabulary_ids(index),
                model.architecture.vocabulary_size,
                GREEDY,
                len(text),
            )
            if judgement.accepted:
                break
        else:
            guess, found = judgement.choice.token_id, looked_up(text)
            counts.unsure += 1
            counts.exit_right += guess == wanted
            counts.found += found is not None
            counts.lookup_right += found == wanted
            counts.only_lookup_right += found == wanted != guess
            counts.lookup_instead += wanted == (guess if found is None else found)
        text.append(wanted)
        state.extend([wanted])


async def measure(bundle: Path, prompts: Path, limit: int, max_tokens: int) -> Tally:
    """Walk along the answers of a local cloud."""
    counts = Tally()
    loaded = ModelBundle.load(bundle)
    async with LocalCloud(bundle) as cloud:
        engine = EdgeEngine(loaded, "int8", endpoint=CloudEndpoint(cloud.address))
        options = GenerationOptions(Mode.CLOUD_ONLY, max_tokens=max_tokens)
        for exchange in read_exchanges(prompts, limit):
            ids = engine.encode_chat([Message("user", exchange.prompt)])
            reference = await engine.generate(ids, options)
            tally(engine, ids, [token.token_id for token in reference.tokens], counts)
        engine.close()
    return counts


def main() -> None:
    """Print the shares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=default_bundle_folder())
    parser.add_argument("--prompts", type=Path, default=Path("simulator/bench/prompts.jsonl"))
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--max-tokens", type=int, default=96)
    arguments = parser.parse_args()
    counts = asyncio.run(
        measure(arguments.bundle, arguments.prompts, arguments.limit, arguments.max_tokens)
    )
    unsure = max(1, counts.unsure)
    print(
        f"{counts.tokens} tokens, {counts.unsure} of them unsure at {DEFAULT_THRESHOLD}; of these"
    )
    print(f"  the deepest exit guesses right        {counts.exit_right / unsure:.1%}")
    print(f"  prompt lookup finds something for     {counts.found / unsure:.1%}")
    print(f"  prompt lookup is right                {counts.lookup_right / unsure:.1%}")
    print(f"  right where the exit is wrong         {counts.only_lookup_right / unsure:.1%}")
    print(f"  right if it replaced the exit's guess {counts.lookup_instead / unsure:.1%}")


if __name__ == "__main__":
    main()

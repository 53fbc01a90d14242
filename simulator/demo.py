"""``tandem demo``: a cloud and an edge on loopback, real prompts in each mode, a closing table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from edge.engine import EdgeEngine
from edge.generation import Mode
from edge.generation_options import GenerationOptions
from edge.generation_result import GenerationResult
from edge.token_display import show_answer, style_of
from shared.chat import Message
from simulator.evaluation import PromptOutcome, checked_against, summarize

PROMPTS = (
    "Why is the sky blue? Answer in two sentences.",
    "Write a short poem about a lighthouse.",
    "A train travels 60 km in 45 minutes. What is its speed in km/h?",
)
_TITLES = {
    Mode.CLOUD_ONLY: "the cloud alone (the full model)",
    Mode.COLLABORATIVE: "edge and cloud together",
    Mode.STANDALONE: "the edge alone (no network)",
}


@dataclass(frozen=True)
class ModeOutcome:
    """All prompts in one mode."""

    options: GenerationOptions
    outcomes: Sequence[PromptOutcome]


async def run_demo(
    engine: EdgeEngine, options: GenerationOptions, prompts: Sequence[str], console: Console
) -> list[ModeOutcome]:
    """Talk in each mode, token by token, then check every answer against the full model."""
    encoded = [engine.encode_chat([Message("user", prompt)]) for prompt in prompts]
    answers: dict[Mode, list[GenerationResult]] = {}
    for mode, title in _TITLES.items():
        console.rule(f"[bold]{title}")
        wanted = replace(options, mode=mode)
        answers[mode] = []
        for prompt, ids in zip(prompts, encoded, strict=True):
            console.print(f"[bold]> {prompt}")
            answers[mode].append(await show_answer(engine, ids, wanted, console))
    console.print(_legend(engine))
    return await _check(engine, options, encoded, answers, console)


async def _check(
    engine: EdgeEngine,
    options: GenerationOptions,
    encoded: Sequence[Sequence[int]],
    answers: dict[Mode, list[GenerationResult]],
    console: Console,
) -> list[ModeOutcome]:
    """Force every mode along the full model's answers, to count where it agrees."""
    outcomes = []
    references = answers[Mode.CLOUD_ONLY]
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        total = len(answers) * len(encoded)
        task = progress.add_task("holding each answer against the full model's", total=total)
        for mode, spoken in answers.items():
            wanted = replace(options, mode=mode)
            checked = []
            for ids, reference, free in zip(encoded, references, spoken, strict=True):
                checked.append(await checked_against(engine, ids, wanted, reference, free))
                progress.advance(task)
            outcomes.append(ModeOutcome(wanted, checked))
    return outcomes


def closing_table(engine: EdgeEngine, outcomes: Sequence[ModeOutcome]) -> Table:
    """One row a mode: speed, where tokens came from, bytes, the cloud's work, agreement."""
    exits = [info.name for info in engine.bundle.manifest.exits]
    table = Table(
        title="what it cost",
        caption="up, down: bytes per token · work: the cloud's share of the model's layer-work\n"
        "agree: agreement with the full model, word by word along its own answer",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("mode", no_wrap=True)
    for heading in ("tokens/s", *exits, "cloud", "up", "down", "work", "agree"):
        table.add_column(heading, justify="right", no_wrap=True)
    layers = engine.bundle.manifest.architecture.layers
    for outcome in outcomes:
        figures = summarize(outcome.outcomes, outcome.options, layers)
        free = [one.free for one in outcome.outcomes]
        tokens = max(1, figures.tokens)
        shares = [f"{figures.origin_shares.get(name, 0.0):.0%}" for name in (*exits, "cloud")]
        table.add_row(
            figures.mode,
            f"{figures.tokens / sum(result.seconds for result in free):.1f}",
            *shares,
            f"{figures.uploaded_bytes_per_token:.0f}",
            f"{sum(result.downloaded_bytes for result in free) / tokens:.0f}",
            "?" if figures.cloud_layer_share is None else f"{figures.cloud_layer_share:.0%}",
            f"{figures.agreement:.1%}",
        )
    return table


def _legend(engine: EdgeEngine) -> str:
    names = [*(info.name for info in engine.bundle.manifest.exits), "cloud"]
    return "words came from: " + "  ".join(f"[{style_of(name)}]{name}[/]" for name in names)

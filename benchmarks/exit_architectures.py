"""Compare exit architectures: agreement after the same short training, edge time, bytes.

Every variant sees the same lessons once, in the same order, and is then judged on lessons held
out and on the full model's answers to ``--prompts``.  Edge time is one token's way from the
embedding through the exit in int8, all variants taken in turn in one process.  Run it again to
take up where it stopped; trained variants are not trained again, timings always are.

    python -m benchmarks.exit_architectures --text pairs.jsonl --prompts mt_bench.jsonl \\
        --out build/exit-architectures
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from edge.exit_model import ExitModel
from prepare.base_model import BaseModel
from prepare.bundle_writer import write_bundle
from prepare.cli import load_base_model
from prepare.exit_training.calibration import operating_points
from prepare.exit_training.exit_module import ExitModule
from prepare.exit_training.lessons import answered_prompts
from prepare.exit_training.pipeline import ExitRecipe, fill_lessons
from prepare.exit_training.teacher import Teacher
from prepare.exit_training.teacher_cache import TeacherCache
from prepare.exit_training.trainer import ExitTrainer, TrainingSettings, frequent_tokens
from prepare.exit_weights import ExitSet, ExitWeights, untrained_exits
from shared.errors import ConfigurationError
from shared.prompt_file import read_exchanges

ADAPTER_RANK = 64
_FINE = [number / 200 for number in range(40, 200)]


@dataclass(frozen=True)
class Variant:
    """One exit: ``blocks`` transformer blocks after ``layer``, a head of ``rows`` (0: all).

    ``shared``: the block is trained together with that of the other variants of the same name;
    each has only a low-rank adapter (``ADAPTER_RANK``) of its own before it.
    """

    layer: int
    blocks: int
    rows: int
    shared: str = ""
    learning_rate: float = TrainingSettings.learning_rate

    @property
    def name(self) -> str:
        """How the table calls it."""
        plain = f"{self.layer}+{self.blocks}{self.shared}/{self.rows or 'all'}"
        usual = self.learning_rate == TrainingSettings.learning_rate
        return plain if usual else f"{plain} at {self.learning_rate:g}"


VARIANTS = [
    # the first exit: where it sits, and whether a second block pays
    *(Variant(layer, 1, 8192) for layer in (10, 14, 16)),
    Variant(16, 2, 8192),
    # the last exit: depth against blocks
    *(Variant(layer, blocks, 16384) for layer, blocks in ((20, 1), (20, 2), (20, 3))),
    *(Variant(layer, blocks, 16384) for layer, blocks in ((22, 1), (22, 2), (24, 1))),
    # its head
    Variant(20, 2, 8192),
    Variant(20, 2, 24576),
    Variant(20, 2, 0),
    # one block for both exits
    Variant(16, 1, 8192, "s"),
    Variant(20, 1, 16384, "s"),
    # how fast it learns
    Variant(20, 2, 16384, learning_rate=1e-3),
    Variant(20, 2, 16384, learning_rate=2e-3),
    Variant(20, 2, 16384, learning_rate=8e-3),
]


class AdaptedModule(ExitModule):
    """An exit with a low-rank adapter before its (shared) blocks; it starts as the identity."""

    def __init__(self, model: BaseModel, weights: ExitWeights) -> None:
        super().__init__(model, weights)
        size = model.architecture.hidden_size
        self.down = nn.Linear(size, ADAPTER_RANK, bias=False)
        self.up = nn.Linear(ADAPTER_RANK, size, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """As :meth:`ExitModule.forward`."""
        return super().forward(hidden + self.up(self.down(hidden)), cos, sin)


class Comparison:
    """Trains variants one after another and keeps what was measured in ``results.json``."""

    def __init__(
        self,
        model: BaseModel,
        cache: TeacherCache,
        prompts: TeacherCache,
        out: Path,
        lots: int,
        held_out: int,
    ) -> None:
        self.model, self._cache, self._prompts = model, cache, prompts
        self._path = out / "results.json"
        self._lots, self._held_out = lots, held_out
        self._shards = cache.shards()[:lots][:-held_out]
        self.results: dict[str, Any] = {}
        settings = {"lessons": cache.fingerprint, "lots": lots, "held_out": held_out}
        described = out / "settings.json"
        if described.exists() and json.loads(described.read_text()) != settings:
            raise ConfigurationError(f"{out} holds results of other settings: name another --out")
        described.write_text(json.dumps(settings) + "\n")
        if self._path.exists():
            self.results = json.loads(self._path.read_text())

    def run(self, variants: Sequence[Variant], console: Console) -> None:
        """Train what has no result yet; variants that share a block are trained in turns."""
        groups: dict[str, list[Variant]] = {}
        for variant in variants:
            groups.setdefault(variant.shared or variant.name, []).append(variant)
        for group in groups.values():
            if all(variant.name in self.results for variant in group):
                continue
            console.print(f"training {', '.join(variant.name for variant in group)}")
            started = time.monotonic()
            for variant, trainer in zip(group, self._train(group), strict=True):
                self.results[variant.name] = self._judge(trainer)
                console.print(f"  {variant.name}: {self.results[variant.name]}")
            console.print(f"  {time.monotonic() - started:.0f} s")
            self._path.write_text(json.dumps(self.results, indent=2) + "\n")

    def initial(self, variant: Variant) -> ExitWeights:
        """The variant before training."""
        size = self.model.architecture.vocabulary_size
        ids = None
        if variant.rows:
            ids = frequent_tokens(
                self._cache, self._shards, variant.rows, size, self.model.stop_token_ids
            )
        made = untrained_exits(
            self.model, [variant.layer], blocks=variant.blocks, vocabulary_ids=ids
        )
        return made.exits[0]

    def _train(self, group: Sequence[Variant]) -> list[ExitTrainer]:
        settings = TrainingSettings(
            learning_rate=group[0].learning_rate,
            epochs=1,
            held_out_shards=self._held_out,
            max_shards=self._lots,
        )
        cpu = torch.device("cpu")
        trainers = []
        for variant in group:
            module = AdaptedModule if variant.shared else ExitModule
            weights = self.initial(variant)
            trainers.append(
                ExitTrainer(self.model, weights, self._cache, settings, cpu, module=module)
            )
        for trainer in trainers[1:]:
            trainer.share_blocks(trainers[0])
        with tempfile.TemporaryDirectory() as scratch:
            rounds = [
                trainer.rounds(Path(scratch) / f"{index}.checkpoint")
                for index, trainer in enumerate(trainers)
            ]
            for _ in zip(*rounds, strict=True):
                pass
        return trainers

    def _judge(self, trainer: ExitTrainer) -> dict[str, float]:
        _, right = trainer.predictions(trainer.held_out)
        raw, correct = trainer.predictions(self._prompts.shards(), self._prompts)
        points = operating_points([raw.astype(np.float64)], [correct], _FINE)
        asked = min((p.escalation_rate for p in points if p.agreement >= 0.95), default=1.0)
        return {
            "held_out": round(float(right.mean()), 4),
            "prompts": round(float(correct.mean()), 4),
            "escalation_at_0.95": round(asked, 4),
        }


def time_on_the_edge(
    comparison: Comparison, variants: Sequence[Variant], repeats: int, threads: int | None
) -> dict[str, dict[str, float]]:
    """Milliseconds per token (embedding to exit, median) and bytes of each variant in int8."""
    model = comparison.model
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        edges: dict[str, ExitModel] = {}
        for variant in variants:
            weights = comparison.initial(variant)
            named = replace(weights, info=weights.info.model_copy(update={"name": "exit1"}))
            folder = Path(scratch) / variant.name.replace("/", "-")
            exits = ExitSet((named,), model.source.sha256)
            bundle = write_bundle(
                model, exits, folder, precisions=["int8"], full_depth=False, cloud=False
            )
            edges[variant.name] = ExitModel(bundle, "int8", threads=threads)
            graphs = bundle.graphs("int8")
            exit_bytes = sum(f.size_bytes for f in (graphs.exits[0].graph, graphs.exits[0].weights))
            figures[variant.name] = {
                "exit_bytes": exit_bytes,
                "edge_bytes": sum(file.size_bytes for file in graphs.files()),
            }
        samples: dict[str, list[float]] = {name: [] for name in edges}
        for _ in range(repeats):
            for name, edge in edges.items():
                samples[name].append(_milliseconds_per_token(edge))
    for name, taken in samples.items():
        figures[name]["ms_per_token"] = round(statistics.median(taken), 3)
    return figures


def _milliseconds_per_token(edge: ExitModel, tokens: int = 24) -> float:
    state = edge.open(64 + tokens + 1)
    state.extend(range(100, 164))
    state.read_exit(0)
    started = time.perf_counter()
    for token in range(tokens):
        state.extend([200 + token])
        state.read_exit(0)
    return (time.perf_counter() - started) * 1000 / tokens


def markdown(results: dict[str, Any], edge: dict[str, dict[str, float]]) -> str:
    """The table of ``docs/exits.md``."""
    lines = [
        "| exit (layer+blocks/rows) | held out | prompts | escalated at 0.95 | ms/token "
        "| exit MB | edge MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, timing in edge.items():
        shown = results[name]
        lines.append(
            f"| {name} | {shown['held_out']:.3f} | {shown['prompts']:.3f} "
            f"| {shown['escalation_at_0.95']:.3f} | {timing['ms_per_token']:.2f} "
            f"| {timing['exit_bytes'] / 1e6:.1f} | {timing['edge_bytes'] / 1e6:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, action="append", required=True)
    parser.add_argument("--prompts", type=Path, required=True, help="JSONL, never trained on")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lots", type=int, default=5, help="lessons, in lots of 128 answers")
    parser.add_argument("--held-out", type=int, default=1, help="lots of these to judge on")
    parser.add_argument("--invented", type=int, default=6144)
    parser.add_argument("--teacher-cache", type=Path, help="[default: OUT/lessons]")
    parser.add_argument("--from", dest="local", type=Path, help="local GGUF file")
    parser.add_argument("--threads", type=int, help="threads of the timed edge")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()

    console = Console(stderr=True, highlight=False)
    args.out.mkdir(parents=True, exist_ok=True)
    model = load_base_model(args.local, console)
    layers = tuple(sorted({variant.layer for variant in VARIANTS}))
    recipe = ExitRecipe(
        text=tuple(args.text),
        invented=args.invented,
        layers=layers,
        blocks=(1,) * len(layers),
        vocabulary=(0,) * len(layers),
        lots=args.lots,
        held_out_shards=args.held_out,
    )
    cpu = torch.device("cpu")
    folder = args.teacher_cache or args.out / "lessons"
    cache = fill_lessons(model, recipe, folder, cpu, console)
    asked = [exchange.prompt for exchange in read_exchanges(args.prompts)]
    prompts = TeacherCache(args.out / "prompts", {"prompts": asked})
    if not prompts.shards():
        console.print(f"answering {args.prompts.name}")
        teacher = Teacher(model, layers, device=cpu)
        prompts.write(0, answered_prompts(model, teacher, asked, max_tokens=128), layers)
    comparison = Comparison(model, cache, prompts, args.out, args.lots, args.held_out)
    comparison.run(VARIANTS, console)
    edge = time_on_the_edge(comparison, VARIANTS, args.repeats, args.threads)
    table = markdown(comparison.results, edge)
    (args.out / "table.md").write_text(table)
    print(table, end="")


if __name__ == "__main__":
    main()

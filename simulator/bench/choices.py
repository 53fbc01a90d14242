"""What the options of ``tandem bench`` name: links, contenders, weights and prompts, all checked
before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge.engine import EdgeEngine
from prepare.weight_source import SMOLLM2
from shared.chat import Message
from shared.errors import ConfigurationError
from shared.model_bundle import ModelBundle, cache_folder, sha256_of
from shared.prompt_file import read_exchanges
from simulator.bench.links import BenchLink, choose_links
from simulator.bench.plan import BenchPrompt
from simulator.bench.registry import Entrant, parse_entrant
from simulator.bench.runner import left_out


def links_named(
    rtts: str | None,
    rates: str | None,
    presets: str | None,
    ups: Sequence[Path],
    downs: Sequence[Path],
    trace_rtt: float,
) -> tuple[BenchLink, ...]:
    """The grid (where there is one), presets and traces."""
    if len(ups) != len(downs):
        raise ConfigurationError("a trace link needs both --trace-up and --trace-down")
    return choose_links(
        _numbers(rtts, "--rtt") if rtts is not None else (),
        _numbers(rates, "--rate") if rates is not None else (),
        _split(presets, "--preset") if presets is not None else (),
        list(zip(ups, downs, strict=True)),
        trace_rtt,
    )


def entrants_named(text: str) -> list[Entrant]:
    """Contenders by their names."""
    return [parse_entrant(name) for name in _split(text, "--contenders")]


def present(
    entrants: Sequence[Entrant], gguf: Path | None, *, insist: bool
) -> tuple[list[Entrant], dict[str, str]]:
    """Who can run here, and why the others cannot; whoever was named must."""
    absent = left_out(entrants, gguf)
    if insist and absent:
        name, reason = next(iter(absent.items()))
        raise ConfigurationError(f"contender {name} cannot run: {reason}")
    return [entrant for entrant in entrants if entrant.name not in absent], absent


def weights_for_llama_cpp(bundle: ModelBundle, named: Path | None) -> Path | None:
    """The file that the bundle's weights are from: the one named, or the cached one."""
    wanted = bundle.manifest.source.sha256
    if named is None:
        path = cache_folder() / "weights" / Path(SMOLLM2.member).name
        return path if wanted == SMOLLM2.member_sha256 and path.is_file() else None
    try:
        found = sha256_of(named)
    except OSError as error:
        raise ConfigurationError(f"{named} cannot be read: {error.strerror}") from None
    if found != wanted:
        raise ConfigurationError(f"{named} does not hold the weights that the bundle is made from")
    return named


def read_prompts(
    bundle: ModelBundle, path: Path, limit: int | None, max_tokens: int
) -> tuple[BenchPrompt, ...]:
    """Encoded as every contender gets them; one that is too long is refused at once."""
    exchanges = read_exchanges(path, limit)
    engine = EdgeEngine(bundle, "int8")  # loads no model before it is asked to
    try:
        found = tuple(
            BenchPrompt(e.prompt, engine.encode_chat([Message("user", e.prompt)]))
            for e in exchanges
        )
    finally:
        engine.close()
    room = bundle.manifest.architecture.max_positions - max_tokens
    for number, prompt in enumerate(found, start=1):
        if len(prompt.ids) > room:
            raise ConfigurationError(f"prompt {number} has {len(prompt.ids)} tokens; {room} fit")
    if len({prompt.identity for prompt in found}) < len(found):
        raise ConfigurationError(f"{path} holds a prompt twice")
    return found


def _split(text: str, option: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise ConfigurationError(f"{option} {text!r} is not a list like a,b,c")
    return parts


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(part) for part in _split(text, option)]
    except ValueError:
        raise ConfigurationError(f"{option} {text!r} is not a list of numbers") from None

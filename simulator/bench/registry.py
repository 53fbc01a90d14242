"""Contenders by name: ``family`` or ``family@argument``.

A new schedule is one call of :func:`register` in a module that :func:`load_contenders` imports.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from shared.errors import ConfigurationError

if TYPE_CHECKING:
    from edge.engine import EdgeEngine
    from edge.timeline import Timeline
    from simulator.bench.answer import Answer
    from simulator.bench.plan import BenchSettings

_MODULES = ("tandem_contenders", "naive_split", "outside_peers")


class Kind(Enum):
    """What a contender stands for in the report."""

    OURS = "ours"
    BASELINE = "baseline"
    OUTSIDE = "outside"


@dataclass(frozen=True)
class Bench:
    """What contenders are made from: a loaded edge whose endpoint lies behind the shaped link, the
    settings, and the GGUF file of the bundle's weights where there is one."""

    engine: EdgeEngine
    settings: BenchSettings
    gguf: Path | None


class Contender(Protocol):
    """Answers prompts, one at a time."""

    async def answer(
        self,
        prompt_ids: Sequence[int],
        max_tokens: int,
        *,
        forced_ids: tuple[int, ...] | None = None,
        timeline: Timeline | None = None,
    ) -> Answer:
        """Greedy tokens up to a stop token or ``max_tokens``; with ``forced_ids`` what it would
        say at each of their positions, given those before."""
        ...


@dataclass(frozen=True)
class Family:
    """Contenders of one kind.

    Attributes:
        open: makes one; its block holds what the contender needs (a child process, say).
        argument: what stands after ``@`` (``threshold``), or ``None`` where nothing may.
        uses_cloud: whether its time depends on the link.
        costly: so slow that it is measured in fewer repeats (``--costly-repeats``).
        missing: why it cannot run here, or ``None``; asked before anything starts.
    """

    name: str
    summary: str
    kind: Kind
    open: Callable[[Bench, float | None], AbstractAsyncContextManager[Contender]]
    argument: str | None = None
    uses_cloud: bool = True
    costly: bool = False
    missing: Callable[[Path | None], str | None] = lambda _: None


_FAMILIES: dict[str, Family] = {}


@dataclass(frozen=True)
class Entrant:
    """A family with its argument; ``name`` is how it is written."""

    name: str
    family: Family
    argument: float | None


def register(family: Family) -> Family:
    """Make a family known by its name."""
    assert family.name not in _FAMILIES
    assert "@" not in family.name
    _FAMILIES[family.name] = family
    return family


def load_contenders() -> dict[str, Family]:
    """Every family, by its name and in that order."""
    for module in _MODULES:
        import_module(f"simulator.bench.{module}")
    return dict(sorted(_FAMILIES.items()))


def parse_entrant(text: str) -> Entrant:
    """``blocking@0.8`` as an :class:`Entrant`.

    Raises:
        ConfigurationError: no such family, or an argument that it does not take.
    """
    families = load_contenders()
    name, at, argument = text.strip().partition("@")
    family = families.get(name)
    if family is None:
        raise ConfigurationError(f"no contender {text!r}: there are {', '.join(_usage(families))}")
    if family.argument is None:
        if at:
            raise ConfigurationError(f"contender {name} takes nothing after @")
        return Entrant(name, family, None)
    try:
        value = float(argument)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise ConfigurationError(
            f"contender {text!r}: write {name}@{family.argument.upper()}, a number in [0, 1]"
        )
    return Entrant(f"{name}@{argument.strip()}", family, value)


def _usage(families: dict[str, Family]) -> list[str]:
    return [
        name if family.argument is None else f"{name}@{family.argument.upper()}"
        for name, family in families.items()
    ]

"""The Markdown report, written from the figures alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from simulator.bench import paper
from simulator.bench.environment import Environment
from simulator.bench.losses import RIVALS, TOLERANCE, Loss, find_losses
from simulator.bench.markdown import either, table
from simulator.bench.registry import Kind
from simulator.bench.report_tables import columns, grid, link_table
from simulator.bench.results import Results
from simulator.bench.sessions import Session

_TIME = "time per token"


@dataclass(frozen=True)
class ReportContext:
    """What the report says beside the figures.

    Attributes:
        sessions: the runs that the measurements are from.
        bundle: as an environment has it.
        command: a command that makes it again, without paths.
        settings: as the journal has them.
        prompts: how many, and where from.
        plots: Markdown path of each figure by its name.
        left_out: contenders that could not run, and why.
    """

    sessions: tuple[Session, ...]
    bundle: dict[str, Any]
    command: str
    settings: dict[str, Any]
    prompts: str
    repeats: str
    plots: dict[str, str]
    left_out: dict[str, str]

    @property
    def environments(self) -> list[Environment]:
        """Those that are known."""
        return [s.environment for s in self.sessions if s.environment is not None]


def write_report(results: Results, context: ReportContext) -> str:
    """The whole report."""
    sections = [
        _head(context),
        _losses(results),
        _environment(context),
        _contenders(results, context),
        columns(),
        _grid(results, context),
        *(link_table(results, link.name, link.summary) for link in results.links),
        _figures(context),
        _paper(results, context),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _head(context: ReportContext) -> str:
    lines = ["# Benchmark results", "", f"Written by `{context.command}`."]
    total = sum(session.measurements for session in context.sessions)
    for session in context.sessions:
        some = f"{session.measurements} of {total} measurements"
        env = session.environment
        if env is None:
            lines += ["", f"Where, when and under which load {some} were made is not known."]
        elif env.busy:
            lines += [
                "",
                f"**The machine was busy when a session of {some} began ({env.date}, load "
                f"{env.load:g}): their times are not to be relied on.**",
            ]
    versions = list(dict.fromkeys(session.code for session in context.sessions))
    if len(versions) > 1:
        lines += [
            "",
            f"**These measurements are of {len(versions)} versions of the code "
            f"({', '.join(versions)}), mixed on request.**",
        ]
    return "\n".join(lines)


def _losses(results: Results) -> str:
    losses = find_losses(results)
    rivals = [rival for rival in RIVALS if results.has(rival)]
    title = "## Where Tandem loses"
    if not rivals:
        return "\n".join([title, "", "Nobody to compare with took part."])
    text = [
        title,
        "",
        f"Found in the figures below: where a contender of ours is worse than {either(rivals)}: "
        f"by more than {TOLERANCE:.0%} in time per token, time to the first token or bytes per "
        "token each way, link by link, or by anything at all in agreement, equal answers or "
        "ROUGE-L. Not compared: bytes with a rival that sends none, the cloud's work, memory, "
        "energy.",
        "",
    ]
    if not losses:
        return "\n".join([*text, "Nowhere in these measurements."])
    text += [*_sentences(results, losses), ""]
    rows = [
        (
            loss.contender,
            loss.measure,
            loss.rival,
            _links_of(loss),
            loss.least if loss.least == loss.most else f"{loss.least} to {loss.most}",
        )
        for loss in losses
    ]
    return "\n".join([*text, table(("contender", "in", "loses to", "on", "by"), rows)])


def _sentences(results: Results, losses: Sequence[Loss]) -> list[str]:
    """One line a contender and rival about time: the first thing to know."""
    lines = []
    slower = {(loss.contender, loss.rival): loss for loss in losses if loss.measure == _TIME}
    more = f"more than {TOLERANCE:.0%} slower per token than"
    for contender in results.of_kind(Kind.OURS):
        for rival in RIVALS:
            if not results.has(rival):
                continue
            loss = slower.get((contender, rival))
            if loss is None:
                lines.append(f"- `{contender}` is nowhere {more} `{rival}`.")
            elif len(loss.links) == loss.out_of:
                lines.append(f"- `{contender}` is **{more} `{rival}` on every link**.")
            else:
                lines.append(
                    f"- `{contender}` is {more} `{rival}` on {len(loss.links)} of "
                    f"{loss.out_of} links."
                )
    return lines


def _links_of(loss: Loss) -> str:
    if not loss.links:
        return "the text (any link)"
    if len(loss.links) == loss.out_of and loss.out_of > 1:
        return f"all {loss.out_of} links"
    if len(loss.links) > 4:
        return f"{len(loss.links)} of {loss.out_of} links"
    return ", ".join(loss.links)


def _environment(context: ReportContext) -> str:
    known, bundle = context.environments, context.bundle
    rows = [
        (
            "processor",
            _every(
                f"{e.processor}, {e.cores} cores ({e.logical_processors} logical)" for e in known
            ),
        ),
        (
            "memory",
            _every("unknown" if e.memory_gib is None else f"{e.memory_gib:g} GiB" for e in known),
        ),
        ("system", _every(f"{e.system}, Python {e.python}" for e in known)),
        (
            "packages",
            _every(
                ", ".join(f"{name} {version}" for name, version in e.packages.items())
                for e in known
            ),
        ),
        ("model", f"{bundle['name']}: {bundle['source']}, {bundle['layers']} layers"),
        ("exits", f"{', '.join(bundle['exits']) or 'none'}; cut after layer {bundle['cut']}"),
        ("bundle's recipe", f"`{bundle['recipe'][:16]}`"),
        ("prompts", context.prompts),
        ("repeats", context.repeats),
        *(
            (name.replace("_", " "), "the part's own choice" if value is None else value)
            for name, value in context.settings.items()
            if name not in ("bundle", "machine")
        ),
    ]
    text = (
        "Cloud, link and edge are processes of one machine and share its cores; every byte goes "
        "over TCP through the shaped link. Each answer opens a session of its own on a "
        "connection that is kept; the naive split opens a connection for each answer and a session "
        "for each token."
    )
    lines = ["## Environment and settings", "", table(("", ""), rows), ""]
    lines += ["Measured in:", "", _sessions(context.sessions), "", text]
    return "\n".join(lines)


def _sessions(sessions: Sequence[Session]) -> str:
    """Where and when: one line each."""
    rows = []
    for session in sessions:
        env = session.environment
        load = "unknown" if env is None or env.load is None else f"{env.load:g}"
        date = "unknown" if env is None else env.date
        rows.append((date, session.measurements, load, session.code))
    return table(("session", "measurements", "load as it began", "code"), rows)


def _contenders(results: Results, context: ReportContext) -> str:
    rows = [(e.name, e.family.kind.value, e.family.summary) for e in results.entrants]
    lines = ["## Contenders", "", table(("name", "whose", "what it is"), rows)]
    if context.left_out:
        out = "; ".join(f"`{name}`: {reason}" for name, reason in context.left_out.items())
        lines += ["", f"Left out: {out}."]
    return "\n".join(lines)


def _grid(results: Results, context: ReportContext) -> str:
    text = grid(results)
    if text and "time-against-round-trip" in context.plots:
        text += "\n\n" + _image(context, "time-against-round-trip", "time per token by round trip")
    return text


def _figures(context: ReportContext) -> str:
    titles = {
        "time-split": "where a token's time goes",
        "bytes": "bytes per token each way",
        "frontier": "quality against cost",
        "timeline": "one answer as it happened",
    }
    images = [_image(context, name, title) for name, title in titles.items()
              if name in context.plots]  # fmt: skip
    if not images:
        return ""
    note = (
        "In the timeline, uploads are drawn as the link carries them, and the cloud's part of a "
        "wait in the middle of what is left once they have arrived: where exactly, no clock sees."
    )
    return "\n\n".join(["## Figures", *images, note])


def _paper(results: Results, context: ReportContext) -> str:
    link, bundle = results.middle, context.bundle
    here = paper.Here(
        model=f"{bundle['name']}, {', '.join(bundle['exits']) or 'no exits'} of "
        f"{bundle['layers']} (trained by this project)",
        machine=str(context.settings["machine"]),
        precision=str(context.settings["precision"]),
        prompts=context.prompts,
    )
    lines = ["## Beside the paper", "", paper.SAYS, ""]
    lines += [
        f"Ours are totals over all prompts, where nothing else is said, on `{link.name}`, the link "
        "in the middle. Model, machine and network differ, so only relations can be compared, and "
        "those with care.",
        "",
        table(
            ("what", "the paper", "here", "the paper's read in"), paper.comparison(results, here)
        ),
        "",
        paper.NOT_FOUND,
    ]
    return "\n".join(lines)


def _image(context: ReportContext, name: str, title: str) -> str:
    return f"![{title}]({context.plots[name]})"


def _every(values: Iterable[str]) -> str:
    """Each value once, or that none is known."""
    return "; ".join(dict.fromkeys(values)) or "unknown"

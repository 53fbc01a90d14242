"""The Markdown report, written from the figures alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from simulator.bench import paper
from simulator.bench.environment import Environment
from simulator.bench.losses import RIVALS, TOLERANCE, Loss, find_losses
from simulator.bench.registry import Kind
from simulator.bench.results import Results, Row


@dataclass(frozen=True)
class ReportContext:
    """What the report says beside the figures.

    Attributes:
        command: a command that makes it again, without paths.
        settings: as the journal has them.
        prompts: how many, and where from.
        plots: Markdown path of each figure by its name.
        left_out: contenders that could not run, and why.
    """

    environment: Environment
    command: str
    settings: dict[str, Any]
    prompts: str
    repeats: str
    plots: dict[str, str]
    left_out: dict[str, str]


def write_report(results: Results, context: ReportContext) -> str:
    """The whole report."""
    sections = [
        _head(context),
        _losses(results),
        _environment(context),
        _contenders(results, context),
        _meaning(),
        _grid(results, context),
        *(_link_table(results, link.name, link.summary) for link in results.links),
        _figures(context),
        _paper(results),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _head(context: ReportContext) -> str:
    lines = ["# Benchmark results", "", f"Made by `{context.command}`."]
    if context.environment.busy:
        lines += [
            "",
            f"**The machine was busy when this began (load {context.environment.load}): the times "
            "below are not to be relied on.**",
        ]
    return "\n".join(lines)


def _losses(results: Results) -> str:
    losses = find_losses(results)
    rivals = [rival for rival in RIVALS if results.has(rival)]
    text = [
        "## Where Tandem loses",
        "",
        f"Found in the figures below: everything in which a contender of ours is more than "
        f"{TOLERANCE:.0%} worse than {_or(rivals)} (quality: any difference).",
        "",
    ]
    if not rivals:
        return "\n".join([*text[:2], "Nobody to compare with took part."])
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
    return "\n".join([*text, _table(("contender", "in", "loses to", "on", "by"), rows)])


def _sentences(results: Results, losses: Sequence[Loss]) -> list[str]:
    """One line a contender and rival about time: the first thing to know."""
    lines = []
    slower = {(loss.contender, loss.rival): loss for loss in losses if loss.measure == _TIME}
    for contender in results.of_kind(Kind.OURS):
        for rival in RIVALS:
            if not results.has(rival):
                continue
            loss = slower.get((contender, rival))
            if loss is None:
                lines.append(f"- `{contender}` is nowhere slower than `{rival}`.")
            elif len(loss.links) == loss.out_of:
                lines.append(f"- `{contender}` is **slower than `{rival}` on every link**.")
            else:
                lines.append(
                    f"- `{contender}` is slower than `{rival}` on {len(loss.links)} of "
                    f"{loss.out_of} links."
                )
    return lines


_TIME = "time per token"


def _links_of(loss: Loss) -> str:
    if not loss.links:
        return "the text (any link)"
    if len(loss.links) == loss.out_of and loss.out_of > 1:
        return f"all {loss.out_of} links"
    if len(loss.links) > 4:
        return f"{len(loss.links)} of {loss.out_of} links"
    return ", ".join(loss.links)


def _environment(context: ReportContext) -> str:
    env = context.environment
    memory = "unknown" if env.memory_gib is None else f"{env.memory_gib:g} GiB"
    bundle = env.bundle
    rows = [
        ("date", env.date),
        ("processor", f"{env.processor}, {env.cores} cores ({env.logical_processors} logical)"),
        ("memory", memory),
        ("system", f"{env.system}, Python {env.python}"),
        ("packages", ", ".join(f"{name} {version}" for name, version in env.packages.items())),
        ("code", env.commit or "no commit known"),
        ("load at the start", "unknown" if env.load is None else f"{env.load:g}"),
        ("model", f"{bundle['name']}: {bundle['source']}, {bundle['layers']} layers"),
        ("exits", f"{', '.join(bundle['exits']) or 'none'}; cut after layer {bundle['cut']}"),
        ("bundle", f"`{bundle['recipe'][:16]}`"),
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
        "over TCP through the shaped link. Each answer opens a connection and a session of its own."
    )
    return "\n".join(["## Environment and settings", "", _table(("", ""), rows), "", text])


def _contenders(results: Results, context: ReportContext) -> str:
    rows = [(e.name, e.family.kind.value, e.family.summary) for e in results.entrants]
    lines = ["## Contenders", "", _table(("name", "whose", "what it is"), rows)]
    if context.left_out:
        out = "; ".join(f"`{name}`: {reason}" for name, reason in context.left_out.items())
        lines += ["", f"Left out: {out}."]
    return "\n".join(lines)


def _meaning() -> str:
    return "\n".join(
        [
            "## What the columns say",
            "",
            "Times are of the edge's clock, from the prompt's token ids to the last token; models "
            "are loaded and warm. A prompt counts with the repeat whose total is the median, so "
            "`edge + cloud + link = total`; prompts are summed.",
            "",
            "- **edge**: everything on the device. The paper's *edge cost*.",
            "- **cloud**: of the waits for a token, what the cloud says it took: from the "
            "question's arrival to the answer. The paper's *cloud cost*, as far as it was waited "
            "for.",
            "- **link**: the rest of the waits: round trips, transfer, connection set-up. The "
            "paper's *communication cost*. Uploads behind the edge's back cost no time here; "
            "they show under bytes.",
            "- **stall**: cloud + link, the edge waiting.",
            "- **asked**: share of tokens that the cloud decided. **work**: share of the model's "
            "layer-work done in the cloud.",
            "- **agree**: teacher-forced along the full model's greedy answer, the share of "
            "positions at which it says the same token. **exact** and **ROUGE-L**: its own, "
            "free-running answers against the full model's. The full model is the one in the "
            "cloud, float32; quality is measured on an unshaped link, on which it does not depend.",
            "- **up**, **down**: bytes per token, gRPC and HTTP/2 framing estimated.",
        ]
    )


def _grid(results: Results, context: ReportContext) -> str:
    rtts = sorted({link.rtt_ms for link in results.links if link.rtt_ms is not None})
    rates = sorted({link.rate_mbit for link in results.links if link.rate_mbit is not None})
    if not rtts or not results.has("cloud-only"):
        return ""
    cells = {(link.rtt_ms, link.rate_mbit): link.name for link in results.links}
    lines = [
        "## Round trip × rate: time per token, as a ratio to cloud-only",
        "",
        "Below 1 is faster than cloud-only on the same link; **bold** is slower.",
    ]
    for entrant in results.entrants:
        if entrant.name == "cloud-only":
            continue
        rows = []
        for rtt in rtts:
            ratios = [
                None if (name := cells.get((rtt, rate))) is None
                else results.ratio(entrant.name, name)
                for rate in rates
            ]  # fmt: skip
            rows.append((f"{rtt:g} ms", *(_ratio(ratio) for ratio in ratios)))
        head = ("round trip", *(f"{rate:g} Mbit/s" for rate in rates))
        lines += ["", f"`{entrant.name}`", "", _table(head, rows)]
    if "time-against-round-trip" in context.plots:
        lines += ["", _image(context, "time-against-round-trip", "time per token by round trip")]
    return "\n".join(lines)


def _link_table(results: Results, link: str, summary: str) -> str:
    head = (
        "contender", "total s", "ms/token", "first token s", "edge s", "cloud s", "link s",
        "stall s", "up B/token", "down B/token", "asked", "work", "agree", "exact", "ROUGE-L",
    )  # fmt: skip
    rows = [_cells(results, row) for e in results.entrants if (row := results.row(e.name, link))]
    lines = [f"## Link {link}", "", f"{summary}.", "", _table(head, rows)]
    broken = [
        f"{row.broken} of {e.name}"
        for e in results.entrants
        if (row := results.row(e.name, link)) and row.broken
    ]
    if broken:
        lines += ["", f"Connections that broke off and were taken up again: {', '.join(broken)}."]
    return "\n".join(lines)


def _cells(results: Results, row: Row) -> tuple[str, ...]:
    quality = results.quality.get(row.contender)
    split = row.split
    shown = (
        ("", "", "")
        if quality is None
        else (
            f"{quality.agreement:.1%}",
            f"{quality.exact_match:.0%}",
            f"{quality.rouge_l:.3f}",
        )
    )
    return (
        row.contender,
        f"{split.total:.2f}",
        f"{1e3 * row.seconds_per_token:.1f}",
        f"{row.first_token:.3f}",
        f"{split.edge:.2f}",
        f"{split.cloud:.2f}",
        f"{split.link:.2f}",
        f"{split.stall:.2f}",
        f"{row.per_token(row.uploaded):,.0f}",
        f"{row.per_token(row.downloaded):,.0f}",
        f"{row.request_rate:.0%}",
        "?" if row.cloud_layer_share is None else f"{row.cloud_layer_share:.0%}",
        *shown,
    )


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


def _paper(results: Results) -> str:
    rows = [(figure.what, figure.figure, figure.source) for figure in paper.FIGURES]
    lines = ["## The paper's figures", "", _table(("what", "the paper", "read in"), rows), ""]
    lines += [paper.NOT_FOUND, "", "Beside them, ours:", ""]
    lines += [_table(("what", "ours"), _ours(results)), "", "What differs:", ""]
    lines += [_table(("", "the paper", "here"), paper.DIFFERENCES)]
    return "\n".join(lines)


def _ours(results: Results) -> list[tuple[str, str]]:
    """Our counterparts of the paper's figures: on the link in the middle, and at best."""
    link = results.timeline[0].link.name if results.timeline else results.links[0].name
    rows = []
    for name in ("cloud-only", "naive-split", *results.of_kind(Kind.OURS)):
        row = results.row(name, link)
        if row is not None:
            rows.append((f"{name} on {link}: total", f"{row.split.total:.2f} s"))
            rows.append((f"{name}: tokens asked of the cloud", f"{row.request_rate:.1%}"))
            sent = f"{(row.uploaded + row.downloaded) / 1e3:,.0f} kB"
            rows.append((f"{name}: data both ways", sent))
    saved = [
        (1 - ratio, contender, link_.name)
        for contender in results.of_kind(Kind.OURS)
        for link_ in results.links
        if contender != "standalone" and (ratio := results.ratio(contender, link_.name))
    ]
    if saved:
        best, contender, where = max(saved)
        text = f"{best:.1%} ({contender} on {where})"
        rows.append(
            ("time per token saved against cloud-only with the cloud's help, at best", text)
        )
    return rows


def _image(context: ReportContext, name: str, title: str) -> str:
    return f"![{title}]({context.plots[name]})"


def _ratio(ratio: float | None) -> str:
    if ratio is None:
        return ""
    text = f"{ratio:.2f}" if ratio < 10 else f"{ratio:,.0f}"
    return f"**{text}**" if ratio > 1 else text


def _or(names: Sequence[str]) -> str:
    return " or ".join(f"`{name}`" for name in names)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; the first column left, figures right."""
    body = [[_cell(cell) for cell in row] for row in rows]
    figures = [
        bool(body) and all(_is_figure(row[index]) for row in body) for index in range(len(head))
    ]
    lines = [
        "| " + " | ".join(head) + " |",
        "|" + "|".join("---:" if right else "---" for right in figures) + "|",
    ]
    lines += ["| " + " | ".join(row) + " |" for row in body]
    return "\n".join(lines)


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").split())


def _is_figure(text: str) -> bool:
    return text.strip("*")[:1].isdigit() or text in ("", "?")

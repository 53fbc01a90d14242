"""The report's tables of times: the grid of ratios, and everything on one link."""

from __future__ import annotations

from simulator.bench.losses import TOLERANCE
from simulator.bench.markdown import table
from simulator.bench.results import Results, Row

_HEAD = (
    "contender", "total s", "ms/token", "first token s", "edge s", "cloud s", "link s", "stall s",
    "up B/token", "down B/token", "asked", "work", "agree", "exact", "ROUGE-L",
)  # fmt: skip


def columns() -> str:
    """What the columns of the tables say."""
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
            "- **asked**: share of tokens that the cloud decided. **work**: layer-work done in the "
            "cloud, relative to one full pass over prompt and answer (more than 100% where it "
            "computes a context more than once).",
            "- **agree**: teacher-forced along the full model's greedy answer, the share of "
            "positions at which it says the same token. **exact** and **ROUGE-L**: its own, "
            "free-running answers against the full model's. The full model is the one in the "
            "cloud, float32; quality is measured on an unshaped link, on which it does not depend.",
            "- **up**, **down**: bytes per token, gRPC and HTTP/2 framing estimated.",
        ]
    )


def grid(results: Results) -> str:
    """Round trip × rate for each contender; empty where there is no grid or no cloud-only."""
    rtts = sorted({link.rtt_ms for link in results.links if link.rtt_ms is not None})
    rates = sorted({link.rate_mbit for link in results.links if link.rate_mbit is not None})
    if not rtts or not results.has("cloud-only"):
        return ""
    cells = {(link.rtt_ms, link.rate_mbit): link.name for link in results.links}
    lines = [
        "## Round trip × rate: time per token, as a ratio to cloud-only",
        "",
        f"Below 1 is faster than cloud-only on the same link; **bold** is more than "
        f"{TOLERANCE:.0%} slower.",
    ]
    head = ("round trip", *(f"{rate:g} Mbit/s" for rate in rates))
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
        lines += ["", f"`{entrant.name}`", "", table(head, rows)]
    return "\n".join(lines)


def link_table(results: Results, link: str, summary: str) -> str:
    """Every contender on one link."""
    present = [row for e in results.entrants if (row := results.row(e.name, link))]
    rows = [_cells(results, row) for row in present]
    lines = [f"## Link {link}", "", f"{summary}.", "", table(_HEAD, rows)]
    broken = [f"{row.broken} of {row.contender}" for row in present if row.broken]
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


def _ratio(ratio: float | None) -> str:
    if ratio is None:
        return ""
    text = f"{ratio:.2f}" if ratio < 10 else f"{ratio:,.0f}"
    return f"**{text}**" if ratio > 1 + TOLERANCE else text

"""What the paper reports, with where each figure was read, beside what is measured here.

Only figures that could be read are here.  The abstract is the authors' own; the rest is quoted by a
third party that re-implemented the system, and was not checked against the paper's tables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from simulator.bench.registry import Kind
from simulator.bench.results import Results, Row

ABSTRACT = "[abstract](https://arxiv.org/abs/2411.02829v2)"
SECOND_HAND = "[second hand](https://github.com/Toois77/CoLLM/blob/main/files/README.md)"
SAYS = (
    "The abstract of arXiv 2411.02829v2 says that CE-CoLLM “reduces overall inference time by up "
    "to 13.81% and offloads over 84.53% of the computational workload from the cloud to the edge, "
    "compared to conventional cloud-based LLM deployment”."
)
NOT_READ = "not read"
NOT_FOUND = (
    "The paper's own tables (edge, cloud and communication cost for each data set and threshold, "
    "ROUGE-L, its machines and its network) could not be read when this was written; they are "
    "therefore not here. *Second hand* is the README of a re-implementation by others "
    "(Toois77/CoLLM); it does not say on which data set it has the figures for data and requests."
)


@dataclass(frozen=True)
class Here:
    """What the figures of this benchmark were measured with."""

    model: str
    machine: str
    precision: str
    prompts: str


def comparison(results: Results, here: Here) -> list[tuple[str, str, str, str]]:
    """Rows of one table: what, in the paper, here, where the paper's was read."""
    link = results.middle
    here_on = _On(results)
    return [
        ("time against cloud-only", "“up to 13.81%” less", here_on.saved(), ABSTRACT),
        (
            "computation moved from cloud to edge",
            "“over 84.53%”; of what, the abstract does not say",
            here_on.collaborating(here_on.moved, " of cloud-only's layer-work"),
            ABSTRACT,
        ),
        ("total time, cloud-only", "370 s (Alpaca)", here_on.total("cloud-only"), SECOND_HAND),
        (
            "total time, naive split",
            "3,372 s (Alpaca), 9.1 × cloud-only",
            here_on.total("naive-split"),
            SECOND_HAND,
        ),
        (
            "total time, CE-CoLLM",
            "319 s (Alpaca), 0.86 × cloud-only",
            here_on.collaborating(here_on.total_of),
            SECOND_HAND,
        ),
        ("data sent, cloud-only", "367 KB", here_on.data("cloud-only"), SECOND_HAND),
        (
            "data sent, naive split",
            "112 MB (in its text: per response)",
            here_on.data("naive-split"),
            SECOND_HAND,
        ),
        (
            "data sent, CE-CoLLM",
            "957 KB (in its text: under 1 MB per response)",
            here_on.collaborating(_data),
            SECOND_HAND,
        ),
        (
            "tokens asked of the cloud, CE-CoLLM",
            "49.58%",
            here_on.collaborating(lambda row: f"{row.request_rate:.1%}"),
            SECOND_HAND,
        ),
        ("model", "LLaMA-2 7B, exits after layers 8 and 16 of 32", here.model, SECOND_HAND),
        (
            "edge",
            NOT_READ,
            f"{here.machine}: ONNX Runtime, {here.precision} weights",
            "",
        ),
        (
            "cloud",
            NOT_READ,
            "PyTorch, float32, on the edge's own machine: the two compete for its cores",
            "",
        ),
        (
            "network",
            NOT_READ,
            f"{link.summary}, by a shaped TCP proxy on the same machine, without slow start",
            "",
        ),
        ("prompts", "Alpaca, XSum, BoolQ, QuAC, IMDB", here.prompts, SECOND_HAND),
        (
            "what cloud-only is",
            "“conventional cloud-based LLM deployment”",
            "Tandem's own cloud: one request, then tokens stream down, so a long round trip is "
            "paid once and not for every token",
            ABSTRACT,
        ),
    ]


class _On:
    """Our counterparts, on the link in the middle."""

    def __init__(self, results: Results) -> None:
        self._results, self._link = results, results.middle.name

    def row(self, name: str) -> Row | None:
        return self._results.row(name, self._link)

    def rows_of_ours(self) -> list[Row]:
        """Contenders of ours that ask the cloud: CE-CoLLM and what comes after it."""
        names = [
            entrant.name
            for entrant in self._results.entrants
            if entrant.family.kind is Kind.OURS and entrant.family.uses_cloud
        ]
        return [row for name in names if (row := self.row(name)) is not None]

    def collaborating(self, cell: Callable[[Row], str], unit: str = "") -> str:
        return "; ".join(f"`{row.contender}` {cell(row)}{unit}" for row in self.rows_of_ours())

    def total(self, name: str) -> str:
        row = self.row(name)
        return "" if row is None else self.total_of(row)

    def total_of(self, row: Row) -> str:
        text = f"{row.split.total:.2f} s"
        base = self.row("cloud-only")
        if base is None or base is row:
            return text
        return f"{text}, {row.split.total / base.split.total:.2f} × cloud-only"

    def data(self, name: str) -> str:
        row = self.row(name)
        return "" if row is None else _data(row)

    def moved(self, row: Row) -> str:
        base = self.row("cloud-only")
        if base is None or not base.cloud_layer_share or row.cloud_layer_share is None:
            return "?"
        return f"{1 - row.cloud_layer_share / base.cloud_layer_share:.1%}"

    def saved(self) -> str:
        """Per token, since answers may differ in length; on this link, and the best of all."""
        results, ours = self._results, self.rows_of_ours()
        if not ours or not results.has("cloud-only"):
            return ""
        every = [
            (ratio, row.contender, link.name)
            for row in ours
            for link in results.links
            if (ratio := results.ratio(row.contender, link.name)) is not None
        ]
        here = [f"`{name}` {_less(ratio)}" for ratio, name, link in every if link == self._link]
        ratio, name, link = min(every)
        return f"per token: {'; '.join(here)}; at best {_less(ratio)} (`{name}` on {link})"


def _less(ratio: float) -> str:
    return f"{1 - ratio:.1%} less" if ratio <= 1 else f"{ratio - 1:.1%} more"


def _data(row: Row) -> str:
    amount = (row.uploaded + row.downloaded) / row.answers
    shown = f"{amount / 1e6:,.1f} MB" if amount >= 1e6 else f"{amount / 1e3:,.1f} kB"
    return f"{shown} per answer"

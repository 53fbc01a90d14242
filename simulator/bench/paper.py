"""What the paper reports, with where each figure was read.

Only figures that could be read are here.  The abstract is the authors' own; the rest is quoted by a
third party that re-implemented the system, and was not checked against the paper's tables.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperFigure:
    """A figure of the paper's and its source."""

    what: str
    figure: str
    source: str


ABSTRACT = "abstract of [arXiv 2411.02829v2](https://arxiv.org/abs/2411.02829)"
SECOND_HAND = (
    "second hand: README of the re-implementation "
    "[Toois77/CoLLM](https://github.com/Toois77/CoLLM/blob/main/files/README.md)"
)

FIGURES = (
    PaperFigure("time saved against cloud-only, at best", "13.81%", ABSTRACT),
    PaperFigure("computation moved from cloud to edge, at best", "84.53%", ABSTRACT),
    PaperFigure("Alpaca, cloud-only: total", "370 s", SECOND_HAND),
    PaperFigure("Alpaca, naive cloud-edge split: total", "3,372 s", SECOND_HAND),
    PaperFigure("Alpaca, CE-CoLLM: total", "319 s", SECOND_HAND),
    PaperFigure(
        "Alpaca: data sent, cloud-only / naive / CE-CoLLM", "367 KB / 112 MB / 957 KB", SECOND_HAND
    ),
    PaperFigure("Alpaca, CE-CoLLM: tokens asked of the cloud", "49.58%", SECOND_HAND),
)

NOT_FOUND = (
    "The paper's own tables (edge, cloud and communication cost for each data set and threshold, "
    "ROUGE-L, its machines and its network) could not be read when this was written; they are "
    "therefore not here."
)

DIFFERENCES = (
    (
        "model",
        "7 billion parameters, two early exits (second hand: after layers 8 and 16 of 32)",
        "the one named above, with exits trained by this project",
    ),
    ("edge", "not read", "ONNX Runtime on a few CPU cores, quantized weights"),
    (
        "cloud",
        "not read",
        "PyTorch, float32, on the same CPU as the edge: the two compete for its cores",
    ),
    (
        "network",
        "not read",
        "a shaped TCP proxy: exact and repeatable, without TCP's slow start",
    ),
    (
        "prompts",
        "Alpaca, XSum and others (second hand: BoolQ, QuAC, IMDB)",
        "a few of our own, or the file that is named above",
    ),
    (
        "cloud-only",
        '"conventional cloud-based LLM deployment" (abstract)',
        "Tandem's own cloud: one request, then tokens stream down, so a long round trip is paid "
        "once and not for every token",
    ),
)

"""Command-line options that several commands of the edge share."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated, Literal

import typer

from edge.cloud_channel import CloudEndpoint
from edge.context_source import ContextCodec
from edge.controller import NO_WISHES, Aim, Wishes
from edge.exit_policy import DEFAULT_THRESHOLD, threshold_for
from edge.generation import Mode
from edge.plan import DEFAULT_WINDOW, MAX_WINDOW, Schedule
from shared.errors import ConfigurationError
from shared.messages import MAX_LOOKAHEAD
from shared.model_bundle import ModelBundle, default_bundle_folder
from shared.sampling import MAX_SEED, Sampling

PrecisionName = Literal["float32", "int8", "int4"]
DEFAULT_PRECISION: PrecisionName = "int8"

Bundle = Annotated[
    Path | None,
    typer.Option(
        "--bundle",
        envvar="TANDEM_BUNDLE",
        help="Folder of a prepared model. (default: what `tandem prepare` wrote)",
        show_default=False,
    ),
]
Precision = Annotated[
    PrecisionName, typer.Option("--precision", help="Weights of the edge's layers.")
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, max=256, help="Threads of the edge. (default: physical cores)"
    ),
]
Cloud = Annotated[
    str | None,
    typer.Option(
        "--cloud", metavar="HOST:PORT", envvar="TANDEM_CLOUD", help="Cloud service to escalate to."
    ),
]
Token = Annotated[
    str | None,
    typer.Option("--token", envvar="TANDEM_TOKEN", help="Bearer token that the cloud asks for."),
]
CloudCa = Annotated[
    Path | None,
    typer.Option("--cloud-ca", help="PEM file of the cloud's certificate authority; turns TLS on."),
]
Certificate = Annotated[
    Path | None, typer.Option("--client-cert", help="PEM certificate to show to the cloud.")
]
Key = Annotated[Path | None, typer.Option("--client-key", help="PEM key of that certificate.")]
PlaintextToken = Annotated[
    bool,
    typer.Option("--plaintext-token", help="Send the token without TLS beyond this machine."),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        "--threshold",
        min=0.0,
        max=1.0,
        help=f"Confidence from which an exit's token is accepted. (default: {DEFAULT_THRESHOLD})",
        show_default=False,
    ),
]
TargetAgreement = Annotated[
    float | None,
    typer.Option(
        "--target-agreement",
        min=0.0,
        max=1.0,
        help="Instead of a threshold: share of tokens that shall equal the full model's "
        "(by the bundle's measurements of its int8 edge).",
    ),
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer, in tokens.")]
Context = Annotated[
    ContextCodec,
    typer.Option(
        "--context",
        help="How context travels: hidden states in that format, or token ids (the cloud sees "
        "the words).",
    ),
]
AutoContext = Annotated[
    ContextCodec | None,
    typer.Option(
        "--context",
        help="How context travels: hidden states in that format, or token ids (the cloud sees "
        "the words). (default: fp16; tokens with --verified; auto mode chooses)",
        show_default=False,
    ),
]
AimOption = Annotated[
    Aim, typer.Option("--aim", help="What auto mode is after: time, the cloud's work, or the text.")
]
Private = Annotated[
    bool,
    typer.Option("--private", help="Auto mode: hidden states only, never token ids to the cloud."),
]
CloudTokenPrice = Annotated[
    float | None,
    typer.Option(
        "--cloud-token-price",
        min=0.0,
        metavar="SECONDS",
        help="Auto mode: seconds of waiting that one token of the cloud's is worth.",
    ),
]
NoExits = Annotated[
    bool, typer.Option("--no-exits", help="Ask the cloud for every token (collaborative mode).")
]
ScheduleOption = Annotated[
    Schedule,
    typer.Option(
        "--schedule",
        help="How the edge waits for the cloud: blocking at each question (the paper), or drafting "
        "on meanwhile; the text is the same.",
    ),
]
Window = Annotated[
    int | None,
    typer.Option(
        "--window",
        min=1,
        max=MAX_WINDOW,
        help=f"Unanswered questions that the edge drafts past. (default: {DEFAULT_WINDOW})",
        show_default=False,
    ),
]
Burst = Annotated[
    int,
    typer.Option(
        "--burst",
        min=0,
        help="Tokens that the cloud adds after each correction (needs --context tokens).",
    ),
]
LookaheadTokens = Annotated[
    int | None,
    typer.Option(
        "--lookahead",
        min=0,
        max=MAX_LOOKAHEAD,
        help="Tokens that the cloud may decode ahead while nobody asks; no text changes. With "
        "--context tokens or --verified, without --burst; 0 is off. (default: by the round trip)",
        show_default=False,
    ),
]
Verified = Annotated[
    bool,
    typer.Option(
        "--verified",
        help="Let the cloud check every word, so that the text is the full model's. With hidden "
        "states as --context, that of the full model over the edge's quantized layers.",
    ),
]
Temperature = Annotated[
    float, typer.Option("--temperature", min=0.0, max=100.0, help="0 takes the best token.")
]
TopP = Annotated[float, typer.Option("--top-p", min=0.0, max=1.0, help="Nucleus; 1 keeps all.")]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", min=0, max=MAX_SEED, help="Seed of sampling. (default: a new one each time)"
    ),
]


def load_bundle(folder: Path | None) -> ModelBundle:
    """The bundle that ``--bundle`` names, or the default one."""
    return ModelBundle.load(folder or default_bundle_folder())


def choose_mode(mode: Mode | None, cloud: str | None) -> Mode:
    """``--mode``, or what fits: collaborative where a cloud is named, else standalone."""
    if mode is not None:
        return mode
    return Mode.COLLABORATIVE if cloud else Mode.STANDALONE


def choose_threshold(
    bundle: ModelBundle,
    threshold: float | None,
    target_agreement: float | None,
    mode: Mode,
    *,
    use_exits: bool = True,
    greedy: bool = True,
) -> float:
    """``--threshold``, or the one that the bundle's measurements give for
    ``--target-agreement``, which only greedy answers of edge and cloud together can keep."""
    if target_agreement is None:
        return DEFAULT_THRESHOLD if threshold is None else threshold
    if threshold is not None:
        raise ConfigurationError("name --threshold or --target-agreement, not both")
    if mode is not Mode.COLLABORATIVE or not use_exits:
        raise ConfigurationError(
            "--target-agreement is for edge and cloud together: name a cloud with --cloud, and "
            "neither another --mode nor --no-exits"
        )
    if not greedy:
        raise ConfigurationError(
            "--target-agreement was measured on greedy answers: drop "
            "--temperature, or name a --threshold"
        )
    return threshold_for(bundle.manifest.operating_points, target_agreement)


def choose_context(context: ContextCodec | None, *, verified: bool) -> ContextCodec:
    """``--context``; only token ids let the cloud verify against the whole of its own model."""
    if context is not None:
        return context
    return ContextCodec.TOKENS if verified else ContextCodec.FP16


def choose_window(schedule: Schedule, window: int | None) -> int:
    """``--window`` as the schedule has it: 0 for blocking."""
    if schedule is Schedule.OPTIMISTIC:
        return DEFAULT_WINDOW if window is None else window
    if window is not None:
        raise ConfigurationError("--window is for --schedule optimistic: blocking waits at once")
    return 0


def check_schedule_options(
    mode: Mode,
    threshold: float | None,
    schedule: Schedule,
    window: int | None,
    burst: int,
    verified: bool,
    lookahead: int | None,
    *,
    use_exits: bool,
) -> None:
    """Refuse what the mode would silently ignore."""
    given = {
        "--schedule blocking": schedule is Schedule.BLOCKING,
        "--window": window is not None,
        "--burst": burst > 0,
        "--lookahead": lookahead is not None,
        "--verified": verified,
    }
    named = [option for option, was_given in given.items() if was_given]
    if threshold is not None and mode in (Mode.AUTO, Mode.CLOUD_ONLY):
        named.insert(0, "--threshold")
    idle = [n for n in named if n in ("--window", "--verified")]
    if not use_exits and (idle or threshold is not None):
        idle += ["--threshold"] if threshold is not None else []
        raise ConfigurationError(
            f"--no-exits has nothing to draft, accept or verify: drop {', '.join(idle)}"
        )
    if not named or mode is Mode.COLLABORATIVE:
        return
    if mode is Mode.AUTO:
        raise ConfigurationError(f"auto mode chooses for itself: drop {', '.join(named)}")
    raise ConfigurationError(
        f"{mode.value} mode has no use for {', '.join(named)}: drop it, or let edge and cloud work "
        "together (--cloud, and no other --mode)"
    )


def make_wishes(
    mode: Mode,
    aim: Aim,
    target_agreement: float | None,
    private: bool,
    price: float | None,
    context: ContextCodec | None,
    *,
    greedy: bool,
) -> Wishes:
    """What ``auto`` mode is to aim at."""
    if mode is Mode.AUTO:
        if target_agreement is not None and not greedy:
            raise ConfigurationError(
                "--target-agreement was measured on greedy answers: drop --temperature"
            )
        return Wishes(aim, target_agreement, price, private, context)
    if aim is not Aim.LATENCY or private or price is not None:
        raise ConfigurationError("--aim, --private and --cloud-token-price are for --mode auto")
    return NO_WISHES


def make_endpoint(
    cloud: str | None,
    token: str | None,
    ca: Path | None,
    certificate: Path | None,
    key: Path | None,
    plaintext_token: bool,
) -> CloudEndpoint | None:
    """How to reach the cloud, ``None`` where none is named (a token may lie in the environment)."""
    if cloud:
        return CloudEndpoint(cloud, token, ca, certificate, key, plaintext_token)
    if ca or certificate or key or plaintext_token:
        raise ConfigurationError("TLS and token options are for a cloud: name it with --cloud")
    return None


def make_sampling(temperature: float, top_p: float, seed: int | None) -> Sampling:
    """Validated sampling; greedy choices need no seed."""
    if top_p == 0.0:
        raise ConfigurationError("--top-p must be above 0")
    if seed is None:
        seed = secrets.randbits(64) if temperature else 0
    return Sampling(temperature, top_p, seed)

"""What a cloud is told: one field a setting, from a file, the environment and flags.

A setting has one name: ``budget_mb`` in the file, ``TANDEM_CLOUD_BUDGET_MB`` in the environment,
``--budget-mb`` on the command line.  A flag wins over the environment, and that over the file.
Where a setting may be without a value, the word ``none`` takes away what a weaker source says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cloud.config_file import first_problem, read_table
from shared.errors import ConfigurationError
from shared.model_bundle import default_bundle_folder
from shared.transport import is_loopback

ENVIRONMENT = "TANDEM_CLOUD_"
NONE = "none"
CONFIG_VARIABLE = f"{ENVIRONMENT}CONFIG"
LogFormat = Literal["text", "json"]
Engine = Literal["process", "ray"]

_ALL_ADDRESSES = ("0.0.0.0", "::")  # noqa: S104  (compared with)
# Ray Serve's proxy has its own idea of these
_NOT_WITH_RAY = ("tls_cert", "tls_key", "client_ca", "max_streams")
_WITH_RAY_ALONE = (
    "replicas",
    "max_replicas",
    "streams_per_replica",
    "replica_cpus",
    "replica_gpus",
    "ray_address",
)
# where `tandem cloud serve --help` shows a setting
_NETWORK, _MODEL, _LIMITS = "Network", "Model", "Limits"
_SECURITY, _OPERATIONS, _RAY = "Who may call", "Operations", "Ray (docs/ray.md)"


def _setting(default: Any, panel: str, text: str, **bounds: Any) -> Any:
    return Field(default, description=text, json_schema_extra={"panel": panel}, **bounds)


class CloudSettings(BaseModel):
    """How to serve; the descriptions are the command line's help."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    host: str = _setting("127.0.0.1", _NETWORK, "Address to listen on.")
    port: int = _setting(7420, _NETWORK, "Port; 0 takes a free one.", ge=0, le=65535)
    port_file: Path | None = _setting(None, _NETWORK, "Write HOST:PORT here once ready.")

    bundle: Path = Field(
        default_factory=default_bundle_folder,
        description="Bundle folder.",
        json_schema_extra={"panel": _MODEL, "shown": "what `tandem prepare` wrote"},
    )
    device: str = _setting("cpu", _MODEL, "Torch device: cpu, cuda, cuda:1.")
    dtype: Literal["float32", "bfloat16", "float16"] = _setting(
        "float32", _MODEL, "Arithmetic of the model."
    )
    threads: int | None = _setting(None, _MODEL, "Threads of the model; else torch's choice.", ge=1)
    pass_rows: int = _setting(
        128, _MODEL, "New positions in a pass at most: more for a GPU, fewer to wait less.", ge=1
    )

    budget_mb: float = _setting(
        4096.0, _LIMITS, "MiB for context and KV caches of all sessions.", gt=0
    )
    max_sessions: int = _setting(64, _LIMITS, "Sessions held at most.", ge=1)
    session_ttl: float = _setting(
        600.0, _LIMITS, "Seconds that a session without an edge is kept.", ge=1
    )
    max_streams: int = _setting(256, _LIMITS, "Streams of one connection at most.", ge=1)
    max_message_bytes: int = _setting(4 << 20, _LIMITS, "Bytes of a message at most.", ge=4096)
    credits: int = _setting(
        64, _LIMITS, "Questions of a session that may be unanswered at once.", ge=1, le=4096
    )
    quotas: Path | None = _setting(None, _LIMITS, "Quotas per tenant (TOML or JSON).")

    tokens: Path | None = _setting(
        None,
        _SECURITY,
        "Token file, read again when it changes; without one no token is asked for.",
    )
    tls_cert: Path | None = _setting(None, _SECURITY, "Server certificate (PEM).")
    tls_key: Path | None = _setting(None, _SECURITY, "Its private key (PEM).")
    client_ca: Path | None = _setting(
        None, _SECURITY, "CA whose client certificates are asked for (mTLS)."
    )
    insecure: bool = _setting(False, _SECURITY, "Serve other machines without tokens or TLS.")

    metrics: str | None = _setting(
        None, _OPERATIONS, "Serve Prometheus metrics on [HOST]:PORT; HOST is 127.0.0.1 unless told."
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "info", _OPERATIONS, "Log to standard error."
    )
    log_format: LogFormat = _setting("text", _OPERATIONS, "Lines to read, or one object a line.")
    drain_seconds: float = _setting(
        10.0, _OPERATIONS, "Seconds for open sessions after a signal.", ge=0
    )
    debug_invariants: bool = _setting(
        False, _OPERATIONS, "Check the context store after every change (slow)."
    )

    engine: Engine = _setting(
        "process", _RAY, "Serve from this process, or from replicas that Ray Serve keeps running."
    )
    replicas: int = _setting(1, _RAY, "Replicas at least, each with a model and a store.", ge=1)
    max_replicas: int | None = _setting(
        None, _RAY, "Replicas at most, by the number of open streams; else --replicas.", ge=1
    )
    streams_per_replica: int = _setting(
        16, _RAY, "Open streams per replica that --max-replicas aims at.", ge=1
    )
    replica_cpus: float = _setting(
        1.0, _RAY, "Cores that Ray sets aside for a replica; also its --threads, unless told.", gt=0
    )
    replica_gpus: float | None = _setting(
        None, _RAY, "GPUs that Ray sets aside for a replica; else 1 with --device cuda.", ge=0
    )
    ray_address: str | None = _setting(
        None, _RAY, "Ray cluster to join (auto, HOST:PORT); else one is started on this machine."
    )

    @property
    def most_replicas(self) -> int:
        """How many replicas there may be at a time."""
        return max(self.replicas, self.max_replicas or 0)

    @property
    def metrics_address(self) -> tuple[str, int] | None:
        """Host and port of ``metrics``."""
        return None if self.metrics is None else _host_and_port(self.metrics)

    @field_validator("tokens")
    @classmethod
    def _is_a_path(cls, path: Path | None) -> Path | None:
        if path is not None and path.name.startswith("tandem_"):
            raise ValueError("this looks like a token; the path of a token file is asked for")
        return path

    @field_validator("metrics")
    @classmethod
    def _is_an_address(cls, text: str | None) -> str | None:
        if text is not None:
            _host_and_port(text)
        return text

    @model_validator(mode="after")
    def _hold_together(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigurationError("--tls-cert and --tls-key come together")
        if self.client_ca and not self.tls_cert:
            raise ConfigurationError("--client-ca needs --tls-cert and --tls-key")
        for name in _NOT_WITH_RAY if self.engine == "ray" else _WITH_RAY_ALONE:
            if getattr(self, name) != CloudSettings.model_fields[name].default:
                problem = "does not go with" if self.engine == "ray" else "needs"
                raise ConfigurationError(f"{flag_of(name)} {problem} --engine ray")
        if self.engine == "ray":
            self._check_for_ray()
            return self
        if is_loopback(self.host) or self.insecure:
            return self
        if not (self.tokens or self.client_ca):
            raise ConfigurationError(
                f"{self.host} is open to other machines: name a token file (--tokens, made by "
                "`tandem cloud token`) or a client CA, or say --insecure"
            )
        if not self.tls_cert:
            raise ConfigurationError(
                "tokens would travel in the clear: name --tls-cert and --tls-key, or say --insecure"
            )
        return self

    def _check_for_ray(self) -> None:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ConfigurationError("--max-replicas is less than --replicas")
        if self.host not in _ALL_ADDRESSES or not self.insecure:
            raise ConfigurationError(
                "Ray Serve's proxy listens on every address and speaks no TLS: say --host 0.0.0.0 "
                "--insecure, and put what ends TLS in front of it (docs/ray.md)"
            )


@dataclass(frozen=True)
class Effective:
    """Settings, and where each that is not a default came from."""

    settings: CloudSettings
    origins: Mapping[str, str]

    def __str__(self) -> str:
        """A configuration file that gives the same settings; files that hold secrets are named,
        not read."""
        lines = []
        for name, value in self.settings.model_dump().items():
            if value is None:
                lines.append(f"# {name} is not set" + _origin(self.origins, name))
                continue
            plain = str(value.absolute()) if isinstance(value, Path) else value
            text = json.dumps(plain, ensure_ascii=False)  # JSON's scalars are TOML's
            lines.append(f"{name} = {text}  # {self.origins.get(name, 'default')}")
        return "\n".join(lines)


def load_settings(
    flags: Mapping[str, Any],
    *,
    config: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Effective:
    """Settings from ``flags`` (``None`` is one that was not given), then from the variables of
    ``environment``, then from the file ``config``, whose relative paths start at its folder.

    Raises:
        ConfigurationError: names the flag, variable or key and what is wrong with it.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if config is not None:
        for key, value in read_table(config).items():
            is_path = key in _PATHS and isinstance(value, str) and value.lower() != NONE
            values[key] = config.absolute().parent / value if is_path else value
            origins[key] = f"{config.name}: {key}"
    for variable, text in (environment or {}).items():
        if variable.startswith(ENVIRONMENT) and variable != CONFIG_VARIABLE and text:
            key = variable.removeprefix(ENVIRONMENT).lower()
            values[key], origins[key] = text, variable
    for key, value in flags.items():
        if value is not None:
            values[key], origins[key] = value, flag_of(key)
    for key in values.keys() & _OPTIONAL:
        if str(values[key]).lower() == NONE:
            values[key] = None
    try:
        return Effective(CloudSettings(**values), origins)
    except ValidationError as error:
        key, problem = first_problem(error)
        raise ConfigurationError(f"{origins.get(key, key)}: {problem}") from None


def flag_of(key: str) -> str:
    """The setting's name on the command line."""
    return f"--{key.replace('_', '-')}"


def _host_and_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("an address reads HOST:PORT, or :PORT for this machine alone")
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


def _origin(origins: Mapping[str, str], name: str) -> str:
    return f" ({origins[name]})" if name in origins else ""


_OPTIONAL = frozenset(
    name
    for name, field in CloudSettings.model_fields.items()
    if type(None) in get_args(field.annotation)
)
_PATHS = frozenset(
    name
    for name, field in CloudSettings.model_fields.items()
    if Path in (field.annotation, *get_args(field.annotation))
)

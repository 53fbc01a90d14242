"""What a cloud is told; :mod:`shared.settings_loading` says where settings come from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from shared.errors import ConfigurationError
from shared.logs import LogFormat, LogLevel
from shared.model_bundle import default_bundle_folder
from shared.settings_loading import Effective, SettingsSources, flag_of, setting
from shared.transport import host_and_port, is_loopback

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


class CloudSettings(BaseModel):
    """How to serve; the descriptions are the command line's help."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    host: str = setting("127.0.0.1", _NETWORK, "Address to listen on.")
    port: int = setting(7420, _NETWORK, "Port; 0 takes a free one.", ge=0, le=65535)
    port_file: Path | None = setting(None, _NETWORK, "Write HOST:PORT here once ready.")

    bundle: Path = Field(
        default_factory=default_bundle_folder,
        description="Bundle folder.",
        json_schema_extra={"panel": _MODEL, "shown": "what `tandem prepare` wrote"},
    )
    device: str = setting("cpu", _MODEL, "Torch device: cpu, cuda, cuda:1.")
    dtype: Literal["float32", "bfloat16", "float16"] = setting(
        "float32", _MODEL, "Arithmetic of the model."
    )
    threads: int | None = setting(
        None, _MODEL, "Threads of the model; else torch's, within a container's limit.", ge=1
    )
    pass_rows: int = setting(
        128, _MODEL, "New positions in a pass at most: more for a GPU, fewer to wait less.", ge=1
    )

    budget_mb: float = setting(
        4096.0, _LIMITS, "MiB for context, decisions and KV caches of all sessions.", gt=0
    )
    max_sessions: int = setting(64, _LIMITS, "Sessions held at most.", ge=1)
    session_ttl: float = setting(
        600.0, _LIMITS, "Seconds that a session without an edge is kept.", ge=1
    )
    max_streams: int = setting(256, _LIMITS, "Streams of one connection at most.", ge=1)
    max_message_bytes: int = setting(4 << 20, _LIMITS, "Bytes of a message at most.", ge=4096)
    credits: int = setting(
        64, _LIMITS, "Questions of a session that may be unanswered at once.", ge=1, le=4096
    )
    quotas: Path | None = setting(None, _LIMITS, "Quotas per tenant (TOML or JSON).")

    tokens: Path | None = setting(
        None,
        _SECURITY,
        "Token file, read again when it changes; without one no token is asked for.",
    )
    tls_cert: Path | None = setting(None, _SECURITY, "Server certificate (PEM).")
    tls_key: Path | None = setting(None, _SECURITY, "Its private key (PEM).")
    client_ca: Path | None = setting(
        None, _SECURITY, "CA whose client certificates are asked for (mTLS)."
    )
    insecure: bool = setting(False, _SECURITY, "Serve other machines without tokens or TLS.")

    metrics: str | None = setting(
        None, _OPERATIONS, "Serve Prometheus metrics on [HOST]:PORT; HOST is 127.0.0.1 unless told."
    )
    log_level: LogLevel = setting("info", _OPERATIONS, "Log to standard error.")
    log_format: LogFormat = setting("text", _OPERATIONS, "Lines to read, or one object a line.")
    drain_seconds: float = setting(
        10.0, _OPERATIONS, "Seconds for open sessions after a signal.", ge=0
    )
    debug_invariants: bool = setting(
        False, _OPERATIONS, "Check the context store after every change (slow)."
    )

    engine: Engine = setting(
        "process", _RAY, "Serve from this process, or from replicas that Ray Serve keeps running."
    )
    replicas: int = setting(1, _RAY, "Replicas at least, each with a model and a store.", ge=1)
    max_replicas: int | None = setting(
        None, _RAY, "Replicas at most, by the number of open streams; else --replicas.", ge=1
    )
    streams_per_replica: int = setting(
        16, _RAY, "Open streams per replica that --max-replicas aims at.", ge=1
    )
    replica_cpus: float = setting(
        1.0, _RAY, "Cores that Ray sets aside for a replica; also its --threads, unless told.", gt=0
    )
    replica_gpus: float | None = setting(
        None, _RAY, "GPUs that Ray sets aside for a replica; else 1 with --device cuda.", ge=0
    )
    ray_address: str | None = setting(
        None, _RAY, "Ray cluster to join (auto, HOST:PORT); else one is started on this machine."
    )

    @property
    def most_replicas(self) -> int:
        """How many replicas there may be at a time."""
        return max(self.replicas, self.max_replicas or 0)

    @property
    def metrics_address(self) -> tuple[str, int] | None:
        """Host and port of ``metrics``."""
        return None if self.metrics is None else host_and_port(self.metrics)

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
            host_and_port(text)
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


CLOUD_SOURCES = SettingsSources(CloudSettings, "TANDEM_CLOUD_")
CONFIG_VARIABLE = CLOUD_SOURCES.config_variable


def load_settings(
    flags: Mapping[str, Any],
    *,
    config: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Effective[CloudSettings]:
    """A cloud's settings: see :meth:`SettingsSources.load`."""
    return CLOUD_SOURCES.load(flags, config=config, environment=environment)

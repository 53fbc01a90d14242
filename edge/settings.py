"""What a daemon is told; :mod:`shared.settings_loading` says where settings come from."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

from edge.cloud_channel import CloudEndpoint
from edge.controller import Aim
from edge.generation import Mode
from edge.options import DEFAULT_PRECISION, PrecisionName
from shared.errors import ConfigurationError
from shared.logs import LogFormat, LogLevel
from shared.model_bundle import default_bundle_folder
from shared.secret_file import secret_of
from shared.settings_loading import SettingsSources, flag_of, setting
from shared.transport import is_loopback

if TYPE_CHECKING:
    from edge.controls import Controls
    from edge.mqtt_settings import MqttSettings

_NETWORK, _MODEL, _CLOUD, _ANSWERS = "Network", "Model", "Cloud", "Answers"
_SECURITY, _MQTT, _OPERATIONS = "Who may call", "MQTT (docs/mqtt.md)", "Operations"

_FOR_A_CLOUD = ("token_file", "cloud_ca", "client_cert", "client_key", "plaintext_token")
_FOR_A_BROKER = (
    "mqtt_user",
    "mqtt_password_file",
    "mqtt_plaintext_password",
    "mqtt_ca",
    "mqtt_cert",
    "mqtt_key",
)
_MOST_EDGE_ID = 64


def _split(value: object) -> object:
    """A list, or text with commas as flags and variables have it."""
    if isinstance(value, str):
        return tuple(part for part in (part.strip() for part in value.split(",")) if part)
    return value


Names = Annotated[tuple[str, ...], BeforeValidator(_split)]


def host_name_as_id() -> str:
    """This machine's name, with nothing in it that a topic or a label must not have."""
    name = re.sub(r"[^a-z0-9_-]+", "-", socket.gethostname().partition(".")[0].lower())
    return name.strip("-_")[:_MOST_EDGE_ID] or "edge"


def _computed(default: Any, panel: str, text: str, shown: str) -> Any:
    return Field(
        default_factory=default,
        description=text,
        json_schema_extra={"panel": panel, "shown": shown},
    )


class EdgeSettings(BaseModel):
    """How to answer; the descriptions are the command line's help."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    host: str = setting("127.0.0.1", _NETWORK, "Address to listen on.")
    port: int = setting(7430, _NETWORK, "Port; 0 takes a free one.", ge=0, le=65535)
    port_file: Path | None = setting(None, _NETWORK, "Write HOST:PORT here once ready.")

    bundle: Path = _computed(
        default_bundle_folder, _MODEL, "Bundle folder.", "what `tandem prepare` wrote"
    )
    precision: PrecisionName = setting(DEFAULT_PRECISION, _MODEL, "Weights of the edge's layers.")
    threads: int | None = setting(
        None, _MODEL, "Threads of the model; else the physical cores.", ge=1, le=256
    )

    cloud: str | None = setting(None, _CLOUD, "HOST:PORT of the cloud service to escalate to.")
    token: SecretStr | None = setting(
        None, _CLOUD, "Bearer token that the cloud asks for; others may see it on a command line."
    )
    token_file: Path | None = setting(None, _CLOUD, "File that holds the token.")
    cloud_ca: Path | None = setting(
        None, _CLOUD, "PEM file of the cloud's certificate authority; turns TLS on."
    )
    client_cert: Path | None = setting(None, _CLOUD, "PEM certificate to show to the cloud.")
    client_key: Path | None = setting(None, _CLOUD, "PEM key of that certificate.")
    plaintext_token: bool = setting(
        False, _CLOUD, "Send the token without TLS beyond this machine."
    )

    mode: Mode | None = setting(
        None, _ANSWERS, "Who decides; else auto with a cloud, and standalone without."
    )
    threshold: float | None = setting(
        None, _ANSWERS, "Confidence from which an exit's token is accepted.", ge=0, le=1
    )
    target_agreement: float | None = setting(
        None, _ANSWERS, "Share of tokens that shall equal the full model's.", ge=0, le=1
    )
    aim: Aim = setting(
        Aim.LATENCY, _ANSWERS, "What auto mode is after: time, the cloud's work, or the text."
    )
    private: bool = setting(
        False, _ANSWERS, "Hidden states only, never token ids to the cloud; not in cloud-only mode."
    )
    max_tokens: int = setting(1024, _ANSWERS, "Longest answer, in tokens.", ge=1)
    parallel: int = setting(1, _ANSWERS, "Answers that are made at once.", ge=1, le=64)
    conversations: int = setting(
        4, _ANSWERS, "Conversations whose text, once taken in, is kept for the next turn.", ge=0
    )
    conversation_tokens: int = setting(
        4096, _ANSWERS, "Tokens that those hold together; 1,000 take some 40 MB.", ge=0
    )
    queue: int = setting(16, _ANSWERS, "Answers that may wait; more are refused.", ge=0, le=4096)

    api_key: SecretStr | None = setting(
        None, _SECURITY, "Key that clients must send; others may see it on a command line."
    )
    api_key_file: Path | None = setting(None, _SECURITY, "File that holds the key.")
    cors_origins: Names = setting(
        (), _SECURITY, "Web origins whose pages may ask, with commas: https://example.org."
    )
    allowed_hosts: Names = setting(
        (), _SECURITY, "Names that the Host header may carry besides loopback's, with commas."
    )
    insecure: bool = setting(False, _SECURITY, "Serve other machines without an API key.")

    mqtt: str | None = setting(
        None, _MQTT, "HOST or HOST:PORT of a broker to report to; else port 1883, 8883 with TLS."
    )
    mqtt_prefix: str = setting("tandem", _MQTT, "How topics begin.")
    mqtt_user: str | None = setting(None, _MQTT, "User name at the broker.")
    mqtt_password_file: Path | None = setting(None, _MQTT, "File that holds the password.")
    mqtt_plaintext_password: bool = setting(
        False, _MQTT, "Send the password without TLS beyond this machine."
    )
    mqtt_ca: Path | None = setting(
        None, _MQTT, "PEM file of the broker's certificate authority; turns TLS on."
    )
    mqtt_cert: Path | None = setting(None, _MQTT, "PEM certificate to show to the broker.")
    mqtt_key: Path | None = setting(None, _MQTT, "PEM key of that certificate.")
    edge_id: str = _computed(
        host_name_as_id, _MQTT, "This edge's name among others.", "the host's name"
    )
    telemetry_seconds: float = setting(10.0, _MQTT, "Seconds from report to report.", ge=0.1)

    metrics: bool = setting(True, _OPERATIONS, "Serve Prometheus metrics on /metrics.")
    log_level: LogLevel = setting("info", _OPERATIONS, "Log to standard error.")
    log_format: LogFormat = setting("text", _OPERATIONS, "Lines to read, or one object a line.")
    log_prompts: bool = setting(
        False, _OPERATIONS, "Log the words of prompts and answers, not just their figures."
    )
    drain_seconds: float = setting(
        30.0, _OPERATIONS, "Seconds for open answers after a signal.", ge=0
    )

    @property
    def chosen_mode(self) -> Mode:
        """``mode``, or what fits: auto where a cloud is named, else standalone."""
        if self.mode is not None:
            return self.mode
        return Mode.AUTO if self.cloud else Mode.STANDALONE

    @property
    def controls(self) -> Controls:
        """How answers are made at first."""
        from edge.controls import Controls  # noqa: PLC0415  (brings the engine)

        return Controls(
            self.chosen_mode,
            self.threshold,
            self.target_agreement,
            self.aim,
            self.private,
            self.max_tokens,
        )

    def endpoint(self) -> CloudEndpoint | None:
        """How to reach the cloud, ``None`` where none is named; reads the token's file."""
        return self._endpoint(secret_of(self.token, self.token_file))

    def broker(self) -> MqttSettings | None:
        """How to reach the broker, ``None`` where none is named; reads the password's file."""
        return self._broker(secret_of(None, self.mqtt_password_file))

    def read_api_key(self) -> str | None:
        """The key that clients must send, ``None`` where none is asked for; reads its file."""
        return secret_of(self.api_key, self.api_key_file)

    def _endpoint(self, token: str | None) -> CloudEndpoint | None:
        if self.cloud is None:
            return None
        return CloudEndpoint(
            self.cloud,
            token,
            self.cloud_ca,
            self.client_cert,
            self.client_key,
            self.plaintext_token,
        )

    def _broker(self, password: str | None) -> MqttSettings | None:
        if self.mqtt is None:
            return None
        from edge.mqtt_settings import MqttSettings, split_address  # noqa: PLC0415  (brings ssl)

        host, port = split_address(self.mqtt, tls=self.mqtt_ca is not None)
        return MqttSettings(
            host=host,
            port=port,
            user=self.mqtt_user,
            password=password,
            ca=self.mqtt_ca,
            certificate=self.mqtt_cert,
            key=self.mqtt_key,
            insecure=self.mqtt_plaintext_password,
            prefix=self.mqtt_prefix,
            edge_id=self.edge_id,
            telemetry_seconds=self.telemetry_seconds,
        )

    @field_validator("token_file", "api_key_file", "mqtt_password_file")
    @classmethod
    def _is_a_path(cls, path: Path | None) -> Path | None:
        if path is not None and path.name.startswith("tandem_"):
            raise ValueError("this looks like a token; the path of a file that holds it is needed")
        return path

    @field_validator("edge_id")
    @classmethod
    def _is_a_name(cls, text: str) -> str:
        from edge.mqtt_settings import check_edge_id  # noqa: PLC0415

        try:
            return check_edge_id(text)
        except ConfigurationError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _hold_together(self) -> Self:
        for name in ("token", "api_key"):
            if getattr(self, name) and getattr(self, f"{name}_file"):
                flag = flag_of(name)
                raise ConfigurationError(f"{flag} and {flag}-file are two ways to say one thing")
        self._needs(_FOR_A_CLOUD, self.cloud, "a cloud: name it with --cloud HOST:PORT")
        self._needs(_FOR_A_BROKER, self.mqtt, "a broker: name it with --mqtt HOST:PORT")
        # these refuse what does not hold together; files are read when the daemon starts
        self._endpoint("unread" if self.token_file else secret_of(self.token, None))
        self._broker("unread" if self.mqtt_password_file else None)
        if self.controls.mode is not Mode.STANDALONE and self.cloud is None:
            raise ConfigurationError(
                f"--mode {self.chosen_mode.value} needs a cloud: name it with --cloud HOST:PORT"
            )
        if not (self._guarded or self.insecure or is_loopback(self.host)):
            raise ConfigurationError(
                f"{self.host} is open to other machines: name a file with a key for clients "
                "(--api-key-file), or say --insecure"
            )
        return self

    def _needs(self, names: tuple[str, ...], there: str | None, what: str) -> None:
        for name in names:
            if not there and getattr(self, name):
                raise ConfigurationError(f"{flag_of(name)} is for {what}")

    @property
    def _guarded(self) -> bool:
        return self.api_key is not None or self.api_key_file is not None


EDGE_SOURCES = SettingsSources(
    EdgeSettings,
    "TANDEM_EDGE_",
    # as `tandem generate` has them
    aliases={"TANDEM_BUNDLE": "bundle", "TANDEM_CLOUD": "cloud", "TANDEM_TOKEN": "token"},
)

"""Where a daemon's settings come from, what does not go together, and what is never shown."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from edge.controller import Aim
from edge.generation import Mode
from edge.settings import EDGE_SOURCES, EdgeSettings, host_name_as_id
from shared.errors import ConfigurationError
from shared.settings_loading import Effective

ROOT = Path(__file__).parents[3]
SECRET = "s3cret"
ALL = EdgeSettings.model_fields
CLOUD = {"cloud": "localhost:7420"}


def load(flags: dict[str, Any] | None = None, **sources: Any) -> Effective[EdgeSettings]:
    return EDGE_SOURCES.load(flags or {}, **sources)


def test_variables_of_generate_count_unless_the_daemon_has_its_own() -> None:
    shared = {"TANDEM_BUNDLE": "/a", "TANDEM_CLOUD": "a:1", "TANDEM_TOKEN": SECRET}
    own = {"TANDEM_EDGE_CLOUD": "localhost:2", "TANDEM_EDGE_BUNDLE": ""}
    effective = load(environment={**own, **shared, "TANDEM_CLOUD_PORT": "7420"})
    settings = effective.settings
    assert settings.cloud == "localhost:2"
    assert settings.bundle == Path("/a")
    endpoint = settings.endpoint()
    assert endpoint is not None
    assert endpoint.token == SECRET
    assert effective.origins == {
        "cloud": "TANDEM_EDGE_CLOUD",
        "bundle": "TANDEM_BUNDLE",
        "token": "TANDEM_TOKEN",
    }


def test_a_token_without_a_cloud_may_lie_in_the_environment() -> None:
    settings = load(environment={"TANDEM_TOKEN": SECRET}).settings
    assert settings.endpoint() is None
    assert settings.chosen_mode is Mode.STANDALONE


@pytest.mark.parametrize(
    ("flags", "mode"),
    [
        ({}, Mode.STANDALONE),
        (CLOUD, Mode.AUTO),
        (CLOUD | {"mode": Mode.STANDALONE}, Mode.STANDALONE),
        (CLOUD | {"mode": "none"}, Mode.AUTO),
    ],
)
def test_the_mode_fits_what_there_is(flags: dict[str, Any], mode: Mode) -> None:
    assert load(flags).settings.controls.mode is mode


def test_controls_are_those_of_the_settings() -> None:
    flags = CLOUD | {"target_agreement": "0.9", "aim": "cost", "private": True, "max_tokens": 7}
    controls = load(flags).settings.controls
    assert controls.as_record() == {
        "mode": "auto",
        "threshold": None,
        "target_agreement": 0.9,
        "aim": Aim.COST.value,
        "private": True,
        "max_tokens": 7,
    }


@pytest.mark.parametrize(
    "given", ["https://a.example, https://b.example", ["https://a.example", "https://b.example"]]
)
def test_lists_come_with_commas_or_as_lists(given: Any) -> None:
    assert load({"cors_origins": given}).settings.cors_origins == (
        "https://a.example",
        "https://b.example",
    )


def test_secrets_come_from_files_and_are_read_when_they_are_needed(tmp_path: Path) -> None:
    key = tmp_path / "key"
    file = tmp_path / "edge.toml"
    file.write_text('api_key_file = "key"\ntoken_file = "key"\ncloud = "localhost:1"\n')
    settings = load(config=file).settings
    with pytest.raises(ConfigurationError, match=r"key cannot be read"):
        settings.read_api_key()
    key.write_text(f"  {SECRET}\n")
    endpoint = settings.endpoint()
    assert endpoint is not None
    assert settings.read_api_key() == endpoint.token == SECRET


def test_the_broker_is_described_from_the_settings(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text(SECRET)
    flags = {"mqtt": "broker.example", "mqtt_ca": Path("ca.pem"), "edge_id": "kitchen"}
    settings = load(flags | {"mqtt_user": "edge", "mqtt_password_file": password}).settings
    broker = settings.broker()
    assert broker is not None
    assert (broker.address, broker.user, broker.password) == ("broker.example:8883", "edge", SECRET)
    assert (broker.edge_id, broker.prefix, broker.telemetry_seconds) == ("kitchen", "tandem", 10)
    assert load({"mqtt": "h"}).settings.mqtt == "h"
    assert load({}).settings.broker() is None


@pytest.mark.parametrize("content", [b"", b" \n", b"two\nlines\n", b"\xff\xfe", b"x" * 5000])
def test_a_file_that_holds_no_secret_is_refused_and_not_repeated(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "key").write_bytes(content)
    settings = load({"api_key_file": tmp_path / "key"}).settings
    with pytest.raises(ConfigurationError, match="key") as refused:
        settings.read_api_key()
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"threshold": 2}, r"^--threshold: .*less"),
        ({"threshold": "much"}, r"^--threshold: .*number"),
        ({"threshold": 0.5}, "no use for a threshold"),
        (CLOUD | {"threshold": 0.5, "target_agreement": 0.5}, "not both"),
        (CLOUD | {"mode": "cloud-only", "private": True}, "private forbids"),
        ({"mode": "auto"}, "^--mode auto needs a cloud"),
        ({"cloud": "localhost"}, "HOST:PORT"),
        ({"cloud_ca": Path("ca")}, "^--cloud-ca is for a cloud"),
        ({"token_file": Path("t")}, "^--token-file is for a cloud"),
        (CLOUD | {"client_cert": Path("c"), "cloud_ca": Path("ca")}, "come together"),
        ({"cloud": "far:1", "token": SECRET}, "in the clear"),
        ({"cloud": "far:1", "token_file": Path("t")}, "in the clear"),
        (CLOUD | {"token": SECRET, "token_file": Path("t")}, "^--token and --token-file"),
        ({"api_key": SECRET, "api_key_file": Path("t")}, "^--api-key and --api-key-file"),
        (CLOUD | {"token_file": Path("tandem_abc")}, "looks like a token"),
        ({"host": "0.0.0.0"}, "^0.0.0.0 is open .*--api-key-file"),
        ({"mqtt_user": "edge"}, "^--mqtt-user is for a broker"),
        ({"mqtt": ":1883"}, r"not HOST:PORT"),
        ({"mqtt": "b:1", "mqtt_password_file": Path("p")}, "a password needs a user"),
        (
            {"mqtt": "b:1", "mqtt_password_file": Path("p"), "mqtt_user": "edge"},
            "password would travel in the clear",
        ),
        ({"mqtt": "b:1", "mqtt_ca": Path("a"), "mqtt_key": Path("k")}, "come together"),
        ({"mqtt": "b:1", "mqtt_cert": Path("a"), "mqtt_key": Path("k")}, "broker's CA"),
        ({"edge_id": "a/b"}, "^--edge-id: .*cannot name an edge"),
        ({"edge_id": "#"}, "^--edge-id: .*cannot name an edge"),
        ({"mqtt": "b:1", "telemetry_seconds": 0}, "^--telemetry-seconds: .*greater"),
        ({"parallel": 0}, r"^--parallel: .*greater"),
        ({"log_format": "xml"}, r"^--log-format: .*'json'"),
    ],
)
def test_what_does_not_go_together_is_named(flags: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named) as refused:
        load(flags)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "flags",
    [
        {"host": "0.0.0.0", "api_key": SECRET},
        {"host": "0.0.0.0", "insecure": True},
        {"host": "::1"},
        {"cloud": "far:1", "token": SECRET, "plaintext_token": True},
        {"cloud": "far:1", "token": SECRET, "cloud_ca": Path("ca")},
    ],
)
def test_what_was_thought_of_is_accepted(flags: dict[str, Any]) -> None:
    assert SECRET not in repr(load(flags).settings)


def test_an_unknown_variable_is_named_and_its_value_not_repeated() -> None:
    with pytest.raises(ConfigurationError, match=r"^TANDEM_EDGE_APIKEY: there is no") as refused:
        load(environment={"TANDEM_EDGE_APIKEY": SECRET})
    assert SECRET not in str(refused.value)


def test_what_is_printed_is_a_file_of_the_same_settings_without_secrets(tmp_path: Path) -> None:
    flags = CLOUD | {
        "mode": "collaborative",
        "threshold": 0.25,
        "token": SECRET,
        "api_key_file": tmp_path / 'kéy "x".txt',
        "allowed_hosts": "a.example,b.example",
        "mqtt": "broker.example:8883",
        "threads": "3",
    }
    effective = load(flags)
    printed = str(effective)
    assert SECRET not in printed
    assert "# token is set and not shown (--token)" in printed
    assert 'allowed_hosts = ["a.example", "b.example"]  # --allowed-hosts' in printed
    assert tomllib.loads(printed).keys() <= ALL.keys()
    (tmp_path / "edge.toml").write_text(printed)
    again = load({"token": SECRET}, config=tmp_path / "edge.toml").settings
    assert again == effective.settings


@pytest.mark.parametrize(
    ("host", "name"),
    [("Küche.home.example", "k-che"), ("pi_4", "pi_4"), ("---", "edge"), ("x" * 80, "x" * 64)],
)
def test_the_host_gives_a_name_that_topics_can_hold(
    host: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.settings.socket.gethostname", lambda: host)
    assert host_name_as_id() == name
    assert load({}).settings.edge_id == name


def test_the_documentation_has_every_setting_with_its_default() -> None:
    text = (ROOT / "docs" / "edge.md").read_text()
    text = text.partition("\n## Settings\n")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \|([^|]*)\|", text, re.MULTILINE))
    assert rows.keys() == ALL.keys()
    for name, field in ALL.items():
        extra = field.json_schema_extra
        assert isinstance(extra, dict)
        default = extra.get("shown", field.default)
        shown = rows[name].strip().strip("`")
        if default is None or default == ():
            assert shown == "", name
        elif isinstance(default, bool):
            assert shown == ("on" if default else "off"), name
        elif isinstance(default, int | float):
            assert float(shown) == default, name
        else:
            assert shown.replace("`", "") == str(getattr(default, "value", default)).replace(
                "`", ""
            )


def test_every_setting_explains_itself() -> None:
    for name, field in ALL.items():
        assert field.description, name

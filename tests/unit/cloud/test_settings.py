"""Where a cloud's settings come from, which source wins, and how a bad one is named."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from cloud.quotas import Quota
from cloud.settings import CloudSettings, load_settings
from shared.errors import ConfigurationError

ALL = CloudSettings.model_fields


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "cloud.toml"
    file.write_text("port = 1\nmax_sessions = 1\nthreads = 1\n")
    environment = {
        "TANDEM_CLOUD_PORT": "2",
        "TANDEM_CLOUD_MAX_SESSIONS": "2",
        "TANDEM_CLOUD": "localhost:7420",  # the edge's
        "TANDEM_CLOUD_CONFIG": "elsewhere.toml",
        "TANDEM_CLOUD_TOKENS": "",  # as a compose file leaves what is not set
        "HOME": "/root",
    }
    effective = load_settings({"port": 3, "device": None}, config=file, environment=environment)
    settings = effective.settings
    assert (settings.port, settings.max_sessions, settings.threads) == (3, 2, 1)
    assert (settings.device, settings.tokens) == ("cpu", None)
    assert effective.origins == {
        "port": "--port",
        "max_sessions": "TANDEM_CLOUD_MAX_SESSIONS",
        "threads": "cloud.toml: threads",
    }


def test_none_takes_away_what_a_weaker_source_says(tmp_path: Path) -> None:
    file = tmp_path / "cloud.toml"
    file.write_text('threads = 2\nmetrics = ":9464"\ntokens = "none"\nquotas = "q.toml"\n')
    environment = {"TANDEM_CLOUD_METRICS": "None", "TANDEM_CLOUD_QUOTAS": "none"}
    effective = load_settings({"threads": "none"}, config=file, environment=environment)
    settings = effective.settings
    assert (settings.threads, settings.metrics, settings.tokens, settings.quotas) == (None,) * 4
    assert "# threads is not set (--threads)" in str(effective)
    with pytest.raises(ConfigurationError, match="TANDEM_CLOUD_MAX_SESSIONS"):
        load_settings({}, environment={"TANDEM_CLOUD_MAX_SESSIONS": "none"})


def test_json_says_the_same_as_toml(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('host = "localhost"\nbudget_mb = 0.5\ninsecure = true\n')
    (tmp_path / "a.json").write_text(
        json.dumps({"host": "localhost", "budget_mb": 0.5, "insecure": True})
    )
    toml, json_ = (
        load_settings({}, config=tmp_path / name).settings for name in ("a.toml", "a.json")
    )
    assert toml == json_


def test_paths_in_a_file_start_at_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "cloud.toml"
    file.write_text('tokens = "tokens.txt"\nbundle = "/models/b"\n')
    settings = load_settings({}, config=file).settings
    assert settings.tokens == tmp_path / "tokens.txt"
    assert settings.bundle == Path("/models/b")


@pytest.mark.parametrize(
    ("flags", "environment", "text", "named"),
    [
        ({"port": 70000}, {}, "", r"^--port: .*65535"),
        ({}, {"TANDEM_CLOUD_PORT": "http"}, "", r"^TANDEM_CLOUD_PORT: .*integer"),
        ({}, {"TANDEM_CLOUD_PROT": "1"}, "", r"^TANDEM_CLOUD_PROT: there is no such key"),
        ({}, {}, "prot = 1", r"^cloud.toml: prot: there is no such key"),
        ({}, {}, "[limits]\nmax = 1", r"^cloud.toml: limits: there is no such key"),
        ({}, {}, "max_sessions = 0", r"^cloud.toml: max_sessions: .*greater"),
        ({}, {}, "budget_mb = nan", r"^cloud.toml: budget_mb: .*finite"),
        ({}, {}, "port = ", r"cannot be parsed"),
        ({}, {}, 'metrics = "9464"', r"^cloud.toml: metrics: .*HOST:PORT"),
        ({"metrics": "localhost:99999"}, {}, "", r"^--metrics: .*HOST:PORT"),
        ({"log_format": "xml"}, {}, "", r"^--log-format: .*'json'"),
        ({"tls_key": Path("k")}, {}, "", r"--tls-cert"),
    ],
)
def test_a_bad_setting_is_named_by_where_it_is_from(
    tmp_path: Path, flags: Any, environment: dict[str, str], text: str, named: str
) -> None:
    file = tmp_path / "cloud.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=named):
        load_settings(flags, config=file, environment=environment)


RAY = {"engine": "ray", "host": "0.0.0.0", "insecure": True}


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"replicas": 2}, "^--replicas needs --engine ray"),
        ({"ray_address": "auto"}, "^--ray-address needs --engine ray"),
        ({"engine": "ray"}, "--host 0.0.0.0 --insecure"),
        ({"engine": "ray", "insecure": True}, "--host 0.0.0.0 --insecure"),
        # not even with tokens: they would travel in the clear
        ({"engine": "ray", "host": "::", "tokens": Path("t")}, "--host 0.0.0.0 --insecure"),
        (RAY | {"tls_cert": Path("c"), "tls_key": Path("k")}, "^--tls-cert does not go with"),
        (RAY | {"max_streams": 3}, "^--max-streams does not go with --engine ray"),
        (RAY | {"replicas": 3, "max_replicas": 2}, "^--max-replicas is less than --replicas"),
        (RAY | {"replicas": 0}, "^--replicas: .*greater"),
    ],
)
def test_settings_of_another_engine_are_refused_by_name(flags: Any, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        load_settings(flags)


def test_replicas_come_from_the_same_sources_as_all_settings(tmp_path: Path) -> None:
    file = tmp_path / "cloud.toml"
    file.write_text('engine = "ray"\nhost = "0.0.0.0"\ninsecure = true\nreplicas = 2\n')
    environment = {"TANDEM_CLOUD_MAX_REPLICAS": "5"}
    effective = load_settings({"replicas": 3}, config=file, environment=environment)
    assert (effective.settings.replicas, effective.settings.most_replicas) == (3, 5)
    assert load_settings(RAY).settings.most_replicas == 1
    file.write_text(str(effective))
    assert load_settings({}, config=file).settings == effective.settings


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [("cloud.yaml", "", "end in .toml or .json"), ("cloud.json", "[]", "no table")],
)
def test_another_kind_of_file_is_refused(tmp_path: Path, name: str, text: str, named: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigurationError, match=named):
        load_settings({}, config=tmp_path / name)


def test_a_token_in_place_of_its_file_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigurationError, match="token file") as refused:
        load_settings({}, environment={"TANDEM_CLOUD_TOKENS": "tandem_s3cret"})
    assert "s3cret" not in str(refused.value)


def test_what_is_printed_is_a_file_of_the_same_settings(tmp_path: Path) -> None:
    flags = {
        "metrics": "0.0.0.0:9464",
        "tokens": tmp_path / 'tökens "x".txt',
        "threads": 3,
        "budget_mb": 0.25,
        "insecure": True,
    }
    effective = load_settings(flags)
    printed = str(effective)
    assert "# quotas is not set" in printed
    assert "port = 7420  # default" in printed
    assert "threads = 3  # --threads" in printed
    assert tomllib.loads(printed).keys() <= ALL.keys()
    (tmp_path / "cloud.toml").write_text(printed)
    assert load_settings({}, config=tmp_path / "cloud.toml").settings == effective.settings


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":9464", ("127.0.0.1", 9464)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("[::1]:9464", ("::1", 9464)),
    ],
)
def test_metrics_stay_on_this_machine_unless_told(text: str, address: tuple[str, int]) -> None:
    assert load_settings({"metrics": text}).settings.metrics_address == address


def test_every_setting_explains_itself() -> None:
    for name, field in ALL.items():
        assert field.description, name


@pytest.mark.parametrize("name", [*CloudSettings.model_fields, *Quota.model_fields])
def test_the_documentation_names_every_setting_and_every_quota(name: str) -> None:
    docs = Path(__file__).parents[3] / "docs"
    rows = [
        line.split(" | ")[0]
        for page in ("cloud.md", "ray.md")
        for line in (docs / page).read_text("utf-8").splitlines()
        if line.startswith("| ")
    ]
    assert any(f"`{name}`" in row for row in rows)

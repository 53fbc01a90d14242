"""What docker-compose.yml and its neighbours say of each other and of the cloud."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cloud.metrics import CloudMetrics

ROOT = Path(__file__).parents[3]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "docker/grafana/dashboards/tandem.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
_SAMPLES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
}


def exported() -> dict[str, set[str]]:
    """Names of all samples that a cloud can show, with their labels."""
    metrics = CloudMetrics()
    labels = {
        metric._name: set(metric._labelnames)
        for metric in vars(metrics).values()
        if hasattr(metric, "_labelnames")
    }
    return {
        f"{family.name}{suffix}": labels[family.name] | ({"le"} if suffix == "_bucket" else set())
        for family in metrics.registry.collect()
        if family.name in labels
        for suffix in _SAMPLES[family.type]
    }


def test_the_dashboard_asks_for_what_the_cloud_exports() -> None:
    known = exported()
    asked = {name for query in QUERIES for name in re.findall(r"tandem_\w+", query)}
    assert asked <= known.keys()


@pytest.mark.parametrize("query", QUERIES)
def test_the_dashboard_groups_by_labels_that_there_are(query: str) -> None:
    known = exported()
    for grouping, rest in re.findall(r"by \(([^)]*)\) \((.*)", query):
        (name, *_) = re.findall(r"tandem_\w+", rest)
        assert set(grouping.split(", ")) <= known[name]


def test_the_example_of_settings_names_all_that_the_stack_reads_with_their_defaults() -> None:
    compose = (ROOT / "docker-compose.yml").read_text()
    read = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", compose))
    example = dict(re.findall(r"^#(\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    # nothing rather than the file that holds nothing
    assert example == read | {"PIP_CONF": "", "PIP_CERT": ""}


def test_both_images_are_built_on_the_base_image_of_the_compose_file() -> None:
    compose = (ROOT / "docker-compose.yml").read_text()
    (base,) = re.findall(r"\$\{BASE_IMAGE:-([^}]+)\}", compose)
    for name in ("cloud", "edge"):
        dockerfile = (ROOT / f"docker/{name}.Dockerfile").read_text()
        assert re.findall(r"^ARG BASE_IMAGE=(\S+)$", dockerfile, re.MULTILINE) == [base]


def test_prometheus_asks_the_port_that_the_cloud_shows_its_metrics_on() -> None:
    compose = (ROOT / "docker-compose.yml").read_text()
    (port,) = re.findall(r"--metrics=0\.0\.0\.0:(\d+)", compose)
    assert f'["cloud:{port}"]' in (ROOT / "docker/prometheus/prometheus.yml").read_text()

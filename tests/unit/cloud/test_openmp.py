"""What OpenMP reads is set by the time that PyTorch is loaded, and a user's own word counts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# prints what is set at the moment when PyTorch is asked for
_LOOK = """
import importlib, os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"))
            sys.meta_path.remove(self)

sys.meta_path.insert(0, Watch())
importlib.import_module(sys.argv[1])
"""


def seen_by_torch(module: str, **environment: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", _LOOK, module],
        env=clean | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    "module", ["cloud.server", "simulator.fleet.measuring_cloud", "benchmarks.cloud_pass"]
)
def test_whoever_serves_or_measures_loads_torch_with_it(module: str) -> None:
    assert seen_by_torch(module) == "30000"


def test_a_process_of_somebody_elses_does_not_get_it() -> None:
    look = (
        "import cloud.packed_linear, os; from shared.library_settings import environment_for_others"
        " as others; print(os.environ.keys() - others().keys(), others()['MINE'])"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP_", "OMP_", "ONEDNN_"))}
    done = subprocess.run(
        [sys.executable, "-c", look],
        env=clean | {"MINE": "kept", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "9"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["{'GOMP_SPINCOUNT'}", "kept"]


@pytest.mark.parametrize(
    ("environment", "seen"),
    [({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "None")],
    ids=["spin count", "wait policy"],
)
def test_a_users_own_setting_is_kept(environment: dict[str, str], seen: str) -> None:
    assert seen_by_torch("cloud.deep_model", **environment) == seen

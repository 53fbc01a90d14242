"""Who may import whom (DESIGN: the edge runs without torch, the cloud without onnxruntime)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = {"edge", "cloud", "shared", "simulator", "prepare", "protos", "tests", "benchmarks"}
FORBIDDEN = {
    "edge": {"cloud", "prepare", "simulator", "torch", "transformers"},
    "cloud": {"edge", "prepare", "simulator", "onnxruntime", "onnx", "transformers"},
    "shared": PARTS - {"shared", "protos"} | {"torch", "transformers", "onnxruntime", "onnx"},
    "prepare": {"simulator"},
    "simulator": {"tests", "benchmarks"},
}


def imported_names(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide which part they reach"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("part", sorted(FORBIDDEN))
def test_part_imports_only_what_it_may(part: str) -> None:
    files = list((ROOT / part).rglob("*.py"))
    assert files
    for path in files:
        assert not imported_names(path) & FORBIDDEN[part], path


def test_the_check_itself_sees_imports_inside_functions(tmp_path: Path) -> None:
    path = tmp_path / "late.py"
    path.write_text("def f():\n    from torch.nn import Linear\n    import cloud.server\n")
    assert imported_names(path) == {"torch", "cloud"}


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("edge.engine, edge.cli, edge.token_display", ("torch", "transformers", "cloud")),
        # neither gRPC nor a client of MQTT, unless there is a cloud or a broker: memory, and time
        ("edge.serve", ("torch", "transformers", "cloud", "grpc", "aiomqtt")),
        ("cloud.server, cloud.cli", ("onnxruntime", "onnx", "transformers", "edge", "ray")),
        ("cloud.ray_proxy", ("torch", "ray")),
        ("shared.cli, edge.cli, cloud.cli, prepare.cli, simulator.cli", ("torch", "onnxruntime")),
    ],
)
def test_loading_a_part_loads_nothing_it_must_not(modules: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {modules}; print(sorted(set({absent!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"

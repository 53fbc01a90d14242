"""Write a bundle: every file into a temporary sibling folder, then one rename."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from prepare.base_model import BaseModel
from prepare.exit_weights import ExitSet
from prepare.onnx_export import export_edge
from shared.errors import ConfigurationError
from shared.model_bundle import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    Architecture,
    CloudModel,
    Manifest,
    ModelBundle,
    Precision,
    TokenizerInfo,
    describe_file,
    sha256_of,
)

# raise it whenever the exporter writes other graphs from the same weights
EXPORT_REVISION = 3


def write_bundle(
    model: BaseModel,
    exits: ExitSet,
    folder: Path,
    *,
    precisions: Sequence[Precision],
    full_depth: bool,
    recipe: str | None = None,
    cloud: bool = True,
    progress: Callable[[str], None] | None = None,
) -> ModelBundle:
    """Write ``folder`` atomically, in place of any bundle that is already there.

    Args:
        precisions: the edges to export, each at most once.
        full_depth: also give the edge the layers above the last exit and the full head.
        cloud: also write the full model's weights.
        recipe: SHA-256 that :func:`recipe_of` gives, recorded in the manifest.
        progress: called with a short line before each step.

    Raises:
        ConfigurationError: exits that belong to other weights, no precision, or ``folder`` is
            something other than a bundle.
    """
    if exits.base_sha256 != model.source.sha256:
        raise ConfigurationError("the exits were trained for other weights: train them again")
    if not precisions:
        raise ConfigurationError("name at least one precision: float32, int8 or int4")
    if folder.exists() and not (folder / MANIFEST_NAME).exists() and any(folder.iterdir()):
        raise ConfigurationError(f"{folder} is not empty and not a bundle: choose another folder")
    report = progress or (lambda _: None)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        staging.chmod(0o755)  # mkdtemp's 0700 would hide the bundle from other users
        manifest = _write_files(model, exits, staging, precisions, full_depth, cloud, report)
        manifest = manifest.model_copy(update={"recipe": recipe})
        (staging / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=2) + "\n")
        for path in staging.rglob("*"):  # some writers hide their files from other users
            path.chmod(0o755 if path.is_dir() else 0o644)
        _put_in_place(staging, folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return ModelBundle.load(folder)


def recipe_of(source_sha256: str, exits_folder: Path) -> str:
    """SHA-256 over what decides a bundle's content: base weights, exits, this exporter."""
    parts = [source_sha256, str(EXPORT_REVISION), str(FORMAT_VERSION)]
    for name in ("exits.safetensors", "exits.json"):
        path = exits_folder / name
        if not path.is_file():
            raise ConfigurationError(f"{path} is missing: is {exits_folder} a folder of exits?")
        parts.append(sha256_of(path))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def fingerprint(
    weights_sha256: str, tokenizer_sha256: str, architecture: Architecture, cut: int
) -> str:
    """What edge and cloud must agree on, as one SHA-256."""
    parts = [weights_sha256, tokenizer_sha256, architecture.model_dump_json(), str(cut)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _write_files(
    model: BaseModel,
    exits: ExitSet,
    folder: Path,
    precisions: Sequence[Precision],
    full_depth: bool,
    with_cloud: bool,
    report: Callable[[str], None],
) -> Manifest:
    report("tokenizer and exits")
    model.tokenizer.save(str(folder / "tokenizer.json"))
    exits.save(folder)
    edge = {}
    for precision in precisions:
        report(f"edge graphs in {precision}")
        edge[precision] = export_edge(model, exits, folder, precision, full_depth=full_depth)
    cloud = None
    if with_cloud:
        report("cloud weights")
        config, weights = model.write_hugging_face_folder(folder / "cloud")
        cloud = CloudModel(
            config=describe_file(folder, config), weights=describe_file(folder, weights)
        )
    tokenizer = TokenizerInfo(
        file=describe_file(folder, folder / "tokenizer.json"),
        chat_template=model.chat_template,
        stop_token_ids=model.stop_token_ids,
    )
    cut = exits.exits[0].info.layer
    return Manifest(
        format_version=FORMAT_VERSION,
        name=model.name,
        fingerprint=fingerprint(
            model.source.sha256, tokenizer.file.sha256, model.architecture, cut
        ),
        source=model.source,
        architecture=model.architecture,
        tokenizer=tokenizer,
        cut=cut,
        exits=tuple(weights.info for weights in exits.exits),
        operating_points=exits.operating_points,
        edge=edge,
        cloud=cloud,
    )


def _put_in_place(staging: Path, folder: Path) -> None:
    """Rename ``staging`` to ``folder``; an old bundle steps aside first and is then removed."""
    if not folder.exists():
        staging.rename(folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".old", dir=folder.parent))
    folder.rename(old)  # onto an empty folder: allowed, and atomic
    staging.rename(folder)
    shutil.rmtree(old, ignore_errors=True)

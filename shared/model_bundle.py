"""The bundle: one prepared model as a folder that edge and cloud both read.

::

    manifest.json            what follows, validated on load
    tokenizer.json           Hugging Face ``tokenizers`` file
    exits.safetensors        exit blocks and norms, float16
    edge/<precision>/*       segments and exits for ONNX Runtime: .onnx, constants in .weights
    edge/embedding_*.npy     token embedding, see shared/embedding_file.py
    cloud/                   a Hugging Face model folder (config.json, model.safetensors)

``fingerprint`` covers what edge and cloud must agree on (weights of the full model, tokenizer,
cut); it leaves out the edge's precision, so float32 and int8 edges may share one cloud.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.errors import BundleError

FORMAT_VERSION = 2
MAX_BLOCKS = 16  # of one exit
MANIFEST_NAME = "manifest.json"
# an exit's ONNX metadata: base64 of the little-endian int32 token ids of its head's rows
VOCABULARY_KEY = "vocabulary_ids"
DEFAULT_BUNDLE_NAME = "smollm2-135m-instruct"

Precision = Literal["float32", "int8", "int4"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# no leading slash, no "..", no hidden files: a bundle never points outside its folder
RelativePath = Annotated[
    str, Field(max_length=200, pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_-]*([./][A-Za-z0-9_-]+)*$")
]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BundleFile(_Frozen):
    """One file of the bundle, relative to its folder."""

    path: RelativePath
    sha256: Sha256
    size_bytes: int = Field(ge=0)


class Architecture(_Frozen):
    """Shape of a Llama-style decoder with grouped-query attention and tied embedding."""

    layers: int = Field(ge=1, le=512)
    hidden_size: int = Field(ge=8, le=65536)
    heads: int = Field(ge=1, le=1024)
    kv_heads: int = Field(ge=1, le=1024)
    head_size: int = Field(ge=2, le=1024)
    intermediate_size: int = Field(ge=8, le=1 << 20)
    vocabulary_size: int = Field(ge=2, le=1 << 22)
    max_positions: int = Field(ge=8, le=1 << 22)
    rope_theta: float = Field(gt=0)
    norm_epsilon: float = Field(gt=0)

    @property
    def kv_size(self) -> int:
        """Width of one layer's keys (or values) for one position, in elements."""
        return self.kv_heads * self.head_size


class Calibration(_Frozen):
    """Monotone map from an exit's raw maximum probability to its confidence.

    Linear between the knots, constant outside them.  Both lists rise (confidence weakly).
    """

    raw: tuple[float, ...] = Field(min_length=2, max_length=256)
    confidence: tuple[float, ...] = Field(min_length=2, max_length=256)

    @model_validator(mode="after")
    def _monotone(self) -> Calibration:
        if len(self.raw) != len(self.confidence):
            raise ValueError("raw and confidence differ in length")
        if any(b <= a for a, b in zip(self.raw, self.raw[1:], strict=False)):
            raise ValueError("raw must rise strictly")
        if any(b < a for a, b in zip(self.confidence, self.confidence[1:], strict=False)):
            raise ValueError("confidence must not fall")
        if not all(0.0 <= c <= 1.0 for c in self.confidence):
            raise ValueError("confidence lies in [0, 1]")
        return self


IDENTITY_CALIBRATION = Calibration(raw=(0.0, 1.0), confidence=(0.0, 1.0))


class ExitInfo(_Frozen):
    """An early exit: ``blocks`` transformer blocks, a norm and a vocabulary head after ``layer``.

    ``vocabulary_size`` is the number of rows of the head; where it is smaller than the model's,
    ``exits.safetensors`` holds ``<name>.vocabulary_ids`` (int32) that map a row to a token id.
    """

    name: str = Field(pattern=r"^exit[1-9][0-9]?$")
    layer: int = Field(ge=1)
    blocks: int = Field(ge=0, le=MAX_BLOCKS)
    vocabulary_size: int = Field(ge=2)
    calibration: Calibration = IDENTITY_CALIBRATION


class OperatingPoint(_Frozen):
    """What a threshold brought on the full model's own answers to prompts held out of training.

    Attributes:
        agreement: share of tokens that equal the full model's, escalated ones included.
        escalation_rate: share of tokens that the cloud was asked for.
    """

    threshold: float = Field(ge=0.0, le=1.0)
    agreement: float = Field(ge=0.0, le=1.0)
    escalation_rate: float = Field(ge=0.0, le=1.0)


class GraphFiles(_Frozen):
    """An ONNX graph and its large constants, which the graph names as external data."""

    graph: BundleFile
    weights: BundleFile


class EdgeSegment(_Frozen):
    """An ONNX graph for layers ``[first_layer, last_layer)``."""

    first_layer: int = Field(ge=0)
    last_layer: int = Field(ge=1)
    files: GraphFiles


class EdgeGraphs(_Frozen):
    """Embedding and ONNX graphs of one precision.  ``head`` (final norm and full vocabulary) and
    the last segment are present only in bundles prepared with ``--full-depth``; ``embedding`` may
    be shared with another precision."""

    embedding: BundleFile
    segments: tuple[EdgeSegment, ...] = Field(min_length=1)
    exits: tuple[GraphFiles, ...]
    head: GraphFiles | None = None

    def files(self) -> Iterable[BundleFile]:
        """Every file of this precision."""
        yield self.embedding
        segments = (segment.files for segment in self.segments)
        for files in (*segments, *self.exits, *([self.head] if self.head else [])):
            yield from (files.graph, files.weights)


class TokenizerInfo(_Frozen):
    """Tokenizer file, the chat template (Jinja) and the tokens that end an answer."""

    file: BundleFile
    chat_template: str = Field(max_length=65536)
    stop_token_ids: tuple[int, ...] = Field(min_length=1, max_length=64)


class CloudModel(_Frozen):
    """The full model as a Hugging Face folder inside the bundle."""

    config: BundleFile
    weights: BundleFile


class Source(_Frozen):
    """Where the weights came from."""

    description: str
    license: str
    sha256: Sha256


class Manifest(_Frozen):
    """Everything a part needs to know before it opens a large file."""

    format_version: Literal[2]
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    fingerprint: Sha256
    source: Source
    architecture: Architecture
    tokenizer: TokenizerInfo
    cut: int = Field(ge=1)
    exits: tuple[ExitInfo, ...] = Field(max_length=8)
    # by rising threshold; empty where the exits were never measured
    operating_points: tuple[OperatingPoint, ...] = Field(default=(), max_length=256)
    edge: dict[Precision, EdgeGraphs]
    cloud: CloudModel | None = None
    # what the bundle was made from, so that preparing it again can tell that nothing changed
    recipe: Sha256 | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        layers = [e.layer for e in self.exits]
        if layers != sorted(set(layers)):
            raise ValueError("exits must come in rising order of layer")
        thresholds = [point.threshold for point in self.operating_points]
        if thresholds != sorted(set(thresholds)):
            raise ValueError("operating points must come in rising order of threshold")
        if any(layer >= self.architecture.layers for layer in [self.cut, *layers]):
            raise ValueError("cut and exits lie below the last layer")
        if self.exits and self.exits[0].layer != self.cut:
            raise ValueError("the cut is the layer of the first exit")
        for precision, graphs in self.edge.items():
            if len(graphs.exits) != len(self.exits):
                raise ValueError(f"edge/{precision}: one graph per exit is needed")
            at = 0
            for segment in graphs.segments:
                if segment.first_layer != at or segment.last_layer <= at:
                    raise ValueError(f"edge/{precision}: segments must join")
                at = segment.last_layer
        return self


class ModelBundle:
    """A bundle on disk: the manifest, and paths that are checked before they are handed out."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def load(cls, folder: Path) -> ModelBundle:
        """Read and validate ``manifest.json``; raise :class:`BundleError` that says what to do."""
        path = folder / MANIFEST_NAME
        try:
            raw = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise BundleError(
                f"no bundle at {folder}: run `tandem prepare`, or name one with --bundle"
            ) from None
        except (OSError, ValueError) as error:
            raise BundleError(f"{path} cannot be read: {error}; run `tandem prepare`") from None
        if isinstance(raw, dict) and raw.get("format_version") != FORMAT_VERSION:
            raise BundleError(
                f"{path} has format version {raw.get('format_version')!r}, this release reads "
                f"{FORMAT_VERSION}: run `tandem prepare`"
            )
        try:
            return cls(folder, Manifest.model_validate(raw))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise BundleError(f"{path}: {where or 'manifest'}: {first['msg']}") from None

    def path(self, file: BundleFile) -> Path:
        """Absolute path of ``file`` after a check of its presence and size."""
        path = self.folder / file.path
        try:
            size = path.stat().st_size
        except OSError:
            raise BundleError(f"{path} is missing: run `tandem prepare`") from None
        if size != file.size_bytes:
            raise BundleError(
                f"{path} has {size} bytes, the manifest says {file.size_bytes}: "
                "run `tandem prepare --force`"
            )
        return path

    def files(self) -> Iterable[BundleFile]:
        """Every file that the manifest names, once each."""
        manifest = self.manifest
        yield manifest.tokenizer.file
        # a dict as an ordered set: precisions share the embedding
        yield from dict.fromkeys(f for graphs in manifest.edge.values() for f in graphs.files())
        if manifest.cloud:
            yield from (manifest.cloud.config, manifest.cloud.weights)

    def verify(self) -> None:
        """Compare every file with its SHA-256; raise :class:`BundleError` at the first that
        differs."""
        for file in self.files():
            if sha256_of(self.path(file)) != file.sha256:
                raise BundleError(f"{self.folder / file.path} is damaged: run `tandem prepare`")

    def graphs(self, precision: Precision) -> EdgeGraphs:
        """The edge's ONNX graphs in ``precision``."""
        try:
            return self.manifest.edge[precision]
        except KeyError:
            have = ", ".join(self.manifest.edge) or "none"
            raise BundleError(
                f"the bundle has no {precision} edge (it has: {have}): "
                f"run `tandem prepare --precision {precision}`"
            ) from None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def describe_file(folder: Path, path: Path) -> BundleFile:
    """The manifest's entry for a file inside ``folder``."""
    return BundleFile(
        path=path.relative_to(folder).as_posix(),
        sha256=sha256_of(path),
        size_bytes=path.stat().st_size,
    )


def cache_folder() -> Path:
    """Where downloads and bundles are kept; ``TANDEM_CACHE`` overrides the platform's default."""
    override = os.environ.get("TANDEM_CACHE")
    return Path(override) if override else Path(platformdirs.user_cache_dir("tandem"))


def default_bundle_folder() -> Path:
    """Where ``tandem prepare`` writes the default bundle."""
    return cache_folder() / "bundles" / DEFAULT_BUNDLE_NAME

"""Checks of the bundle: there, whole, with the precision that is asked for, and it talks."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

from edge.doctor import Finding, fail, in_thread, ok, warn
from shared.chat import Message
from shared.errors import BundleError
from shared.model_bundle import BundleFile, ModelBundle, Precision

_PROCESS_BYTES = 90 << 20  # Python, NumPy, ONNX Runtime, tokenizer, gRPC
_HASH_SECONDS = 4.0
_TEST_TOKENS = 16
_CHUNK = 1 << 20


def check_bundle(folder: Path, precision: Precision) -> list[Finding]:
    """Manifest, precision, exits and operating points."""
    try:
        bundle = ModelBundle.load(folder)
    except BundleError as error:
        return [fail("bundle", str(error), "tandem prepare, or --bundle FOLDER")]
    return judge_bundle(bundle, precision)


def judge_bundle(bundle: ModelBundle, precision: Precision) -> list[Finding]:
    """What the manifest promises against what the edge needs."""
    manifest = bundle.manifest
    found = [ok("bundle", f"{manifest.name}, fingerprint {manifest.fingerprint[:12]}")]
    have = ", ".join(manifest.edge) or "none"
    if precision in manifest.edge:
        found.append(ok("precisions", f"{have}; {precision} is to be used"))
    else:
        advice = f"tandem prepare --precision {precision}, or --precision with what it has"
        found.append(fail("precisions", f"{have}, not {precision}", advice))
    if not manifest.exits:
        found.append(fail("exits", "none: the device can decide nothing", "tandem prepare --force"))
    else:
        where = ", ".join(f"{e.name} after layer {e.layer}" for e in manifest.exits)
        found.append(ok("exits", f"{where} of {manifest.architecture.layers}"))
    points = manifest.operating_points
    if points:
        best = max(point.agreement for point in points)
        detail = f"{len(points)}, agreement up to {best:g}"
        found.append(ok("operating points", detail))
    else:
        advice = "--target-agreement will not work: tandem prepare"
        found.append(warn("operating points", "none: the exits were never measured", advice))
    return found


def edge_files(bundle: ModelBundle, precision: Precision) -> list[BundleFile]:
    """What this device reads; the cloud's half need not be here."""
    graphs = bundle.manifest.edge.get(precision)
    return [bundle.manifest.tokenizer.file, *(graphs.files() if graphs else ())]


def check_files(
    bundle: ModelBundle, files: Sequence[BundleFile], seconds: float = _HASH_SECONDS
) -> Finding:
    """Sizes, and SHA-256 of as much as ``seconds`` allow."""
    name, deadline, compared = "files", time.monotonic() + seconds, 0
    for file in files:
        try:
            bundle.path(file)
        except BundleError as error:
            return fail(name, str(error), "tandem prepare --force, or copy the bundle again")
    for file in files:
        digest = _sha256_until(bundle.folder / file.path, deadline)
        if digest is None:
            total = sum(f.size_bytes for f in files)
            return ok(
                name,
                f"{len(files)} have their sizes; {compared / 1e6:.0f} of {total / 1e6:.0f} MB "
                "compared by SHA-256, for which the time allowed",
            )
        if digest != file.sha256:
            return fail(
                name,
                f"{bundle.folder / file.path} is damaged (SHA-256)",
                "tandem prepare --force, or copy the bundle again",
            )
        compared += file.size_bytes
    return ok(name, f"{len(files)}, {compared / 1e6:.0f} MB, as the manifest says (SHA-256)")


def _sha256_until(path: Path, deadline: float) -> str | None:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            if time.monotonic() >= deadline:
                return None
            digest.update(chunk)
    return digest.hexdigest()


def memory_needs(bundle: ModelBundle, precision: Precision) -> tuple[int, int]:
    """Bytes of the process with its model, and of the longest conversation on top (keys, values
    and hidden states, float32); the layers that the edge runs, estimated from its files."""
    manifest, arch = bundle.manifest, bundle.manifest.architecture
    graphs = bundle.graphs(precision)
    deepest = manifest.exits[-1].layer if manifest.exits else manifest.cut
    segments = [segment for segment in graphs.segments if segment.last_layer <= deepest]
    files = [*(segment.files for segment in segments), *graphs.exits]
    weights = sum(file.weights.size_bytes for file in files)
    layers = deepest + sum(exit_.blocks for exit_ in manifest.exits)
    a_position = 4 * (2 * layers * arch.kv_size + len(segments) * arch.hidden_size)
    return _PROCESS_BYTES + weights, a_position * arch.max_positions


async def check_answer(bundle: ModelBundle, precision: Precision, threads: int | None) -> Finding:
    """A few tokens from this device alone."""
    return await in_thread(_answer, bundle, precision, threads)


def _answer(bundle: ModelBundle, precision: Precision, threads: int | None) -> Finding:
    from edge.engine import EdgeEngine  # noqa: PLC0415  (loads ONNX Runtime)
    from edge.generation import Mode  # noqa: PLC0415
    from edge.generation_options import GenerationOptions  # noqa: PLC0415  (loads ONNX Runtime)

    name = "test answer"
    options = GenerationOptions(Mode.STANDALONE, max_tokens=_TEST_TOKENS)
    began = time.monotonic()
    engine = EdgeEngine(bundle, precision, threads=threads)
    try:
        engine.load_model()
        loaded = time.monotonic() - began
        prompt = engine.encode_chat([Message("user", "Why is the sky blue?")])
        result = asyncio.run(engine.generate(prompt, options))
    except BundleError as error:
        return fail(name, str(error), "tandem prepare --force")
    finally:
        engine.close()
    if not result.tokens:
        return fail(name, "no token came", "tandem prepare --force")
    rest = len(result.tokens) - 1
    each = (result.seconds - result.first_token_seconds) / rest if rest else result.seconds
    return ok(
        name,
        f"{each * 1000:.1f} ms a token alone ({1 / max(each, 1e-9):.0f}/s), the first after "
        f"{result.first_token_seconds * 1000:.0f} ms; loaded in {loaded:.1f} s",
    )

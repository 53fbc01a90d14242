"""Which checks ``tandem doctor`` makes, and which of them at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge import doctor_bundle, doctor_machine
from edge.doctor import Check, Finding, in_thread, run_chain, run_check
from edge.doctor_broker import Broker, broker_checks
from shared.errors import BundleError
from shared.model_bundle import MANIFEST_NAME, ModelBundle, Precision

if TYPE_CHECKING:
    from edge.cloud_channel import CloudEndpoint

_Look = Callable[..., Finding | Sequence[Finding]]


def checked(name: str, seconds: float, look: _Look, *arguments: Any) -> Check:
    """A check that blocks, on a thread."""
    return Check(name, lambda: in_thread(look, *arguments), seconds)


async def examine(
    folder: Path,
    precision: Precision,
    threads: int | None,
    endpoint: CloudEndpoint | None,
    broker: Broker | None,
    port: int,
) -> list[Finding]:
    """All findings, in the order in which they are shown."""
    loaded: ModelBundle | None = None
    with suppress(BundleError):  # a check says so
        loaded = ModelBundle.load(folder)
    usable = loaded if loaded is not None and precision in loaded.manifest.edge else None

    machine = [
        checked("processor", 2, doctor_machine.check_processor),
        checked("cores", 4, doctor_machine.check_cores, threads),
        checked("python", 2, doctor_machine.check_python),
        checked("packages", 3, doctor_machine.check_packages),
        checked("disk", 2, doctor_machine.check_disk, folder, loaded is not None),
        checked("clock", 2, doctor_machine.check_clock, folder / MANIFEST_NAME),
        checked(f"port {port}", 4, doctor_machine.check_port, port),
    ]
    if usable is not None:
        needs = doctor_bundle.memory_needs(usable, precision)
        machine.insert(2, checked("memory", 2, doctor_machine.check_memory, *needs))
    chains = [[checked("bundle", 2, doctor_bundle.check_bundle, folder, precision)]]
    if usable is not None:
        files = doctor_bundle.edge_files(usable, precision)
        chains[0].append(checked("files", 6, doctor_bundle.check_files, usable, files))
    if endpoint is not None:
        from edge.doctor_cloud import cloud_checks  # noqa: PLC0415  (gRPC, where a cloud is named)

        chains.append(cloud_checks(endpoint, loaded.manifest.fingerprint if loaded else None))
    if broker is not None:
        chains.append(broker_checks(broker))
    first, (bundle_findings, *network) = await asyncio.gather(
        asyncio.gather(*(run_check(check) for check in machine)),
        asyncio.gather(*(run_chain(checks) for checks in chains)),
    )
    if usable is not None and not any(f.check == "files" and f.advice for f in bundle_findings):
        # alone, so that it is timed undisturbed
        answer = Check(
            "test answer", lambda: doctor_bundle.check_answer(usable, precision, threads), 30.0
        )
        bundle_findings += await run_check(answer)
    return [*chain.from_iterable(first), *bundle_findings, *chain.from_iterable(network)]

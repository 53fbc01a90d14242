"""Checks of this machine: processor, cores, memory, Python, disk, clock, the daemon's port.

``judge_*`` are pure; what they judge is read beside them.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import shutil
import socket
import struct
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from edge.doctor import Finding, fail, ok, warn
from shared.cpu_quota import cpu_quota

MIB = 1 << 20
_CPUINFO = Path("/proc/cpuinfo")
_RELEASED = 1_735_689_600  # 2025-01-01: no clock that is right shows less
_TIME_ERROR = 5  # adjtimex: the clock is not synchronised
_TIMEX_BYTES = 512  # of struct timex, with room
_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)[^;]*?>=([0-9.]+)[^;]*(?:;(.*))?$")


def processor_features(cpuinfo: str) -> frozenset[str]:
    """Flags (x86) or Features (ARM) of the first processor in ``/proc/cpuinfo``."""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    return frozenset(match[1].split()) if match else frozenset()


def judge_processor(machine: str, features: frozenset[str]) -> Finding:
    """What the int8 and int4 kernels can use of it."""
    name = "processor"
    if not features:
        return ok(name, f"{machine}; this system does not tell its features")
    if machine in ("aarch64", "arm64"):
        found = [label for flag, label in (("asimddp", "dotprod"), ("i8mm", "i8mm"))
                 if flag in features]  # fmt: skip
        if found:
            return ok(name, f"{machine} with {', '.join(found)}: 8-bit products in hardware")
        return warn(
            name,
            f"{machine} without dotprod: 8-bit products are emulated",
            "expect a few times less speed than with dotprod (a Raspberry Pi 5 has it)",
        )
    labels = (
        ("avx2", "AVX2"),
        ("avx_vnni", "AVX-VNNI"),
        ("avx512_vnni", "AVX-512 VNNI"),
        ("amx_int8", "AMX"),
    )
    found = [label for flag, label in labels if flag in features]
    if features & {"avx512_vnni", "avx_vnni"}:
        return ok(name, f"{machine} with {', '.join(found)}: 8-bit products in hardware")
    if "avx2" in features:
        return ok(name, f"{machine} with AVX2, without VNNI: 8-bit products take more steps")
    return warn(
        name,
        f"{machine} without AVX2",
        "answers will be slow: in a virtual machine, pass the host's processor through",
    )


def check_processor() -> Finding:
    """Of this machine."""
    text = _CPUINFO.read_text() if _CPUINFO.exists() else ""
    return judge_processor(platform.machine(), processor_features(text))


def judge_cores(usable: int, physical: int, quota: float | None, threads: int | None) -> Finding:
    """Threads against cores; ``quota`` is a container's limit in cores."""
    name = "cores"
    cores = min(physical, quota) if quota is not None else physical
    wanted = threads or physical
    detail = f"{physical} cores, {usable} processors to use, {wanted} threads"
    if quota is not None:
        detail += f", a limit of {quota:g} cores"
    if wanted > cores:
        return warn(
            name,
            detail,
            f"threads would wait for each other: --threads {max(1, int(cores))}",
        )
    return ok(name, detail)


def check_cores(threads: int | None) -> Finding:
    """Of this machine, for ``--threads``."""
    from edge.exit_model import physical_cores  # noqa: PLC0415  (loads ONNX Runtime)

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return judge_cores(usable or 1, physical_cores(), cpu_quota(), threads)


def available_memory(meminfo: str, limit: str, used: str) -> int | None:
    """Bytes that a new process can have: ``/proc/meminfo``, within the control group's
    ``memory.max`` less ``memory.current``."""
    match = re.search(r"^MemAvailable:\s*(\d+) kB", meminfo, re.MULTILINE)
    free = [int(match[1]) * 1024] if match else []
    if limit.strip().isdigit() and used.strip().isdigit():
        free.append(max(0, int(limit) - int(used)))
    return min(free, default=None)


def judge_memory(available: int | None, needed: int, longest: int) -> Finding:
    """Bytes that are there against those of model and process, and of the longest conversation."""
    name = "memory"
    wants = f"the edge takes about {needed // MIB} MiB"
    if available is None:
        return ok(name, f"{wants}; this system does not tell what is free")
    detail = f"{available // MIB} MiB available; {wants}"
    if available < needed:
        return fail(name, detail, "close other programs, or prepare a smaller --precision")
    if available < needed + longest:
        return warn(
            name,
            f"{detail}, and {longest // MIB} MiB more for the longest conversation",
            "keep conversations short (/new in tandem chat), or close other programs",
        )
    return ok(name, f"{detail}, with the longest conversation {(needed + longest) // MIB}")


def check_memory(needed: int, longest: int) -> Finding:
    """Of this machine, for a bundle that takes so much."""
    paths = ("/proc/meminfo", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current")
    texts = [path.read_text() if (path := Path(p)).exists() else "" for p in paths]
    return judge_memory(available_memory(*texts), needed, longest)


def judge_python(version: tuple[int, ...], pointer_bits: int) -> Finding:
    """The interpreter."""
    name, shown = "python", ".".join(map(str, version[:3]))
    if pointer_bits != 64:
        return fail(name, f"{shown}, {pointer_bits} bits", "install a 64-bit system and Python")
    if version < (3, 11):
        return fail(name, shown, "install Python 3.11 or newer")
    return ok(name, f"{shown}, 64 bits, {platform.system()} {platform.machine()}")


def check_python() -> Finding:
    """This interpreter."""
    return judge_python(sys.version_info[:3], struct.calcsize("P") * 8)


def judge_packages(requirements: Sequence[str], installed: Mapping[str, str | None]) -> Finding:
    """What the edge's half requires (as package metadata has it) against what is there."""
    name, problems = "packages", []
    for requirement in requirements:
        match = _REQUIREMENT.match(requirement)
        if match is None or ("extra" in (match[3] or "") and 'extra == "edge"' not in match[3]):
            continue
        package, least = match[1], match[2]
        have = installed.get(package)
        if have is None:
            problems.append(f"{package} is missing")
        elif _numbers(have) < _numbers(least):
            problems.append(f"{package} {have} is older than {least}")
    if problems:
        return fail(name, "; ".join(problems), "in Tandem's folder: pip install '.[edge]'")
    return ok(name, f"all there, ONNX Runtime {installed.get('onnxruntime')}")


def check_packages() -> Finding:
    """Of this environment."""
    try:
        requirements = metadata.requires("tandem") or []
    except metadata.PackageNotFoundError:
        return warn("packages", "Tandem is not installed", "pip install '.[edge]' in its folder")
    names = {match[1] for text in requirements if (match := _REQUIREMENT.match(text))}
    return judge_packages(requirements, {name: _version(name) for name in names})


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    numbers = [int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3]]
    return tuple(numbers + [0] * (3 - len(numbers)))


def judge_disk(free: int, has_bundle: bool) -> Finding:
    """Bytes that are free where bundles live."""
    detail = f"{free / 1e9:.1f} GB free"
    if not has_bundle and free < 1.5e9:
        return warn("disk", detail, "preparing a bundle takes about 1.5 GB: make room")
    if free < 2e8:
        return warn("disk", detail, "make room for logs and updates")
    return ok("disk", detail)


def check_disk(folder: Path, has_bundle: bool) -> Finding:
    """Of the file system that holds ``folder`` (or will)."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return judge_disk(shutil.disk_usage(there).free, has_bundle)


def judge_clock(now: float, bundle_written: float | None, synchronised: bool | None) -> Finding:
    """Seconds since 1970; certificates are refused by a clock that is wrong."""
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    advice = "set the clock: timedatectl set-ntp true (a Raspberry Pi has none of its own)"
    if now < _RELEASED:
        return fail("clock", f"it says {shown}, which is past", advice)
    if bundle_written is not None and now < bundle_written - 60:
        return warn("clock", f"it says {shown}, before the bundle was written", advice)
    if synchronised is False:
        return warn("clock", f"{shown}, and not synchronised", advice)
    return ok("clock", shown + (", synchronised" if synchronised else ""))


def check_clock(manifest: Path) -> Finding:
    """Of this machine."""
    written = manifest.stat().st_mtime if manifest.exists() else None
    return judge_clock(time.time(), written, clock_is_synchronised())


def clock_is_synchronised() -> bool | None:
    """What the kernel knows (adjtimex, which only reads here); ``None`` where it does not tell."""
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (AttributeError, OSError, TypeError):  # not Linux
        return None
    return None if state < 0 else state != _TIME_ERROR


def check_port(port: int, seconds: float = 2.0) -> Finding:
    """Whether ``tandem edge serve`` could listen on ``port`` of loopback, or does already."""
    name = f"port {port}"
    with socket.socket() as probe:
        if os.name == "posix":  # as servers do: a port that was just left is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError:
            return fail(name, "this user may not listen there", "take a port from 1024 on: --port")
        except OSError:
            pass
        else:
            return ok(name, "free for tandem edge serve")
    status = _daemon_health(port, seconds)
    if status == "ok":
        return ok(name, "a Tandem daemon answers there")
    if status is not None:
        return warn(name, f"a Tandem daemon there says {status}", "wait until it has ended")
    return fail(name, "another program listens there", "stop it, or take another --port")


def _daemon_health(port: int, seconds: float) -> str | None:
    """What a daemon's /health says; ``None`` where it is no daemon of ours."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/health", timeout=seconds) as answer:
            body = answer.read(1000)
    except urllib.error.HTTPError as error:  # 503 while it drains
        with error:
            body = error.read(1000)
    except (OSError, ValueError):
        return None
    except Exception:  # http.client's: it does not speak HTTP
        return None
    try:
        status = json.loads(body)["status"]
    except (ValueError, KeyError, TypeError):
        return None
    return status if isinstance(status, str) else None

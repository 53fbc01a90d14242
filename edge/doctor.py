"""``tandem doctor``'s frame: findings, and checks that cannot hang or crash the others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, TypeVar

T = TypeVar("T")


class Level(Enum):
    """How bad a finding is."""

    OK = "ok"
    WARN = "warn"  # it works, and worse than it could
    FAIL = "fail"  # it does not work


@dataclass(frozen=True)
class Finding:
    """What a check found, and in one line what to do about it (nothing, where all is well)."""

    check: str
    level: Level
    detail: str
    advice: str = ""

    def as_record(self) -> dict[str, str]:
        """As ``--json`` has it."""
        return {
            "check": self.check,
            "level": self.level.value,
            "detail": self.detail,
            "advice": self.advice,
        }


@dataclass(frozen=True)
class Check:
    """``look`` finds something within ``seconds``; several findings where one act tells more."""

    name: str
    look: Callable[[], Awaitable[Finding | Sequence[Finding]]]
    seconds: float


def ok(check: str, detail: str) -> Finding:
    """All is well."""
    return Finding(check, Level.OK, detail)


def warn(check: str, detail: str, advice: str) -> Finding:
    """It works, and worse than it could."""
    return Finding(check, Level.WARN, detail, advice)


def fail(check: str, detail: str, advice: str) -> Finding:
    """It does not work."""
    return Finding(check, Level.FAIL, detail, advice)


async def run_check(check: Check) -> list[Finding]:
    """What the check found; one that crashes or takes too long is itself a finding."""
    try:
        async with asyncio.timeout(check.seconds):
            found = await check.look()
    except TimeoutError:
        return [
            fail(
                check.name,
                f"no answer within {check.seconds:.1f} s",
                "try again; is it overloaded?",
            )
        ]
    except ModuleNotFoundError as error:
        advice = "in Tandem's folder: pip install '.[edge]'"
        return [fail(check.name, f"{error.name} is not installed", advice)]
    except Exception as error:  # a doctor that dies of what it finds helps nobody
        what = f"the check itself failed: {type(error).__name__}: {error}"
        return [fail(check.name, what, "please report this, with the line above")]
    return [found] if isinstance(found, Finding) else list(found)


async def run_chain(checks: Sequence[Check], seconds: float = 8.0) -> list[Finding]:
    """Checks that each rest on those before, within ``seconds`` together: the first that fails
    ends them."""
    findings: list[Finding] = []
    clock = asyncio.get_running_loop().time
    deadline = clock() + seconds
    for check in checks:
        left = max(0.1, deadline - clock())
        findings += await run_check(replace(check, seconds=min(check.seconds, left)))
        if any(finding.level is Level.FAIL for finding in findings):
            break
    return findings


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """``function`` on a thread that nobody waits for at the end: a deadline can leave it behind,
    which ``asyncio.to_thread`` does not allow."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():  # the deadline was first
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = function(*arguments)
        except BaseException as raised:
            error = raised
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:  # the loop has ended
            return

    threading.Thread(target=work, name="doctor", daemon=True).start()
    return await future

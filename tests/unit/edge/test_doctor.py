"""The doctor's frame: what crashes or hangs is a finding."""

from __future__ import annotations

import threading

from edge.doctor import Check, Finding, Level, fail, in_thread, ok, run_chain, run_check


async def found(finding: Finding) -> Finding:
    return finding


async def test_a_check_that_crashes_is_a_finding() -> None:
    async def crash() -> Finding:
        raise RuntimeError("no such luck")

    (finding,) = await run_check(Check("luck", crash, 1.0))
    assert (finding.check, finding.level) == ("luck", Level.FAIL)
    assert "RuntimeError: no such luck" in finding.detail
    assert finding.advice


async def test_a_package_that_is_missing_is_told_by_name() -> None:
    async def lacking() -> Finding:
        import no_such_package_at_all  # type: ignore[import-not-found]  # noqa: F401, PLC0415

        raise AssertionError

    (finding,) = await run_check(Check("x", lacking, 1.0))
    assert finding.detail == "no_such_package_at_all is not installed"
    assert "pip install" in finding.advice


async def test_a_check_that_hangs_is_left_behind() -> None:
    release = threading.Event()

    def hang() -> Finding:
        release.wait()
        return ok("x", "late")

    (finding,) = await run_check(Check("x", lambda: in_thread(hang), 0.05))
    release.set()
    assert finding.level is Level.FAIL
    assert "no answer" in finding.detail


async def test_a_chain_ends_at_what_fails_and_shares_its_time() -> None:
    a, b, c = ok("a", "fine"), fail("b", "bad", "mend it"), ok("c", "never seen")
    checks = [Check(x.check, lambda x=x: found(x), 1.0) for x in (a, b, c)]  # type: ignore[misc]
    assert await run_chain(checks) == [a, b]

    gate = threading.Event()

    def waiting() -> Finding:
        gate.wait()
        return a

    (late,) = await run_chain([Check("slow", lambda: in_thread(waiting), 60.0)], seconds=0.0)
    gate.set()
    assert (late.check, late.level) == ("slow", Level.FAIL)


async def test_what_a_thread_raises_arrives() -> None:
    def raising() -> Finding:
        raise ValueError("from below")

    (finding,) = await run_check(Check("x", lambda: in_thread(raising), 5.0))
    assert "ValueError: from below" in finding.detail

"""Who is in the next pass: the order of work of several tenants, urgent and not."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from cloud.fair_queue import BITE, PATIENCE, FairQueue


@dataclass(eq=False)
class Job:
    tenant: str
    rows: int = 1
    urgent: bool = True


def queue_of(*jobs: Job) -> FairQueue[Job]:
    queue: FairQueue[Job] = FairQueue()
    for job in jobs:
        queue.push(job)
    return queue


def test_a_single_session_is_in_every_pass_beside_a_hundred() -> None:
    queue = queue_of(*(Job("busy") for _ in range(100)))
    for _ in range(50):
        queue.push(Job("single"))
        taken = queue.take(4)
        assert sorted(job.tenant for job, _ in taken) == ["busy"] * 3 + ["single"]
        for job, _ in taken:
            if job.tenant == "busy":
                queue.push(job)


def test_a_tenants_sessions_take_turns() -> None:
    jobs = [Job("alice") for _ in range(5)]
    queue = queue_of(*jobs)
    order = []
    for _ in range(5):
        taken = [job for job, _ in queue.take(2)]
        order += taken
        for job in taken:
            queue.push(job)
    assert order == jobs * 2


def test_rows_count_and_not_pieces_of_work() -> None:
    """Long prefills of one tenant go beside as many rows of another's single tokens."""
    queue = queue_of(*(Job("long", 64) for _ in range(10)), *(Job("short") for _ in range(640)))
    rows = {"long": 0, "short": 0}
    for _ in range(10):
        for job, count in queue.take(64):
            rows[job.tenant] += count
            if count < job.rows:
                job.rows -= count
                queue.push(job, first=True)
        assert abs(rows["long"] - rows["short"]) <= 128
    assert sum(rows.values()) == 640


def test_who_was_away_has_saved_nothing_up() -> None:
    queue = queue_of(*(Job("busy") for _ in range(200)))
    for _ in range(20):
        queue.take(4)
    for _ in range(50):
        queue.push(Job("late"))
    taken = [job.tenant for _ in range(4) for job, _ in queue.take(4)]
    assert taken.count("late") in (8, 9)


def test_what_fits_in_part_is_taken_in_part() -> None:
    long, short = Job("a", 10), Job("b", 2)
    queue = queue_of(long, short)
    assert queue.take(8) == [(long, 8)]
    long.rows = 2
    queue.push(long, first=True)
    assert queue.take(8) == [(short, 2), (long, 2)]


def test_tokens_do_not_wait_for_the_prompts_before_them() -> None:
    prompts, tokens = [Job("a", 200) for _ in range(20)], [Job("a") for _ in range(8)]
    queue = queue_of(*prompts, *tokens)
    for _ in range(10):
        taken = dict(queue.take(64))
        assert set(tokens) <= taken.keys()
        assert sum(taken.values()) == 64
        for job, rows in taken.items():
            if job in tokens:
                queue.push(job)
            elif rows < job.rows:
                job.rows -= rows
                queue.push(job, first=True)


def test_prompts_do_not_wait_for_all_tokens_either() -> None:
    prompt, tokens = Job("a", 64), [Job("a") for _ in range(500)]
    queue = queue_of(*tokens, prompt)
    taken = dict(queue.take(64))
    assert abs(taken[prompt] - 32) <= BITE
    assert sum(taken.values()) == 64


def test_catch_up_waits_for_urgent_work_but_not_for_ever() -> None:
    late = [Job("a", 64, urgent=False), Job("b", 64, urgent=False)]
    queue = queue_of(*late)
    passes = []
    for _ in range(2 * (PATIENCE + 1)):
        queue.push(Job("a"))
        passes.append([(job.rows, count) for job, count in queue.take(64)])
    alone, beside = [(1, 1)], [(64, 32), (1, 1)]
    assert passes == ([alone] * PATIENCE + [beside]) * 2
    assert not len(queue)


def test_catch_up_of_all_shares_passes_where_nothing_is_urgent() -> None:
    jobs = [Job(tenant, 4, urgent=False) for tenant in "abc"]
    assert queue_of(*jobs).take(12) == [(job, 4) for job in jobs]


def test_work_that_becomes_urgent_keeps_its_place() -> None:
    first, second = Job("a", urgent=False), Job("a")
    queue = queue_of(first, second)
    first.urgent = True
    assert queue.take(1) == [(first, 1)]


def test_what_left_is_not_taken() -> None:
    gone, stays = Job("a"), Job("a")
    queue = queue_of(gone, stays)
    assert queue.remove(gone)
    assert not queue.remove(gone)
    assert queue.take(9) == [(stays, 1)]
    assert queue.take(9) == []


@given(
    arrivals=st.lists(
        st.lists(
            st.builds(Job, st.sampled_from("abcd"), st.integers(0, 20), st.booleans()), max_size=6
        ),
        min_size=1,
        max_size=30,
    ),
    room=st.integers(1, 16),
)
def test_every_row_is_run_once_and_nobody_falls_behind(
    arrivals: list[list[Job]], room: int
) -> None:
    """While two tenants have urgent work in every pass of a stretch, their rows in that stretch
    differ by two pieces of work at most."""
    queue: FairQueue[Job] = FairQueue()
    wanted, run = 0, 0
    stretch: dict[str, int] = {}
    left = list(arrivals)
    while left or len(queue):
        for job in left.pop(0) if left else []:
            wanted += job.rows
            queue.push(job)
        waiting = {job.tenant for jobs in queue._waiting.values() for job in jobs if job.urgent}
        only_urgent = all(job.urgent for jobs in queue._waiting.values() for job in jobs)
        taken = queue.take(room)
        assert sum(max(1, count) for _, count in taken) <= room
        assert taken or not len(queue)
        stretch = {t: stretch.get(t, 0) for t in waiting} if only_urgent else {}
        for job, count in taken:
            run += count
            if job.tenant in stretch:
                stretch[job.tenant] += max(1, count)
            job.rows -= count
            if job.rows:
                queue.push(job, first=True)
        if stretch:
            assert max(stretch.values()) - min(stretch.values()) <= 2 * room + 40
    assert run == wanted

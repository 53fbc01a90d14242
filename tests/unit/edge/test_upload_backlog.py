"""Timing uploads: only a stretch of sending that a question closes tells the rate."""

from __future__ import annotations

from edge.upload_backlog import Backlog


def test_a_stretch_is_timed_from_its_first_byte_to_the_answer() -> None:
    backlog = Backlog()
    backlog.sent(1.0, 1.01, 1000)
    backlog.sent(1.01, 1.3, 2000)
    backlog.asked(7, 1.3)
    assert backlog.size == 3000
    assert backlog.answered(7, 2.0) == (3000, 1.0)
    assert backlog.size == 0


def test_a_pause_begins_a_new_stretch() -> None:
    backlog = Backlog()
    backlog.sent(1.0, 1.0, 1000)
    backlog.sent(3.0, 3.1, 500)
    backlog.asked(7, 3.1)
    assert backlog.answered(7, 3.5) == (500, 0.5)


def test_a_question_long_after_the_upload_tells_nothing() -> None:
    backlog = Backlog()
    backlog.sent(1.0, 1.0, 1000)
    backlog.asked(7, 2.0)
    assert backlog.answered(7, 2.5) is None


def test_only_the_question_behind_the_stretch_closes_it() -> None:
    backlog = Backlog()
    backlog.sent(1.0, 1.0, 1000)
    backlog.asked(7, 1.0)
    backlog.sent(1.0, 1.1, 400)
    backlog.asked(9, 1.1)
    assert backlog.answered(9, 1.2) is None
    assert backlog.answered(7, 1.5) == (1000, 0.5)

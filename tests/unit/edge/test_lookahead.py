"""Which of the cloud's words hold, while the text changes under them."""

from __future__ import annotations

from edge.lookahead import Lookahead
from shared.messages import Ahead, Decision


def said(position: int, token_id: int) -> Decision:
    return Decision(position, token_id, -0.5, 10)


def ahead(position: int, token_id: int, base: int) -> Ahead:
    return Ahead(said(position, token_id), base)


def run_of(text: list[int]) -> Lookahead:
    """The cloud answered at 3 and went on: 40, 50, 60."""
    run = Lookahead(text)
    run.answered(said(3, 40))
    run.add(ahead(4, 50, 3))
    run.add(ahead(5, 60, 3))
    return run


def test_it_holds_for_the_text_that_it_was_said_about() -> None:
    text = [10, 20, 30]
    run = run_of(text)
    assert run.at(2) is None
    assert run.at(4) is None  # nobody knows yet that the text goes on with 40
    text.append(40)
    assert run.at(4) == said(4, 50)
    text.append(99)  # the edge is sure of another word
    assert run.at(5) is None
    text[4] = 50  # it was but a draft
    assert run.at(5) == said(5, 60)
    text.append(60)
    assert run.at(6) is None


def test_an_answer_that_is_known_keeps_what_follows() -> None:
    text = [10, 20, 30, 40]
    run = run_of(text)
    run.answered(said(4, 50))
    text.append(50)
    assert run.at(5) == said(5, 60)


def test_another_answer_begins_anew() -> None:
    text = [10, 20, 30, 41]
    run = run_of(text)
    run.answered(said(4, 70))
    assert run.at(4) == said(4, 70)
    text.append(70)
    assert run.at(5) is None


def test_where_the_cloud_saw_other_words_it_begins_anew() -> None:
    text = [10, 20, 30, 41, 42]
    run = run_of(text)
    run.add(ahead(6, 7, 4))  # on words that this side does not know of
    assert run.at(5) is None
    run.add(ahead(5, 80, 5))
    assert run.at(5) == said(5, 80)


def test_what_leaves_a_gap_is_left_aside() -> None:
    text = [10, 20, 30, 40, 50, 60, 70]
    run = run_of(text)
    run.add(ahead(7, 80, 3))
    assert run.at(7) is None
    assert run.at(5) == said(5, 60)


def test_what_is_said_twice_is_kept_once() -> None:
    text = [10, 20, 30, 40, 50]
    run = run_of(text)
    run.add(ahead(4, 50, 3))
    assert run.at(5) == said(5, 60)


def test_it_does_not_outlive_the_text_before_it() -> None:
    text = [10, 20, 30, 40]
    run = run_of(text)
    run.truncated(3)
    assert run.at(4) == said(4, 50)
    run.truncated(2)
    assert run.at(4) is None


def test_what_rests_on_words_before_the_run_is_left_aside() -> None:
    """Nobody has held the cloud's words there against the text."""
    text = [10, 20, 30, 40, 50]
    run = run_of(text)
    assert run.at(5) == said(5, 60)
    text.append(60)
    run.add(ahead(6, 70, 2))
    assert run.at(6) is None
    run.truncated(2)
    run.add(ahead(5, 60, 4))
    assert run.at(5) is None


def test_what_is_further_than_anybody_asks_for_is_left_aside() -> None:
    text = [10, 20, 30]
    run = Lookahead(text)
    run.answered(said(3, 40))
    for position in range(4, 200):
        run.add(ahead(position, 5, 3))
    assert len(run._said) <= 65

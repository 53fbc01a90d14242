"""Stop strings, held against the plain way: look for them in the whole text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge.answer import Piece, StopStrings
from edge.generation import GeneratedToken

TEXTS = st.lists(st.text(alphabet="abé\U0001f600", max_size=5), max_size=12)
STOPS = st.lists(st.text(alphabet="abé\U0001f600", min_size=1, max_size=4), max_size=4)


def pieces_of(texts: list[str]) -> list[Piece]:
    return [
        Piece(text, (GeneratedToken(number, number, "exit1", -1.0),))
        for number, text in enumerate(texts)
    ]


def cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """The whole text up to the stop string that is complete first; of two that end together, the
    longer one."""
    found = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    return (text[: min(found)[1]], True) if found else (text, False)


@given(TEXTS, STOPS)
def test_text_is_cut_as_if_it_were_whole(texts: list[str], stops: list[str]) -> None:
    """However the text comes in pieces: tokens must not change where an answer ends."""
    strings, certain = StopStrings(stops), []
    for piece in pieces_of(texts):
        certain += strings.add(piece)
        if strings.matched:
            break
    else:
        certain += strings.flush()
    assert ("".join(piece.text for piece in certain), strings.matched) == cut("".join(texts), stops)
    ids = [token.token_id for piece in certain for token in piece.tokens]
    assert ids == list(range(len(ids)))  # in order, none twice
    assert strings.matched or len(ids) == len(texts)


@given(TEXTS, STOPS)
def test_nothing_is_held_back_in_vain(texts: list[str], stops: list[str]) -> None:
    """At any time only what a stop string may begin with is missing."""
    strings, shown, so_far = StopStrings(stops), "", ""
    for piece in pieces_of(texts):
        shown += "".join(certain.text for certain in strings.add(piece))
        so_far += piece.text
        if strings.matched:
            return
        assert so_far.startswith(shown)
        held = so_far[len(shown) :]
        assert not held or any(stop.startswith(held) for stop in stops)

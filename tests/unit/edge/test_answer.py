from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge.answer import Piece, StopStrings
from edge.generation import GeneratedToken

texts = st.text("ab", max_size=4)


def token(position: int, origin: str) -> GeneratedToken:
    return GeneratedToken(7, position, origin, -1.0)


@given(st.lists(texts), st.lists(st.text("ab", min_size=1, max_size=3), max_size=4))
def test_text_ends_before_the_first_stop_string(pieces: list[str], stops: list[str]) -> None:
    whole = "".join(pieces)
    ends = [at for stop in stops if (at := whole.find(stop)) >= 0]
    held, shown = StopStrings(stops), ""
    tokens: list[GeneratedToken] = []
    for position, text in enumerate(pieces):
        for piece in held.add(Piece(text, (token(position, "exit1"),))):
            shown += piece.text
            tokens += piece.tokens
        assert not any(stop in shown for stop in stops)
        if held.matched:
            break
    else:
        for piece in held.flush():
            shown += piece.text
            tokens += piece.tokens
        assert len(tokens) == len(pieces)
    assert held.matched == bool(ends)
    if not ends:
        assert shown == whole
    else:  # of several, what is complete first ends the text
        assert whole.startswith(shown)
        assert any(whole.startswith(stop, len(shown)) for stop in stops)


def test_a_piece_is_as_deep_as_its_deepest_token() -> None:
    one, two, cloud = token(0, "exit1"), token(1, "exit2"), token(2, "cloud")
    assert [Piece("x", tokens).origin for tokens in ((one,), (one, two), (cloud, two))] == [
        "exit1",
        "exit2",
        "cloud",
    ]
    assert not Piece("x", (one,)).alone
    assert Piece("x", (one, GeneratedToken(7, 3, "exit2", -1.0, alone=True))).alone

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from simulator.text_metrics import longest_common_subsequence, rouge_l

WORDS = st.lists(st.sampled_from("abcd"), max_size=12)


def test_rouge_l_of_known_sentences() -> None:
    # Lin 2004, section 3.2: LCS 3 of 4 words each
    assert rouge_l("police kill the gunman", "police killed the gunman") == 0.75
    assert rouge_l("", "") == 1.0
    assert rouge_l("one", "") == 0.0


@given(WORDS, WORDS)
def test_subsequence_is_symmetric_and_bounded(left: list[str], right: list[str]) -> None:
    length = longest_common_subsequence(left, right)
    assert length == longest_common_subsequence(right, left)
    assert length <= min(len(left), len(right))
    assert longest_common_subsequence(left, left) == len(left)


@given(WORDS, WORDS)
def test_a_prefix_is_a_subsequence(left: list[str], right: list[str]) -> None:
    assert longest_common_subsequence(left, left + right) == len(left)

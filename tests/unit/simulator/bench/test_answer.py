"""The time split adds up, whatever the clocks say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ConfigurationError
from simulator.bench.answer import Answer, TimeSplit

seconds = st.floats(0, 1e4)


@given(seconds, seconds, seconds)
def test_edge_cloud_and_link_are_the_total(total: float, stall: float, cloud: float) -> None:
    split = TimeSplit.of(total, stall, cloud)
    assert split.total == pytest.approx(total)
    assert split.stall == pytest.approx(min(stall, total))
    assert min(split.edge, split.cloud, split.link) >= 0


def test_a_plain_case() -> None:
    split = TimeSplit.of(total=10.0, stall=6.0, cloud=2.0)
    assert (split.edge, split.cloud, split.link, split.stall) == (4.0, 2.0, 4.0, 6.0)


def test_a_record_gives_the_answer_back() -> None:
    answer = Answer((1, 2), "ab", 1.5, 0.5, 1.0, 0.25, 2, 100, 10, None, None, {"cloud": 2})
    assert Answer.from_record(answer.as_record()) == answer


@pytest.mark.parametrize(
    "change",
    [{"ttft": 0.5}, {"seconds": None}, {"seconds": "soon"}, {"token_ids": 3}, {"origins": [1]}],
)
def test_a_record_of_another_version_is_a_typed_error(change: dict[str, object]) -> None:
    record = Answer((1, 2), "ab", 1.5, 0.5).as_record()
    with pytest.raises(ConfigurationError, match="another version of Tandem wrote it"):
        Answer.from_record(record | change)
    del record["first_token_seconds"]
    with pytest.raises(ConfigurationError, match="first_token_seconds"):
        Answer.from_record(record)

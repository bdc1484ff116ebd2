"""How full a journal may become before new values, and then all, are refused."""

from hypothesis import given
from hypothesis import strategies as st

from phx._core.journal_door import pressure
from phx.config import JOURNAL_SEGMENTS_MIN

SEGMENT = 1 << 20
NONE, OLD_ONLY, FULL = range(3)

journals = given(
    segments=st.integers(JOURNAL_SEGMENTS_MIN, 64),
    turn=st.integers(0, 16 * SEGMENT),
    pending=st.integers(0, 64 * SEGMENT),
)


@journals
def test_what_is_open_when_new_values_are_refused_does_not_fill_the_journal(
    segments: int, turn: int, pending: int
) -> None:
    """Carried over it stands in up to two segments more. It would be open for ever."""

    def level(held: int, before: int = NONE) -> int:
        return pressure(held, segments * SEGMENT, SEGMENT, turn, pending, before)

    quarters = [quarter * SEGMENT // 4 for quarter in range(4 * segments + 1)]
    most = max(held for held in quarters if level(held) == NONE)
    assert level(most + 2 * SEGMENT) < FULL


@journals
def test_a_journal_in_which_nothing_is_open_takes_new_values_again(
    segments: int, turn: int, pending: int
) -> None:
    """It is written to in one segment, and the one before may not be free yet."""
    for before in (NONE, OLD_ONLY, FULL):
        assert pressure(2 * SEGMENT, segments * SEGMENT, SEGMENT, turn, pending, before) == NONE


@journals
def test_one_that_is_fuller_is_never_freer(segments: int, turn: int, pending: int) -> None:
    levels = [
        pressure(held * SEGMENT // 4, segments * SEGMENT, SEGMENT, turn, pending, NONE)
        for held in range(4 * segments + 1)
    ]
    assert levels == sorted(levels)
    assert levels[-1] == FULL

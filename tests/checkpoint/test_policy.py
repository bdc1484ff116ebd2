"""When groups are due: by instances, by time, after a failure, and never all at once."""

import math
from collections import Counter
from itertools import pairwise

import pytest

from phx.checkpoint.policy import ASK_NEVER, RETRY_MAX_S, RETRY_S, At, Policy
from phx.types import NEVER

GROUPS = range(1000)


def policy(node=1, members=(1, 2, 3), every=0, every_s=0.0, every_bytes=0):
    return Policy(
        interval_instances=every,
        interval_bytes=every_bytes,
        interval_us=int(every_s * 1e6),
        cluster=77,
        node=node,
        members=members,
    )


def test_a_thousand_groups_do_not_begin_together():
    shares = [policy().share(group) for group in GROUPS]
    assert all(0 <= one < 1 for one in shares)
    fiftieths = Counter(int(one * 50) for one in shares)
    assert len(fiftieths) == 50
    assert max(fiftieths.values()) < 3 * len(GROUPS) / 50


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_members_of_a_group_are_as_far_apart_as_can_be(count):
    members = [3, 8, 9, 10, 40][:count]
    for group in GROUPS[:50]:
        shares = sorted(policy(node, members).share(group) for node in members)
        gaps = [after - before for before, after in pairwise(shares)]
        gaps.append(1 - shares[-1] + shares[0])
        assert gaps == pytest.approx([1 / count] * count)


def test_the_first_comes_within_an_interval_and_the_next_after_one():
    due = policy(every=1000)
    for group in GROUPS[:50]:
        ask_at = due.begins(group, 0)
        taken = False
        for applied in range(ask_at.instance, 1002):
            if applied >= ask_at.instance:
                taken, ask_at = due.reached(group, applied, 0, 0.0)
                if taken:
                    break
        assert taken
        assert applied == max(1, int(1000 * due.share(group)))
        assert ask_at == ASK_NEVER  # it stands in line
        ask_at = due.taken(group, applied, 0, 5.0)
        assert due.reached(group, ask_at.instance, 0, 6.0) == (False, At(applied + 1000, NEVER))
        assert due.reached(group, applied + 1000, 0, 7.0) == (True, ASK_NEVER)
    assert due.ringing(1e9) == []


def test_bytes_of_log_make_a_group_due_however_few_instances_they_are():
    due = policy(every=1000, every_bytes=1 << 20)
    for group in GROUPS[:50]:
        ask_at = due.begins(group, 0)
        first, ask_at = due.reached(group, ask_at.instance, 10, 0.0)
        assert not first
        share = due.share(group)
        assert ask_at == At(max(1, int(1000 * share)), int(share * (1 << 20)))
        assert due.reached(group, 2, ask_at.log_bytes, 0.0) == (True, ASK_NEVER)
        # The next one counts from what is in it, though more was applied until it was written.
        at = due.taken(group, 2, ask_at.log_bytes, 1.0)
        assert at == At(3, NEVER)
        again = due.reached(group, 5, ask_at.log_bytes + 500, 1.0)
        assert again == (False, At(1002, ask_at.log_bytes + (1 << 20)))
        assert due.reached(group, 5, again[1].log_bytes, 1.0)[0]


def test_bytes_count_from_the_checkpoint_that_was_restored():
    due = policy(every_bytes=1 << 20)
    assert due.begins(4, 5000) == At(5001, NEVER)
    assert due.reached(4, 5001, 7, 0.0) == (False, At(NEVER, 1 << 20))
    assert due.reached(4, 5002, (1 << 20) - 1, 0.0)[0] is False
    assert due.reached(4, 5002, 1 << 20, 0.0) == (True, ASK_NEVER)


def test_one_that_was_restored_goes_on_counting():
    due = policy(every=1000)
    assert due.begins(4, 5000) == At(5001, NEVER)
    assert due.last(4) == 5000
    assert due.reached(4, 5001, 0, 0.0) == (False, At(6000, NEVER))
    assert due.last(5) == 0


def test_a_group_rings_an_interval_after_the_last_one_however_it_was_taken():
    due = policy(every_s=60)
    ask_at = due.begins(9, 0)
    assert due.next_s() == math.inf
    assert due.reached(9, ask_at.instance, 0, 100.0) == (False, ASK_NEVER)
    first = due.next_s()
    assert 101.0 <= first <= 160.0
    due.taken(9, 40, 0, 100.5)  # somebody asked
    due.reached(9, 41, 0, 100.6)
    assert due.ringing(first) == []
    assert due.next_s() == 160.5
    assert due.ringing(160.4) == []
    assert due.ringing(160.5) == [9]
    assert due.ringing(1e9) == []  # until something is applied


def test_after_failures_it_rings_again_less_and_less_often():
    due = policy(every=100, every_s=3600)
    due.taken(2, 300, 0, 0.0)
    due.reached(2, 301, 0, 0.0)
    now, waits = 10.0, []
    for _ in range(9):
        due.failed(2, now)
        waits.append(due.next_s() - now)
        now = due.next_s()
        assert due.ringing(now) == [2]
    assert waits == [min(RETRY_S * 2**n, RETRY_MAX_S) for n in range(9)]
    due.taken(2, 500, 0, now)
    due.reached(2, 501, 0, now)
    assert due.ringing(now + 3599) == []
    assert due.ringing(now + 3600) == [2]


def test_timers_do_not_pile_up():
    due = policy(every_s=3600)
    for frontier in range(1, 5000):
        at = due.taken(1, frontier, 0, float(frontier))
        due.reached(1, at.instance, 0, float(frontier))
    assert len(due._heap) == 1


def test_nothing_is_due_when_nothing_is_asked_for():
    due = policy()
    assert due.reached(1, due.begins(1, 0).instance, 1 << 60, 0.0) == (False, ASK_NEVER)
    assert due.next_s() == math.inf

"""The checks at the end of a run: each on something that it must reject, and on something good."""

from phx.sim import verdicts
from phx.sim.history import UNSEEN, Operation
from phx.sim.verdicts import Probe, Replica


def append(token, key=5, returned=2, result=None):
    return Operation("c", key, "append", token, result, 1, returned)


def broken(found, invariant, *words):
    assert found is not None
    assert found[0] == invariant
    for word in words:
        assert word in found[1]


def test_linearizable():
    put = Operation(1, "k", "put", b"a", None, 0, 1)
    good = Operation(2, "k", "get", None, b"a", 2, 3)
    bad = Operation(2, "k", "get", None, None, 2, 3)
    assert verdicts.linearizable([put, good]) is None
    broken(verdicts.linearizable([put, bad]), "linearizable", "'k'")


def test_a_history_that_takes_too_long_is_no_success():
    operations = [append(b"%d," % i, "k", None) for i in range(12)]
    operations.append(Operation(9, "k", "cas", (b"never", b"x"), True, 1, 2))
    broken(verdicts.linearizable(operations, steps_max=2000), "undecided")


def test_holes_are_mended():
    assert verdicts.mended({}) is None
    broken(verdicts.mended({3: [(2, 7, 9)]}), "liveness", "node 3", "(2, 7, 9)")


def test_exactly_once():
    written = [append(b"aaaa"), append(b"bbbb", result=UNSEEN), append(b"cccc", returned=None)]
    for value in (b"aaaabbbb", b"bbbbccccaaaa"):
        assert verdicts.exactly_once(written, {5: value}, 4) is None


def test_an_acknowledged_append_that_is_missing_or_doubled():
    broken(verdicts.exactly_once([append(b"aaaa")], {5: b""}, 4), "exactly-once", "0 times")
    broken(verdicts.exactly_once([append(b"aaaa")], {}, 4), "exactly-once", "0 times")
    broken(verdicts.exactly_once([append(b"aaaa")], {5: b"aaaaaaaa"}, 4), "exactly-once", "2 times")
    unseen = [append(b"aaaa", result=UNSEEN)]
    broken(verdicts.exactly_once(unseen, {5: b""}, 4), "exactly-once", "0 times")


def test_an_unknown_append_that_is_doubled():
    unknown = [append(b"aaaa", returned=None)]
    assert verdicts.exactly_once(unknown, {}, 4) is None
    broken(verdicts.exactly_once(unknown, {5: b"aaaaaaaa"}, 4), "exactly-once", "2 times")


def test_an_append_that_was_rejected_or_stands_elsewhere():
    broken(verdicts.exactly_once([], {5: b"aaaa"}, 4), "exactly-once", "nobody")
    broken(verdicts.exactly_once([append(b"aaaa")], {6: b"aaaa"}, 4), "exactly-once", "of key 5")
    broken(verdicts.exactly_once([append(b"aaaa")], {5: b"aaa"}, 4), "exactly-once", "whole")


def test_equal_digests():
    good = [Replica(1, 0, 9, b"x"), Replica(2, 0, 9, b"x"), Replica(3, 0, 8, b"y")]
    assert verdicts.equal_digests(good) is None
    broken(verdicts.equal_digests([*good, Replica(4, 0, 8, b"x")]), "U7", "node 3", "node 4")


def test_caught_up():
    replicas = [Replica(1, 0, 9, b""), Replica(2, 0, 8, b"")]
    assert verdicts.caught_up(replicas, {0: 8}) is None
    broken(verdicts.caught_up(replicas, {0: 9}), "liveness", "node 2", "8 only")


def test_decides():
    assert verdicts.decides([Probe(0, 100, 200)], 100) is None
    broken(verdicts.decides([Probe(0, 100, 200), Probe(1, 100, 201)], 100), "liveness", "group 1")
    broken(verdicts.decides([Probe(2, 100, None)], 100), "liveness", "group 2", "never")


def test_an_election_takes_longer_where_leases_are_longer_or_disks_slower():
    usual = verdicts.election_time_us(800_000, 100_000, 1_000, 500)
    assert usual > 800_000
    assert verdicts.election_time_us(1_600_000, 100_000, 1_000, 500) > usual
    assert verdicts.election_time_us(800_000, 100_000, 50_000, 500) > usual


def test_settled():
    assert verdicts.settled([]) is None
    broken(verdicts.settled([append(b"a", returned=None)]), "liveness", "1 calls")


def test_quiet():
    assert verdicts.quiet({0: 3, 1: 4}, {0: 3, 1: 6}, 4, 5) is None
    broken(verdicts.quiet({0: 3, 1: 4}, {0: 3, 1: 7}, 0, 5), "liveness", "group 1", "3 ballots")
    broken(verdicts.quiet({0: 3}, {0: 3}, 5, 5), "liveness", "5 messages")


def test_bounded():
    assert verdicts.bounded({"a": 5, "b": 9}, {"a": 5}) is None
    broken(verdicts.bounded({"a": 6, "b": 9}, {"a": 5}), "bounded", "a: 6")


def test_given_back():
    assert verdicts.given_back(7, 7) is None
    broken(verdicts.given_back(7, 9), "bounded", "2 blocks")

"""Values that travel to a leader: what the network copies is answered once."""

from script import Script

REJECTED = {1, 3, 4, 5, 7, 8}


def rejected(s: Script, n: int) -> list[tuple[int, ...]]:
    """What the callers of a node were told was never proposed."""
    return [event for event in s.events[n] if event[0] == 1 and event[1] in REJECTED]


def chosen(s: Script) -> list[bytes]:
    return [value[:1] for values in s.values(1) for value in values]


def full_leader() -> Script:
    """Node 1 leads and has a window of one instance, which is in use: what follows waits."""
    s = Script(window=1, pending_bytes_max=4096)
    s.elect(1)
    s.submit(2, b"a" * 100)
    s.deliver("2→1", "Forward")
    return s


def test_a_copy_of_a_forward_is_not_refused_because_the_leader_is_full():
    """It was taken: rejected and chosen would be one value (simulator, default seed 3461)."""
    s = full_leader()
    s.submit(2, b"b" * 2000)
    (forward,) = s.deliver("2→1", "Forward")
    s.submit(2, b"c" * 2000)
    s.deliver("2→1", "Forward")
    s.put(2, 1, forward.raw)  # the network made a copy
    s.flow()
    assert chosen(s) == [b"a", b"b", b"c"]
    assert rejected(s, 2) == []


def test_a_copy_of_a_forward_that_was_refused_is_not_taken():
    s = full_leader()
    s.submit(2, b"b" * 2000)
    s.deliver("2→1", "Forward")
    s.submit(2, b"c" * 2000)
    s.deliver("2→1", "Forward")
    s.submit(2, b"d" * 2000)
    (forward,) = s.deliver("2→1", "Forward")
    s.deliver("1→2", "ForwardReply")
    assert len(rejected(s, 2)) == 1
    s.flow()
    s.put(2, 1, forward.raw)  # now there would be room
    s.flow()
    assert chosen(s) == [b"a", b"b", b"c"]


def test_a_copy_is_not_refused_by_a_leader_that_is_none_any_more():
    s = full_leader()
    s.submit(2, b"b" * 2000)
    (forward,) = s.deliver("2→1", "Forward")
    s.flow()
    assert chosen(s) == [b"a", b"b"]
    s.disconnect(1, 2)
    s.disconnect(1, 3)
    s.elect(2)
    s.connect(1, 2)
    s.connect(1, 3)
    s.flow()
    assert not s.status(1)["leading"]
    s.put(2, 1, forward.raw)
    assert s.pick("1→2", "ForwardReply") == []

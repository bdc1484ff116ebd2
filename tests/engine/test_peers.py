"""Nodes that a running engine comes to know, and lets go of: slots, and what stays of them."""

from script import Script

from phx._core.codec import blocks_live
from phx._core.engine_door import Engine
from phx.sim.wire_text import PEER

DONE, CANNOT, MEMBER, GRANTED = range(4)
REFUSED = 4  # EVENT_PEER_REFUSED


def alone(node: int = 1) -> Engine:
    engine = Engine(node, [node], [0])
    engine.start(0, 1_000_000)
    engine.turn()
    return engine


def test_a_node_gets_the_lowest_free_slot_and_sixty_four_are_all() -> None:
    engine = alone()
    assert engine.peers() == [1]
    for node in range(2, 65):
        assert engine.add_peer(node) == DONE
    assert engine.add_peer(65) == CANNOT
    assert engine.add_peer(64) == DONE  # it is there
    for node in (7, 3):
        assert engine.drop_peer(node) == DONE
        assert engine.drop_peer(node) == DONE  # nothing to be done
    for node in (70, 71, 72):
        assert engine.add_peer(node) == (CANNOT if node == 72 else DONE)
    assert engine.peers() == [1, 2, 70, 4, 5, 6, 71, *range(8, 65)]


def test_what_is_no_other_node_has_no_slot() -> None:
    engine = alone()
    for node in (0, 1, 1 << 20, 0xFFFFFFFF):
        assert engine.add_peer(node) == CANNOT
    assert engine.drop_peer(1) == CANNOT
    assert engine.peers() == [1]


def test_a_free_slot_is_nobodys() -> None:
    engine = alone()
    engine.add_peer(2)
    engine.drop_peer(2)
    assert engine.peers() == [1, 0]
    for node in (0, 2):
        assert engine.connected(node, 1, bytes(16)) == -1
        engine.receive(node, bytes(24))
        engine.disconnected(node)
        engine.supply(0, node, 1, b"")
    assert engine.counters()["hostile_messages"] == 0


def test_a_member_of_a_group_is_not_let_go_of() -> None:
    engine = Engine(1, [1, 2, 3], [0, 1])
    engine.members(0, [1, 2])
    assert engine.drop_peer(3) == MEMBER  # of group 1
    engine.members(1, [1, 2])
    assert engine.drop_peer(3) == DONE
    engine.members(1, [1], [2])  # a learner is one
    engine.members(0, [1])
    assert engine.drop_peer(2) == MEMBER


def test_who_may_lead_under_a_grant_is_not_let_go_of_before_it_ends() -> None:
    s = Script()
    s.elect(1)
    two = s.engines[2]
    two.members(0, [2, 3])
    assert two.drop_peer(1) == GRANTED
    s.disconnect(1, 2)
    assert two.drop_peer(1) == GRANTED
    s.advance(1_000_000, 2)  # beyond the lease
    assert two.drop_peer(1) == DONE
    s.turn(2)
    assert s.status(2)["leader"] == 0
    assert two.peers() == [0, 2, 3]


class Wider(Script):
    """Nodes 1 and 2, members of group 0; node 3 knows both of them and hosts nothing."""

    def __init__(self) -> None:
        super().__init__(nodes=2)
        self.nodes = [1, 2, 3]
        self.journal[3], self.end[3], self.durable[3] = [], 0, 0
        self.chosen[3], self.events[3], self.fetches[3], self.points[3] = [], [], [], []
        self.engines[3] = Engine(3, [3], [])
        self.engines[3].start(0, self.now)
        self.turn(3)

    def meet(self) -> None:
        for node in (1, 2):
            assert self.engines[node].add_peer(3) == DONE
            assert self.engines[3].add_peer(node) == DONE
            self.connect(node, 3)


def test_a_node_comes_and_goes_and_leadership_and_heartbeats_go_on() -> None:
    s = Wider()
    ballot = s.elect(1)
    for _ in range(3):
        s.meet()
        s.pass_time(300_000)
        assert s.pick("3→1", "Heartbeat") == []
        assert s.submit(2, b"x") == 0
        s.pass_time(300_000)
        for node in (1, 2):
            assert s.engines[node].drop_peer(3) == DONE
            assert s.engines[3].drop_peer(node) == DONE
            s.turn(node)
        s.turn(3)
        s.waiting = [m for m in s.waiting if 3 not in (m.source, m.dest)]
        s.pass_time(1_500_000)  # several leases
        assert s.status(1)["leading"]
        assert s.status(1)["ballot"] == ballot
    assert [v for v in s.values(2) if v != "no-op"] == [[b"x"]] * 3
    for node in (1, 2):
        assert s.engines[node].counters()["hostile_messages"] == 0
    assert s.engines[3].peers() == [3, 0, 0]


def test_a_new_node_is_heard_and_granted_from_its_first_heartbeat_on() -> None:
    s = Wider()
    s.elect(1)
    s.meet()
    s.advance(100_000)
    beat = s.deliver("1→3", "Heartbeat")[0]
    assert beat.rest == b"", "it hosts nothing, and is told of no group"
    assert s.deliver("3→1", "HeartbeatAck")


def test_the_store_of_a_node_is_remembered_by_whoever_adds_it_again() -> None:
    s = Wider()
    s.meet()
    records = [record for record in s.journal[1] if record.kind == PEER and record.group == 3]
    assert [record.body for record in records] == [bytes([3]) * 16]
    one = s.engines[1]
    assert one.drop_peer(3) == DONE
    assert one.add_peer(3, b"another store id") == DONE
    assert one.connected(3, 9, bytes([3]) * 16) == -1
    assert (REFUSED, 0, 3, 0, 0, 0) in one.turn()["events"]
    assert one.drop_peer(3) == DONE
    assert one.add_peer(3) == DONE  # of whom nothing is known
    assert one.connected(3, 9, b"another store id") == 0


def test_the_store_of_a_node_that_was_added_survives_a_restart() -> None:
    s = Wider()
    one = s.engines[1]
    assert one.add_peer(3, bytes([3]) * 16) == DONE
    s.turn(1)
    again = Engine(1, [1, 2], [0])
    assert again.add_peer(3) == DONE
    for record in s.journal[1]:
        again.replay(record.raw, record.lsn)
    again.start(s.end[1], s.now)
    assert again.connected(3, 1, b"another store id") == -1
    assert again.connected(3, 1, bytes([3]) * 16) == 0


def test_another_node_in_the_same_slot_inherits_nothing() -> None:
    s = Wider()
    s.elect(1)
    s.meet()
    s.pass_time(200_000)
    one = s.engines[1]
    assert one.drop_peer(3) == DONE
    assert one.add_peer(4) == DONE
    assert one.peers() == [1, 2, 4]
    assert one.connected(4, 1, bytes([4]) * 16) == 0  # an older life than 3 had, another store
    one.advance(s.now + 200_000)
    frames = [peer for peer, _, _ in one.turn()["outgoing"]]
    assert 4 in frames
    assert 3 not in frames


def test_a_thousand_nodes_come_and_go_and_nothing_is_left() -> None:
    s = Wider()
    s.elect(1)
    one = s.engines[1]

    def cycle(node: int) -> None:
        assert one.add_peer(node, None if node % 2 else node.to_bytes(16, "little")) == DONE
        assert one.connected(node, 1, node.to_bytes(16, "little")) == 0
        one.read(0, 1000 + node, s.now + 10_000)
        s.now += 1000
        one.advance(s.now)
        one.turn()
        assert one.drop_peer(node) == DONE
        one.turn()

    cycle(100)
    before = blocks_live()
    for node in range(101, 1101):
        cycle(node)
    assert blocks_live() == before
    assert one.peers() == [1, 2, 0]


def test_who_was_let_go_of_by_one_side_alone_is_heard_again_at_once() -> None:
    """The other side has kept its slot, and what it heard of this life: heartbeats go on above."""
    s = Wider()
    s.elect(1)
    s.meet()
    s.pass_time(3_000_000)
    one, three = s.engines[1], s.engines[3]
    s.disconnect(1, 3)
    assert one.drop_peer(3) == DONE
    assert one.add_peer(4) == DONE  # in its slot
    assert one.add_peer(3) == DONE
    s.waiting = [m for m in s.waiting if 3 not in (m.source, m.dest)]
    s.connect(1, 3)
    s.advance(100_000)
    assert s.deliver("1→3", "Heartbeat")
    assert s.deliver("3→1", "HeartbeatAck"), "it hears, and grants"
    assert three.counters()["hostile_messages"] == 0

"""Who the members of a node's groups are: from disk and log to the engine, and to checkpoints."""

from contextlib import suppress
from dataclasses import replace

import pytest

import phx
from phx._core.member_table import CHANGE_UNDER_WAY
from phx._core.members import write
from phx.checkpoint.catalog import ROOT, look
from phx.checkpoint.files import OsFiles
from phx.checkpoint.manifest import MEMORY, MachineEntry, Manifest
from phx.errors import CheckpointFailed, Closed, Damaged
from phx.machines import Counter
from phx.membership import newer
from phx.node.memberships import Memberships
from phx.store import MembersRow
from phx.types import voter
from tests.checkpoint.checkpoint_lab import capture, membership, moved, table

from .cluster import cluster, config_of, until

QUIET = {"interval_instances": 0, "interval_us": 0, "interval_bytes": 0}


class Lab:
    def __init__(self):
        self.noted, self.told = [], []
        self.made = Memberships(
            lambda group, told, removed, left: self.noted.append((group, told, removed)),
            lambda *said: self.told.append(said),
        )


def said(group, told):
    return (group, told.version, told.roster, told.instance, told.floor, told.active)


def manifest(told, frontier=4096, group=7):
    return Manifest(
        cluster=1,
        group=group,
        frontier=frontier,
        epoch=3 << 20,
        sessions=table(group, frontier),
        chain=0xABCD,
        machines=(MachineEntry(0, 2, -1),),
        files=(),
        **(moved(told) if told else {"config": 1, "members": (1, 2, 3)}),
    )


V2, V3, V4 = (
    membership(10, 2, (1, 2, 4)),
    membership(20, 3, (1, 4, 5)),
    membership(30, 4, (4, 5, 6)),
)


def test_the_newest_of_store_and_checkpoints_is_handed_over_once():
    lab = Lab()
    rows = {7: MembersRow(V2), 8: MembersRow(V3), 9: MembersRow(V2)}
    lab.made.begin(rows, [manifest(V3), manifest(V2, group=8), manifest(None, group=6)])
    assert lab.told == [said(7, V3), said(8, V3), said(9, V2)]
    # The store gets to know what only a checkpoint says, before it passes that.
    assert lab.noted == [(7, V3, False), (8, V3, False), (9, V2, False)]


def test_of_one_change_all_that_anybody_says_is_handed_over():
    lab = Lab()
    row, told = membership(20, 3, floor=90 << 20, active=True), membership(20, 3, floor=95 << 20)
    lab.made.begin({7: MembersRow(row)}, [manifest(told)])
    assert lab.told == [said(7, membership(20, 3, floor=95 << 20, active=True))]


@pytest.mark.parametrize("other", [membership(20, 3, (1, 4, 6)), membership(19, 3), V4])
def test_a_disk_that_contradicts_itself_is_damage(other):
    lab = Lab()
    row = MembersRow(V3 if other is not V4 else membership(31, 4))
    with pytest.raises(Damaged, match="group 7: store and checkpoints do not agree"):
        lab.made.begin({7: row}, [manifest(other)])
    assert lab.told == []


def test_who_never_changed_members_has_nothing_to_hand_over():
    lab = Lab()
    lab.made.begin({}, [manifest(None)])
    lab.made.hand_over(7, None)
    assert lab.told == lab.noted == []
    assert lab.made.at(7, 4096) is None


class Engine:
    """Says what a test has it say."""

    def __init__(self):
        self.count, self.notes = 0, []

    def say(self, group, told, left=False):
        self.notes.append((group, told.roster, told.instance, told.floor, told.active, left))
        self.count += 1

    def told(self):
        return self.count

    def take(self):
        taken, self.notes = self.notes, []
        return taken


def test_what_the_engine_says_is_noted_and_holds_for_checkpoints():
    lab, engine = Lab(), Engine()
    made = Memberships(lab.made._note, lab.made._tell, engine)
    made.hear()
    engine.say(7, V2)
    engine.say(8, V3, left=True)
    made.hear()
    assert lab.noted == [(7, V2, False), (8, V3, True)]
    assert made.at(7, 10) == V2
    engine.say(7, replace(V2, active=True))
    made.hear()
    assert made.at(7, 10).active
    assert made.contradictions() == []
    assert lab.told == []


def test_what_the_engine_says_against_the_disk_is_kept_for_who_applies():
    lab, engine = Lab(), Engine()
    made = Memberships(lab.made._note, lab.made._tell, engine)
    made.learned(7, V2)
    engine.say(7, membership(10, 2, (1, 2, 5)))
    engine.say(8, V3)
    made.hear()
    ((group, error),) = made.contradictions()
    assert (group, str(error)) == (7, "two different rosters at instance 10")
    assert made.contradictions() == []
    assert made.at(8, 20) == V3  # the others are heard all the same


def test_a_checkpoint_has_the_members_that_hold_at_its_frontier():
    lab = Lab()
    for told in (V2, V3, V4):
        lab.made.learned(7, told)
    assert lab.noted == [(7, V2, False), (7, V3, False), (7, V4, False)]
    assert lab.told == []  # it came from there
    assert lab.made.at(7, 9) is None  # those of the configuration
    assert [lab.made.at(7, at) for at in (10, 19, 20, 29, 30, 99)] == [V2, V2, V3, V3, V4, V4]


def test_what_is_not_known_is_not_said():
    """After a start the store has the newest row alone; who replays the log from below it does not
    know what held there."""
    lab = Lab()
    lab.made.begin({7: MembersRow(V4)}, [])
    with pytest.raises(CheckpointFailed, match="from instance 30 on"):
        lab.made.at(7, 29)
    assert lab.made.at(7, 30) == V4
    lab = Lab()
    lab.made.begin({7: MembersRow(V4)}, [manifest(V2, 15)])
    with pytest.raises(CheckpointFailed):
        lab.made.at(7, 15)  # perhaps version 3 began there
    lab = Lab()
    lab.made.begin({7: MembersRow(V3)}, [manifest(V2, 15)])
    assert [lab.made.at(7, 15), lab.made.at(7, 25)] == [V2, V3]
    lab = Lab()
    lab.made.begin({7: MembersRow(V2)}, [])
    assert lab.made.at(7, 9) is None  # the first change: before it the configuration holds


def test_newer_is_of_the_later_instance():
    assert newer(None, V2) == newer(V2, None) == V2
    assert newer(V2, V3) == newer(V3, V2) == V3
    assert newer(None, None) is None


def test_a_capture_cannot_forget_them():
    """What is written down of a group of version 3 has its members, or is not written."""
    taken = capture(config=3, members=(1, 4, 5))
    assert taken.membership is None
    with pytest.raises(ValueError, match="without members of version 3"):
        Manifest(
            cluster=1,
            group=7,
            frontier=4096,
            epoch=3 << 20,
            config=taken.config,
            members=taken.members,
            sessions=taken.sessions,
            chain=0xABCD,
            machines=(MachineEntry(0, MEMORY + 1, -1),),
            files=(),
        )


# --- in a node


def test_a_checkpoint_of_a_node_says_the_members_that_hold_there(run_once, tmp_path):
    """Not those of the configuration any more, and not yet the newest that it knows."""
    here, later = membership(3, 2, (1, 7), active=True), membership(1_000_000, 3, (1, 8))

    async def main():
        config = config_of(tmp_path, 1, nodes=1, groups=1, checkpoints=QUIET)
        async with phx.Node(config, Counter, bootstrap=True) as node:
            for _ in range(5):
                await node.group(0).propose(b"1")
            node._room._memberships.learned(0, here)
            node._room._memberships.learned(0, later)
            await node.group(0).checkpoint()
        return config

    config = run_once(main())
    (manifest,) = look(OsFiles(config.dir), ROOT).groups[0]
    assert manifest.membership == replace(here, active=False)
    assert (manifest.config, manifest.members) == (2, (1, 7))

    async def again():
        """It knows who they are, and where: it looks for them, and leads nothing without them."""
        async with phx.Node(config, Counter) as node:
            assert node.group(0).members().version == 2
            assert not node.group(0).status().halted
            await until(lambda: 7 in node.status().peers)
            assert node.status().peers[7].address == "10.0.0.7:7000"
            assert node.group(0).leader() is None

    run_once(again())


def test_a_checkpoint_is_not_taken_where_the_members_are_not_known(run_once, tmp_path):
    async def main():
        config = config_of(tmp_path, 1, nodes=1, groups=1, checkpoints=QUIET)
        async with phx.Node(config, Counter, bootstrap=True) as node:
            await node.group(0).propose(b"1")
            node._room._memberships.learned(0, membership(1_000_000, 3, (1, 8)))
            with pytest.raises(CheckpointFailed, match="from instance 1000000 on"):
                await node.group(0).checkpoint()
            await node.group(0).propose(b"1")  # it goes on

    run_once(main())


def test_a_node_that_hears_that_it_is_no_member_has_a_tombstone(run_once, tmp_path):
    async def main():
        config = config_of(tmp_path, 1, nodes=1, groups=1, checkpoints=QUIET)
        async with phx.Node(config, Counter, bootstrap=True) as node:
            await node.group(0).propose(b"1")
            store, told = node._room._store, membership(1_000_000, 3, (7, 8))
            node._room._memberships.learned(0, told, removed=True)
            row = MembersRow(told, removed=True)
            await until(lambda: store.members() == {0: row}, seconds=20)

    run_once(main())


def test_what_is_learned_of_a_passed_change_is_written_when_there_is_time(run_once, tmp_path):
    """That they are active, or that this node is none of them, is heard of behind the change."""

    async def main():
        config = config_of(tmp_path, 1, nodes=1, groups=1, checkpoints=QUIET)
        async with phx.Node(config, Counter, bootstrap=True) as node:
            for _ in range(5):
                await node.group(0).propose(b"1")
            store, told = node._room._store, membership(3, 2, (1, 7), active=True)
            node._room._memberships.learned(0, told)
            await until(lambda: store.members() == {0: MembersRow(told)}, seconds=20)

    run_once(main())


async def change(nodes, roster, group=0):
    """Have whoever leads propose it, until it is under way."""

    def asked():
        leading = [node for node in nodes if node.group(group).is_leader]
        if not leading:
            return False
        table = leading[0]._room._memberships._engine
        return table.change(group, roster) == CHANGE_UNDER_WAY

    await until(asked)


def test_a_change_reaches_callers_store_and_checkpoints(run, tmp_path):
    """The same nodes under version 2; and a node that starts again goes on under it."""

    async def main():
        async with cluster(tmp_path, lambda group: Counter()) as nodes:
            group = nodes[0].group(0)
            first = group.members()
            assert (first.version, first.active, set(first.by_id)) == (1, True, {1, 2, 3})
            assert first.by_id[1] == voter("127.0.0.1:0")
            for _ in range(5):
                await group.propose(b"1")
            roster = write(2, 1, 0, [(n, 1, b"node%d:7000" % n) for n in (1, 2, 3)])
            await change(nodes, roster)
            await until(lambda: all(one.group(0).members().active for one in nodes))
            await until(lambda: all(one.group(0).members().version == 2 for one in nodes))
            now = nodes[2].group(0).members()
            assert dict(now.by_id) == {n: voter(f"node{n}:7000") for n in (1, 2, 3)}
            assert nodes[2].group(1).members().version == 1
            for _ in range(5):
                await nodes[1].group(0).propose(b"1")
            info = await nodes[2].group(0).checkpoint()
            for one in nodes:
                one._room.driver.settle_now()
            stores = [one._room._store for one in nodes]
            await until(lambda: all(0 in one.members() for one in stores))
            assert {one.members()[0].membership.version for one in stores} == {2}
            assert not any(one.members()[0].removed for one in stores)
            assert all(one.status().store_error is None for one in nodes)
        config = nodes[2].config
        (found,) = look(OsFiles(config.dir), ROOT, cluster=config.cluster_id).groups[0][:1]
        assert found.frontier == info.frontier
        assert (found.membership.version, found.membership.nodes) == (2, (1, 2, 3))
        async with phx.Node(config, lambda group: Counter()) as node:
            assert node.group(0).members().version == 2
            assert node.group(1).members().version == 1

    run(main())


def test_the_note_comes_though_the_machine_has_failed(run, tmp_path):
    """Settling would be held up for all groups else."""

    async def main():
        async with cluster(tmp_path) as nodes:
            for one in nodes[:1]:
                one.group(0).machine().raises = True
            with suppress(phx.PhxError):
                await nodes[1].group(0).propose(b"raise")
            await until(lambda: nodes[0].group(0).status().stopped)
            await change(nodes[1:], write(2, 1, 0, [(n, 1, b"node%d:7000" % n) for n in (1, 2, 3)]))
            await until(lambda: nodes[0].group(0).members().version == 2)
            await nodes[1].group(0).propose(b"after it")
            nodes[0]._room.driver.settle_now()
            await until(lambda: 0 in nodes[0]._room._store.members())
            assert nodes[0].status().store_error is None

    run(main())


def test_members_of_a_node_that_is_closed(run, tmp_path):
    async def main():
        async with cluster(tmp_path) as nodes:
            group = nodes[0].group(0)
        with pytest.raises(Closed):
            group.members()

    run(main())


def test_where_log_and_disk_do_not_agree_the_group_stops_before_it_applies_more(run, tmp_path):
    async def main():
        config = config_of(tmp_path, 1, nodes=1, checkpoints=QUIET)
        async with phx.Node(config, Counter, bootstrap=True) as node:
            await node.wait_ready()
            await node.group(0).propose(b"1")
            # Version 2 far above where the log is going to have it.
            node._room._memberships.learned(0, membership(1_000_000, 2, (1,)))
            await change([node], write(2, 1, 0, [(1, 1, b"node1:7000")]))
            await until(lambda: node.group(0).status().stopped)
            assert node.group(0).members().version == 2
            with pytest.raises(phx.errors.GroupStopped, match="its members: version 2 from"):
                await node.group(0).propose(b"1")
            assert not node.group(1).status().stopped
            await node.group(1).propose(b"1")

    run(main())

"""Every leadership moved off a node in one call; how much nodes want to lead."""

import asyncio
import json
import threading
import time

import pytest
from click.testing import CliRunner

import phx
from phx import Leader, Moved, errors
from phx.applier import GroupState
from phx.cli.commands import phx as command
from phx.errors import NotLeader, TransferFailed
from phx.node import control, moves
from phx.node.moves import Mover
from phx.testing.trace import check
from phx.testing.trace_file import Kind, read

from .cluster import Journal, all_applied, cluster, introduce, until
from .members_lab import kill
from .test_leaders import blocking_cluster, wait

pytestmark = pytest.mark.usefixtures("no_leaks")

GROUPS = 12


def by_node(nodes, groups=GROUPS, away=()):
    """Node id to the groups that it leads, once all nodes agree about all groups. Those that are
    `away` are not asked, but others may still believe in them."""
    found = {number: [] for number in (*away, *(node.config.node for node in nodes))}
    for group in range(groups):
        told = {node.group(group).leader() for node in nodes}
        if len(told) != 1 or (leader := told.pop()) is None:
            return None
        found[leader.node].append(group)
    return found


def leads(nodes, node, groups=GROUPS):
    """The groups that all nodes say it leads; None: they do not agree, or about another group."""
    found = by_node(nodes, groups)
    return None if found is None else found[node]


HOME = {node: list(range(node - 1, GROUPS, 3)) for node in (1, 2, 3)}
"""Who leads what when nothing is left to move: among equals a group prefers the member at its id
modulo their number (`elections.preference`). On the way there they may be as many, but others."""


def at_home(nodes):
    return by_node(nodes) == HOME


async def spread(nodes):
    await until(lambda: at_home(nodes), seconds=20)
    return HOME


def test_all_leaderships_leave_a_node_under_load_and_nothing_fails(run, tmp_path):
    async def main():
        async with cluster(tmp_path, groups=GROUPS) as nodes:
            led, over, waits = await spread(nodes), False, []

            async def caller(node, group):
                while not over:
                    since = time.monotonic()
                    await node.group(group).propose(b"x")  # raises if it failed
                    waits.append(time.monotonic() - since)

            callers = [
                asyncio.create_task(caller(node, group))
                for node in nodes
                for group in range(GROUPS)
            ]
            await asyncio.sleep(0.3)
            found = await nodes[0].resign_all(timeout=20)
            assert found.failed == {}
            assert set(found.moved) >= set(led[1])
            assert {leader.node for leader in found.moved.values()} == {2, 3}
            assert not any(nodes[0].group(group).is_leader for group in range(GROUPS))
            for group, leader in found.moved.items():
                assert nodes[0].group(group).leader() == leader
            await asyncio.sleep(0.2)
            over = True
            await asyncio.gather(*callers)
            assert len(waits) > 100
            await all_applied(nodes)

    run(main())


@pytest.mark.parametrize("goes", ["closed", "killed"])
def test_who_is_left_leads_as_much_as_the_other_until_the_third_is_back(run_once, tmp_path, goes):
    """Nobody asks for it: 4, 4 and 4 groups, then 6 and 6, then as it was."""

    async def main():
        async with cluster(tmp_path, groups=GROUPS) as nodes:
            await spread(nodes)
            gone, *left = nodes
            if goes == "closed":
                await gone.close()
            else:
                kill(gone)

            def halves():
                found = by_node(left, away=[1])
                return found is not None and {n: len(led) for n, led in found.items()}

            await until(lambda: halves() == {1: 0, 2: 6, 3: 6}, seconds=40)
            for group in range(GROUPS):
                await left[group % 2].group(group).propose(b"x")
            async with phx.Node(gone.config, Journal) as again:
                introduce([again, *left])
                await until(lambda: at_home([again, *left]), seconds=40)

    run_once(main())


def test_they_go_to_the_node_that_was_named_and_stay_there(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, groups=GROUPS) as nodes:
            led = await spread(nodes)
            found = await nodes[0].resign_all(3)
            assert {leader.node for leader in found.moved.values()} == {3}
            assert set(found.moved) >= set(led[1])
            assert found.failed == {}
            await asyncio.sleep(2.5)  # balance looks twice a second
            assert not any(nodes[0].group(group).is_leader for group in range(GROUPS))
            with pytest.raises(errors.NotInCluster, match="node 9"):
                await nodes[0].resign_all(9)
            with pytest.raises(ValueError, match="to itself"):
                await nodes[0].resign_all(1)
            assert await nodes[0].resign_all() == Moved({}, {})

    run_once(main())


def test_what_nobody_can_take_is_said_and_stays(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, groups=3, balance=False) as nodes:
            await until(lambda: by_node(nodes, 3))
            for node in nodes[1:]:
                await node.resign_all(1)
            await until(lambda: leads(nodes, 1, 3) == [0, 1, 2])
            await asyncio.gather(nodes[1].close(), nodes[2].close())
            found = await nodes[0].resign_all(timeout=0.3)
            assert found.moved == {}
            assert found.failed.keys() <= {0, 1, 2}
            assert all("not connected" in why for why in found.failed.values())

    run_once(main())


def test_a_node_that_closes_ends_the_call(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, groups=3, nodes=1) as (node,):
            moving = asyncio.ensure_future(node.resign_all(timeout=60))
            await asyncio.sleep(0.1)
            assert not moving.done()
            await node.close()
            with pytest.raises(errors.Closed):
                await moving
            with pytest.raises(errors.Closed):
                await node.resign_all()
            with pytest.raises(errors.Closed):
                node.set_priority(1)

    run_once(main())


def test_who_stops_waiting_stops_nothing(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, groups=GROUPS) as nodes:
            await spread(nodes)
            moving = asyncio.ensure_future(nodes[0].resign_all())
            await asyncio.sleep(0)
            moving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await moving
            await until(lambda: not any(nodes[0].group(group).is_leader for group in range(GROUPS)))

    run_once(main())


def test_a_drained_node_leads_nothing_until_it_wants_to_again(run, tmp_path):
    async def main():
        async with cluster(tmp_path, groups=GROUPS) as nodes:
            await spread(nodes)
            nodes[0].set_priority(0)
            assert nodes[0].priority == 0
            answer = await nodes[0].resign_all()
            # (Some may have been moved by balance before it came to them.)
            assert answer.failed == {}
            assert not [n for n in range(GROUPS) if nodes[0].group(n).is_leader]
            await asyncio.sleep(2.5)
            assert not any(nodes[0].group(group).is_leader for group in range(GROUPS))
            nodes[0].set_priority(nodes[0].config.priority)
            await until(lambda: at_home(nodes), seconds=20)

    run(main())


def test_what_the_configuration_says_holds_before_anything_is_said(tmp_path, monkeypatch, run_once):
    """A node of priority 0 would else campaign at once after a start, as one of 100 does."""
    traces = tmp_path / "traces"
    traces.mkdir()
    monkeypatch.setenv("PHX_TRACE_DIR", str(traces))

    async def main():
        async with cluster(tmp_path, groups=1, nodes=1, priority=7) as (node,):
            await node.group(0).propose(b"x")

    run_once(main())
    (path,) = traces.iterdir()
    kinds = [one.kind for one in read(path)]
    assert kinds.index(Kind.PRIORITY) < kinds.index(Kind.START)
    assert check(path).closed


def test_who_wants_to_lead_more_than_others_leads_everything(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, groups=GROUPS, priority=50) as nodes:
            await spread(nodes)
            nodes[1].set_priority(51)
            await until(lambda: (found := by_node(nodes)) and len(found[2]) == GROUPS, seconds=20)
            for wrong in (-1, 256):
                with pytest.raises(ValueError, match=r"0 \.\. 255"):
                    nodes[1].set_priority(wrong)
            with pytest.raises(TypeError):
                nodes[1].set_priority(True)
            assert nodes[1].priority == 51

    run_once(main())


# --- without a loop, and by the command


def test_blocking_nodes_have_the_same(tmp_path):
    with blocking_cluster(tmp_path, groups=3) as nodes:
        wait(lambda: by_node(nodes, 3))
        for node in nodes[:2]:
            assert node.resign_all(3).failed == {}
        wait(lambda: leads(nodes, 3, 3) == [0, 1, 2])
        nodes[2].set_priority(7)
        assert nodes[2].priority == 7
        assert set(nodes[2].resign_all().moved) == {0, 1, 2}


def called(*words):
    return CliRunner().invoke(command, ["drain", *map(str, words)])


def test_phx_drain_empties_a_running_node_and_lets_it_lead_again(tmp_path):
    with blocking_cluster(tmp_path, groups=GROUPS, balance=True) as nodes:
        wait(lambda: at_home(nodes))
        folder = nodes[0].config.dir
        shown = called(folder, "--json")
        assert shown.exit_code == 0, shown.output
        answer = json.loads(shown.stdout)
        assert answer["failed"] == []
        assert answer["priority"] == nodes[0].priority == 0
        # (Some may have been moved by balance before it came to them.)
        assert not [n for n in range(GROUPS) if nodes[0].group(n).is_leader]
        for one in answer["moved"]:
            assert nodes[0].group(one["group"]).leader() == Leader(one["node"], one["epoch"])
        assert called(folder).stdout == "it led nothing\n"
        shown = called(folder, "--back")
        assert shown.stdout == "its priority is 100 again\n"
        wait(lambda: at_home(nodes))
        shown = called(folder, "--to", 2)
        assert "groups are led by node 2 now" in shown.stdout
        for words, why in ((("--to", 9), "node 9 is no member"), (("--to", 1), "to itself")):
            shown = called(folder, *words)
            assert shown.exit_code == 1
            assert why in shown.stderr
    assert called(folder).exit_code == 1
    assert called(folder, "--back", "--to", 2).exit_code == 2


@pytest.mark.parametrize(
    "request_",
    [
        {"do": "drain"},
        {"do": "drain", "to": None},
        {"do": "drain", "to": "2", "timeout": 1},
        {"do": "drain", "to": True, "timeout": 1},
        {"do": "drain", "to": None, "timeout": 0},
        {"do": "drain", "to": None, "timeout": 1e9},
        {"do": "drain", "to": None, "timeout": "1"},
        {"do": "drain", "to": None, "timeout": 1, "more": 1},
        {"do": "undrain", "group": 1},
    ],
)
def test_what_is_no_request_changes_nothing(tmp_path, request_):
    with blocking_cluster(tmp_path, groups=1, priority=9) as nodes:
        assert control.ask(nodes[0].config.dir, request_).keys() == {"error"}
        assert nodes[0].priority == 9


# --- the mover by itself


class Door:
    """Gives groups away as `verdicts` say: an epoch, or what is raised."""

    node = 1

    def __init__(self, **verdicts):
        self.verdicts = {int(name[1:]): list(those) for name, those in verdicts.items()}
        self.given = []
        self.after = lambda state: None

    def open_driver(self):
        pass

    def give(self, state, to):
        self.given.append((state.group, to))
        verdict = self.verdicts[state.group].pop(0)
        if isinstance(verdict, Exception):
            raise verdict
        self.after(state)
        return verdict


def moved(door, groups, timeout=5.0, to=0):
    states = {group: GroupState(group, {}) for group in groups}
    for state in states.values():
        state.led = Leader(1, 10)
    mover = Mover(door, states, to, timeout)
    mover.start()
    found = mover.future.result(20)
    mover.join()
    return found


def test_one_that_comes_back_is_given_away_again(monkeypatch):
    monkeypatch.setattr(moves, "AGAIN_S", 0.01)
    door = Door(g0=[10, TransferFailed("far behind"), 12])
    leaders = [Leader(1, 12), Leader(2, 14)]
    door.after = lambda state: setattr(state, "led", leaders.pop(0))
    assert moved(door, [0]) == Moved({0: Leader(2, 14)}, {})
    assert door.given == [(0, 0)] * 3


@pytest.mark.parametrize("again", [True, False])
def test_one_that_is_on_its_way_already_is_not_taken_for_one_that_is_gone(monkeypatch, again):
    """Balance gave it away when the mover's turn came, and the member did not take it."""
    monkeypatch.setattr(moves, "AGAIN_S", 0.01)
    door = Door(g0=[NotLeader(0, None)] + ([12] if again else [NotLeader(0, None)] * 1000))
    leaders = [None, Leader(2, 14)] if again else [None] * 1001

    def give(state, to, ask=door.give):
        state.led = leaders.pop(0)
        return ask(state, to)

    monkeypatch.setattr(door, "give", give)
    found = moved(door, [0], timeout=5.0 if again else 0.2)
    if again:
        assert found == Moved({0: Leader(2, 14)}, {})
    else:
        assert found == Moved({}, {0: "nobody was heard to lead it in time"})


def test_one_that_comes_back_later_and_stays_has_not_moved(monkeypatch):
    """Its new leader failed, while others were still on their way."""
    monkeypatch.setattr(moves, "AGAIN_S", 0.01)
    door = Door(g0=[10] + [TransferFailed("far behind")] * 1000, g1=[10])

    def after(state):
        if state.group == 0:
            state.led = Leader(2, 11)
            threading.Timer(0.1, setattr, (state, "led", Leader(1, 12))).start()

    door.after = after
    found = moved(door, [0, 1], timeout=0.5)
    assert found == Moved({}, {0: "far behind", 1: "nobody was heard to lead it in time"})


def test_who_does_not_lead_any_more_is_left_out():
    door = Door(g0=[NotLeader(0, 3)] * 10_000, g1=[10])
    door.after = lambda state: setattr(state, "led", Leader(3, 11))
    found = moved(door, [0, 1], timeout=0.2, to=3)
    assert found.moved == {1: Leader(3, 11)}
    assert found.failed.keys() <= {0}


def test_what_is_not_done_in_time_says_why(monkeypatch):
    monkeypatch.setattr(moves, "AT_ONCE", 2)
    door = Door(g0=[10], g1=[TransferFailed("far behind")] * 1000, g2=[10], g3=[10])
    found = moved(door, range(4), timeout=0.2)
    assert found.moved == {}
    assert found.failed == {
        0: "nobody was heard to lead it in time",
        1: "far behind",
        2: "nobody was heard to lead it in time",
        3: "there was no time for it",
    }


def test_no_more_than_a_few_are_on_their_way(monkeypatch):
    monkeypatch.setattr(moves, "AT_ONCE", 3)
    groups, most, going = range(30), [], []
    door = Door(**{f"g{group}": [10] for group in groups})

    def give(state):
        going.append(state)
        most.append(len([one for one in going if one.led == Leader(1, 10)]))
        if len(most) % 3 == 0:
            for one in going:
                one.led = Leader(2, 11)

    door.after = give
    found = moved(door, groups)
    assert len(found.moved) == 30
    assert max(most) == 3

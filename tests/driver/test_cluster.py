"""Three nodes in one process: replication, forwarding, failures, catching up."""

import os
import random
import time

import pytest
from driver_lab import US, Lab, Member

from phx._core.driver import EVENT_LEADER


@pytest.fixture
def three(lab) -> Lab:
    one = lab(3)
    one.start()
    one.wait_led()
    return one


def test_three_nodes_apply_the_same_values_in_the_same_order(three):
    sent = {node: [b"%d/%d" % (node, number) for number in range(500)] for node in (1, 2, 3)}
    for at in range(0, 500, 25):
        for node, member in three.members.items():
            member.submit(sent[node][at : at + 25])
    three.until(lambda: all(len(one.values[0]) == 1_500 for one in three.running()))
    assert three.same()
    log = three.members[1].values[0]
    for node, values in sent.items():
        assert [value for value in log if value.startswith(b"%d/" % node)] == values
        assert len(three.members[node].own[0]) == 500


def test_every_node_hears_who_leads(three):
    def told(member: Member) -> list[int]:
        return [event[5] for event in member.events if event[0] == EVENT_LEADER]

    three.until(lambda: all(told(one)[-1:] == [three.led()] for one in three.running()))


def test_many_groups_share_three_connections(lab):
    one = lab(3, groups=40)
    one.start()
    one.wait_led(range(40))
    for group in range(40):
        one.members[group % 3 + 1].submit([b"%d" % group] * 20, group)
    one.until(
        lambda: all(
            len(member.values[group]) == 20 for member in one.running() for group in range(40)
        )
    )
    for member in one.running():
        assert member.driver.status()["connections"] == 2
    one.until(lambda: len({one.led(group) for group in range(40)}) == 3)


def test_the_others_go_on_when_a_node_dies_and_it_catches_up_when_it_is_back(three):
    three.commit([b"before"], 1)
    for victim in (three.led(), 1, 2, 3):
        survivor = victim % 3 + 1
        three.stop(victim)
        three.commit([b"without node %d" % victim] * 50, survivor)
        three.start(victim)
        three.until(three.same)
        three.commit([b"node %d is back" % victim], victim)
    assert three.same()
    assert len(three.members[1].values[0]) == 1 + 4 * 51


def test_nothing_is_lost_when_all_nodes_restart_at_once(three):
    values = [os.urandom(200) for _ in range(400)]
    three.commit(values, 2)
    three.stop()
    three.start()
    three.until(lambda: all(one.values[0] == values for one in three.running()))
    three.wait_led()
    three.commit([b"and on"], 3)
    assert three.same()


def test_without_a_quorum_nothing_is_chosen_and_afterwards_everything_is(three):
    three.commit([b"first"], 1)
    three.stop(2, 3)
    alone = three.members[1]
    alone.submit([b"waits"], timeout_s=60)
    end = time.monotonic() + 1
    while time.monotonic() < end:
        alone.pump(0.05)
    assert alone.values[0] == [b"first"]
    three.start(3)
    three.until(lambda: alone.values[0] == [b"first", b"waits"])


def test_a_node_far_behind_is_fed_from_memory_journal_and_store(lab):
    three = lab(3, settle_idle_us=60 * US, cache_bytes_max=200_000, settle_bytes=1 << 20)
    three.start()
    three.wait_led()
    three.stop(3)
    sent = 0
    for _ in range(20):
        three.members[1].submit([os.urandom(5_000) for _ in range(40)])
        sent += 40
        three.until(lambda n=sent: all(len(one.values[0]) == n for one in three.running()))
    three.until(lambda: any(len(m.kept.get(0, [])) > 5 for m in three.running()))
    three.start(3)
    three.until(lambda: len(three.members[3].values[0]) == sent, 30)
    assert three.same()
    assert any("fetch" in one.store.work for one in three.running())


def test_members_begin_to_settle_one_after_the_other(lab):
    """Together they would put the writes of three stores in front of every sync of a majority."""
    three = lab(3, settle_idle_us=60 * US)  # segments of 1 MiB, settle_bytes 4 MiB
    three.start()
    three.wait_led()
    began: dict[int, int] = {}
    sent = 0
    while len(began) < 3:
        assert sent < 6 << 20
        three.members[1].submit([os.urandom(5_000) for _ in range(20)])
        sent += 100_000
        count = sent // 5_000
        three.until(lambda n=count: all(len(one.values[0]) == n for one in three.running()))
        end = time.monotonic() + 0.05
        while time.monotonic() < end:
            for one in three.running():
                one.pump(0.01)
        for node, one in three.members.items():
            if "settle" in one.store.work:
                began.setdefault(node, sent)
    assert began[3] < began[2] < began[1] <= 4_400_000


def test_twenty_restarts_lose_nothing(three):
    dice = random.Random(3)
    sent = 0
    for round_ in range(20):
        node = dice.choice([1, 2, 3])
        three.stop(node)
        three.start(node)
        three.commit([b"%d" % round_] * 5, node % 3 + 1)
        sent += 5
    three.until(lambda: all(len(one.values[0]) == sent for one in three.running()), 30)
    assert three.same()
    for one in three.running():
        assert one.driver.status()["connections"] == 2


def test_a_node_with_another_store_under_its_id_is_refused(three, tmp_path):
    three.commit([b"x"], 1)
    three.stop(3)
    impostor = three.members[3]
    impostor.folder = tmp_path / "elsewhere"
    impostor.folder.mkdir()
    impostor.created = False
    impostor.store_id = b"another store id"
    three.start(3)
    three.until(lambda: any("refused" in line for line in impostor.lines))
    three.until(lambda: any(event[0] == 4 and event[2] == 3 for event in three.members[1].events))
    three.commit_at([1, 2], [b"goes on"])
    assert impostor.values[0] == []
    refused = [line for line in three.members[1].lines if "another store" in line]
    assert len(refused) <= 3, "said once, not at each attempt"


def test_a_foreign_cluster_is_not_let_in(lab, tmp_path):
    three = lab(3)
    three.members[3].cluster = 0xBAD
    three.start()
    three.until(lambda: three.members[1].driver.group_status(0)["leader"] != 0)
    three.commit_at([1, 2], [b"two of three"])
    assert three.members[3].values[0] == []
    assert any("another cluster" in line for one in three.running() for line in one.lines)
    assert all(
        peer["connected"] == (peer["node"] != 3)
        for peer in three.members[1].driver.status()["peers"]
    )

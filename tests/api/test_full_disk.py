"""A node whose disk is full: what it says, who goes on, and that it resumes."""

import asyncio
import errno
import logging
import time

import pytest

import phx
from phx.errors import DiskFull, Overloaded, Rejected, TimedOut, TimedOutUnknown
from phx.machines import KeyValue
from phx.machines.kv import encode_set
from phx.pressure import BY_DISK, BY_LIMIT, BY_NOTHING, BY_QUEUE, Pressure
from phx.stops import verdict_error
from phx.testing.torture.disks import SmallDisk
from tests.api.cluster import all_applied, cluster, config_of, introduce, until

QUIET = {"interval_instances": 0, "interval_us": 0, "reserve_bytes": 0}
LARGE = 100_000


@pytest.fixture
def small_disk(tmp_path):
    """One that can be filled up."""
    disk = SmallDisk(tmp_path / "disk")
    try:
        disk.begin()
    except PermissionError as error:
        pytest.skip(f"may not mount here: {error}")
    yield disk
    disk.end()


def full(node: phx.Node) -> bool:
    return (node.status().journal_error or "").startswith("the disk is full: ")


async def write(node: phx.Node, kept: dict[bytes, bytes], group: int, value: bytes) -> None:
    """One more value, acknowledged at this node."""
    key = b"%d/%d" % (group, len(kept))
    await node.group(group).propose(encode_set(key, value), timeout=20)
    kept[key] = value


async def fill_up(disk: SmallDisk, nodes: list[phx.Node], kept: dict[bytes, bytes]) -> None:
    """Until the first node's journal has stayed full while its store tried to make room there three
    times. Every value is acknowledged by the others meanwhile."""
    disk.fill()
    number, since_s, end_s = 0, time.monotonic(), time.monotonic() + 60
    while not full(nodes[0]) or time.monotonic() < since_s + 3.5:
        assert time.monotonic() < end_s, "it has room again and again"
        number += 1
        size = LARGE
        if full(nodes[0]):
            size = 100
            await asyncio.sleep(0.02)
        else:
            since_s = time.monotonic()
        await write(nodes[1 + number % 2], kept, number % 2, bytes(size))


@pytest.mark.timeout(120)
def test_a_node_with_a_full_disk_says_so_steps_aside_and_resumes(
    run_once, tmp_path, small_disk, caplog
):
    caplog.set_level(logging.WARNING, logger="phx")
    folders = {1: small_disk.point, 2: tmp_path, 3: tmp_path}
    large = {"segment_bytes": 2 << 20, "journal_bytes_max": 64 << 20, "settle_bytes": 8 << 20}
    configs = [
        config_of(folders[node], node, checkpoints=QUIET, journal=large) for node in (1, 2, 3)
    ]
    journal = str(small_disk.point / "node1" / "journal")

    async def main():
        nodes = [phx.Node(config, KeyValue, bootstrap=True) for config in configs]
        try:
            await asyncio.gather(*(node.open() for node in nodes))
            introduce(nodes)
            await asyncio.gather(*(node.wait_ready(timeout=20) for node in nodes))
            await story(nodes)
        finally:
            await asyncio.gather(*(node.close() for node in nodes))

    async def story(nodes):
        hurt, kept = nodes[0], {}
        await write(hurt, kept, 0, b"before")
        await all_applied(nodes)
        if not hurt.group(0).status().leading:
            leader = next(node for node in nodes if node.group(0).status().leading)
            await leader.group(0).transfer_leadership(1)
        assert hurt.status().journal_error is None
        await fill_up(small_disk, nodes, kept)
        # It says what it is, and where, and not what it is not.
        assert journal in hurt.status().journal_error
        assert "0 bytes free" in hurt.status().journal_error
        lines = [record.getMessage() for record in caplog.records]
        assert any(line.startswith(f"the disk is full: {journal}: ") for line in lines)
        assert not any("at its limit" in line for line in lines)
        assert not hurt.status().poisoned
        # The others lead, and go on.
        await until(lambda: hurt.status().leading == 0)
        await until(lambda: sum(node.status().leading for node in nodes[1:]) == 2)
        accepted = hurt.group(0).status().accepted_last
        for number in range(10):
            await write(nodes[1 + number % 2], kept, 0, b"meanwhile")
        assert hurt.group(0).status().accepted_last == accepted
        assert hurt.group(0).status().applied_through < nodes[1].group(0).status().applied_through
        # What its callers hear.
        for call in (hurt.group(0).propose, lambda value: hurt.group(1).propose_many([value])):
            with pytest.raises(DiskFull, match="the disk is full") as caught:
                await call(encode_set(b"0/0", b"refused"))
            assert caught.value.outcome == "rejected"
        with pytest.raises(TimedOut, match="the disk is full"):
            await hurt.group(0).read(b"0/0", timeout=0.5)
        stale = await hurt.group(0).read(b"0/0", consistency="stale")
        assert stale.value == b"before"
        # There is room again, and nobody tells it so.
        small_disk.free()
        await until(lambda: hurt.status().journal_error is None, seconds=30)
        await write(hurt, kept, 1, b"after")
        for group in (0, 1):
            await all_applied(nodes, group)
        check(nodes, kept)
        assert any("takes new values again" in record.getMessage() for record in caplog.records)

    def check(nodes, kept):
        for key, value in kept.items():
            for node in nodes:
                assert node.group(int(key[:1])).machine().get(key) == value

    run_once(main())


def test_new_values_are_turned_away_while_the_disk_is_full_and_taken_behind_that(
    run_once, tmp_path
):
    async def main():
        async with cluster(tmp_path, KeyValue, nodes=1, groups=1) as (node,):
            group, pressure = node.group(0), node._room.door.pressure
            await group.propose(encode_set(b"a", b"1"))
            pressure.heard(BY_DISK, errno.ENOSPC, 0)
            for _ in range(3):
                for call in (group.propose, lambda value: group.propose_many([value])):
                    with pytest.raises(DiskFull, match="No space left on device"):
                        call(encode_set(b"a", b"2"))
            assert node.status().waiting_values == 0
            pressure.heard(BY_LIMIT, 0, 1 << 20)  # that passes: values wait
            assert await group.propose(encode_set(b"a", b"3"))
            pressure.heard(BY_NOTHING, 0, 0)
            assert (await group.propose_many([encode_set(b"b", b"4")]))[0]
            assert (group.machine().get(b"a"), group.machine().get(b"b")) == (b"3", b"4")

    run_once(main())


def test_callers_that_hear_of_a_limit_hear_of_a_full_disk():
    assert issubclass(DiskFull, Overloaded)
    assert issubclass(DiskFull, Rejected)


def test_what_reached_its_limit_is_called_by_its_name(tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="phx")
    told = []
    pressure = Pressure(tmp_path, 8 << 20)
    pressure.turn_away = told.append
    assert pressure.error is None
    assert pressure.note() == ""
    pressure.heard(BY_LIMIT, 0, 5 << 20)
    assert "at its limit (5242880 of 8388608 bytes" in pressure.error
    pressure.heard(BY_NOTHING, 0, 0)
    pressure.heard(BY_QUEUE, 0, 77)
    assert pressure.error == "the disk is slow: 77 bytes of the journal wait for it"
    assert told == []
    pressure.heard(BY_DISK, errno.EDQUOT, 0)
    assert pressure.error.startswith(f"the disk is full: {tmp_path}: Disk quota exceeded, ")
    assert pressure.error.endswith(" bytes free")
    assert isinstance(told[-1](), DiskFull)
    assert "the disk is full" in pressure.note()
    pressure.heard(BY_DISK, errno.EMFILE, 0)
    assert "disk is full" not in pressure.error
    assert "Too many open files" in pressure.error
    pressure.heard(BY_NOTHING, 0, 0)
    assert pressure.error is None
    assert told[1:] == [None]
    assert len(caplog.records) == 6


@pytest.mark.parametrize(("verdict", "kind"), [(1, TimedOut), (2, TimedOutUnknown)])
def test_whose_time_is_up_hears_why_and_the_outcome_stays(verdict, kind):
    error = verdict_error(verdict, None, " (the disk is full: /var)")
    assert type(error) is kind
    assert str(error).endswith("(the disk is full: /var)")

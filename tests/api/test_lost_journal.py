"""A journal that is lost or damaged: the node starts without it, and votes when that is safe."""

import errno
import re
import shutil
import socket
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import phx
from phx import errors
from phx.store import Store
from phx.store_facts import CEILING_STEP, SPARE_LIVES, Facts, join, read, unpack, write
from phx.verify import examine

from .cluster import Journal, all_applied, cluster, config_of, introduce, until

pytestmark = pytest.mark.usefixtures("no_leaks")
REJOIN = {"journal_damage": "rejoin"}


def facts_of(config: phx.Config) -> Facts | None:
    store = Store.open(config.dir / "store", cluster=config.cluster_id, node=config.node)
    try:
        return read(store)
    finally:
        store.close()


def set_facts(config: phx.Config, facts: Facts) -> None:
    store = Store.open(config.dir / "store", cluster=config.cluster_id, node=config.node)
    try:
        write(store, facts)
    finally:
        store.close()


def lose(config: phx.Config) -> None:
    shutil.rmtree(config.dir / "journal")


def damage(config: phx.Config) -> None:
    """A byte of a record that was durable."""
    file = sorted((config.dir / "journal").iterdir())[0]
    with file.open("r+b") as opened:
        opened.seek(4096 + 40)
        byte = opened.read(1)
        opened.seek(4096 + 40)
        opened.write(bytes([byte[0] ^ 1]))


def forget_nothing(config: phx.Config) -> None:
    """The store says that the journal was lost, and it is still there: a crash came between."""
    facts = facts_of(config)
    assert facts is not None
    set_facts(config, facts.next_life(above=0, lease_us=0, groups=()).found_lost())


def suspects(node: phx.Node) -> list[int]:
    return [group for group in range(2) if node.group(group).status().suspect]


@pytest.mark.parametrize("how", [lose, damage, forget_nothing])
def test_a_node_without_its_journal_comes_back_and_votes_after_it_led(run_once, tmp_path, how):
    async def main():
        async with cluster(tmp_path, checkpoints=REJOIN) as nodes:
            for number in range(6):
                await nodes[0].group(number % 2).propose(b"%d" % number)
            await all_applied(nodes)
            config = nodes[1].config
            before = facts_of_open(nodes[1])
            await nodes[1].close()
            how(config)
            again = phx.Node(config, Journal)
            nodes[1] = again
            await again.open()
            assert suspects(again) == [0, 1]
            introduce(nodes)
            await nodes[0].group(0).propose(b"meanwhile", timeout=20)
            await until(lambda: suspects(again) == [], seconds=30)
            await nodes[2].close()  # what is chosen now is chosen with its vote
            await again.group(0).propose(b"with it", timeout=20)
            await again.group(1).propose(b"with it", timeout=20)
            await all_applied([nodes[0], again])
            assert again.group(0).machine().values == nodes[0].group(0).machine().values
            assert nodes[0].group(0).machine().values[:3] == [b"0", b"2", b"4"]
            assert again.status().incarnation > before.incarnation
            aside = list((config.dir / "quarantine").glob("*/journal"))
            assert len(aside) == (how is not lose)
        after = facts_of(config)
        assert after is not None
        assert after.lost > before.incarnation
        assert after.groups == (0, 1)
        assert sorted(after.peers) == [1, 3]

    run_once(main())


def facts_of_open(node: phx.Node) -> Facts:
    facts = read(node._room._store)
    assert facts is not None
    return facts


def test_no_store_is_made_from_a_journal_that_does_not_say_yet_what_was_lost(run_once, tmp_path):
    """The journal is lost; the start after that ends (its port is taken) before it has said so in
    the new one; then the store is lost. Nobody knows any more that the node forgot something."""

    async def main():
        async with cluster(tmp_path, checkpoints=REJOIN) as nodes:
            await nodes[0].group(0).propose(b"x")
            await all_applied(nodes)
            config = nodes[1].config
            await nodes[1].close()
            lose(config)
            with socket.socket() as taken:
                taken.bind(("127.0.0.1", 0))
                taken.listen()
                members = {**config.members, 2: f"127.0.0.1:{taken.getsockname()[1]}"}
                with pytest.raises(errors.PhxError):
                    await phx.Node(replace(config, members=members), Journal).open()
            assert list((config.dir / "journal").iterdir())
            shutil.rmtree(config.dir / "store")
            with pytest.raises(errors.NotBootstrapped):
                await phx.Node(config, Journal).open()
            assert not (config.dir / "store").exists()

    run_once(main())


def test_a_store_made_anew_beside_a_suspect_journal_has_the_ceiling_from_before(run_once, tmp_path):
    """A second loss then still rejoins above all that was promised before the first."""
    high = 5 * CEILING_STEP

    async def main():
        async with cluster(tmp_path, checkpoints=REJOIN) as nodes:
            await nodes[0].group(0).propose(b"x")
            await all_applied(nodes)
            config = nodes[1].config
            for node in nodes:
                await node.close()
            facts = facts_of(config)
            assert facts is not None
            set_facts(config, facts.raised(high))
            lose(config)
            async with phx.Node(config, Journal) as again:
                assert suspects(again) == [0, 1]
            shutil.rmtree(config.dir / "store")
            async with phx.Node(config, Journal) as again:
                assert suspects(again) == [0, 1]
                await until(lambda: read(again._room._store) is not None)
            after = facts_of(config)
            assert after is not None
            assert after.ceiling >= high

    run_once(main())


@pytest.mark.parametrize("how", [lose, damage])
def test_without_leave_it_does_not_start(run_once, tmp_path, how):
    async def main():
        async with cluster(tmp_path) as nodes:
            await nodes[0].group(0).propose(b"x")
            await all_applied(nodes)
            config = nodes[1].config
            await nodes[1].close()
            how(config)
            again = phx.Node(config, Journal)
            with pytest.raises(errors.Damaged):
                await again.open()
            assert not (config.dir / "quarantine").exists()

    run_once(main())


def test_the_only_member_never_votes_again(run_once, tmp_path):
    async def main():
        config = config_of(tmp_path, 1, nodes=1, checkpoints=REJOIN)
        async with phx.Node(config, Journal, bootstrap=True) as node:
            await node.group(0).propose(b"x")
        lose(config)
        with pytest.raises(errors.Damaged, match="no other member"):
            await phx.Node(config, Journal).open()

    run_once(main())


def test_a_store_that_knows_nothing_or_too_little_learns_it_before_the_node_votes(
    run_once, tmp_path
):
    async def main():
        config = config_of(tmp_path, 1, nodes=1)
        async with phx.Node(config, Journal, bootstrap=True) as node:
            await node.group(0).propose(b"x")
        first = facts_of(config)
        assert first is not None
        assert (first.ceiling, first.incarnation, first.lost) == (CEILING_STEP, 1, 0)
        set_facts(config, Facts(ceiling=0, incarnation=1))
        async with phx.Node(config, Journal) as node:
            await node.group(0).propose(b"y")
        second = facts_of(config)
        assert second is not None
        assert second.ceiling > CEILING_STEP
        assert second.incarnation == 2
        store = Store.open(config.dir / "store", cluster=config.cluster_id, node=1)
        with store._transaction() as txn:
            txn.delete(b"facts", db=store._meta)
            txn.delete(b"facts.copy", db=store._meta)
        store.close()
        async with phx.Node(config, Journal) as node:
            await node.group(0).propose(b"z")
            assert node.group(0).machine().values == [b"x", b"y", b"z"]
        third = facts_of(config)
        assert third is not None
        assert third.ceiling > CEILING_STEP
        assert third.incarnation == 3

    run_once(main())


def facts_bytes(config: phx.Config) -> list[int]:
    """Where the copies of the facts begin in the file of the store."""
    facts = facts_of(config)
    assert facts is not None
    data = (config.dir / "store" / "data.mdb").read_bytes()
    return [one.start() for one in re.finditer(re.escape(facts.pack()), data)]


def flip(config: phx.Config, places: Iterable[int]) -> None:
    with (config.dir / "store" / "data.mdb").open("r+b") as opened:
        for at in places:
            opened.seek(at)
            (byte,) = opened.read(1)
            opened.seek(at)
            opened.write(bytes([byte ^ 0x10]))


@pytest.fixture
def closed_alone(run_once, tmp_path):
    """The configuration of a node, the only one, that is closed and has chosen something."""
    config = config_of(tmp_path, 1, nodes=1)

    async def main():
        async with phx.Node(config, Journal, bootstrap=True) as node:
            await node.group(0).propose(b"x")

    run_once(main())
    return config


async def opened_once(config: phx.Config) -> dict[str, object]:
    """Of the status, what it says of damage."""
    async with phx.Node(config, Journal) as node:
        await node.group(0).propose(b"y")
        assert node.group(0).machine().values == [b"x", b"y"]
        return node.status().damage


def test_a_flipped_byte_of_the_facts_is_found_and_the_node_starts(run_once, closed_alone):
    config = closed_alone
    before = facts_of(config)
    length = len(before.pack())
    copies = facts_bytes(config)
    assert len(copies) >= 2
    data = config.dir / "store" / "data.mdb"
    sound = data.read_bytes()
    named = [0, 0]
    for at in range(length):
        for copy in copies:
            flip(config, [copy + at])
            found = [one.what for one in examine(config.dir, whole=False).findings]
            # (Pages of former transactions have copies, too: there it means nothing.)
            assert facts_of(config) == before
            assert all("lives" in one for one in found)
            named[bool(found)] += 1
            data.write_bytes(sound)
    assert named == [(len(copies) - 2) * length, 2 * length]
    newest = [at for at in copies if found_with(config, at)]
    flip(config, [newest[0] + 9])
    assert "both are written anew" in str(run_once(opened_once(config))["last"])
    assert examine(config.dir, whole=True).findings == []
    after = facts_of(config)
    assert after.ceiling == before.ceiling
    assert after.incarnation == before.incarnation + 1


def found_with(config: phx.Config, at: int) -> bool:
    flip(config, [at])
    found = examine(config.dir, whole=False).findings
    flip(config, [at])
    return bool(found)


def test_without_any_whole_copy_a_whole_journal_says_it(run_once, closed_alone):
    config = closed_alone
    before = facts_of(config)
    flip(config, [at + 20 for at in facts_bytes(config)])
    with pytest.raises(errors.Damaged):
        facts_of(config)
    assert examine(config.dir, whole=False).findings
    damage = run_once(opened_once(config))
    assert damage["found"] == 1
    assert "made anew" in str(damage["last"])
    after = facts_of(config)
    assert after.incarnation == before.incarnation + 1
    assert after.ceiling >= CEILING_STEP


@pytest.mark.parametrize("how", [lose, damage])
def test_without_any_whole_copy_and_without_a_journal_it_says_what_to_do(
    run_once, closed_alone, how
):
    config = replace(closed_alone, checkpoints=replace(closed_alone.checkpoints, **REJOIN))
    flip(config, [at + 20 for at in facts_bytes(config)])
    how(config)
    with pytest.raises(errors.Damaged, match="put another node in its place"):
        run_once(opened_once(config))


def test_facts_survive_their_bytes_and_no_flipped_one():
    facts = Facts(7, 3, 2, 800_000, (0, 5), {2: b"b" * 16, 1: b"a" * 16}, 9, 2)
    packed = facts.pack()
    assert unpack(packed, Path("x")) == facts
    for at in range(len(packed)):
        odd = bytearray(packed)
        odd[at] ^= 1
        with pytest.raises(errors.Damaged):
            unpack(bytes(odd), Path("x"))
    for cut in range(len(packed)):
        with pytest.raises(errors.Damaged):
            unpack(packed[:cut], Path("x"))


def test_a_ceiling_is_only_raised_and_stays_below_the_last_counter():
    facts = Facts(ceiling=9)
    assert facts.raised(3).ceiling == 9
    assert facts.raised(1 << 60).ceiling == (1 << 44) - 1


def test_copies_that_differ_say_the_greater_of_each():
    one = Facts(7, 3, 2, 800_000, (0, 5), {2: b"b" * 16}, 9, 0)
    other = Facts(8, 2, 0, 900_000, (1,), {1: b"a" * 16}, 9, 2)
    both, wrong = join([one.pack(), other.pack()], Path("x"))
    assert both == Facts(8, 3, 2, 900_000, (0, 1, 5), {1: b"a" * 16, 2: b"b" * 16}, 9, 2)
    assert "differ" in wrong
    assert join([None, one.pack()], Path("x"))[0] == one
    assert join([None, None], Path("x")) == (None, "")
    with pytest.raises(errors.Damaged):
        join([None, b"rubbish"], Path("x"))


def test_a_life_after_a_loss_is_none_that_the_lost_journal_alone_knew():
    facts = Facts(incarnation=3).next_life(above=0, lease_us=5, groups=(0,))
    assert (facts.incarnation, facts.spare) == (4, 4 + SPARE_LIVES)
    spare = facts.spare_life(above=6, lease_us=5, groups=(0,))
    assert spare is not None
    assert spare.incarnation == 7
    assert facts.spare_life(above=facts.spare - 1, lease_us=5, groups=(0,)) is not None
    for more in ({"above": facts.spare}, {"lease_us": 6}, {"groups": (0, 1)}):
        assert facts.spare_life(**{"above": 4, "lease_us": 5, "groups": (0,), **more}) is None
    lost = facts.found_lost()
    assert lost.lost == lost.incarnation == facts.spare + 1


@pytest.mark.parametrize(
    ("changed", "path", "what"),
    [
        ({"ceiling": 0}, "store", "none is above 0"),
        ({"incarnation": 0, "spare": 0}, "store", "lives up to 0"),
        ({"lost": 9}, "journal", "lost in life 9"),
    ],
)
def test_verify_compares_what_store_and_journal_say(closed_alone, changed, path, what):
    config = closed_alone
    assert examine(config.dir, whole=False).findings == []
    facts = facts_of(config)
    set_facts(config, replace(facts, **changed))
    (found,) = examine(config.dir, whole=False).findings
    assert found.path == path
    assert what in found.what


@contextmanager
def full_disk(monkeypatch):
    """As a full disk answers whoever writes a small value."""

    def no_room(store, values):
        raise store._write_failed(OSError(errno.ENOSPC, "No space left on device"))

    with monkeypatch.context() as patched:
        patched.setattr(Store, "_put_meta", no_room)
        yield


async def life_of(config: phx.Config) -> int:
    async with phx.Node(config, Journal) as node:
        await node.group(0).propose(b"y")
        return node.status().incarnation


def test_a_full_disk_keeps_no_node_down_for_a_few_lives(run_once, closed_alone, monkeypatch):
    config = closed_alone
    before = facts_of(config)
    with full_disk(monkeypatch):
        lives = [run_once(life_of(config)) for _ in range(SPARE_LIVES)]
        assert lives == list(range(2, 2 + SPARE_LIVES))
        with pytest.raises(errors.StoreError, match="No space left"):
            run_once(life_of(config))
    assert facts_of(config) == before
    assert examine(config.dir, whole=True).findings == []
    assert run_once(life_of(config)) == 2 + SPARE_LIVES
    after = facts_of(config)
    assert after.incarnation == 2 + SPARE_LIVES
    assert after.spare == after.incarnation + SPARE_LIVES


def test_what_a_spare_life_needs_is_said_when_there_is_room(run_once, closed_alone, monkeypatch):
    config = closed_alone

    async def main():
        with full_disk(monkeypatch):
            node = phx.Node(config, Journal)
            await node.open()
            assert node.status().incarnation == 2
            assert facts_of_open(node).incarnation == 1
        await until(lambda: facts_of_open(node).incarnation == 2, seconds=60)
        await node.close()

    run_once(main())


@pytest.mark.parametrize("how", [lose, damage])
def test_a_full_disk_is_no_reason_to_start_without_a_journal(
    run_once, closed_alone, monkeypatch, how
):
    config = replace(closed_alone, checkpoints=replace(closed_alone.checkpoints, **REJOIN))
    how(config)
    with full_disk(monkeypatch), pytest.raises(errors.StoreError, match="No space left"):
        run_once(life_of(config))
    assert not (config.dir / "quarantine").exists()


def test_a_journal_lost_after_spare_lives_is_followed_by_none_of_them(
    run_once, tmp_path, monkeypatch
):
    async def main():
        async with cluster(tmp_path, checkpoints=REJOIN) as nodes:
            await nodes[0].group(0).propose(b"x")
            await all_applied(nodes)
            config = nodes[1].config
            await nodes[1].close()
            with full_disk(monkeypatch):
                for life in range(2, 4):
                    async with phx.Node(config, Journal) as again:
                        assert again.status().incarnation == life
            lose(config)
            async with phx.Node(config, Journal) as again:
                assert suspects(again) == [0, 1]
                assert again.status().incarnation > 3

    run_once(main())


def test_an_older_store_has_the_ceiling_with_the_first_write_of_a_start(
    run_once, closed_alone, monkeypatch
):
    """There is no room for a second one."""
    config = closed_alone
    set_facts(config, replace(facts_of(config), ceiling=0, incarnation=0, spare=0))
    writes = []
    put = Store._put_meta

    def once(store, values):
        if b"facts" in values:
            writes.append(unpack(values[b"facts"], store.path))
            if len(writes) > 1:
                raise store._write_failed(OSError(errno.ENOSPC, "No space left on device"))
        return put(store, values)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "_put_meta", once)
        assert run_once(life_of(config)) == 2
    assert (writes[0].incarnation, writes[0].spare) == (2, 2 + SPARE_LIVES)
    assert writes[0].ceiling > CEILING_STEP
    assert facts_of(config) == writes[0]


def test_no_spare_life_begins_above_the_ceiling_of_an_older_store(
    run_once, closed_alone, monkeypatch
):
    config = closed_alone
    set_facts(config, replace(facts_of(config), ceiling=0))
    with full_disk(monkeypatch), pytest.raises(errors.StoreError, match="No space left"):
        run_once(life_of(config))
    run_once(life_of(config))
    assert facts_of(config).ceiling > CEILING_STEP


def test_what_a_lost_journal_may_have_promised_counts_for_an_older_store(
    run_once, tmp_path, monkeypatch
):
    config = config_of(tmp_path, 2, checkpoints=REJOIN)

    async def open_and_close(bootstrap: bool) -> None:
        async with phx.Node(config, Journal, bootstrap=bootstrap) as node:
            assert suspects(node) == ([] if bootstrap else [0, 1])

    run_once(open_and_close(True))
    set_facts(config, replace(facts_of(config), ceiling=3 * CEILING_STEP))
    lose(config)
    run_once(open_and_close(False))
    assert examine(config.dir, whole=False).findings == []
    set_facts(config, replace(facts_of(config), ceiling=3 * CEILING_STEP - 1))
    (found,) = examine(config.dir, whole=False).findings
    assert f"may have the counter {3 * CEILING_STEP}, " in found.what
    with full_disk(monkeypatch), pytest.raises(errors.StoreError, match="No space left"):
        run_once(open_and_close(False))
    run_once(open_and_close(False))
    assert facts_of(config).ceiling == 4 * CEILING_STEP

"""How durable a group is: by the configuration, by a call, and after a node that was not closed."""

import asyncio
import os
import shutil
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

import phx
import phx.blocking
import phx.node.lives
from phx import errors
from phx.config import Durability
from phx.node.lives import boot_id
from phx.node.relaxing import Relaxing
from phx.store_facts import Facts, join, read, unpack, write
from phx.types import DIRECTORY_GROUP

from .cluster import Journal, all_applied, cluster, config_of, introduce, until
from .test_lost_journal import facts_of, set_facts, suspects

pytestmark = pytest.mark.usefixtures("no_leaks")
RELAXED = {"durability": {"groups": {0: "none"}}}
OTHER_BOOT = uuid.UUID(int=77).bytes


def row(node: phx.Node) -> tuple[int, ...]:
    """The groups that the store has as relaxed in this run of the machine."""
    facts = read(node._room._store)
    return facts.relaxed if facts is not None and facts.boot == boot_id() else ()


def mode(node: phx.Node, group: int = 0) -> str:
    return node.group(group).status().durability


async def used_and_closed(nodes):
    """A value is applied everywhere, and the second node is closed: its configuration."""
    await nodes[0].group(0).propose(b"x")
    await all_applied(nodes)
    await nodes[1].close()
    return nodes[1].config


def not_closed(config: phx.Config, boot: bytes, *groups: int) -> None:
    """As a node leaves its folder that was not closed, and ran under this boot id."""
    facts = facts_of(config)
    assert facts is not None
    assert facts.relaxed == ()  # it was closed
    set_facts(config, replace(facts, relaxed=groups, boot=boot))


def writes_fail(folder: Path) -> None:
    """From now on, in every file of this folder that is open in this process."""
    for link in Path("/proc/self/fd").iterdir():
        path = Path(os.path.realpath(link))
        if path.parent == folder and path.is_file():
            reads = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            os.dup2(reads, int(link.name), inheritable=False)
            os.close(reads)


def test_the_configuration_says_how_durable_groups_are_and_the_store_knows_first(
    run_once, tmp_path
):
    async def main():
        modes = {"mode": "interval", "interval_us": 20_000, "groups": {1: "sync"}}
        async with cluster(tmp_path, durability=modes) as nodes:
            await until(lambda: all(mode(node) == "interval" for node in nodes))
            assert [mode(node, 1) for node in nodes] == ["sync"] * 3
            assert [row(node) for node in nodes] == [(0,)] * 3
            for number in range(20):
                await nodes[0].group(number % 2).propose(b"%d" % number)
            await all_applied(nodes)
        for node in nodes:
            facts = facts_of(node.config)
            assert facts is not None
            assert (facts.relaxed, facts.boot) == ((), b"")

    run_once(main())


def test_it_is_changed_while_the_node_runs_and_the_store_has_it_when_the_call_returns(
    run_once, tmp_path
):
    async def main():
        async with cluster(tmp_path) as nodes:
            for node in nodes:
                await node.group(0).set_durability("none")
                assert (row(node), mode(node)) == ((0,), "none")
            await nodes[0].group(0).propose(b"x")
            await nodes[1].group(1).set_durability("interval", interval_us=2_000)
            assert row(nodes[1]) == (0, 1)
            await nodes[1].group(0).set_durability("interval")
            assert (row(nodes[1]), mode(nodes[1])) == ((0, 1), "interval")
            await nodes[1].group(0).set_durability("sync")
            assert (row(nodes[1]), mode(nodes[1])) == ((1,), "sync")
            await nodes[1].group(0).set_durability("sync")
            await nodes[1].group(0).propose(b"y")
            await all_applied(nodes)
            with pytest.raises(ValueError, match="none of sync"):
                await nodes[1].group(0).set_durability("never")
            with pytest.raises(ValueError, match="interval"):
                await nodes[1].group(0).set_durability("interval", interval_us=1)

    run_once(main())


def test_a_group_is_relaxed_only_when_the_store_could_say_so(run_once, tmp_path, monkeypatch):
    async def main():
        async with cluster(tmp_path) as nodes:

            def refuse(*_):
                raise errors.StoreError("no room")

            with monkeypatch.context() as patch:
                patch.setattr(phx.node.lives, "write", refuse)
                with pytest.raises(errors.StoreError, match="no room"):
                    await nodes[0].group(0).set_durability("none")
                assert (row(nodes[0]), mode(nodes[0])) == ((), "sync")
            await nodes[0].group(0).set_durability("none")
            assert (row(nodes[0]), mode(nodes[0])) == ((0,), "none")

    run_once(main())


def test_all_groups_of_the_configuration_are_one_write_to_the_store(tmp_path, monkeypatch):
    seen = []

    def write_and_note(store, facts):
        write(store, facts)
        seen.append(facts.relaxed)

    monkeypatch.setattr(phx.node.lives, "write", write_and_note)
    config = config_of(tmp_path, 1, nodes=1, groups=30, durability={"mode": "none"})
    with phx.blocking.Node(config, Journal, bootstrap=True) as node:
        node.group(0).set_durability("sync")  # after those of the configuration
        assert node.group(29).status().durability == "none"
    assert list(dict.fromkeys(seen)) == [(), tuple(range(30)), tuple(range(1, 30))]


def test_changes_are_made_in_the_order_in_which_they_were_asked_for(
    run_once, tmp_path, monkeypatch
):
    """All of them wait until the journal says what a start found: the configuration's, too."""

    async def main():
        config = config_of(tmp_path, 1, nodes=1, durability={"groups": {0: "interval"}})
        looks, held, first = [], [True], Relaxing._first

        def late(relaxing, store):
            looks.append(store)
            return not held[0] and first(relaxing, store)

        monkeypatch.setattr(Relaxing, "_first", late)
        async with phx.Node(config, Journal, bootstrap=True) as node:
            modes = ["sync"] * 20 + ["none"]
            calls = [asyncio.ensure_future(node.group(0).set_durability(one)) for one in modes]
            await until(lambda: len(looks) > 60)
            assert not any(call.done() for call in calls)
            held[0] = False
            await asyncio.gather(*calls)
            assert (row(node), mode(node)) == ((0,), "none")
            await node.group(0).set_durability("sync")
            assert (row(node), mode(node)) == ((), "sync")

    run_once(main())


def test_a_process_that_died_votes_at_once_in_the_same_run_of_the_machine(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, **RELAXED) as nodes:
            config = await used_and_closed(nodes)
            not_closed(config, boot_id(), 0)
            again = nodes[1] = phx.Node(config, Journal)
            await again.open()
            assert suspects(again) == []
            await nodes[2].close()  # what is chosen now is chosen with its vote
            introduce([nodes[0], again])
            await again.group(0).propose(b"with it", timeout=20)
            await until(lambda: row(again) == (0,))

    run_once(main())


@pytest.mark.parametrize("boot", [OTHER_BOOT, b""], ids=["other", "unknown"])
def test_after_another_run_of_the_machine_it_does_not_vote_before_it_has_rejoined(
    run_once, tmp_path, boot
):
    async def main():
        async with cluster(tmp_path, **RELAXED) as nodes:
            for number in range(4):
                await nodes[0].group(number % 2).propose(b"%d" % number)
            await all_applied(nodes)
            config = nodes[1].config
            await nodes[1].close()
            await nodes[2].close()  # it needs both others to rejoin
            not_closed(config, boot, 0)
            again = nodes[1] = phx.Node(config, Journal)
            await again.open()
            assert suspects(again) == [0]
            await until(lambda: row(again) == (0,))  # it says so in its journal now
            introduce([nodes[0], again])
            await again.group(1).propose(b"votes", timeout=20)
            with pytest.raises(errors.PhxError):
                await again.group(0).propose(b"does not", timeout=2)
            assert suspects(again) == [0]
            nodes[2] = phx.Node(nodes[2].config, Journal)
            await nodes[2].open()
            introduce(nodes)
            await until(lambda: suspects(again) == [], seconds=30)
            await nodes[2].close()
            await again.group(0).propose(b"with it", timeout=20)
            await all_applied([nodes[0], again])
            values = again.group(0).machine().values
            assert values == nodes[0].group(0).machine().values
            assert values[:2] == [b"0", b"2"]

    run_once(main())


def test_the_store_forgets_the_last_run_only_when_the_journal_says_what_may_be_lacking(
    run_once, tmp_path
):
    """A start that fails, and one in the same run of the machine after it."""

    async def main():
        async with cluster(tmp_path, **RELAXED) as nodes:
            config = await used_and_closed(nodes)
            not_closed(config, OTHER_BOOT, 0)
            taken = replace(config, members={**config.members, 2: f"127.0.0.1:{nodes[0].port}"})
            with pytest.raises(errors.PhxError):
                await phx.Node(taken, Journal).open()
            facts = facts_of(config)
            assert facts is not None
            assert (facts.relaxed, facts.boot) == ((0,), OTHER_BOOT)
            again = nodes[1] = phx.Node(config, Journal)
            await again.open()
            assert suspects(again) == [0]

    run_once(main())


def test_a_group_of_one_member_stays_without_a_vote_and_the_others_go_on(run_once, tmp_path):
    async def main():
        config = config_of(tmp_path, 1, nodes=1, **RELAXED)
        async with phx.Node(config, Journal, bootstrap=True) as node:
            await node.group(0).propose(b"x")
        not_closed(config, OTHER_BOOT, 0)
        async with phx.Node(config, Journal) as node:
            assert suspects(node) == [0]
            await node.group(1).propose(b"y", timeout=20)
            with pytest.raises(errors.PhxError):
                await node.group(0).propose(b"z", timeout=1)
            assert suspects(node) == [0]

    run_once(main())


def test_a_store_that_was_made_anew_takes_what_is_configured_as_relaxed_for_doubtful(
    run_once, tmp_path
):
    async def main():
        async with cluster(tmp_path, **RELAXED) as nodes:
            config = await used_and_closed(nodes)
            (config.dir / "store" / "data.mdb").unlink()
            again = nodes[1] = phx.Node(config, Journal)
            await again.open()
            assert suspects(again) == [0]

    run_once(main())


def test_a_store_that_was_made_anew_forgets_what_is_doubtful_only_when_the_journal_says_it(
    run_once, tmp_path, monkeypatch
):
    """The power goes when the new store has its first facts, and the journal what it had before."""

    async def main():
        async with cluster(tmp_path, **RELAXED) as nodes:
            config = await used_and_closed(nodes)
            (config.dir / "store" / "data.mdb").unlink()
            shutil.copytree(config.dir / "journal", tmp_path / "journal")

            def write_and_copy(store, facts):
                write(store, facts)
                if not (tmp_path / "store").exists():
                    shutil.copytree(config.dir / "store", tmp_path / "store")

            with monkeypatch.context() as patch:
                patch.setattr(phx.node.lives, "write", write_and_copy)
                again = nodes[1] = phx.Node(config, Journal)
                await again.open()
                assert suspects(again) == [0]
                await until(lambda: row(again) == (0,))  # in this run: the journal says so now
                await again.close()
            for part in ("journal", "store"):
                shutil.rmtree(config.dir / part)
                shutil.copytree(tmp_path / part, config.dir / part)
            facts = facts_of(config)
            assert facts is not None
            assert (facts.relaxed, facts.boot) == ((0,), b"")
            again = nodes[1] = phx.Node(config, Journal)
            await again.open()
            assert suspects(again) == [0]

    run_once(main())


def test_what_was_only_written_is_doubtful_once_the_journal_has_failed(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, **RELAXED) as nodes:
            await until(lambda: row(nodes[0]) == (0,))
            nodes[0]._room.applier.on_poisoned()
            await until(lambda: read(nodes[0]._room._store).boot == b"")
            facts = read(nodes[0]._room._store)
            assert facts.relaxed == (0,)

    run_once(main())


def test_a_journal_that_fails_takes_the_run_of_the_system_out_of_the_store(run_once, tmp_path):
    async def main():
        config = config_of(tmp_path, 1, nodes=1, **RELAXED)
        async with phx.Node(config, Journal, bootstrap=True) as node:
            await node.group(0).propose(b"x")
            await until(lambda: row(node) == (0,))
            writes_fail(config.dir / "journal")
            with pytest.raises(errors.PhxError):
                await node.group(0).propose(b"y", timeout=5)
            assert node.status().poisoned
            await until(lambda: row(node) == ())
        facts = facts_of(config)
        assert facts is not None
        assert (facts.relaxed, facts.boot) == ((0,), b"")  # the close is not a clean one
        async with phx.Node(config, Journal) as node:
            assert suspects(node) == [0]

    run_once(main())


def test_a_doubt_that_the_store_could_not_note_is_noted_when_it_can(
    run_once, tmp_path, monkeypatch
):
    async def main():
        async with cluster(tmp_path, **RELAXED) as nodes:
            await until(lambda: row(nodes[0]) == (0,))
            refused = []

            def refuse(*_):
                refused.append(1)
                raise errors.StoreError("no room")

            with monkeypatch.context() as patch:
                patch.setattr(phx.node.lives, "write", refuse)
                nodes[0]._room.applier.on_poisoned()
                await until(lambda: len(refused) > 1)
                assert row(nodes[0]) == (0,)
            await until(lambda: row(nodes[0]) == ())
            # And whoever asks for it then does not take it back.
            await nodes[0].group(1).set_durability("none")
            facts = read(nodes[0]._room._store)
            assert (facts.relaxed, facts.boot) == ((0, 1), b"")

    run_once(main())


def test_groups_that_are_created_are_as_the_configuration_says_and_the_directory_syncs(
    run_once, tmp_path
):
    async def main():
        given = {"groups": 0, "directory": True, "durability": {"mode": "none"}}
        async with cluster(tmp_path, **given) as nodes:
            group = 7
            await nodes[0].create_group(group)
            await until(lambda: mode(nodes[0], group) == "none")
            await nodes[0].group(group).propose(b"x")
            assert row(nodes[0]) == (group,)
            assert mode(nodes[0], DIRECTORY_GROUP) == "sync"
            with pytest.raises(ValueError, match="directory"):
                await nodes[0].group(DIRECTORY_GROUP).set_durability("none")

    run_once(main())


def test_a_group_that_was_deleted_is_relaxed_no_more(run_once, tmp_path):
    async def main():
        given = {"groups": 0, "directory": True, "durability": {"mode": "none"}}
        async with cluster(tmp_path, **given) as nodes:
            await nodes[0].create_group(7)
            await until(lambda: all(row(node) == (7,) for node in nodes))
            old = nodes[0].group(7)
            await nodes[0].delete_group(7)
            await until(lambda: all(row(node) == () for node in nodes))
            with pytest.raises(errors.PhxError):
                await old.set_durability("none")
            assert row(nodes[0]) == ()
            await nodes[0].create_group(7)
            await until(lambda: all(row(node) == (7,) for node in nodes))

    run_once(main())


def test_without_an_event_loop(tmp_path):
    config = config_of(tmp_path, 1, nodes=1)
    with phx.blocking.Node(config, Journal, bootstrap=True) as node:
        node.group(0).set_durability("interval", interval_us=5_000)
        assert node.group(0).status().durability == "interval"
        node.group(0).propose(b"x")
        node.group(0).set_durability("sync")
        assert node.group(0).status().durability == "sync"


def test_facts_have_the_relaxed_groups_and_are_as_before_without_any(tmp_path):
    facts = Facts(7, 3, 2, 800_000, (0, 5), {2: b"b" * 16}, 9, 2, (0, 5), OTHER_BOOT)
    assert unpack(facts.pack(), tmp_path) == facts
    assert facts.pack()[:8] == b"PHXFACT3"
    none = replace(facts, relaxed=(), boot=b"")
    assert none.pack()[:8] == b"PHXFACT2"
    unknown = replace(facts, boot=b"")
    assert unpack(unknown.pack(), tmp_path) == unknown
    # Of two copies that differ: all groups of both, and no run that both had.
    other = replace(facts, relaxed=(1,), boot=boot_id())
    both, why = join([facts.pack(), other.pack()], tmp_path)
    assert both is not None
    assert (both.relaxed, both.boot) == ((0, 1, 5), b"")
    assert "differ" in why


@pytest.mark.parametrize("cut", range(1, 24))
def test_facts_that_are_cut_short_are_damage(tmp_path, cut):
    from phx._core.codec import crc32c

    body = Facts(relaxed=(0,), boot=OTHER_BOOT).pack()[:-4][:-cut]
    with pytest.raises(errors.Damaged):
        unpack(body + crc32c(body).to_bytes(4, "little"), tmp_path)


def test_modes_are_checked_with_everything_else():
    given = {"mode": "often", "interval_us": 1, "groups": {"7": "interval", "x": "none", "8": ""}}
    with pytest.raises(errors.ConfigError) as caught:
        phx.Config(cluster="c", node=1, members={1: "h:1"}, dir=".", groups=9, durability=given)
    problems = "\n".join(caught.value.problems)
    for part in ("durability.mode", "durability.interval_us", "durability.groups.x",
                 "durability.groups.8"):  # fmt: skip
        assert part in problems
    assert "groups.7" not in problems
    made = Durability(mode="none", groups={"7": "sync"})
    assert (made.of(7), made.of(8), made.of(DIRECTORY_GROUP)) == ("sync", "none", "sync")


def test_a_start_under_a_boot_id_that_was_given_says_so(run_once, tmp_path, monkeypatch, caplog):
    async def main():
        config = config_of(tmp_path, 1, nodes=1)
        async with phx.Node(config, Journal, bootstrap=True):
            assert "PHX_BOOT_ID" not in caplog.text
        monkeypatch.setenv("PHX_BOOT_ID", str(uuid.UUID(int=5)))
        async with phx.Node(config, Journal):
            assert "PHX_BOOT_ID" in caplog.text

    run_once(main())


def test_a_boot_id_is_that_of_the_system_or_the_one_that_is_given(monkeypatch):
    monkeypatch.setenv("PHX_BOOT_ID", str(uuid.UUID(int=5)))
    assert boot_id() == uuid.UUID(int=5).bytes
    monkeypatch.setenv("PHX_BOOT_ID", "none")
    assert boot_id() == b""

"""Survivors of which a group was relaxed, or is suspect, may have forgotten what they accepted."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import phx
from phx.node.lives import boot_id
from phx.store import Store
from phx.store_facts import forget
from tests.api.cluster import all_applied, cluster
from tests.api.members_lab import counters
from tests.api.test_durability import OTHER_BOOT, RELAXED, not_closed
from tests.api.test_lost_journal import facts_of, suspects

from .recovery_lab import new_config, recover, write_toml

pytestmark = pytest.mark.usefixtures("no_leaks")


async def three_folders(folder: Path) -> list[phx.Config]:
    """Of nodes that were closed, with values in groups 0, which was relaxed, and 1."""
    async with cluster(folder, counters, **RELAXED) as nodes:
        for number in range(6):
            await nodes[number % 3].group(number % 2).propose(b"1")
        for group in (0, 1):
            await all_applied(nodes, group)
        return [node.config for node in nodes]


async def majorities(folder: Path, configs: list[phx.Config]) -> tuple[dict[int, bool], str]:
    """By group, whether recover takes the survivors for one; and what it says."""
    path = write_toml(folder / "new.toml", new_config(folder))
    words = [*(config.dir for config in configs), "--config", path]
    said = await asyncio.to_thread(recover, *words)
    assert said.exit_code == 0, said.output
    told = json.loads((await asyncio.to_thread(recover, *words, "--json")).stdout)
    return {one["group"]: one["majority"] for one in told["groups"]}, said.output


async def started(configs: list[phx.Config]) -> None:
    """Each of them, so that its journal says which groups are suspect. One after the other: two
    that meet rejoin, and are relaxed again, if the third takes a while to close."""
    for config in configs:
        async with phx.Node(config, counters) as node:
            assert suspects(node) == [0]
        facts = facts_of(config)
        assert facts is not None
        assert facts.relaxed == ()


def test_closed_survivors_lose_nothing(run_once, tmp_path):
    async def main():
        configs = await three_folders(tmp_path)
        whole, said = await majorities(tmp_path, configs[:2])
        assert whole == {0: True, 1: True}
        assert "they lose nothing" in said

    run_once(main())


# This machine's run counts, too: the folders may be another's.
@pytest.mark.parametrize("boot", [lambda: OTHER_BOOT, boot_id], ids=["other", "same"])
def test_a_group_that_was_relaxed_may_have_forgotten_at_a_node_that_was_not_closed(
    run_once, tmp_path, boot: Callable[[], bytes]
):
    async def main():
        configs = await three_folders(tmp_path)
        for config in configs[:2]:
            not_closed(config, boot(), 0)
        whole, said = await majorities(tmp_path, configs)
        assert whole == {0: False, 1: True}
        assert "Of 1 groups, the first of them group 1," in said

    run_once(main())


def test_a_group_that_is_suspect_by_its_journal_may_have_forgotten(run_once, tmp_path):
    async def main():
        configs = await three_folders(tmp_path)
        for config in configs:
            not_closed(config, OTHER_BOOT, 0)
        await started(configs)
        whole, _ = await majorities(tmp_path, configs)
        assert whole == {0: False, 1: True}

    run_once(main())


def test_a_store_that_knows_of_no_life_cannot_say_what_was_relaxed(run_once, tmp_path):
    async def main():
        configs = await three_folders(tmp_path)
        for config in configs[:2]:
            where = config.dir / "store"
            store = Store.open(where, cluster=config.cluster_id, node=config.node)
            forget(store)
            store.close()
        whole, _ = await majorities(tmp_path, configs)
        assert whole == {0: False, 1: False}

    run_once(main())

"""`phx repair --rejoin`: a node goes on without its journal once, though its settings forbid it."""

import asyncio
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

import phx
from phx import errors
from phx.machine import CopyView
from phx.store_facts import read
from phx.verify import examine
from tests.ports import at_ports

from .cluster import Journal, all_applied, cluster, config_of, introduce, until
from .members_lab import joining
from .test_lost_journal import damage, facts_of, lose, suspects

pytestmark = pytest.mark.usefixtures("no_leaks")


async def repair(config: phx.Config, *words: str) -> subprocess.CompletedProcess[str]:
    """As in a shell."""
    command = [sys.executable, "-m", "phx.cli", "repair", str(config.dir), *words]
    return await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("how", [lose, damage])
def test_a_refused_node_rejoins_once_after_the_command(run_once, tmp_path, how):
    async def main():
        async with cluster(tmp_path) as nodes:
            for number in range(4):
                await nodes[0].group(number % 2).propose(b"%d" % number)
            await all_applied(nodes)
            config = nodes[1].config
            await nodes[1].close()
            how(config)
            with pytest.raises(errors.Damaged, match="phx repair --rejoin"):
                await phx.Node(config, Journal).open()

            said = await repair(config, "--rejoin")
            assert said.returncode == 0, said.stderr
            assert "Nothing was changed" in said.stdout
            assert "votes in no group" in said.stdout
            with pytest.raises(errors.Damaged):
                await phx.Node(config, Journal).open()
            assert not (config.dir / "quarantine").exists()

            done = await repair(config, "--rejoin", "--yes")
            assert done.returncode == 0, done.stderr
            assert "2 groups rejoin" in done.stdout
            aside = list((config.dir / "quarantine").glob("*/journal"))
            assert len(aside) == (how is not lose)

            again = nodes[1] = phx.Node(config, Journal)
            await again.open()
            assert suspects(again) == [0, 1]
            introduce(nodes)
            await nodes[0].group(0).propose(b"meanwhile", timeout=20)
            await until(lambda: suspects(again) == [], seconds=30)
            await nodes[2].close()  # what is chosen now is chosen with its vote
            await again.group(0).propose(b"with it", timeout=20)
            await all_applied([nodes[0], again])
            assert again.group(0).machine().values == nodes[0].group(0).machine().values
            await again.close()
            assert examine(config.dir, whole=True).findings == []

            lose(config)  # that was another loss
            with pytest.raises(errors.Damaged, match="phx repair --rejoin"):
                await phx.Node(config, Journal).open()

    run_once(main())


def test_a_start_that_fails_before_its_journal_is_there_may_be_tried_again(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path) as nodes:
            await nodes[0].group(0).propose(b"x")
            await all_applied(nodes)
            config = nodes[1].config
            await nodes[1].close()
            lose(config)
            assert (await repair(config, "--rejoin", "--yes")).returncode == 0
            before = facts_of(config)
            assert before.allowed == before.lost > 0
            taken = replace(config, members={**config.members, 2: f"127.0.0.1:{nodes[0].port}"})
            with pytest.raises(errors.PhxError):
                await phx.Node(taken, Journal).open()
            assert facts_of(config).allowed == facts_of(config).lost > before.lost
            again = nodes[1] = phx.Node(config, Journal)
            await again.open()
            assert suspects(again) == [0, 1]
            await until(lambda: read(again._room._store).allowed == 0)

    run_once(main())


def test_what_cannot_or_need_not_be_allowed_is_refused_and_nothing_changes(run_once, tmp_path):
    async def main():
        config = config_of(tmp_path, 1, nodes=1)
        async with phx.Node(config, Journal, bootstrap=True) as node:
            await node.group(0).propose(b"x")
            running = await repair(config, "--rejoin", "--yes")
            assert running.returncode == 1
            assert "open already" in running.stderr
        before = facts_of(config)
        whole = await repair(config, "--rejoin", "--yes")
        assert whole.returncode == 1
        assert "whole" in whole.stderr
        assert facts_of(config) == before
        for words in ((), ("--rejoin", "--group", "0"), ("--group", "0", "--yes")):
            assert (await repair(config, *words)).returncode == 2
        lose(config)
        told = json.loads((await repair(config, "--rejoin", "--json")).stdout)
        assert told == {
            "journal": "it is gone", "groups": [0, 1], "allowed": False, "put_aside": None,
        }  # fmt: skip
        assert facts_of(config) == before
        assert (await repair(config, "--rejoin", "--yes")).returncode == 0
        with pytest.raises(errors.Damaged, match="no other member"):
            await phx.Node(config, Journal).open()

    run_once(main())


def test_a_journal_of_another_node_is_no_loss(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path) as nodes:
            await nodes[0].group(0).propose(b"x")
            await all_applied(nodes)
        one, two = nodes[0].config, nodes[1].config
        lose(two)
        shutil.copytree(one.dir / "journal", two.dir / "journal")
        refused = await repair(two, "--rejoin", "--yes")
        assert refused.returncode == 1
        assert "no loss" in refused.stderr
        assert facts_of(two).allowed == 0

    run_once(main())


# --- what is found damaged when it is used


class Kept(Journal):
    """A machine with checkpoints."""

    def freeze(self):
        return CopyView(self)

    def snapshot(self, writer):
        writer.write(b"\n".join(self.values))

    def restore(self, reader):
        self.values = reader.read(1 << 20).split(b"\n")


@pytest.mark.parametrize("name", ["manifest", "machine"])
def test_a_checkpoint_that_is_damaged_at_a_start_counts(run_once, tmp_path, name):
    config = config_of(tmp_path, 1, nodes=1, checkpoints={"scrub_bytes_per_s": 0})

    async def main():
        async with phx.Node(config, Kept, bootstrap=True) as node:
            for text in (b"a", b"b"):
                await node.group(0).propose(text)
                info = await node.group(0).checkpoint()
            assert node.status().damage["found"] == 0
        (file,) = (
            one
            for one in (config.dir / info.path).iterdir()
            if (one.name == "manifest") == (name == "manifest")
        )
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        async with phx.Node(config, Kept) as node:
            await node.wait_ready()
            assert node.group(0).machine().values == [b"a", b"b"]
            status = node.status().damage
            assert status["found"] == 1
            assert "group 0" in status["last"] or "checkpoints/0/" in status["last"]
            assert list((config.dir / "quarantine").iterdir())

    run_once(main())


def test_the_first_of_a_cluster_that_grew_is_not_alone(run_once, tmp_path):
    """Its file names itself, as the members that the cluster began with."""

    async def main():
        config = config_of(tmp_path, 1, nodes=1, members=at_ports(1))
        async with phx.Node(config, Journal, bootstrap=True) as one:
            await one.wait_ready(timeout=20)
            await one.group(0).propose(b"alone")
            async with joining(tmp_path, [2, 3], [one], machines=Journal) as made:
                for each in made:
                    assert (await one.add_member(each.number, each.at)).failed == {}
                others = [await each.opened() for each in made]
                await one.close()
                lose(config)
                assert (await repair(config, "--rejoin", "--yes")).returncode == 0
                async with phx.Node(config, Journal) as again:
                    await others[0].group(0).propose(b"meanwhile", timeout=20)
                    await until(lambda: suspects(again) == [], seconds=30)
                    await others[1].close()
                    await again.group(0).propose(b"with it", timeout=20)
                    assert again.group(0).machine().values[0] == b"alone"

    run_once(main())

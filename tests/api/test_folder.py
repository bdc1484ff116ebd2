"""The folder of a node: who may open it, and what is damage."""

import shutil
from dataclasses import replace

import pytest

import phx
from phx import errors

from .cluster import Journal, config_of

pytestmark = pytest.mark.usefixtures("no_leaks")


def test_an_empty_folder_needs_a_bootstrap(run_once, tmp_path):
    async def main():
        for _ in range(2):
            with pytest.raises(errors.NotBootstrapped):
                await phx.Node(config_of(tmp_path, 1), Journal).open()
            (tmp_path / "node1").mkdir(exist_ok=True)

    run_once(main())


def test_one_folder_is_open_once(run_once, tmp_path):
    async def main():
        config = config_of(tmp_path, 1, nodes=1)
        async with phx.Node(config, Journal, bootstrap=True):
            with pytest.raises(errors.Locked):
                await phx.Node(config, Journal, bootstrap=True).open()
        async with phx.Node(config, Journal):
            pass

    run_once(main())


def test_a_store_without_its_journal_is_damage(run_once, tmp_path):
    async def main():
        config = config_of(tmp_path, 1, nodes=1)
        async with phx.Node(config, Journal, bootstrap=True) as node:
            await node.group(0).propose(b"x")
        shutil.rmtree(config.dir / "journal")
        for bootstrap in (False, True):
            with pytest.raises(errors.Damaged):
                await phx.Node(config, Journal, bootstrap=bootstrap).open()

    run_once(main())


@pytest.mark.parametrize("cut", ["before the store", "before the journal", "in the journal"])
def test_a_bootstrap_that_was_cut_short_is_done_again(run_once, tmp_path, cut):
    async def main():
        config = config_of(tmp_path, 1, nodes=1)
        async with phx.Node(config, Journal, bootstrap=True):
            pass
        if cut == "before the store":
            shutil.rmtree(config.dir / "store")
        if cut == "in the journal":
            for segment in (config.dir / "journal").iterdir():
                segment.write_bytes(bytes(5000))
        else:
            shutil.rmtree(config.dir / "journal")
        with pytest.raises(errors.StoreError):  # with no sign that it was being made: damage
            await phx.Node(config, Journal, bootstrap=cut == "in the journal").open()
        (config.dir / "bootstrap").touch()
        with pytest.raises((errors.NotBootstrapped, errors.Damaged)):
            await phx.Node(config, Journal).open()
        async with phx.Node(config, Journal, bootstrap=True) as node:
            assert (await node.group(0).propose(b"x")).value == 1
        assert not (config.dir / "bootstrap").exists()
        async with phx.Node(config, Journal) as node:
            await node.wait_ready()
            assert node.group(0).machine().values == [b"x"]

    run_once(main())


@pytest.mark.parametrize("change", [{"cluster": "another"}, {"node": 2}])
def test_the_folder_of_another_is_refused(run_once, tmp_path, change):
    async def main():
        config = config_of(tmp_path, 1)
        async with phx.Node(config, Journal, bootstrap=True):
            pass
        with pytest.raises(errors.Foreign):
            await phx.Node(replace(config, **change), Journal).open()

    run_once(main())


def test_an_address_that_is_taken_is_a_system_failure(run_once, tmp_path):
    async def main():
        async with phx.Node(config_of(tmp_path, 1, nodes=1), Journal, bootstrap=True) as node:
            taken = config_of(tmp_path, 2, nodes=2, bind=f"127.0.0.1:{node.port}")
            with pytest.raises(errors.SystemFailure):
                await phx.Node(taken, Journal, bootstrap=True).open()
        with pytest.raises(errors.SystemFailure, match="no address"):
            await phx.Node(
                config_of(tmp_path, 2, nodes=2, bind="no.such.host.invalid:0"),
                Journal,
                bootstrap=True,
            ).open()

    run_once(main())

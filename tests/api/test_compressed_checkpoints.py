"""Checkpoints of a node that are compressed: taken, listed, carried, and started from."""

import json

import pytest
from click.testing import CliRunner

import phx
from phx import errors
from phx.checkpoint import compression
from phx.checkpoint.catalog import look
from phx.checkpoint.files import OsFiles
from phx.cli.commands import phx as command
from phx.durable import SqliteMachine
from phx.machines import KeyValue
from phx.machines.kv import encode_set
from tests.api.cluster import config_of
from tests.api.test_checkpoints import QUIET, alone, of

needs_zstd = pytest.mark.skipif(
    compression.why_missing("zstd") is not None, reason="the extra `zstd` is not installed"
)
pytestmark = pytest.mark.usefixtures("no_leaks")


def missing():
    raise ImportError("no such package")


async def filled(node, group=0, count=200):
    for number in range(count):
        await node.group(group).propose(encode_set(b"key %d" % number, b"and what it says " * 9))


def manifests(config):
    return [
        one for found in look(OsFiles(config.dir), "checkpoints").groups.values() for one in found
    ]


@needs_zstd
@pytest.mark.parametrize("after", ["zstd", "none"])
def test_a_node_starts_from_it_whatever_it_is_set_to_then(run_once, tmp_path, after):
    config = alone(tmp_path, compress="zstd")

    async def main():
        async with phx.Node(config, KeyValue, bootstrap=True) as node:
            await filled(node)
            taken = await node.group(0).checkpoint()
            digest = node.group(0).machine().digest()
        (manifest,) = manifests(config)
        assert manifest.files[0].codec == "zstd"
        assert taken.bytes == manifest.size_bytes < manifest.raw_bytes // 4
        async with phx.Node(alone(tmp_path, compress=after), KeyValue) as node:
            await node.wait_ready()
            assert node.status().checkpoints["restored"] == 1
            assert node.group(0).machine().digest() == digest
            await filled(node, count=1)
            await node.group(0).checkpoint()
        assert manifests(config)[0].files[0].codec == ("zstd" if after == "zstd" else "")

    run_once(main())


class Table(SqliteMachine):
    def __init__(self, group):
        super().__init__()

    def create(self, db):
        db.execute("CREATE TABLE text (value BLOB)")

    def apply(self, entry):
        self.db.execute("INSERT INTO text VALUES (?)", (entry.value,))


@needs_zstd
def test_a_durable_machine_is_restored_from_it_and_its_light_ones_are_as_ever(run_once, tmp_path):
    config = alone(tmp_path, compress="zstd", interval_instances=20)

    async def main():
        async with phx.Node(config, Table, bootstrap=True) as node:
            for number in range(30):
                await node.group(0).propose(b"%d " % number * 100)
            while not node.status().checkpoints["taken"]:
                await node.group(0).propose(b"more")
            assert manifests(config)[0].light
            await node.group(0).checkpoint()
            newest = manifests(config)[0]
            assert newest.files[0].codec == "zstd"
        for one in (config.dir / "machines" / "0.0").iterdir():
            if one.is_dir():  # what the machine had is lost
                for inside in one.iterdir():
                    inside.write_bytes(b"")
        async with phx.Node(config, Table) as node:
            await node.wait_ready()
            with node.group(0).machine().reading() as db:
                assert db.execute("SELECT count(*) FROM text").fetchone()[0] >= 30

    run_once(main())


@needs_zstd
def test_commands_carry_it_without_the_package(run_once, tmp_path, monkeypatch):
    config, bundle = alone(tmp_path, compress="zstd"), tmp_path / "bundle"

    async def main():
        async with phx.Node(config, KeyValue, bootstrap=True) as node:
            await filled(node)
            await node.group(0).checkpoint()

    run_once(main())
    monkeypatch.setattr(compression, "_zstd", missing)

    def phx_command(*words):
        made = CliRunner().invoke(command, [str(word) for word in words])
        assert made.exit_code == 0, made.output
        return made.output

    phx_command("checkpoint", "verify", config.dir)
    listed = json.loads(phx_command("checkpoint", "list", config.dir, "--json"))
    assert len(listed["checkpoints"]) == 1
    phx_command("verify", config.dir)
    phx_command("inspect", config.dir)
    phx_command("checkpoint", "export", config.dir, 0, bundle)
    (before,) = of(config)
    files = {one.name: one.read_bytes() for one in before.iterdir()}
    for one in before.iterdir():
        one.unlink()
    before.rmdir()
    phx_command("checkpoint", "import", bundle, config.dir)
    (again,) = of(config)
    assert {one.name: one.read_bytes() for one in again.iterdir()} == files


def test_a_node_that_could_not_write_it_does_not_open(tmp_path, monkeypatch):
    monkeypatch.setattr(compression, "_zstd", missing)
    node = phx.blocking.Node(alone(tmp_path, compress="zstd"), KeyValue, bootstrap=True)
    with pytest.raises(errors.ConfigError, match=r"compress: .*phx-paxos\[zstd\]"):
        node.open()


@needs_zstd
def test_a_node_that_could_not_read_it_does_not_open(run_once, tmp_path, monkeypatch):
    """It would apply the whole log again, or stop a group whose log is gone."""

    async def main():
        async with phx.Node(alone(tmp_path, compress="zstd"), KeyValue, bootstrap=True) as node:
            await filled(node, count=3)
            await node.group(0).checkpoint()

    run_once(main())
    plain = phx.blocking.Node(alone(tmp_path), KeyValue)
    with monkeypatch.context() as patch:
        patch.setattr(compression, "_zstd", missing)
        with pytest.raises(errors.SystemFailure, match=r"group 0 .*phx-paxos\[zstd\]"):
            plain.open()
    with phx.blocking.Node(alone(tmp_path), KeyValue) as node:
        node.wait_ready()
        assert node.status().checkpoints["restored"] == 1


@pytest.mark.parametrize("word", ["lz4", "", None, 3, True])
def test_the_word_is_one_of_those_that_are_known(tmp_path, word):
    with pytest.raises(errors.ConfigError, match=r'checkpoints.compress: must be "none" or "zstd"'):
        config_of(tmp_path, 1, checkpoints=QUIET | {"compress": word})

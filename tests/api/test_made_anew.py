"""Groups that are made anew where that is in somebody's way."""

import asyncio
import errno
from contextlib import suppress

import pytest
from click.testing import CliRunner

from phx.checkpoint.catalog import Catalog
from phx.checkpoint.digests import Agreed, Verdict
from phx.cli.repair import repair
from phx.machines import Counter
from phx.types import AGREED_EVERY
from tests.api.catch_up import QUIET
from tests.api.cluster import all_applied, cluster, until
from tests.api.test_divergence import counted, names, reopened, spoilt

pytestmark = pytest.mark.usefixtures("no_leaks")


def test_who_is_made_anew_puts_nobody_in_doubt(run_once, tmp_path):
    """Two are marked: what they noted was of what is not to be believed, and the third is right."""

    async def main():
        async with counted(tmp_path) as nodes:
            _, two, three = nodes
            for node in nodes:
                said = Agreed(AGREED_EVERY, 5, b"of %6d" % node.config.node)
                node._room._transfers.divergence._known.note(0, said)
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(three.group(0).repair()), 1.0)
            repaired = [asyncio.ensure_future(node.group(0).repair()) for node in (two, three)]
            await asyncio.wait_for(asyncio.gather(*repaired), 20)
            assert {node.group(0).machine().total for node in nodes} == {50}

    run_once(main())


def test_what_cannot_be_put_aside_keeps_the_mark(run_once, tmp_path, monkeypatch, caplog):
    """A start takes the newest checkpoint: without the mark the group would be odd again."""
    options = {"checkpoints": QUIET}

    def no_room(catalog, manifest):
        catalog.forget(manifest)
        raise OSError(errno.ENOSPC, "planted")

    async def main():
        async with cluster(tmp_path, Counter, **options) as nodes:
            await spoilt(nodes, tmp_path)
            folder = nodes[2].config.dir
            done = CliRunner().invoke(repair, [str(folder), "--group", "0"])
            assert done.exit_code == 0
            with monkeypatch.context() as patched:
                patched.setattr(Catalog, "put_aside", no_room)
                again = await reopened(nodes, tmp_path, options)
                await again.wait_ready()
                assert again.group(0).machine().total == 100
                await until(lambda: "and stays marked" in caplog.text)
                await again.close()
            assert "rebuild" in names(again)
            again = await reopened(nodes, tmp_path, options)
            await again.wait_ready()
            assert again.group(0).machine().total == 100
            await until(lambda: "rebuild" not in names(again))

    run_once(main())


def test_repaired_twice_in_one_life_what_stays_keeps_the_mark(
    run_once, tmp_path, monkeypatch, caplog
):
    """What could not be put aside the first time is not in the catalog the second time."""

    def no_room(catalog, manifest):
        catalog.forget(manifest)
        raise OSError(errno.ENOSPC, "planted")

    async def main():
        async with cluster(tmp_path, Counter, checkpoints=QUIET) as nodes:
            await spoilt(nodes, tmp_path)
            three = await reopened(nodes, tmp_path, {"checkpoints": QUIET})
            await three.wait_ready()
            assert three.group(0).machine().total == 1100
            old = {name for name in names(three) if name != "rebuild"}
            with monkeypatch.context() as patched:
                patched.setattr(Catalog, "put_aside", no_room)
                await asyncio.wait_for(three.group(0).repair(), 20)
                await until(lambda: "and stays marked" in caplog.text)
            assert old <= set(names(three))
            await asyncio.wait_for(three.group(0).repair(), 20)
            await until(lambda: "rebuild" not in names(three))
            assert not old & set(names(three))

    run_once(main())


def test_what_stays_when_the_odd_one_stops_is_put_aside_at_the_repair(
    run_once, tmp_path, monkeypatch, caplog
):
    """It was condemned before the repair: the mark must not go as long as it lies there."""

    def no_room(catalog, manifest):
        catalog.forget(manifest)
        raise OSError(errno.ENOSPC, "planted")

    async def main():
        async with cluster(tmp_path, Counter, checkpoints=QUIET) as nodes:
            await nodes[0].group(0).propose_many([b"1"] * 50)
            await all_applied(nodes)
            three = nodes[2]
            three.group(0).machine().total += 1000
            await three.group(0).checkpoint()
            old = set(names(three))
            assert old
            transfers = three._room._transfers
            verdict = Verdict("odd", "state", 0, AGREED_EVERY, (1, 2))
            transfers.divergence._known._said[0] = verdict
            with monkeypatch.context() as patched:
                patched.setattr(Catalog, "put_aside", no_room)
                transfers._odd(0, verdict)
                await until(lambda: "may not be what the log says" in caplog.text)
            assert old <= set(names(three))
            await asyncio.wait_for(three.group(0).repair(), 20)
            await until(lambda: "rebuild" not in names(three))
            assert not old & set(names(three))
            assert three.group(0).machine().total == 50

    run_once(main())

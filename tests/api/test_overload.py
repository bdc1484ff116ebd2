"""A node with a stated bound on waiting, as its callers see it."""

import asyncio
import time

from phx import errors

from .cluster import Journal, cluster

BOUND_US = 50_000


class Slow(Journal):
    """Takes two milliseconds for a value."""

    def apply(self, entry):
        time.sleep(0.002)
        return super().apply(entry)


def test_what_would_wait_for_longer_is_turned_away_and_the_rest_is_applied(run_once, tmp_path):
    async def main():
        limits = {"wait_us_max": BOUND_US}
        async with cluster(tmp_path, Slow, nodes=1, limits=limits) as (node,):
            group = node.group(0)
            taken, refused = [], []
            ends = asyncio.get_running_loop().time() + 30
            while len(refused) < 50 and asyncio.get_running_loop().time() < ends:
                for number in range(5):
                    value = b"%d" % (len(taken) + len(refused))
                    try:
                        if number:
                            taken.append((value, group.propose(value, timeout=60)))
                        else:
                            taken.append((value, group.propose_many([value], timeout=60)))
                    except errors.Overloaded as error:
                        refused.append((value, error))
                await asyncio.sleep(0.001)
            assert len(refused) >= 50
            assert all(f"limits.wait_us_max is {BOUND_US}: " in str(one) for _, one in refused)
            assert group.status().turned_away == node.status().flow["turned_away"] == len(refused)
            await asyncio.gather(*(future for _, future in taken))
            applied = group.machine().values
            assert sorted(applied) == sorted(value for value, _ in taken)
            assert (await group.propose(b"when nobody waits")).value
            await asyncio.sleep(4 * BOUND_US / 1e6)  # twice what is a span without anybody
            assert group.status().wait_window == node.status().flow["window"] == 0
            await asyncio.gather(*(group.propose(b"%d" % n) for n in range(50)))

    run_once(main())

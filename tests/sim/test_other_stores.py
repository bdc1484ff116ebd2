"""Stores are lost, or older copies put in their place: the journal says what is settled."""

from phx.sim.run import run_seed

COUNTED = ("lost_stores", "old_rows", "installs")


def test_nothing_breaks_and_each_of_it_happens() -> None:
    total = dict.fromkeys(COUNTED, 0)
    for seed in range(1, 13):
        outcome = run_seed(seed, "stores")
        assert outcome.violation is None, (seed, outcome.violation)
        for name in COUNTED:
            total[name] += outcome.counters[name]
    assert all(total.values()), total

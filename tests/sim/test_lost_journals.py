"""Journals are lost, and their nodes vote again under their old ids."""

from phx.sim.fleet import RARE
from phx.sim.plan import SECOND, Act, Plan
from phx.sim.profiles import plan_of
from phx.sim.run import run_seed

COUNTED = ("lost_journals", "lost_again", "rejoin_asks", "rejoins", "ceilings")


def losing(nodes: int, *acts: Act, rejoin: int = 1) -> Plan:
    """No other fault; the disks of the plan of some seed."""
    usual = plan_of(1, "rejoin")
    return Plan(
        seed=1, profile="rejoin", nodes=nodes, groups=2, duration_us=24 * SECOND, clients=2,
        limits=(("value_bytes_max", 16384), ("rejoin", rejoin)), pace=usual.pace, link=usual.link,
        acts=acts,
    )  # fmt: skip


def lose(at_s: float, node: int, **args: int) -> Act:
    at_us = int(at_s * SECOND)
    named = {"damaged": 0, "which": 7, "bit": 100, "operation": 0, "power": 0, **args}
    return Act(at_us, at_us + SECOND // 2, "lose-journal", (("node", node), *named.items()))


def test_a_node_without_its_journal_rejoins_every_group() -> None:
    outcome = run_seed(1, plan=losing(3, lose(3, 1)))
    assert outcome.violation is None, outcome.violation
    assert outcome.counters["lost_journals"] == 1
    assert outcome.counters["rejoins"] == 2


def test_so_does_one_whose_journal_has_a_bad_bit() -> None:
    outcome = run_seed(1, plan=losing(3, lose(8, 2, damaged=1)))
    assert outcome.violation is None, outcome.violation
    assert outcome.counters["lost_journals"] == 1
    assert outcome.counters["rejoins"] == 2


def test_a_new_journal_that_is_cut_short_is_lost_again() -> None:
    again = 0
    for operation in range(1, 9):
        outcome = run_seed(1, plan=losing(3, lose(3, 3, operation=operation, power=1)))
        assert outcome.violation is None, (operation, outcome.violation)
        assert outcome.counters["rejoins"] == 2, operation
        again += outcome.counters["lost_again"]
    assert again >= 2


def test_no_more_lose_theirs_than_leave_a_majority_that_has_all_its_votes() -> None:
    for nodes, most in ((3, 1), (4, 1), (5, 2)):
        acts = tuple(lose(3 + node / 100, node) for node in range(1, nodes + 1))
        outcome = run_seed(1, plan=losing(nodes, *acts))
        assert outcome.violation is None, (nodes, outcome.violation)
        assert outcome.counters["lost_journals"] == most


def test_where_a_store_keeps_no_facts_no_journal_is_taken() -> None:
    outcome = run_seed(1, plan=losing(3, lose(3, 1), rejoin=0))
    assert outcome.violation is None, outcome.violation
    assert outcome.counters["lost_journals"] == outcome.counters["ceilings"] == 0


def test_whatever_else_happens_meanwhile() -> None:
    total = dict.fromkeys(COUNTED, 0)
    for seed in range(1, 9):
        outcome = run_seed(seed, "rejoin")
        assert outcome.violation is None, (seed, outcome.violation)
        for name in COUNTED:
            total[name] += outcome.counters[name]
    assert all(total.values()), total
    assert set(COUNTED) <= set(RARE)

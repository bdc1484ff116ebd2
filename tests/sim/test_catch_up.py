"""Nodes that no log brings on: they fetch a checkpoint, whatever happens meanwhile."""

from dataclasses import replace

import pytest

from phx.sim import fetching
from phx.sim.fetching import Fetching
from phx.sim.plan import SECOND, Act, Plan
from phx.sim.run import play
from phx.sim.settings import LINK, PACE
from phx.transfer.choice import Log, log_there

TRIMMING = Plan(
    seed=1,
    profile="catch-up",
    nodes=3,
    groups=2,
    duration_us=22 * SECOND,
    clients=1,
    limits=(
        ("value_bytes_max", 16384),
        ("checkpoint_us", 300_000),
        ("checkpoints_kept", 1),
        ("hold_instances", 0),
    ),
    pace=tuple(PACE.items()),
    link=tuple(LINK.items()),
)


def act(at_s: float, until_s: float, kind: str, **args: int) -> Act:
    return Act(int(at_s * SECOND), int(until_s * SECOND), kind, tuple(args.items()))


AWAY = act(3, 7, "two-behind", mask=4, group=0, values=60, told=1)
"""Node 3 is apart from the others, which go on and let go of the log."""


LARGE = act(2, 2, "burst", node=1, group=0, values=200, value_bytes=600)
"""So large a state that a transfer takes a third of a second."""


def without_fetching(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fetching, "below", lambda self, group: None)


def test_a_node_below_all_floors_goes_on_from_a_checkpoint(monkeypatch):
    plan = TRIMMING.with_acts((AWAY,))
    outcome = play(plan)
    assert outcome.violation is None
    assert outcome.counters["installs"] >= 1
    without_fetching(monkeypatch)
    stuck = play(plan).violation
    assert stuck is not None
    assert stuck.invariant == "liveness"


def test_two_that_were_away_do_not_take_each_other_for_one_that_has_the_log(monkeypatch):
    """Each says of itself that it has trimmed nothing."""
    away = act(3, 7, "two-behind", mask=24, group=0, values=60, told=1)
    plan = replace(TRIMMING, nodes=5, acts=(away,))
    outcome = play(plan)
    assert outcome.violation is None
    assert outcome.counters["installs"] >= 2

    def believed(offers, *, chosen, before):
        there = log_there(offers, chosen=chosen, before=before)
        return Log.CAME if there is Log.PERHAPS else there

    monkeypatch.setattr(fetching, "log_there", believed)
    stuck = play(plan).violation
    assert stuck is not None
    assert stuck.invariant == "liveness"


@pytest.mark.parametrize("after_us", [600, 5_000])
@pytest.mark.parametrize("seed", [1, 3])
def test_a_majority_fetches_from_one_that_has_trimmed_and_cannot_lead(monkeypatch, seed, after_us):
    """It alone knows what is chosen, keeps nothing of it, and its machine stays failed to the end:
    to lead, the others need what only its checkpoint has."""
    odd = act(
        5, 8, "trimmed-and-stopped",
        group=1, values=3, after_us=after_us, order=seed, lasting=1,
    )  # fmt: skip
    plan = replace(TRIMMING, seed=seed, acts=(odd,))
    outcome = play(plan)
    assert outcome.violation is None
    assert outcome.counters["stopped_groups"] == 1
    assert outcome.counters["installs"] >= 1
    without_fetching(monkeypatch)
    stuck = play(plan).violation
    assert stuck is not None
    assert stuck.invariant == "liveness"


def test_a_transfer_is_cut_and_gone_on_with():
    plan = TRIMMING.with_acts((LARGE, AWAY, act(6.5, 11, "cut-transfer", times=3)))
    outcome = play(plan)
    assert outcome.violation is None
    assert outcome.counters["fetches_cut"] >= 1
    assert outcome.counters["fetches_resumed"] >= 1
    assert outcome.counters["installs"] >= 1


@pytest.mark.parametrize("how", [0, 1, 2])
def test_who_provides_goes(how):
    gone = act(6.5, 11, "provider-gone", how=how, for_us=2 * SECOND)
    outcome = play(TRIMMING.with_acts((LARGE, AWAY, gone)))
    assert outcome.violation is None
    assert outcome.counters["installs"] >= 1
    if how < 2:
        assert outcome.counters["crashes"] == 1
        assert outcome.counters["fetches_cut"] >= 1


def test_what_has_come_and_was_spoilt_is_never_installed():
    spoilt = 0
    for which in range(4):
        flip = act(4, 4, "flip-staging", node=3, which=which, bit=which * 3001)
        outcome = play(TRIMMING.with_acts((LARGE, AWAY, flip)))
        assert outcome.violation is None, which
        assert outcome.counters["installs"] >= 1
        spoilt += outcome.counters["fetches_spoilt"]
    assert spoilt == 2  # the others hit the copy of its manifest, which is not used any more


def test_a_crash_at_each_effect_of_a_fetch_and_an_install_breaks_nothing():
    torn, abandoned = 0, 0
    for effect in range(1, 34):
        kind, power = ("power-keep", 1) if effect % 2 else ("crash-keep", 0)
        crash = act(7, 8.5, kind, node=3, group=0, effect=effect, power=power, starting=0)
        outcome = play(TRIMMING.with_acts((AWAY, crash)))
        assert outcome.violation is None, effect
        assert outcome.counters["installs"] >= 1
        torn += outcome.counters["torn_checkpoints"]
        abandoned += outcome.counters["installs_abandoned"]
    assert torn >= 25
    assert abandoned >= 5

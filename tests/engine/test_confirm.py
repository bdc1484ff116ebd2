"""What a leader is told of a watermark that came before anybody had heard that it leads.

Found by the simulator (default, seed 214): the confirmation was dropped, and everything told again.
"""

from script import Script


def test_a_watermark_that_comes_before_the_claim_is_confirmed_when_the_claim_is_heard() -> None:
    s = Script()
    s.flow()
    while not s.status(1)["leading"]:
        s.advance(10_000)
        s.flow(lambda m: m.source == 1 and m.name == "Heartbeat" and s.status(1)["leading"])
    s.submit(1, b"a")
    s.flow(lambda m: m.name == "Heartbeat")
    assert s.status(3)["chosen_through"] == 1
    assert s.status(3)["leader"] == 0
    s.flow()
    assert s.status(3)["leader"] == 1
    resends = s.engines[1].counters()["resends"]
    s.pass_time(1_000_000)
    assert s.engines[1].counters()["resends"] == resends

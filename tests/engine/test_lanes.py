"""Which messages share a frame: large ones and those of their groups do not stand before others."""

from script import Script

from phx.sim.wire_text import FRAME_HEADER_BYTES, decode

LARGE = bytes(20_000)


def frames(s: Script, n: int, values: dict[int, bytes]) -> list[list[tuple[str, int]]]:
    """(name, group) of the messages of each frame of the turn in which these are proposed."""
    made: list[list[tuple[str, int]]] = []
    engine = s.engines[n]
    for group, value in values.items():
        first = s.seq[n][group]
        s.seq[n][group] += 1
        assert engine.submit(group, first, [value], s.now + 60_000_000) == 0
    out = engine.turn()
    for _, frame, _ in out["outgoing"]:
        found = [(m.name, m.group) for m in decode(frame[FRAME_HEADER_BYTES:])]
        made.append(found)
    engine.durable(out["lsn_end"])
    return [[one for one in frame if one[0] == "Accept"] for frame in made]


def led() -> tuple[Script, int, int, int]:
    """Three groups that node 1 leads."""
    s = Script(groups=12)
    s.pass_time(3_000_000)
    a, b, c, *_ = [group for group in s.groups if s.status(1, group)["leading"]]
    return s, a, b, c


def test_small_values_of_several_groups_share_a_frame() -> None:
    s, a, b, c = led()
    found = [one for one in frames(s, 1, {a: b"a", b: b"b", c: b"c"}) if one]
    assert found == [[("Accept", a), ("Accept", b), ("Accept", c)]]


def test_a_large_value_has_a_frame_behind_the_small_ones() -> None:
    s, a, b, c = led()
    found = [one for one in frames(s, 1, {a: LARGE, b: b"b", c: b"c"}) if one]
    assert found == [[("Accept", b), ("Accept", c)], [("Accept", a)]]


def test_a_group_with_large_values_keeps_its_order_for_a_while() -> None:
    """Its next messages, however small, stand behind them; later they go with the others again."""
    s, a, b, _ = led()
    frames(s, 1, {a: LARGE})
    assert [one for one in frames(s, 1, {a: b"a", b: b"b"}) if one] == [
        [("Accept", b)], [("Accept", a)]
    ]  # fmt: skip
    s.flow()
    s.pass_time(1_500_000)
    assert [one for one in frames(s, 1, {a: b"a", b: b"b"}) if one] == [
        [("Accept", a), ("Accept", b)]
    ]


def test_heartbeats_stand_behind_nothing_large() -> None:
    s, a, _, _ = led()
    frames(s, 1, {a: LARGE})
    beats = 0
    for _ in range(40):
        s.now += 10_000
        engine = s.engines[1]
        engine.advance(s.now, s.now)
        first = s.seq[1][a]
        s.seq[1][a] += 1
        engine.submit(a, first, [LARGE], s.now + 60_000_000)
        for _, frame, _ in engine.turn()["outgoing"]:
            names = {m.name for m in decode(frame[FRAME_HEADER_BYTES:])}
            beats += "Heartbeat" in names
            assert not {"Heartbeat", "Accept"} <= names
    assert beats

"""A fresh engine that is told what a trace says makes the same effects, or the trace is refused."""

import pytest

from phx.sim.wire_text import decode
from phx.testing.trace import Finding, check, check_all
from phx.testing.trace_file import INPUT, Kind, event, input_of, pack_turn, read, turn_of


def written(path, events):
    path.write_bytes(b"".join(event(one.kind, one.data, one.thread) for one in events))
    return path


def test_recorded_traces_replay_byte_for_byte(recorded):
    reports = check_all(recorded)
    assert [one.node for one in reports] == [1, 2, 3]
    for one in reports:
        assert one.started
        assert one.closed
        assert one.turns > 50
        assert one.records == sum(
            len(turn_of(e.data).records()) for e in read(one.path) if e.kind == Kind.TURN
        )
        kinds = {e.kind for e in read(one.path)}
        assert one.node != 2 or Kind.PRIORITY in kinds
        assert one.node != 3 or Kind.LATE in kinds
        assert min(one.inputs, one.writes, one.frames, one.held, one.exposures) > 0


def accept_of(recorded):
    """All events of a node that is told to accept a value, the event, and the message."""
    for path in recorded:
        events = list(read(path))
        for one in events:
            if one.kind == Kind.RECEIVE:
                for message in decode(input_of(one).body):
                    if message.name == "Accept" and message.nbytes > 40:
                        return events, one, message
    return pytest.fail("no Accept with a value was received")


def test_one_bit_of_one_received_value_is_found(recorded, tmp_path):
    events, one, message = accept_of(recorded)
    place = one.data.index(message.body) + message.nbytes - 1
    assert place > INPUT.size
    changed = bytearray(one.data)
    changed[place] ^= 1
    one.data = bytes(changed)
    with pytest.raises(Finding, match="and now makes") as caught:
        check(written(tmp_path / "changed.trace", events))
    assert caught.value.rule == "replay"
    assert caught.value.event > one.number
    assert any("RECEIVE" in text for text in caught.value.context)


def test_a_changed_effect_is_found_and_shown(recorded, tmp_path):
    events = list(read(recorded[0]))
    one = next(e for e in events if e.kind == Kind.TURN and turn_of(e.data).effects["chosen"])
    effects = turn_of(one.data).effects
    group, first, last = effects["chosen"][0]
    effects["chosen"][0] = group, first, last + 1
    one.data = pack_turn(effects)
    told = rf"chosen: \({group}, {first}, {last + 1}\)\nand now makes\n  chosen: .*{last}\)"
    with pytest.raises(Finding, match=told) as caught:
        check(written(tmp_path / "changed.trace", events))
    assert (caught.value.rule, caught.value.event) == ("replay", one.number)


def test_a_received_frame_that_is_left_out_is_found(recorded, tmp_path):
    events, one, _ = accept_of(recorded)
    events.remove(one)
    with pytest.raises(Finding, match="turn"):
        check(written(tmp_path / "short.trace", events))


@pytest.mark.parametrize("name", ["SUBMIT", "CONNECTED", "DURABLE", "START"])
def test_inputs_that_are_left_out_are_found(recorded, tmp_path, name):
    events = [one for one in read(recorded[0]) if one.kind.name != name]
    with pytest.raises(Finding):
        check(written(tmp_path / "short.trace", events))


def test_a_turn_that_is_left_out_is_found(recorded, tmp_path):
    events = list(read(recorded[0]))
    made = (e for e in events if e.kind == Kind.TURN and turn_of(e.data).effects["records"])
    events.remove(next(made))
    with pytest.raises(Finding):
        check(written(tmp_path / "short.trace", events))


def test_a_clock_that_stands_still_is_found(recorded, tmp_path):
    events = list(read(recorded[0]))
    half = len(events) // 2
    events = [e for e in events if e.number < half or e.kind != Kind.ADVANCE]
    with pytest.raises(Finding, match="turn"):
        check(written(tmp_path / "still.trace", events))


def test_an_answer_of_the_engine_that_differs_is_found(recorded, tmp_path):
    events = list(read(recorded[0]))
    for one in events:
        if one.kind == Kind.SUBMIT:
            told = input_of(one)
            head = INPUT.pack(told.group, told.peer, told.first, told.second, 3, len(told.body))
            one.data = head + one.data[INPUT.size :]
    with pytest.raises(Finding, match="SUBMIT gave 3, and now gives 0"):
        check(written(tmp_path / "answer.trace", events))


def test_another_seed_is_another_engine(recorded, tmp_path):
    """The options are part of the trace, the seed among them."""
    events = list(read(recorded[0]))
    options = next(one for one in events if one.kind == Kind.OPTIONS)
    options.data = bytes([options.data[0] ^ 1]) + options.data[1:]
    with pytest.raises(Finding, match="turn"):
        check(written(tmp_path / "seed.trace", events))

"""The claims about checkpoints, floors and installs reject what breaks them, and take all else."""

import struct
from collections.abc import Callable

import pytest
from watch_lab import B1, B2, B3, Case, History, check, promise, record

from phx._core.codec import crc32c
from phx._core.delivery import Sessions
from phx.sim.wire_text import FLAG_LAST, SETTLED, align8, encode


class Kept(History):
    """Two instances of group 0 are decided; node 1 has applied the first of them."""

    def __init__(self) -> None:
        super().__init__()
        self.sessions = Sessions(1, [0, 1])
        self.tables = [self.sessions.table(0)]
        self.bodies: list[bytes] = []
        for instance in (1, 2):
            self.bodies.append(self.body(b"x%d" % instance))
            self.decide(instance, self.bodies[-1])
            self.sessions.offer(0, instance, self.bodies[-1:])
            self.tables.append(self.sessions.table(0))
            if instance == 1:
                self.watch.chosen(1, 0, instance, self.bodies[-1])
                self.watch.applied(1, 0, instance, 0, self.value, 7, 99)

    def chain_at(self, instance: int) -> int:
        return int(struct.unpack_from("<I", self.tables[instance], 24)[0])


def changed(table: bytes, **fields: int) -> bytes:
    """Another head, and no row unless `rows` is left as it is; with a checksum that is right."""
    names = ["crc", "version", "group", "rows", "next", "chain", "pad", "epoch"]
    layout = struct.Struct("<IIIIQIIQ")
    head = {**dict(zip(names, layout.unpack_from(table), strict=True)), **fields}
    rest = table[layout.size :] if head["rows"] else b""
    made = layout.pack(*(head[name] for name in names)) + rest
    return struct.pack("<I", crc32c(made[4:])) + made[4:]


def captured_with_the_table_of_a_later_batch(h: Kept, bad: bool) -> None:
    h.watch.checkpoint(1, 0, 1, h.tables[2 if bad else 1], 5)


def captured_ahead_of_the_machine(h: Kept, bad: bool) -> None:
    k = 2 if bad else 1
    h.watch.checkpoint(1, 0, k, h.tables[k], 5)


def captured_behind_the_machine(h: Kept, bad: bool) -> None:
    h.watch.chosen(1, 0, 2, h.bodies[1])
    h.watch.applied(1, 0, 2, 0, h.value, 7, 99)
    k = 1 if bad else 2
    h.watch.checkpoint(1, 0, k, h.tables[k], 5)


def captured_of_another_group(h: Kept, bad: bool) -> None:
    h.watch.checkpoint(1, 0, 1, changed(h.tables[1], group=int(bad)), 5)


def captured_without_its_sessions(h: Kept, bad: bool) -> None:
    h.watch.checkpoint(1, 0, 1, changed(h.tables[1], **({"rows": 0} if bad else {})), 5)


def captured_with_another_epoch(h: Kept, bad: bool) -> None:
    h.watch.checkpoint(1, 0, 1, changed(h.tables[1], epoch=7 + bad), 5)


def captured_with_another_chain(h: Kept, bad: bool) -> None:
    h.watch.chain(2, 0, 1, h.chain_at(1) ^ bad)
    h.watch.checkpoint(1, 0, 1, h.tables[1], 5)


def restored_into_another_state(h: Kept, bad: bool) -> None:
    h.watch.checkpoint(1, 0, 1, h.tables[1], 5)
    h.restart(1)
    h.watch.restored(1, 0, 1, h.tables[1], 6 if bad else 5)


def restored_without_its_sessions(h: Kept, bad: bool) -> None:
    h.watch.checkpoint(1, 0, 1, h.tables[1], 5)
    h.restart(1)
    table = changed(h.tables[1], rows=0) if bad else h.tables[1]
    h.watch.restored(1, 0, 1, table, 5)


def restored_to_what_is_not_decided(h: Kept, bad: bool) -> None:
    h.restart(1)
    table = changed(h.tables[2], next=4) if bad else h.tables[2]
    h.watch.restored(1, 0, 3 if bad else 2, table, 5)


def a_restored_machine_gets_an_instance_again(h: Kept, bad: bool) -> None:
    h.restart(1)
    h.watch.restored(1, 0, 1, h.tables[1], 5)
    k = 1 if bad else 2
    h.watch.chosen(1, 0, k, h.bodies[k - 1])


def a_restored_machine_misses_an_instance(h: Kept, bad: bool) -> None:
    third = h.body()
    h.decide(3, third)
    h.restart(1)
    h.watch.restored(1, 0, 1, h.tables[1], 5)
    if not bad:
        h.watch.chosen(1, 0, 2, h.bodies[1])
    h.watch.chosen(1, 0, 3, third)


def restored_over_what_was_handed_on(h: Kept, bad: bool) -> None:
    h.restart(1)
    if bad:
        h.watch.chosen(1, 0, 1, h.bodies[0])
    h.watch.restored(1, 0, 1, h.tables[1], 5)


def a_restored_machine_applies_a_value_again(h: Kept, bad: bool) -> None:
    h.restart(1)
    h.watch.restored(1, 0, 1, h.tables[1], 5)
    if not bad:
        h.watch.chosen(1, 0, 2, h.bodies[1])
        h.watch.applied(1, 0, 2, 0, h.value, 7, 99)
    else:
        h.watch.applied(1, 0, 1, 0, h.value, 7, 99)


def more_is_given_up_than_a_checkpoint_has(h: Kept, bad: bool) -> None:
    h.watch.row(1, 0, 3 if bad else 2, 2)
    h.watch.cover(1, 0, 1)


def the_cover_is_gone_after_a_restart(h: Kept, bad: bool) -> None:
    h.watch.row(1, 0, 2, 1)
    h.watch.cover(1, 0, 1)
    h.restart(1)
    h.watch.cover(1, 0, 0 if bad else 2)


def the_cover_goes_back(h: Kept, bad: bool) -> None:
    h.watch.row(1, 0, 3, 2)
    h.watch.cover(1, 0, 2)
    h.watch.cover(1, 0, 1 if bad else 2)


def what_is_not_decided_is_given_up(h: Kept, bad: bool) -> None:
    k = 3 if bad else 2
    h.watch.row(1, 0, k + 1, k)
    h.watch.cover(1, 0, k)


def replaced_by_a_machine_that_is_behind(h: Kept, bad: bool) -> None:
    k = 1 if bad else 2
    h.watch.swapped(1, 0, k, h.tables[k], 5)


def a_replaced_machine_gets_what_its_checkpoint_has(h: Kept, bad: bool) -> None:
    third = h.body()
    h.decide(3, third)
    h.watch.swapped(1, 0, 2, h.tables[2], 5)
    h.watch.chosen(1, 0, 2 if bad else 3, h.bodies[1] if bad else third)


def mended_with_what_was_not_decided_there(h: Kept, bad: bool) -> None:
    h.watch.mended(2, 0, 2, h.bodies[0 if bad else 1])


def mended_with_another_byte(h: Kept, bad: bool) -> None:
    body = h.bodies[0]
    h.watch.mended(2, 0, 1, body[:-1] + bytes([body[-1] ^ bad]))


def restored_from_what_no_machine_wrote(h: Kept, bad: bool) -> None:
    h.watch.wrote(0, 77)
    h.watch.loaded(1, 0, 78 if bad else 77)


def restored_from_another_group_s_state(h: Kept, bad: bool) -> None:
    h.watch.wrote(0, 77)
    h.watch.loaded(1, 1 if bad else 0, 77)


# --- floors and installs


class Trimmed(Kept):
    """Node 2 keeps nothing of the two instances, and has promised B3."""

    def __init__(self) -> None:
        super().__init__()
        self.watch.row(2, 0, 3, 2)
        self.watch.tell_floor(2, 0, 3, turn=5)
        self.write(2, promise(B3))

    def promises(self, floor: int, made: int = 5, chosen: int = 2) -> None:
        body = encode("Promise", 0, B3, b"", FLAG_LAST, first=1, chosen=chosen, floor=floor)
        self.watch.send(2, body, made)

    def supplies(self, instance: int, body: bytes, floor: int) -> None:
        head = struct.pack("<QII", instance, len(body), 0) + body
        rest = head.ljust(align8(len(head)), b"\0")
        said = {"first": instance, "chosen": 3, "count": 1, "floor": floor}
        self.watch.send(2, encode("Learn", 0, 0, rest, **said), 5)


def a_promise_hides_the_floor(h: Trimmed, bad: bool) -> None:
    h.promises(1 if bad else 3)


def a_promise_of_a_later_turn_says_the_floor_before(h: Trimmed, bad: bool) -> None:
    h.promises(1, made=5 if bad else 4)


def a_floor_that_the_store_does_not_have(h: Trimmed, bad: bool) -> None:
    h.decide(3, h.body(), by=(1, 3))
    h.promises(4 if bad else 3, chosen=3)


def what_is_below_the_floor_is_not_said_to_be_chosen(h: Trimmed, bad: bool) -> None:
    h.promises(3, chosen=0 if bad else 2)


def a_value_below_the_floor_is_supplied(h: Trimmed, bad: bool) -> None:
    third = h.body()
    h.decide(3, third, by=(1, 3))
    if bad:
        h.supplies(2, h.bodies[1], 3)
    else:
        h.supplies(3, third, 3)


def the_engine_s_floor_is_ahead_of_the_store(h: Trimmed, bad: bool) -> None:
    h.decide(3, h.body(), by=(1, 3))
    h.watch.spoil(2, 0, chosen_through=3, floor=4 if bad else 3)
    h.watch.step(2, 0)


def the_engine_s_floor_is_above_what_is_chosen(h: Trimmed, bad: bool) -> None:
    h.decide(3, h.body(), by=(1, 3))
    h.watch.row(2, 0, 4, 3)
    h.watch.spoil(2, 0, floor=4 if bad else 3)
    h.watch.step(2, 0)


def a_start_forgets_the_floor(h: Trimmed, bad: bool) -> None:
    h.watch.die(2)
    h.watch.start(2, h.log[2], floors={0: 1 if bad else 3, 1: 1})


def the_store_s_floor_falls(h: Trimmed, bad: bool) -> None:
    h.watch.row(2, 0, 2 if bad else 3, 2)


def the_store_s_settled_index_falls(h: Kept, bad: bool) -> None:
    h.watch.row(1, 0, 1, 2)
    h.watch.row(1, 0, 1, 1 if bad else 2)


def a_gap_between_floor_and_settled(h: Kept, bad: bool) -> None:
    h.watch.row(1, 0, 3, 1 if bad else 2)


def settled_beyond_the_store_s_row(h: Kept, bad: bool) -> None:
    h.watch.row(2, 0, 1, 1)
    h.watch.spoil(2, 0, chosen_through=2, settled_through=2 if bad else 1)
    h.watch.step(2, 0)


def a_record_says_settled_what_the_row_does_not(h: Kept, bad: bool) -> None:
    h.watch.row(2, 0, 1, 1)
    h.write(2, record(SETTLED, 0, 2 if bad else 1, 1))


def a_record_says_a_floor_that_the_row_does_not(h: Kept, bad: bool) -> None:
    h.watch.row(2, 0, 1, 2)
    h.write(2, record(SETTLED, 0, 2, 2 if bad else 1))


def an_install_takes_a_promise_back(h: Kept, bad: bool) -> None:
    h.write(3, promise(B3))
    h.watch.row(3, 0, 3, 2)
    h.watch.install(3, 0, 2, B1, lambda: h.watch.spoil(3, 0, promised=B1 if bad else B3))


def an_install_takes_an_acceptance_back(h: Kept, bad: bool) -> None:
    four, other = h.body(), h.body()
    h.write(3, promise(B2))
    h.watch.spoil_slot(3, 0, 4, B1, four)
    h.watch.row(3, 0, 3, 2)
    h.watch.install(3, 0, 2, B1, lambda: h.watch.spoil_slot(3, 0, 4, B1, other if bad else four))


def an_install_is_not_known_to_be_chosen(h: Kept, bad: bool) -> None:
    h.watch.row(3, 0, 3, 2)
    h.watch.install(3, 0, 2, B1, lambda: h.watch.spoil(3, 0, chosen_through=1 if bad else 2))


HISTORIES: list[Case] = [
    ("U9a", more_is_given_up_than_a_checkpoint_has),
    ("U9a", the_cover_is_gone_after_a_restart),
    ("U9a", the_cover_goes_back),
    ("U9a", what_is_not_decided_is_given_up),
    ("U9b", a_promise_hides_the_floor),
    ("U9b", a_promise_of_a_later_turn_says_the_floor_before),
    ("U9b", a_floor_that_the_store_does_not_have),
    ("U9b", what_is_below_the_floor_is_not_said_to_be_chosen),
    ("U9b", a_value_below_the_floor_is_supplied),
    ("U9b", the_engine_s_floor_is_ahead_of_the_store),
    ("U9b", the_engine_s_floor_is_above_what_is_chosen),
    ("U9b", a_start_forgets_the_floor),
    ("U9b", the_store_s_floor_falls),
    ("U9c", captured_with_the_table_of_a_later_batch),
    ("U9c", captured_ahead_of_the_machine),
    ("U9c", captured_behind_the_machine),
    ("U9c", captured_of_another_group),
    ("U9c", captured_without_its_sessions),
    ("U9c", captured_with_another_epoch),
    ("U9c", captured_with_another_chain),
    ("U9c", restored_into_another_state),
    ("U9c", restored_without_its_sessions),
    ("U9c", restored_to_what_is_not_decided),
    ("U9d", an_install_takes_a_promise_back),
    ("U9d", an_install_takes_an_acceptance_back),
    ("U9d", an_install_is_not_known_to_be_chosen),
    ("U9e", replaced_by_a_machine_that_is_behind),
    ("U9e", a_replaced_machine_gets_what_its_checkpoint_has),
    ("U9f", restored_from_what_no_machine_wrote),
    ("U9h", mended_with_what_was_not_decided_there),
    ("U9h", mended_with_another_byte),
    ("U9f", restored_from_another_group_s_state),
    ("U9g", the_store_s_settled_index_falls),
    ("U9g", a_gap_between_floor_and_settled),
    ("U9g", settled_beyond_the_store_s_row),
    ("U9g", a_record_says_settled_what_the_row_does_not),
    ("U9g", a_record_says_a_floor_that_the_row_does_not),
    ("U9e", a_restored_machine_gets_an_instance_again),
    ("U9e", a_restored_machine_misses_an_instance),
    ("U9e", restored_over_what_was_handed_on),
    ("U7", a_restored_machine_applies_a_value_again),
]


@pytest.mark.parametrize(
    ("invariant", "history"), HISTORIES, ids=[h.__name__ for _, h in HISTORIES]
)
def test_a_bad_history_is_rejected(invariant: str, history: Callable[..., None]) -> None:
    check(invariant, history)


def test_every_claim_about_checkpoints_is_here() -> None:
    named = {invariant for invariant, _ in HISTORIES}
    assert named == {"U7"} | {f"U9{letter}" for letter in "abcdefgh"}

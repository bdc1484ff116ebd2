"""The members of groups in the store: never older than what is settled."""

from contextlib import contextmanager
from dataclasses import replace

import lmdb
import pytest
from store_lab import CLUSTER, NODE, SMALL, Log, block, body_of, opened

from phx._core.chunk_index import floors_of
from phx._core.members import read, write
from phx._core.settler import Settler
from phx.errors import Damaged, StoreError
from phx.lmdb_files import LMDB_MAJOR
from phx.membership import Membership
from phx.store import Floor, MembersRow
from phx.store_folder import StoreIdentity, read_identity, remake
from phx.store_members import PREFIXES, keys_of, load, pack, unpack

BALLOT = 5 << 20 | 1
FLOOR = 7 << 20 | 2


def roster(version=2, nodes=(1, 4, 5), ballot=BALLOT, time_us=1_700_000_000_000_000):
    return write(version, ballot, time_us, [(node, 1, b"10.0.0.%d:7000" % node) for node in nodes])


def told(instance=10, version=2, floor=FLOOR, active=False, **changed):
    return Membership(roster(version, **changed), instance, floor, active)


def log_with(changes, groups=(1, 2), last=30, size=130):
    """A journal of these groups, with members that change at {(group, instance): roster}."""
    log = Log()
    log.add(
        (group, instance, changes.get((group, instance), body))
        for group, instance, body in block(groups, 1, last, size)
    )
    return log


def values_of(path):
    """Keys and values of the table of the store, as they lie there."""
    env = lmdb.Environment(str(path), readonly=True, lock=False, max_dbs=3, lib_version=LMDB_MAJOR)
    with env.begin() as txn, txn.cursor(env.open_db(b"meta", txn, create=False)) as cursor:
        found = dict(cursor)
    env.close()
    return found


def alter(path, changes):
    """Put other values under these keys (None: delete), as damage would."""
    env = lmdb.Environment(str(path), max_dbs=3, lib_version=LMDB_MAJOR)
    meta = env.open_db(b"meta", create=False)
    with env.begin(write=True) as txn:
        for key, value in changes.items():
            if value is None:
                txn.delete(key, db=meta)
            else:
                txn.put(key, value, db=meta)
    env.close()


# --- with what is settled


def test_the_row_goes_with_the_transaction_that_passes_the_change(tmp_path):
    log = log_with({(1, 10): roster()})
    with opened(tmp_path / "s", create=True) as store:
        store.settle(log.plan([(group, n) for group in (1, 2) for n in range(1, 10)]))
        store.note_members(1, told())
        assert store.write_members() == 0  # (1, 10) is not passed
        assert store.members() == {}
        store.settle(log.plan())
        assert store.members() == {1: MembersRow(told())}
        assert store.settled() == {1: 30, 2: 30}
    with opened(tmp_path / "s") as store:
        assert store.members() == {1: MembersRow(told())}
        assert store.members_wrong() == []


def test_a_change_that_nobody_noted_is_not_passed(tmp_path):
    """The floor is not in the log: who passed it would know the members, and not above which
    ballot theirs are."""
    log = log_with({(2, 10): roster()})
    with opened(tmp_path / "s", create=True) as store:
        with pytest.raises(StoreError, match="group 2 from instance 10 on are not noted yet"):
            store.settle(log.plan())
        assert store.settled() == {}
        assert store.members() == {}
        store.note_members(2, told())
        store.settle(log.plan())  # it can be tried again
        assert store.settled() == {1: 30, 2: 30}
        assert store.members() == {2: MembersRow(told())}
        assert store.verify() == 60


def test_what_is_noted_must_be_what_the_log_says(tmp_path):
    log = log_with({(1, 10): roster()})
    with opened(tmp_path / "s", create=True) as store:
        store.note_members(1, told(nodes=(1, 4, 6)))
        with pytest.raises(StoreError, match="other members are noted for instance 10"):
            store.settle(log.plan())
        assert store.settled() == {}


def test_of_two_changes_in_one_plan_the_later_stays(tmp_path):
    log = log_with({(1, 10): roster(2), (1, 20): roster(3, nodes=(4, 5, 6))})
    later = told(20, 3, nodes=(4, 5, 6))
    with opened(tmp_path / "s", create=True) as store:
        store.note_members(1, told(10, 2))
        store.note_members(1, later)
        store.settle(log.plan([(1, n) for n in range(1, 15)]))
        assert store.settled() == {1: 14}
        assert store.members()[1].membership.instance >= 10
        store.settle(log.plan([(1, n) for n in range(15, 31)]))
        assert store.members() == {1: MembersRow(later)}


def test_who_came_and_went_in_one_plan_has_left(tmp_path):
    """Only the newest of the changes is noted; the log has those before."""
    rosters = {10: roster(2, (1, 4, 5)), 15: roster(3, (1, 4, 6)), 20: roster(4, (1, 4))}
    log = log_with({(1, at): one for at, one in rosters.items()})
    with opened(tmp_path / "s", create=True) as store:
        store.note_members(1, told(20, 4, nodes=(1, 4)), left=[2])
        store.settle(log.plan())
        assert store.members()[1].left == (2, 5, 6)
        assert store.left(1) == (2, 5, 6)
        assert store.left(2) == ()
    with opened(tmp_path / "s") as store:
        assert store.left(1) == (2, 5, 6)


def test_the_first_of_two_changes_does_not_do_for_the_second(tmp_path):
    log = log_with({(1, 10): roster(2), (1, 20): roster(3, nodes=(4, 5, 6))})
    with opened(tmp_path / "s", create=True) as store:
        store.note_members(1, told(10, 2))
        with pytest.raises(StoreError, match="from instance 20 on are not noted yet"):
            store.settle(log.plan())
        assert store.settled() == {}


def test_each_transaction_has_the_rows_of_what_it_passes(tmp_path):
    """Of a plan that takes several, those that came before the change stay, and those behind it
    do not come without its row."""
    changes = {(1, 15): roster()}
    log = log_with(changes, groups=(1,), last=30, size=SMALL - 4096)
    with opened(tmp_path / "s", create=True, commit_bytes=SMALL, pass_bytes=SMALL) as store:
        with pytest.raises(StoreError, match="not noted yet"):
            store.settle(log.plan())
        assert 0 < store.settled()[1] < 15
        store.note_members(1, told(15))
        store.settle(log.plan())
        assert store.settled() == {1: 30}
        assert store.stats().commits > 3


def test_no_commit_leaves_a_store_that_is_settled_past_members_it_does_not_know(tmp_path):
    """S1, after every transaction: a crash may come behind any of them."""
    commits = []

    def look(store):
        with store._env.begin() as txn:
            through = floors_of(txn.get(b"groups", db=store._meta)).get(1, (1, 0))[1]
            row = load(txn, store._meta, store.path).rows.get(1)
        commits.append(through)
        known = row.membership.instance if row is not None else 0
        assert known >= max([at for at in (10, 20) if at <= through], default=0), commits

    changes = {(1, 10): roster(2), (1, 20): roster(3, nodes=(4, 5, 6))}
    log = log_with(changes, groups=(1,), size=SMALL - 4096)
    with opened(tmp_path / "s", create=True, commit_bytes=SMALL, pass_bytes=SMALL) as store:
        transaction = store._transaction

        @contextmanager
        def watched(**how):
            with transaction(**how) as txn:
                yield txn
            look(store)

        store._transaction = watched
        for last, told_at in ((15, told(10, 2)), (25, told(20, 3, nodes=(4, 5, 6)))):
            store.note_members(1, told_at)
            store.settle(log.plan([(1, n) for n in range(store.bounds(1)[1] + 1, last + 1)]))
        store.raise_floors({1: Floor(41, 40)}, {1: told(20, 3, nodes=(4, 5, 6))})
        while store.trim():
            pass
    assert len(commits) > 20


def test_a_body_that_only_begins_like_one_is_none(tmp_path):
    sound = roster()
    unsound = [sound[:-1], sound + b"x", b"\x02" + bytes(40), sound[:32], b"\x02"]
    log = log_with({(1, 10 + n): body for n, body in enumerate(unsound)})
    assert [read(body) for body in unsound] == [None] * len(unsound)
    with opened(tmp_path / "s", create=True) as store:
        store.settle(log.plan())
        assert store.settled() == {1: 30, 2: 30}


def test_the_settler_names_them_with_their_chunk(tmp_path):
    changes = {(1, 12): roster(), (2, 3): roster(2, nodes=(7, 8, 9))}
    log = log_with(changes)
    with opened(tmp_path / "s", create=True) as store:
        settler = Settler(store._index, log.plan(), 1 << 20, {})
        found = []
        while settler.next_chunk() is not None:
            found += settler.barriers()
            settler.stage()
        assert found == [(*where, body) for where, body in sorted(changes.items())]
        store._index.rollback()


# --- without a copy


def test_a_floor_that_passes_a_change_takes_the_row_along(tmp_path):
    with opened(tmp_path / "s", create=True) as store:
        store.raise_floors({1: Floor(51, 50), 2: Floor(41, 40)}, {1: told()})
        assert store.members() == {1: MembersRow(told())}
    with opened(tmp_path / "s") as store:
        assert store.members() == {1: MembersRow(told())}
        assert store.settled() == {1: 50, 2: 40}


def test_what_was_noted_goes_with_a_floor_that_passes_it(tmp_path):
    with opened(tmp_path / "s", create=True) as store:
        store.note_members(1, told(10))
        store.raise_floors({1: Floor(10, 9)})
        assert store.members() == {}
        store.raise_floors({1: Floor(11, 10)})
        assert store.members() == {1: MembersRow(told(10))}


def test_a_floor_that_cannot_be_raised_leaves_no_row(tmp_path):
    log = log_with({})
    with opened(tmp_path / "s", create=True) as store:
        store.settle(log.plan())
        with pytest.raises(ValueError, match="cannot be settled"):
            store.raise_floors({1: Floor(5, 50)}, {1: told()})
        assert store.members() == {}
    with opened(tmp_path / "s") as store:
        assert store.members() == {}


def test_trimming_leaves_the_row(tmp_path):
    log = log_with({(1, 10): roster()}, size=3000)
    with opened(tmp_path / "s", create=True) as store:
        store.note_members(1, told())
        store.settle(log.plan())
        store.raise_floors({1: Floor(31, 30), 2: Floor(31, 30)})
        while store.trim():
            pass
        assert store.stats().chunks == 0
        assert store.members() == {1: MembersRow(told())}
    with opened(tmp_path / "s") as store:
        assert store.members() == {1: MembersRow(told())}


def test_a_store_that_is_made_anew_has_them_from_the_start(tmp_path):
    identity = StoreIdentity(CLUSTER, NODE, bytes(16), 1, (0, 9, 31))
    remake(tmp_path / "s", 1 << 20, identity, {1: 30}, {1: MembersRow(told())})
    with opened(tmp_path / "s") as store:
        assert store.members() == {1: MembersRow(told())}
        assert store.settled() == {1: 30}


def test_with_the_first_row_the_store_is_of_another_format_version(tmp_path):
    """A phx that knows of no rows refuses it by that."""
    log = log_with({(1, 10): roster()})
    with opened(tmp_path / "s", create=True) as store:
        store.settle(log.plan([(1, n) for n in range(1, 10)]))
        before = store.identity
        assert before.format_version == 1
        store.note_members(1, told())
        store.settle(log.plan([(1, n) for n in range(10, 31)]))
        after = store.identity
    assert after == replace(before, format_version=2)
    assert read_identity(tmp_path / "s", 1 << 20) == after
    with opened(tmp_path / "s") as store:
        assert store.identity == after
        store.note_members(1, told(active=True))
        store.write_members()
    remake(tmp_path / "anew", 1 << 20, before, {1: 30}, {1: MembersRow(told())})
    assert read_identity(tmp_path / "anew", 1 << 20) == after
    remake(tmp_path / "none", 1 << 20, before, {1: 30})
    assert read_identity(tmp_path / "none", 1 << 20) == before


# --- what is known, and what is news


def test_a_row_never_goes_back(tmp_path):
    with opened(tmp_path / "s", create=True) as store:
        store.raise_floors({1: Floor(51, 50)}, {1: told(20, 3)})
        store.note_members(1, told(10, 2))
        store.note_members(1, told(20, 3, floor=BALLOT))  # a lower floor says nothing new
        assert store.write_members() == 0
        assert store.members() == {1: MembersRow(told(20, 3))}
        store.note_members(1, told(20, 3, floor=FLOOR + 1))
        store.note_members(1, told(20, 3, active=True))
        assert store.write_members() == 1
        assert store.members() == {1: MembersRow(told(20, 3, floor=FLOOR + 1, active=True))}
    with opened(tmp_path / "s") as store:
        assert store.members() == {1: MembersRow(told(20, 3, floor=FLOOR + 1, active=True))}


@pytest.mark.parametrize(
    "other", [told(10, 2, nodes=(1, 4, 6)), told(11, 2), told(9, 2), told(9, 3), told(11, 1 + 1)]
)
def test_news_that_contradict_are_refused(tmp_path, other):
    with opened(tmp_path / "s", create=True) as store:
        store.raise_floors({1: Floor(51, 50)}, {1: told(10, 2)})
        with pytest.raises(ValueError, match="instance"):
            store.note_members(1, other)
        with pytest.raises(ValueError, match="instance"):
            store.raise_floors({1: Floor(61, 60)}, {1: other})
        assert store.settled() == {1: 50}


def test_a_tombstone_is_written_at_once_and_stays(tmp_path):
    """A node that was away learns of it from others: its log does not reach so far."""
    with opened(tmp_path / "s", create=True) as store:
        store.note_members(1, told(100, active=True), removed=True)
        assert store.write_members() == 1
        store.note_members(1, told(100))
        assert store.write_members() == 0
        row = MembersRow(told(100, active=True), removed=True)
        assert store.members() == {1: row}
        store.raise_floors({1: Floor(201, 200)})
        assert store.members() == {1: row}
    with opened(tmp_path / "s") as store:
        assert store.members() == {1: row}
        store.note_members(1, told(300, 5, nodes=(1, 4, NODE)))  # a member again
        store.raise_floors({1: Floor(301, 300)})
        assert store.members() == {1: MembersRow(told(300, 5, nodes=(1, 4, NODE)))}


# --- bytes, and damage


def test_the_bytes_of_a_row():
    packed = pack(7, MembersRow(told(10, active=True)))
    body = roster()
    assert packed[:-4] == b"".join(
        [
            b"PHXMBRS1",
            (7).to_bytes(4, "little"),
            (1).to_bytes(4, "little"),
            (10).to_bytes(8, "little"),
            FLOOR.to_bytes(8, "little"),
            len(body).to_bytes(4, "little"),
            body,
        ]
    )
    assert unpack(packed) == (7, MembersRow(told(10, active=True)))
    assert unpack(pack(7, MembersRow(told(10), True))) == (7, MembersRow(told(10), True))


def filled(path):
    """A store with two groups that changed members."""
    log = log_with({(1, 10): roster(), (2, 12): roster(4, nodes=(5, 6, 7))})
    with opened(path, create=True) as store:
        store.note_members(1, told())
        store.note_members(2, told(12, 4, nodes=(5, 6, 7)))
        store.settle(log.plan())
        return store.members()


def test_each_byte_of_a_copy_may_be_wrong(tmp_path):
    rows = filled(tmp_path / "s")
    sound = {key: value for key, value in values_of(tmp_path / "s").items() if b"members" in key}
    assert sorted(sound) == sorted([*keys_of(1), *keys_of(2)])
    for key in keys_of(1):
        for at in range(0, len(sound[key]), 7):
            value = bytearray(sound[key])
            value[at] ^= 1 << at % 8
            alter(tmp_path / "s", {key: bytes(value)})
            with opened(tmp_path / "s") as store:
                assert store.members() == rows, at
                assert len(store.members_wrong()) == 1, at
                assert store.write_members() == 2
                assert store.members_wrong() == []
            kept = values_of(tmp_path / "s")
            assert {name: kept.get(name) for name in sound} == sound


@pytest.mark.parametrize("bit", [0, 5])
def test_each_byte_of_a_key_may_be_wrong(tmp_path, bit):
    rows = filled(tmp_path / "s")
    sound = {key: value for key, value in values_of(tmp_path / "s").items() if b"members" in key}
    for key in keys_of(1):
        for at in range(len(key)):
            other = key[:at] + bytes([key[at] ^ 1 << bit]) + key[at + 1 :]
            if other in sound:
                continue
            alter(tmp_path / "s", {key: None, other: sound[key]})
            with opened(tmp_path / "s") as store:
                assert store.members() == rows, at
                assert store.members_wrong(), at
                store.write_members()
            with opened(tmp_path / "s") as store:
                assert store.members() == rows
                assert store.members_wrong() == []
            alter(tmp_path / "s", {other: None})


def test_a_copy_that_is_missing_is_made_again(tmp_path):
    rows = filled(tmp_path / "s")
    for key in keys_of(2):
        alter(tmp_path / "s", {key: None})
        with opened(tmp_path / "s") as store:
            assert store.members() == rows
            assert "a copy of the members of group 2 is missing" in store.members_wrong()[0]
            store.write_members()
        with opened(tmp_path / "s") as store:
            assert store.members_wrong() == []


def test_a_row_of_which_no_copy_is_whole_is_damage(tmp_path):
    filled(tmp_path / "s")
    sound = values_of(tmp_path / "s")
    alter(tmp_path / "s", {key: sound[key][:-1] for key in keys_of(1)})
    with (
        pytest.raises(Damaged, match="group 1: a row of members is damaged"),
        opened(tmp_path / "s"),
    ):
        pass
    alter(tmp_path / "s", {keys_of(1)[0]: None})
    with pytest.raises(Damaged, match="group 1"), opened(tmp_path / "s"):
        pass


def test_of_two_whole_copies_the_later_counts(tmp_path):
    """Nobody writes that; and no byte that is wrong makes it."""
    filled(tmp_path / "s")
    older = pack(1, MembersRow(told(5, 2, nodes=(1, 2, 3))))
    newer = pack(1, MembersRow(told(10, 3)))
    first, second = keys_of(1)
    for one, other in ((older, newer), (newer, older)):
        alter(tmp_path / "s", {first: one, second: other})
        with opened(tmp_path / "s") as store:
            assert store.members()[1] == MembersRow(told(10, 3))
            assert "differ" in store.members_wrong()[0]


@pytest.mark.parametrize(
    ("what", "bad"),
    [
        ("no roster", (b"", 10, FLOOR)),
        ("no roster", (body_of(1, 1), 10, FLOOR)),
        ("the instance", (roster(), 0, FLOOR)),
        ("the instance", (roster(), 1 << 62, FLOOR)),
        ("the floor", (roster(), 10, BALLOT - 1)),  # below that of its packer
        ("the floor", (roster(), 10, 1 << 64)),
    ],
)
def test_what_no_members_can_be(what, bad):
    with pytest.raises(ValueError, match=what):
        Membership(*bad)


def test_the_prefixes_are_those_of_no_other_name():
    assert not PREFIXES[1].startswith(PREFIXES[0])


def test_who_left_is_remembered_with_the_row(tmp_path):
    """Whoever is not in the row that follows, and whoever is said to have left before."""
    with opened(tmp_path / "s", create=True) as store:
        first = MembersRow(told(10, 2, nodes=(1, 4, 5)), left=(2, 3))
        store.keep_members({1: first})
        assert store.members()[1].left == (2, 3)
        store.note_members(1, told(20, 3, nodes=(1, 5, 6)), left=(2, 3, 5))  # 5 is there
        store.keep_members({1: MembersRow(told(30, 4, nodes=(1, 6, 7)))})
        assert store.members()[1].left == (2, 3, 4, 5)
    with opened(tmp_path / "s") as store:
        assert store.members()[1].left == (2, 3, 4, 5)
    for left in ((3, 2), (2, 2), (1,)):
        with pytest.raises(ValueError, match="of those who left"):
            unpack(pack(1, MembersRow(told(30, 4, nodes=(1, 6)), left=left)))

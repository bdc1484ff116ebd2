"""A process that settles until it is told or made to stop; says on stdout how far it came.

    store_victim.py FOLDER [--create] [--steps N] [--hold N]

Prints "settled THROUGH" after each settle, "merged" after each merge, and "failed TEXT" for an
error of the store, after which it tries that step once more. The members of MOVING change at every
seventh instance: see change_at. With --hold it raises all floors after
each settle, to floor_of, prints "floors THROUGH", and trims; a step of that is "removed" or
"joined".
"""

import argparse
import os
import sys

sys.path[:0] = [os.path.dirname(os.path.abspath(__file__))]

from store_lab import CLUSTER, MIB, NODE, Log, body_of  # noqa: E402

from phx._core.members import write  # noqa: E402
from phx.errors import StoreError  # noqa: E402
from phx.membership import Membership  # noqa: E402
from phx.store import Floor, Store  # noqa: E402

GROUPS = range(1, 8)
MOVING, EACH = 3, 7
SIZES = (30, 600, 100, 6000)


def size_of(instance: int) -> int:
    return SIZES[instance % len(SIZES)]


def change_at(instance: int) -> Membership | None:
    """The last change of MOVING's members at or below an instance: every seventh is one."""
    at = instance - instance % EACH
    if not at:
        return None
    version = at // EACH + 1
    roster = write(version, version << 20, at, [(1 + at, 1, b"a:1"), (2 + at, 1, b"b:1")])
    return Membership(roster, at, (version << 20) + 5)


def value_of(group: int, instance: int) -> bytes:
    """What the log has there."""
    told = change_at(instance) if group == MOVING else None
    if told is not None and told.instance == instance:
        return told.roster
    return body_of(group, instance, size_of(instance))


def floor_of(group: int, through: int, hold: int) -> int:
    """Of a group with so much settled, if `hold` is for group 1. The last one keeps half."""
    kept = hold * group if group != GROUPS[-1] else through // 2
    return max(1, through + 1 - kept)


def trim(store: Store, through: int, hold: int) -> None:
    floors = {group: floor_of(group, through, hold) for group in GROUPS}
    store.raise_floors({group: Floor(at, at - 1) for group, at in floors.items()})
    print("floors", through, flush=True)
    dead = store.stats().dead_chunks
    while store.trim():
        left = store.stats().dead_chunks
        print("removed" if left < dead else "joined", flush=True)
        dead = left


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--create", action="store_true")
    parser.add_argument("--steps", type=int, default=1 << 30)
    parser.add_argument("--hold", type=int, default=0)
    options = parser.parse_args()
    store = Store.open(
        options.folder,
        cluster=CLUSTER,
        node=NODE,
        create=options.create,
        map_bytes=MIB,
        commit_bytes=MIB,
    )
    through = store.settled().get(GROUPS[0], 0)
    print("settled", through, flush=True)
    for step in range(options.steps):
        log = Log(segment_bytes=4 * MIB)
        last = through + 1 + step % 40
        log.add(
            (group, instance, value_of(group, instance))
            for instance in range(through + 1, last + 1)
            for group in GROUPS
        )
        if told := change_at(last):
            store.note_members(MOVING, told)
        for _ in range(2):
            try:
                store.settle(log.plan())
            except StoreError as error:
                print("failed", error, flush=True)
            else:
                through = last
                print("settled", through, flush=True)
                if options.hold:
                    trim(store, through, options.hold)
                break
        if store.stats().failed is None and store.merge():
            print("merged", flush=True)
    store.close()


if __name__ == "__main__":
    main()

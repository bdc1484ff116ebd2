# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Lives and lost journals; see lives.pxd."""

from functools import partial

from libc.string cimport memset

from phx._core.codec cimport RECORD_NODE, RecordHeader
from phx._core.engine cimport engine_ceiling, engine_replay, engine_suspect
from phx._core.journal cimport JOURNAL_DAMAGED, JOURNAL_MISSING
from phx._core.memdisk cimport MemoryDisk
from phx._core.native cimport *
from phx._core.rejoin cimport CEILING_STEP
from phx.sim.catchup cimport soon
from phx.sim.chance cimport chance_between, chance_next
from phx.sim.damage cimport flip_record
from phx.sim.durability cimport doubtful
from phx.sim.host cimport Host
from phx.sim.invariants cimport watch_fail
from phx.sim.watch_lost cimport watch_ceiling, watch_losing, watch_lost

from phx.sim.storage import StoreFailed
from phx.store_facts import Facts

cdef u64 RETRY_US = 1000000
# So small, and raised by so little, that it is in the way again and again.
cdef u64 FIRST_CEILING = 8
cdef u64 RAISE_MOST = 8


cdef void life_begins(Host h):
    if not h.rejoins:
        return
    before = h.store.facts or Facts(ceiling=FIRST_CEILING, incarnation=0)
    h.store.facts = before.next_life(
        above=0, lease_us=h.engine_options.lease_us, groups=h.groups)
    watch_ceiling(h.watch, h.node, h.store.facts.ceiling)


cdef bint life_lost(Host h, int code):
    if not h.rejoins or h.life == 1 or h.disk.state.dead:
        return False
    if code == 0 and h.engine.incarnation >= h.store.facts.lost:
        h.losing = False
        return False
    if code != 0 and code != JOURNAL_DAMAGED and code != JOURNAL_MISSING:
        return False
    if not h.losing:
        watch_fail(h.watch, b"U3", b"a journal that nobody took or damaged counts as lost")
    return True


cdef void life_without(Host h):
    h.counts.lost_journals += 1
    h.counts.lost_again += h.store.facts.lost != 0 and not h.taken
    h.taken = False
    h.close()
    h.store.facts = h.store.facts.found_lost()
    empty_disk(h)
    watch_lost(h.watch, h.node)
    if h.tracing is not None:
        h.tracing.append((h.agenda.now_us, "without its journal", h.node, h.store.facts.lost))


# What was to happen to the old disk happens to the new one.
cdef void empty_disk(Host h):
    cdef MemoryDisk old = h.disk
    cdef u64 left = 0
    if old.state.crash_operation > old.state.operations:
        left = old.state.crash_operation - old.state.operations
    h.disk = MemoryDisk(atom=old.state.atom, bytes_max=old.state.bytes_max,
                        seed=chance_next(&h.chance))
    h.disk.crash_at(left)


cdef void life_told(Host h, bint lost):
    cdef RecordHeader header
    if not h.rejoins:
        return
    memset(&header, 0, sizeof(header))
    header.kind = RECORD_NODE
    header.index = h.store.facts.incarnation - 1
    header.ballot = h.store.facts.lease_us if lost else 0
    engine_replay(h.engine, &header, NULL, 0)
    engine_ceiling(h.engine, h.store.facts.ceiling)
    for group in h.groups if lost else doubtful(h):
        engine_suspect(h.engine, group)


cdef void ceiling_wanted(Host h, u64 counter):
    soon(h, chance_between(&h.chance, 100, h.pace.commit_us_max + 100),
         partial(raise_ceiling, h, counter))


def raise_ceiling(Host h, u64 counter):
    # (The engine asks for a step above what it needs.)
    lowest = max(h.store.facts.ceiling, counter - CEILING_STEP)
    facts = h.store.facts.raised(lowest + chance_between(&h.chance, 1, RAISE_MOST))
    try:
        h.store.remember(facts)
    except StoreFailed:
        soon(h, RETRY_US, partial(raise_ceiling, h, counter))
        return
    h.counts.ceilings += 1
    h.note(facts.ceiling)
    watch_ceiling(h.watch, h.node, facts.ceiling)
    engine_ceiling(h.engine, facts.ceiling)
    h.poke()


cdef void lose(Host h, bint damaged, u64 which, u64 bit):
    if not damaged or not flip_record(h.watch, h, which, bit):
        empty_disk(h)
    h.losing = h.taken = True


cdef bint is_losing(Host h):
    return h.losing or watch_losing(h.watch, h.node)

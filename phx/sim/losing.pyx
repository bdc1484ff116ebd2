# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Journals, stores and power that are lost; see losing.pxd and losing.pyi."""

from phx._core.native cimport *
from phx.sim.durability cimport doubtful
from phx.sim.host cimport Host
from phx.sim.lives cimport is_losing, lose
from phx.sim.watch_kept cimport watch_store
from phx.sim.world cimport World

from phx.sim.relaxing import COUNTED


# It has lost votes, or will when it starts, or a disk that is to fail may have it so at any moment.
cdef bint lacks_votes(Host h):
    if is_losing(h):
        return True
    if h.relaxing is None or h.store.facts is None:
        return False
    return h.poisoned or h.disk.state.fail_after != 0 or len(doubtful(h)) != 0


cdef bint spares_of(World world, Host host, nodes):
    cdef Host other
    cdef int losing = 0
    for other in world.hosts:
        losing += other is not host and other.node in nodes and lacks_votes(other)
    return losing < <int>len(nodes) - (<int>len(nodes) // 2 + 1)


cdef bint spares_a_majority(World world, Host host):
    if not spares_of(world, host, range(1, world.n + 1)):
        return False
    for fact in world.directory.newest() if world.directory is not None else ():
        if fact.phase != "gone" and host.node in fact.nodes \
                and not spares_of(world, host, fact.nodes):
            return False
    return True


cdef bint with_power(World world, Host host, bint power):
    if not power or host.relaxing is None or not host.store.facts.relaxed:
        return power
    return spares_a_majority(world, host)


cdef bint lose_journal(World world, Host host, bint damaged, which, bit):
    if not host.rejoins or not spares_a_majority(world, host):
        return False
    world.bring_down(host, False)
    lose(host, damaged, which, bit)
    return True


cdef bint elsewhere(World world, Host host, group):
    cdef Host other
    row = host.store.floor(group)
    floor = row.kept_from if row is not None else 1
    if floor == 1:
        return True
    for other in world.hosts:
        row = other.store.floor(group)
        if other is host or row is None or other.node in world.damaged_nodes \
                or other.store.ailing():
            continue
        if row.kept_from == 1 and row.settled_through + 1 >= floor:
            return True
        if group not in other.keep_excused and other.keeping.cover(group, floor):
            return True
    return False


cdef void change_store(World world, Host host, copy) except *:
    world.bring_down(host, False)
    host.store.put_back(copy)
    host.store_changed = True
    host.store_copy = None
    host.counts.lost_stores += 1
    host.keep_excused.update(world.groups)
    watch_store(world.watch, host.node)


# --- what Python asks

def switch(World world, node, u32 group, u64 within_us):
    cdef Host host = world.host_of(node)
    if host.engine != NULL and host.relaxing is not None:
        host.relaxing.set(group, within_us)


def switches(World world):
    cdef Host host
    total = dict.fromkeys(COUNTED, 0)
    for host in world.hosts:
        if host.relaxing is not None:
            for name in COUNTED:
                total[name] += host.relaxing.counts[name]
    return total

# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Journals, stores and power that are lost; see losing.pxd and losing.pyi."""

from phx._core.native cimport *
from phx.sim.durability cimport doubtful
from phx.sim.host cimport Host
from phx.sim.lives cimport is_losing, lose
from phx.sim.reference cimport Log
from phx.sim.watch_kept cimport watch_store
from phx.sim.watch_lost cimport watch_losing_in
from phx.sim.world cimport World

from phx.sim.relaxing import COUNTED


# Where groups are relaxed, a journal that fails makes their votes doubtful.
cdef bint fails_soon(Host h):
    return h.relaxing is not None and (h.poisoned or h.disk.state.fail_after != 0)


# In some group it has lost its vote, or will when it starts, or by a disk that is about to fail.
cdef bint lacks_any(Host h):
    if is_losing(h):
        return True
    if h.relaxing is None or h.store.facts is None:
        return False
    return fails_soon(h) or len(doubtful(h)) != 0


# In that group; whether it has a vote there is not asked.
cdef bint lacks_in(Host h, u32 group):
    if h.losing or watch_losing_in(h.watch, h.node, group):
        return True
    return h.relaxing is not None and (fails_soon(h) or group in doubtful(h))


cdef list voters_in(World world, u32 bits):
    return [node for node in range(1, world.n + 1) if bits >> (node - 1) & 1]


# Whose votes the group needs, or may need by what was asked: as sets of voters.
cdef list voters_of(World world, u32 group):
    cdef Log* log = &world.watch.ref.logs[group]
    cdef size_t i = log.configurations.size()
    cdef u64 newest = log.configurations.back().who.version
    found = [voters for version, voters in (world.asked_members or {}).get(group, ())
             if version > newest]
    while i:
        i -= 1
        found.append(voters_in(world, log.configurations[i].who.voters))
        if log.configurations[i].active:
            break
    return found


cdef bint spares_of(World world, Host host, u32 group, nodes):
    cdef Host other
    cdef int losing = 0
    if host.node not in nodes:
        return True
    for other in world.hosts:
        if other is not host and other.node in nodes:
            losing += lacks_in(other, group) if world.watch.changing else lacks_any(other)
    return losing < <int>len(nodes) - (<int>len(nodes) // 2 + 1)


cdef bint spares_a_majority(World world, Host host):
    if not world.watch.changing:
        return spares_of(world, host, 0, range(1, world.n + 1))
    for group in range(world.watch.configured):
        for voters in voters_of(world, group):
            if not spares_of(world, host, group, voters):
                return False
    for fact in world.directory.newest() if world.directory is not None else ():
        if fact.phase != "gone" and not spares_of(world, host, fact.group, fact.nodes):
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

def lasting(World world, u32 group, voters):
    cdef Host host
    cdef int failing = 0, lacking = 0
    for node in voters:
        host = world.host_of(node)
        failing += fails_soon(host)
        lacking += lacks_in(host, group)
    return failing == 0 or lacking <= len(voters) - (len(voters) // 2 + 1)


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

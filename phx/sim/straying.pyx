# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""What is done to a world by which replicas diverge; see straying.pyi."""

from phx._core.native cimport *
from phx.sim.host cimport Host, LogFlow, STRAY_LOG, STRAY_STATE, find_flow
from phx.sim.watch_odd cimport odd_found, odd_marked, odd_since
from phx.sim.world cimport World


# Has somebody else, who is right, what nobody's log has any more? (Who is odd is of no use, and
# then it would be lost: docs/design/checkpoints.md, section 8.)
cdef bint elsewhere(World world, Host h, u32 group):
    cdef Host other
    rows = [other.store.floor(group) for other in world.hosts]
    floor = max([row.kept_from for row in rows if row is not None], default=1)
    for other in world.hosts:
        if other is h or odd_since(other.watch, other.node, group) \
                or odd_marked(other.watch, other.node, group) or group in other.keep_excused:
            continue
        row = other.store.floor(group)
        if floor == 1 or other.keeping.cover(group, floor):
            return True
        if row is not None and row.kept_from == 1 and row.settled_through + 1 >= floor:
            return True
    return False


def stray(World world, node, u32 group, bint log, u64 how):
    cdef Host h = world.host_of(node)
    cdef LogFlow* flow
    if h.engine == NULL or not h.comparing.on:
        return False
    flow = find_flow(h, group)
    if flow.stopped or not elsewhere(world, h, group) or not world.oddness.joins(group, h.node):
        return False
    log = log or not hasattr(h.machine[group], "stray")
    flow.stray = STRAY_LOG if log else STRAY_STATE
    flow.stray_how = how
    return True


def rebuild(World world, node, u32 group, bint dying):
    cdef Host h = world.host_of(node)
    if h.engine == NULL or not h.comparing.on or not elsewhere(world, h, group) \
            or not world.oddness.joins(group, h.node):
        return False
    h.fetching.rebuild(group, dying)
    return True


def astray(World world):
    cdef Host h
    cdef size_t i
    found = []
    for h in world.hosts:
        for i in range(h.flows.size() if h.engine != NULL else 0):
            if h.flows[i].anew or odd_since(h.watch, h.node, h.flows[i].group) \
                    or odd_found(h.watch, h.node, h.flows[i].group):
                found.append((h.node, h.flows[i].group))
    return found


def unfound(World world):
    cdef Host h
    found = []
    for h in world.hosts:
        for group in world.groups if h.engine != NULL else ():
            if odd_since(h.watch, h.node, group) and not odd_found(h.watch, h.node, group) \
                    and not find_flow(h, group).anew:
                found.append((h.node, group))
    return found

# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Members at a host; see changing.pxd."""

from functools import partial

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

from phx._core.engine cimport engine_change_known, engine_membership
from phx._core.membership cimport config_set
from phx._core.native cimport *
from phx._core.state cimport (
    Event, GroupMembers, MEMBERS_ACTIVE, MEMBERS_LEFT, find_group,
)
from phx.sim.catchup cimport soon
from phx.sim.chance cimport chance_between
from phx.sim.host cimport Host, LogFlow
from phx.sim.invariants cimport watch_fail
from phx.sim.watch_members cimport watch_members_row, watch_members_told

from phx.membership import Membership
from phx.sim.memberships import Memberships
from phx.sim.storage import StoreFailed

cdef u64 RETRY_US = 1000000


cdef void tell(Host h, u32 group, told):
    cdef bytes roster = told.roster
    if h.engine.poisoned:
        return                        # it takes nothing any more
    if engine_change_known(h.engine, group, told.version,
                           <const u8*>PyBytes_AS_STRING(roster), PyBytes_GET_SIZE(roster),
                           told.instance, told.floor, told.active) != 0:
        watch_fail(h.watch, b"U10", f"node {h.node}, group {group}: its engine refuses the members "
                   f"of version {told.version}, which its disk says".encode())


cdef void members_open(Host h):
    h.memberships = Memberships()
    h.changed = []
    for group in h.groups:
        known = [one.membership for one in h.keeping.catalog.of(group)
                 if one.membership is not None]
        if group in h.store.hosted:
            known.append(h.store.hosted[group].first)
        else:
            config_set(h.engine, find_group(h.engine, group), (<u64>1 << h.first_members) - 1, 0, 0)
        if group in h.store.members:
            kept = h.store.members[group].membership
            known.append(kept)
            watch_members_told(h.watch, h.node, group, kept.version)
        if group in h.joining:
            known.append(h.joining[group])
        for one in known:
            h.memberships.learn(group, one)
        newest = h.memberships.newest(group)
        if newest is not None:
            h.store.note_members(group, newest)
            tell(h, group, newest)


cdef void members_told(Host h, u32 group, told):
    h.memberships.learn(group, told)
    watch_members_told(h.watch, h.node, group, told.version)
    tell(h, group, told)


def write_members(Host h):
    try:
        h.store.write_members()
    except StoreFailed:
        soon(h, RETRY_US, partial(write_members, h))


cdef void members_changed(Host h, const Event* event):
    cdef GroupMembers found
    h.note(event.first_seq ^ (<u64>event.group << 48) ^ (<u64>event.verdict << 40))
    if not engine_membership(h.engine, event.group, &found) or found.value == NULL:
        return
    roster = PyBytes_FromStringAndSize(<char*>found.value.data, found.value.size)
    told = Membership(roster, found.instance, found.floor, bool(found.flags & MEMBERS_ACTIVE))
    ended = found.flags & (MEMBERS_ACTIVE | MEMBERS_LEFT) == MEMBERS_ACTIVE | MEMBERS_LEFT
    before = h.memberships.newest(event.group)
    if before is None or before.version < told.version:
        h.changed.append((event.group, told.instance))
    h.store.note_members(event.group, h.memberships.learn(event.group, told), ended)
    if h.tracing is not None:
        h.tracing.append((h.agenda.now_us, "members", h.node, f"g{event.group}",
                          f"v{told.version}", told.instance, found.flags))
    soon(h, chance_between(&h.keep_chance, 100, h.pace.commit_us_max + 100),
         partial(write_members, h))


cdef void members_known(Host h, u32 group, told):
    if not h.first_members:
        assert told is None, "nobody changes members"
    elif told is not None:
        h.memberships.learn(group, told)
        tell(h, group, told)
        h.touch(group)
        h.poke()


cdef tuple members_at(Host h, const LogFlow* flow):
    if not h.first_members:
        return True, None
    return h.memberships.at(flow.group, flow.applied)


cdef void members_covered(Host h, u32 group):
    if not h.first_members:
        return
    for one in h.keeping.catalog.of(group):
        if one.membership is not None:
            h.store.note_members(group, one.membership)


cdef void members_row(Host h, u32 group, u64 settled):
    if not h.first_members:
        return
    row = h.store.members.get(group)
    watch_members_row(h.watch, h.node, group, settled, 1 if row is None else row.membership.version)


cdef bint left_out(Host h, u32 group, u64 op):
    return not h.watch.ref.ops[op].applied \
        and not h.watch.ref.logs[group].members >> (h.node - 1) & 1

# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Created groups at a host; see hosted.pxd and hosted.pyi."""

from dataclasses import replace

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from phx._core.engine cimport (
    engine_add_group, engine_change_members, engine_drop_group, engine_floor, engine_gone,
    engine_group_status, engine_restoring,
)
from phx._core.membership cimport is_removed
from phx._core.native cimport *
from phx._core.published cimport published_blank
from phx._core.state cimport GroupStatus, Replica, VERDICT_ENDED_UNKNOWN, find_group
from phx.sim.agenda cimport AT_RESTORE
from phx.sim.chance cimport chance_between
from phx.sim.changing cimport members_told
from phx.sim.handing cimport fail_call
from phx.sim.host cimport Host, LogFlow, STRAY_NOT, find_flow
from phx.sim.watch_kept cimport watch_row
from phx.sim.watch_lives cimport watch_unhosted, watch_hosted, watch_hosts

from phx import store_hosted
from phx._core import members as rosters

cdef u64 RESTORE_US_MAX = 10000
GENERATION = 1


cdef void groups_begin(Host h):
    if h.slots == len(h.configured):
        return
    h.groups = h.configured + sorted(group for group, row in h.store.hosted.items() if not row.gone)
    left, h.store.failing = h.store.failing, 0  # (a node does not start on a store that fails)
    for group in h.groups[len(h.configured):]:
        prepare(h, group)
    h.store.failing = left


cdef void groups_open(Host h, dict settled):
    for group in h.groups:
        engine_add_group(h.engine, group, GENERATION if group in h.store.hosted else 0,
                         settled.get(group, 0))
    for group, row in h.store.hosted.items():
        if row.gone:
            engine_gone(h.engine, group, GENERATION)


cdef u64 base_of(Host h, u32 group):
    row = h.store.hosted.get(group)
    return 0 if row is None else row.base


cdef bint is_over(Host h, u32 group) noexcept:
    cdef Replica* r = find_group(h.engine, group)
    return r != NULL and r.generation != 0 and is_removed(r)


cdef void flow_begin(LogFlow* flow, u32 group, bint hosted, bint paused, u64 last) noexcept:
    flow.group = group
    flow.hosted = hosted
    flow.stopped = False
    flow.paused = paused
    flow.lost = flow.busy = flow.refused = False
    flow.anew = False
    flow.stray = STRAY_NOT
    flow.covered = 0
    flow.next = 1
    flow.last = last
    flow.applied = 0


# --- for hosting.py

def row_says(Host h, u32 group, bint hosts):
    watch_hosts(h.watch, h.node, group, hosts)


def remember(Host h, u32 group):
    facts = h.store.facts
    if facts is not None and group not in facts.groups:
        h.store.remember(replace(facts, groups=tuple(sorted({*facts.groups, group}))))


def prepare(Host h, u32 group):
    store_hosted.prepare(h.store.as_store(), group, h.store.hosted[group])
    row = h.store.floor(group)
    watch_row(h.watch, h.node, group, row.kept_from, row.settled_through)


def clean(Host h, u32 group):
    store_hosted.clean(h.store.as_store(), group)
    row = h.store.floor(group)
    if row is not None:
        watch_row(h.watch, h.node, group, row.kept_from, row.settled_through)


def begin(Host h, u32 group):
    row = h.store.hosted[group]
    cdef LogFlow* flow = &h.flows[group]
    engine_add_group(h.engine, group, GENERATION, row.base)
    engine_floor(h.engine, group, row.base + 1)
    members_told(h, group, row.first)
    published_blank(h.published, find_group(h.engine, group).index)
    engine_restoring(h.engine, group, True)
    h.groups = sorted([*h.groups, group])
    h.sessions.add_group(group)
    h.machine[group] = h.machines(group)
    h.next_sequence[group] = 1
    flow_begin(flow, group, True, True, row.base)
    watch_hosted(h.watch, h.node, group, row.base)
    h.note(group)
    h.trace("hosts", group, str(row.first.nodes))
    h.agenda.push(h.agenda.now_us + chance_between(&h.keep_chance, 10, RESTORE_US_MAX),
                  AT_RESTORE, h.index, h.life, group, 0, NULL)
    h.touch(group)
    h.poke()


def retire(Host h, u32 group):
    find_flow(h, group).stopped = True


def drop(Host h, u32 group):
    engine_drop_group(h.engine, group)
    watch_unhosted(h.watch, h.node, group)
    for key in sorted(h.waiting):
        if key >> 48 == group:
            fail_call(h, h.waiting.pop(key), VERDICT_ENDED_UNKNOWN)
    flow_begin(&h.flows[group], group, False, False, 0)
    h.groups = [one for one in h.groups if one != group]
    h.sessions.drop_group(group)
    del h.machine[group], h.next_sequence[group]
    h.memberships.forget(group)
    h.fetching.forget(group)
    h.note(group)
    h.trace("dropped", group, "")
    h.poke()


def end(Host h, u32 group):
    cdef GroupStatus status
    cdef bytes value
    if not engine_group_status(h.engine, group, &status) or not status.leading:
        return False
    value = rosters.write(find_group(h.engine, group).version + 1, 1, 0, [])
    h.note(engine_change_members(h.engine, group, <const u8*>PyBytes_AS_STRING(value),
                                 PyBytes_GET_SIZE(value)))
    h.touch(group)
    h.poke()
    return True


def over(Host h, u32 group):
    return is_over(h, group)


def hosts(Host h, u32 group):
    return find_flow(h, group) != NULL


def settling(Host h):
    return h.plan is not None or h.settling

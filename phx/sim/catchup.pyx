# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Floors and installs; see catchup.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from phx._core.engine cimport (
    engine_applied, engine_done, engine_floor, engine_group_status, engine_install,
    engine_restoring,
)
from phx._core.native cimport *
from phx._core.state cimport Event, GroupStatus
from phx.sim.agenda cimport AT_TASK
from phx.sim.changing cimport members_covered, members_row
from phx.sim.host cimport Host, KEEP_IDLE, LogFlow, find_flow
from phx.sim.reference cimport hash_bytes
from phx.sim.watch_callers cimport watch_acked
from phx.sim.watch_kept cimport (
    watch_cover, watch_floored, watch_installed, watch_installing, watch_loaded, watch_row,
    watch_swapped,
)
from phx.sim.watch_odd cimport watch_made_of

from phx.sim.storage import StoreFailed
from phx.store_trim import Floor


cdef dict floors_open(Host h):
    return {group: row.kept_from for group, row in h.store.floors().items()}


cdef void rows_open(Host h, dict settled, dict floors):
    cdef u64 floor
    for group in h.groups:
        floor = floors.get(group, 1)
        watch_row(h.watch, h.node, group, floor, settled.get(group, 0))
        if floor > 1:
            engine_floor(h.engine, group, floor)


cdef void row_changed(Host h, u32 group):
    row = h.store.floor(group)
    if row is not None:
        watch_row(h.watch, h.node, group, row.kept_from, row.settled_through)
        members_row(h, group, row.settled_through)


# Frames that are made in the next turn may still be of before.
cdef void floored(Host h, u32 group):
    watch_floored(h.watch, h.node, group, h.turns + 2)
    h.touch(group)
    h.poke()


cdef void below(Host h, const Event* event):
    h.note(event.first_seq ^ (<u64>event.group << 48))
    if h.tracing is not None:
        h.tracing.append((h.agenda.now_us, "below", h.node, f"g{event.group}", event.first_seq))
    h.fetching.below(event.group)


# --- tasks

cdef void soon(Host h, u64 after_us, what):
    h.task_number += 1
    h.tasks[h.task_number] = what
    h.agenda.push(h.agenda.now_us + after_us, AT_TASK, h.index, h.life, h.task_number, 0, NULL)


cdef void task(Host h, u64 number):
    h.tasks.pop(number)()
    h.keep_dead = h.keeping.dead


cdef void forget_tasks(Host h):
    h.tasks = {}
    h.fetching.crash()
    h.mending.crash()
    h.comparing.crash()
    h.trimming.crash()
    if h.hosting is not None:
        h.hosting.crash()
    h.provider = None


# --- what Python asks

cdef dict facts_of(Host h, u32 group):
    cdef GroupStatus status
    cdef LogFlow* flow = find_flow(h, group)
    engine_group_status(h.engine, group, &status)
    row = h.store.floor(group)
    return {
        "floor": row.kept_from if row is not None else 1,
        "chosen_through": status.chosen_through, "applied": flow.applied,
        "leading": status.leading, "stopped": flow.stopped,
        "restoring": flow.paused and not flow.lost, "lost": flow.lost, "anew": flow.anew,
    }


cdef list connected_to(Host h):
    return [i + 1 for i in range(h.engine_options.n_members)
            if i != h.index and h.connections[i]]


# False: a checkpoint of the group is being taken.
cdef bint make_busy(Host h, u32 group, bint on):
    cdef LogFlow* flow = find_flow(h, group)
    if on and h.keep_stage != KEEP_IDLE and flow == &h.flows[h.keep_flow]:
        return False
    flow.busy = on
    return True


cdef bint raise_row(Host h, u32 group, u64 kept_from, u64 settled):
    members_covered(h, group)
    try:
        h.store.raise_floors({group: Floor(kept_from, settled)})
    except StoreFailed:
        return False
    h.note(kept_from)
    if h.tracing is not None:
        h.tracing.append((h.agenda.now_us, "keeps from", h.node, f"g{group}", kept_from, settled))
    row_changed(h, group)
    if group not in h.keep_excused:
        watch_cover(h.watch, h.node, group,
                    h.keeping.cover(group, h.store.floor(group).kept_from))
    return True


cdef void tell_floor_of(Host h, u32 group):
    engine_floor(h.engine, group, h.store.floor(group).kept_from)
    floored(h, group)


cdef bint trim_once(Host h):
    try:
        return h.store.trim()
    except StoreFailed:
        return True


# --- installing

# Values of this life's callers that the table counts as done: they are told so, and the engine is.
cdef void settle_callers(Host h, u32 group):
    cdef u64 base = 0, key
    done = set()
    for node, incarnation, low, above in h.sessions.rows(group):
        if node == h.node and incarnation == h.incarnation:
            base = low
            done = set(above)
    for key in sorted(h.waiting):
        if key >> 48 != group:
            continue
        sequence = key & ((<u64>1 << 48) - 1)
        if sequence < base or sequence in done:
            call = h.waiting.pop(key)
            watch_acked(h.watch, h.node, group, call.op)
            call.lost(h.agenda.now_us)
            engine_done(h.engine, group, sequence, 1)
            h.counts.settled_calls += 1


# False: it has passed the checkpoint meanwhile, or its machine failed.
cdef bint swap_in(Host h, u32 group, machine, bytes table, u64 frontier, u64 read, bint odd,
                  bint own, members):
    cdef LogFlow* flow = find_flow(h, group)
    if (flow.stopped and not flow.anew) or (flow.applied >= frontier and not flow.lost):
        return False
    h.machine[group] = machine
    h.sessions.load(table, members)
    table = h.sessions.table(group)
    digest = <bytes>machine.digest()
    watch_loaded(h.watch, h.node, group, read)
    watch_made_of(h.watch, h.node, group, frontier, odd, own)
    watch_swapped(h.watch, h.node, group, frontier, <const u8*>PyBytes_AS_STRING(table),
                  PyBytes_GET_SIZE(table),
                  hash_bytes(<const u8*>PyBytes_AS_STRING(digest), PyBytes_GET_SIZE(digest)),
                  flow.anew)
    h.comparing.forget(group)
    if flow.anew:
        flow.stopped = False
        flow.next = frontier + 1
    flow.applied = flow.covered = frontier
    settle_callers(h, group)
    if h.tracing is not None:
        h.tracing.append((h.agenda.now_us, "swaps", h.node, f"g{group}", frontier))
    return True


cdef void install_at(Host h, u32 group, u64 through, u64 ballot):
    cdef LogFlow* flow = find_flow(h, group)
    watch_installing(h.watch, h.node, group, through)
    if engine_install(h.engine, group, through, ballot) != 0:
        return
    watch_installed(h.watch, h.node, group, through)
    floored(h, group)
    h.note(through)
    h.keep_excused.discard(group)
    if h.tracing is not None:
        h.tracing.append((h.agenda.now_us, "installs", h.node, f"g{group}", through))
    if flow.stopped or flow.applied < through:
        return
    flow.refused = False
    flow.last = max(flow.last, through)
    if flow.next <= through:
        flow.next = through + 1
    engine_applied(h.engine, group, flow.applied)
    if flow.lost:
        flow.paused = flow.lost = flow.anew = False
        engine_restoring(h.engine, group, False)
    h.apply_soon(1)

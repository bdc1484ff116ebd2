# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Taking, starting from; see saving.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from phx._core.engine cimport engine_applied, engine_restoring
from phx._core.native cimport *
from phx.sim.agenda cimport AT_KEEP, AT_RESTORE
from phx.sim.changing cimport members_at
from phx.sim.chance cimport chance_below, chance_between, chance_next, chance_ppm
from phx.sim.host cimport Host, KEEP_IDLE, KEEP_WANTED, KEEP_WRITING, LogFlow, find_flow
from phx.sim.hosted cimport base_of, is_over
from phx.sim.invariants cimport watch_fail
from phx.sim.reference cimport hash_bytes
from phx.sim.watch_kept cimport watch_checkpoint, watch_cover, watch_loaded, watch_restored
from phx.sim.watch_lives cimport watch_begun
from phx.sim.watch_odd cimport odd_since, watch_made_of, watch_marked

cdef enum:
    FAVOURITES = 3

cdef u64 WAIT_US = 500000            # for a batch to end; then the group is captured as it stands
cdef u64 STEP_US_MAX = 12000
cdef u64 RESTORE_US_MAX = 40000


cdef inline u64 hash_of(bytes data) noexcept:
    return hash_bytes(<const u8*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


cdef void keep_at(Host h, u64 after_us):
    h.keep_token += 1
    h.agenda.push(h.agenda.now_us + after_us, AT_KEEP, h.index, h.life, h.keep_token, 0, NULL)


cdef void keep_idle(Host h):
    h.keep_stage = KEEP_IDLE
    if h.keep_every_us:
        keep_at(h, chance_between(&h.keep_chance, h.keep_every_us // 2, h.keep_every_us * 3 // 2))


# --- a life

# What the row says is kept from where on.
cdef u64 floor_of(Host h, u32 group) noexcept:
    return h.watch.node[h.index].seats[group].kept


cdef u64 keep_cover(Host h, u32 group):
    return max(h.keeping.cover(group, floor_of(h, group)), base_of(h, group))


cdef dict keep_open(Host h, dict floors):
    starts = h.keeping.open(floors)
    h.keep_dead = h.keeping.dead
    return {group: starts[group] for group in starts if group in h.groups}


cdef void keep_begin(Host h):
    cdef size_t i
    cdef LogFlow* flow
    for i in range(h.flows.size()):
        flow = &h.flows[i]
        if not flow.hosted:
            continue
        if flow.group not in h.keep_excused:
            watch_cover(h.watch, h.node, flow.group, keep_cover(h, flow.group))
        if flow.group in h.keeping.marked:
            flow.lost = flow.anew = True
            watch_marked(h.watch, h.node, flow.group, True)
            h.fetching.anew(flow.group)
        elif flow.paused:
            h.agenda.push(h.agenda.now_us + chance_between(&h.keep_chance, 10, RESTORE_US_MAX),
                          AT_RESTORE, h.index, h.life, flow.group, 0, NULL)
    keep_idle(h)


cdef void keep_crash(Host h, bint power):
    h.keeping.crash(power, chance_next(&h.keep_chance))
    h.keep_dead = False


# --- taking

cdef bint worth(Host h, const LogFlow* flow):
    return flow.hosted and not flow.stopped and not flow.paused and not flow.busy \
        and flow.applied > h.keeping.frontier(flow.group) and not is_over(h, flow.group)


cdef void capture(Host h, LogFlow* flow, bytes table):
    machine = h.machine[flow.group]
    cdef bint known
    known, told = members_at(h, flow)
    if not known or is_over(h, flow.group):
        keep_idle(h)
        return
    try:
        view = machine.freeze()
    except Exception as error:
        watch_fail(h.watch, b"U9c", f"node {h.node}, group {flow.group}: freeze raised "
                   f"{type(error).__name__}: {error}".encode()[:300])
        return
    if view is None:
        keep_idle(h)
        return
    digest = machine.digest()
    watch_checkpoint(h.watch, h.node, flow.group, flow.applied,
                     <const u8*>PyBytes_AS_STRING(table), PyBytes_GET_SIZE(table), hash_of(digest))
    h.keeping.begin(table, view, digest if machine.digest_cheap else b"", h.agenda.now_us,
                    odd_since(h.watch, h.node, flow.group) != 0, told)
    h.note(hash_of(table) ^ hash_of(digest))
    if h.tracing is not None:
        h.tracing.append((h.agenda.now_us, "captures", h.node, f"g{flow.group}", flow.applied))
    h.keep_stage = KEEP_WRITING
    keep_at(h, chance_between(&h.keep_chance, 10, STEP_US_MAX))


cdef void keep_group(Host h, LogFlow* flow):
    h.keep_flow = flow - &h.flows[0]
    if chance_ppm(&h.keep_chance, 500000):
        capture(h, flow, h.sessions.table(flow.group))
        return
    h.sessions.want(flow.group, True)
    h.keep_stage = KEEP_WANTED
    keep_at(h, WAIT_US)


# Some groups more often than others: the first ones have many checkpoints, the last ones none.
cdef void keep_due(Host h):
    cdef size_t i, at, first = h.node
    if chance_ppm(&h.keep_chance, 800000):
        first += chance_below(&h.keep_chance, FAVOURITES)
    else:
        first = chance_below(&h.keep_chance, h.flows.size())
    for i in range(h.flows.size()):
        at = (first + i) % h.flows.size()
        if worth(h, &h.flows[at]):
            keep_group(h, &h.flows[at])
            return
    keep_idle(h)


cdef void keep_ask(Host h, u32 group):
    cdef LogFlow* flow = find_flow(h, group)
    if h.keep_stage == KEEP_IDLE and flow != NULL and worth(h, flow):
        keep_group(h, flow)


cdef bint keep_wants(Host h, LogFlow* flow) noexcept:
    return h.keep_stage == KEEP_WANTED and flow == &h.flows[h.keep_flow]


cdef void keep_table(Host h, LogFlow* flow, bytes table):
    if keep_wants(h, flow):
        capture(h, flow, table)


cdef void keep_step(Host h, LogFlow* flow):
    try:
        more = h.keeping.step()
    except Exception as error:
        watch_fail(h.watch, b"U9c", f"node {h.node}, group {flow.group}: a checkpoint cannot be "
                   f"taken: {type(error).__name__}: {error}".encode()[:300])
        return
    h.keep_dead = h.keeping.dead
    if more:
        keep_at(h, chance_between(&h.keep_chance, 10, STEP_US_MAX))
        return
    if h.keep_dead:
        return
    h.trimming.taken(flow.group)
    keep_idle(h)


cdef void keep_event(Host h, u64 token):
    cdef LogFlow* flow = &h.flows[h.keep_flow]
    if token != h.keep_token:
        return
    if h.keep_stage == KEEP_WRITING:
        keep_step(h, flow)
    elif h.keep_stage == KEEP_IDLE:
        keep_due(h)
    elif worth(h, flow):
        capture(h, flow, h.sessions.table(flow.group))
    else:
        keep_idle(h)


# --- starting from one

cdef object made(Host h, u32 group):
    try:
        return h.keeping.restore(group, lambda: h.machines(group), floor_of(h, group))
    except Exception as error:
        watch_fail(h.watch, b"U9c", f"node {h.node}, group {group}: a checkpoint that is whole "
                   f"cannot be restored: {type(error).__name__}: {error}".encode()[:300])
        return h.machine[group], None, 0


cdef void restore(Host h, u32 group):
    cdef LogFlow* flow = find_flow(h, group)
    cdef u64 frontier = 0
    cdef bytes table
    if flow == NULL or flow.anew:
        return                        # it was dropped, or its state asked for anew, meanwhile
    h.machine[group], manifest, read = made(h, group)
    h.keep_dead = h.keeping.dead
    if h.keep_dead or h.watch.failed:
        return
    if manifest is not None:
        frontier = manifest.frontier
        h.sessions.load(manifest.sessions, manifest.changed_members)
        table = h.sessions.table(group)
        watch_loaded(h.watch, h.node, group, read)
        watch_made_of(h.watch, h.node, group, frontier, h.keeping.is_odd(manifest), True)
        watch_restored(h.watch, h.node, group, frontier, <const u8*>PyBytes_AS_STRING(table),
                       PyBytes_GET_SIZE(table), hash_of(h.machine[group].digest()))
    elif base_of(h, group) and floor_of(h, group) <= base_of(h, group) + 1:
        frontier = base_of(h, group)
        h.sessions.begin(group, frontier, h.store.hosted[group].first.nodes)
        watch_begun(h.watch, h.node, group, frontier)
    if group not in h.keep_excused:
        watch_cover(h.watch, h.node, group, frontier)
    elif frontier + 1 < floor_of(h, group):
        # Damaged on purpose, and the log is not there: somebody else has it.
        flow.lost = True
        h.fetching.below(group)
        return
    if h.tracing is not None:
        h.tracing.append((h.agenda.now_us, "goes on from", h.node, f"g{group}", frontier))
    h.note(frontier)
    flow.next = frontier + 1
    flow.applied = frontier
    flow.paused = False
    engine_applied(h.engine, group, frontier)
    engine_restoring(h.engine, group, False)
    if flow.next <= flow.last:
        h.apply_soon(1)
    h.poke()

# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Bodies, fetches, applying; see handing.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memcpy

from phx._core.codec cimport RecordHeader, align8
from phx._core.delivery cimport Batch, Delivered
from phx._core.entries cimport Entry
from phx._core.engine cimport (
    engine_applied, engine_entry, engine_location, engine_stop_group, engine_supply,
)
from phx._core.journal cimport JOURNAL_NOT_YET, journal_read
from phx._core.native cimport *
from phx._core.state cimport ChosenRange, Fetch, find_group
from phx._core.wire cimport SuppliedEntry
from phx.sim.agenda cimport AT_FETCH
from phx.sim.chance cimport chance_between, chance_ppm
from phx.sim.changing cimport left_out
from phx.sim.diverging cimport note_agreed, stray_machine, stray_tables
from phx.sim.host cimport Asked, Host, LogFlow, find_flow
from phx.sim.invariants cimport watch_applied, watch_chain, watch_chosen, watch_fail
from phx.sim.saving cimport keep_table, keep_wants
from phx.sim.watch_callers cimport watch_acked, watch_dropped, watch_verdict
from phx.sim.watch_odd cimport watch_answers
from phx.sim.watch_reads cimport watch_announced

from phx.sim.storage import StoreDamaged

VERDICTS = {
    1: "timed out, rejected", 2: "timed out, unknown", 3: "overloaded", 4: "not leader",
    5: "stopped, rejected", 6: "stopped, unknown", 7: "no quorum", 8: "poisoned, rejected",
    9: "poisoned, unknown", 10: "ended, rejected", 11: "ended, unknown",
}
UNKNOWN = frozenset({2, 6, 9, 11})

cdef int STOPPED_UNKNOWN = 6
cdef u64 ANSWER_BYTES = 16384
cdef u64 READ_BYTES = 1 << 20
cdef u64 SLICE_ENTRIES = 512


# The body of a chosen instance as a reference of the caller's, or why there is none.
cdef int body_of(Host h, u32 group, u64 instance, Block** out) noexcept:
    cdef RecordHeader header
    cdef Block* body = engine_entry(h.engine, group, instance)
    cdef u64 lsn
    cdef int code
    if body != NULL:
        out[0] = block_ref(body)
        return BODY_HERE
    lsn = engine_location(h.engine, group, instance)
    if lsn == 0:
        return BODY_SETTLED
    code = journal_read(h.journal, lsn, out, &header)
    if code == JOURNAL_NOT_YET:
        return BODY_NOT_YET
    if code != 0:
        return BODY_BAD
    if header.group != group or header.index != instance:
        watch_fail(h.watch, b"U3", b"another record stands where a chosen entry should be")
    return BODY_HERE


cdef void flow_chosen(Host h, const ChosenRange* chosen):
    cdef LogFlow* flow = find_flow(h, chosen.group)
    if chosen.last > flow.last:
        flow.last = chosen.last
    watch_announced(h.watch, chosen.group, chosen.last)
    h.chosen_us = h.agenda.now_us
    h.unsettled = True
    h.apply_soon(chance_between(&h.chance, 1, h.pace.apply_us_max))


# --- to peers

cdef void question(Host h, const Fetch* fetch):
    cdef Asked asked
    asked.group = fetch.group
    asked.peer = fetch.peer
    asked.first = fetch.first
    asked.last = fetch.last
    h.asked.push_back(asked)
    h.agenda.push(h.agenda.now_us + chance_between(&h.chance, 1, 2000), AT_FETCH, h.index, h.life,
                  h.asked.size() - 1, 0, NULL)


# What is here of a stretch of chosen instances, one after the other, in a new block.
cdef Block* run_of(Host h, u32 group, u64 first, u64 last) except NULL:
    cdef Block* out = block_new(4096)
    cdef Block* body = NULL
    cdef SuppliedEntry header
    cdef u64 instance = first
    cdef int verdict = BODY_NOT_YET
    while instance <= last and out.size < ANSWER_BYTES:
        verdict = body_of(h, group, instance, &body)
        if verdict != BODY_HERE:
            break
        header.instance = instance
        header.body_bytes = <u32>body.size
        header.pad = 0
        out = block_append(out, &header, sizeof(SuppliedEntry))
        out = block_append(out, body.data, body.size)
        out = block_pad8(out)
        block_unref(body)
        instance += 1
    if instance == first and verdict == BODY_SETTLED:
        try:
            found = h.store.read(group, first, ANSWER_BYTES, last)
            out = block_append(out, PyBytes_AS_STRING(found), PyBytes_GET_SIZE(found))
        except StoreDamaged:
            h.counts.damaged_reads += 1
    return out


cdef bytes entries_of(Host h, u32 group, u64 first, u64 last):
    cdef u64 chosen = find_group(h.engine, group).chosen_through
    cdef Block* out = run_of(h, group, first, min(last, chosen))
    found = PyBytes_FromStringAndSize(<const char*>out.data, out.size)
    block_unref(out)
    return found


cdef void answer(Host h, u64 number):
    cdef Asked asked = h.asked[number]
    cdef Block* out
    if find_flow(h, asked.group) == NULL:
        return                        # it was dropped since
    out = run_of(h, asked.group, asked.first, asked.last)
    if out.size:
        h.counts.supplied += 1
    engine_supply(h.engine, asked.group, asked.peer, asked.first, out.data, out.size)
    block_unref(out)
    h.poke()


# --- to the machines

# Settled entries of the flow, at most `most`; how many.
cdef u32 load(Host h, LogFlow* flow, Block** bodies, u32 most):
    cdef const u8* data
    cdef SuppliedEntry header
    cdef u64 at = 0, size, last = flow.next + most - 1
    cdef u32 count = 0
    try:
        found = h.store.read(flow.group, flow.next, READ_BYTES, last)
    except StoreDamaged:
        h.counts.damaged_reads += 1
        flow.refused = True
        return 0
    data = <const u8*>PyBytes_AS_STRING(found)
    size = PyBytes_GET_SIZE(found)
    while at < size and count < most:
        memcpy(&header, data + at, sizeof(SuppliedEntry))
        bodies[count] = block_copy(data + at + sizeof(SuppliedEntry), header.body_bytes)
        at += align8(sizeof(SuppliedEntry) + <u64>header.body_bytes)
        count += 1
    return count


cdef void go_on(Host h):
    cdef size_t i
    for i in range(h.flows.size()):
        h.flows[i].refused = False
    h.apply_soon(1)


# The next entries of a flow as the driver would hand them over, at most so many.
cdef bint take(Host h, LogFlow* flow, u64 most, Delivered* out):
    cdef u64 want = min(flow.last - flow.next + 1, most)
    cdef u32 count = 0, i
    cdef int verdict = BODY_HERE
    cdef Block** bodies = <Block**>phx_malloc(want * sizeof(Block*))
    while count < want:
        verdict = body_of(h, flow.group, flow.next + count, &bodies[count])
        if verdict != BODY_HERE:
            break
        count += 1
    if count == 0 and verdict == BODY_SETTLED:
        count = load(h, flow, bodies, <u32>want)
    if count == 0:
        phx_free(bodies)
        return False
    for i in range(count):
        if flow.next + i <= flow.covered:
            continue
        watch_chosen(h.watch, h.node, flow.group, flow.next + i, bodies[i].data, bodies[i].size)
    out.group = flow.group
    out.count = count
    out.first = flow.next
    out.bodies = bodies
    flow.next += count
    return True


# The first eight bytes of every value are its op id: the watch sees it, the machine does not.
cdef list stripped(Host h, Batch batch):
    cdef list entries = list(batch.entries)
    cdef Entry entry
    cdef u64 op
    for entry in entries:
        memcpy(&op, PyBytes_AS_STRING(entry.value), 8)
        watch_applied(h.watch, h.node, entry.group, entry.instance, entry.index, op, entry.epoch,
                      entry.time_us)
        entry.value = PyBytes_FromStringAndSize(
            PyBytes_AS_STRING(entry.value) + 8, PyBytes_GET_SIZE(entry.value) - 8)
    return entries


cdef void stop(Host h, LogFlow* flow, str why):
    flow.stopped = True
    h.counts.stopped_groups += 1
    h.halted.append((flow.group, h.turns))
    h.note(flow.group)
    if h.tracing is not None:
        h.tracing.append((h.agenda.now_us, "stopped", h.node, flow.group, why))
    engine_stop_group(h.engine, flow.group)
    h.poke()


cdef void wake(Host h, Batch batch, list entries, results):
    cdef Entry entry
    cdef Py_ssize_t i
    cdef bint odd = watch_answers(h.watch, h.node, batch.group)
    for i in range(len(entries)):
        entry = <Entry>entries[i]
        if entry.sequence == 0:
            continue
        call = h.waiting.pop(<u64>entry.group << 48 | entry.sequence, None)
        if call is not None:
            watch_acked(h.watch, h.node, entry.group, call.op)
            if odd:
                call.lost(h.agenda.now_us)
            else:
                call.done(h.agenda.now_us, results[i])
    for sequence, _ in batch.dropped:
        call = h.waiting.pop(<u64>batch.group << 48 | <u64>sequence, None)
        if call is not None and h.first_members and left_out(h, batch.group, call.op):
            watch_verdict(h.watch, call.op, False)
            call.failed(h.agenda.now_us, STOPPED_UNKNOWN)
        elif call is not None:
            watch_dropped(h.watch, h.node, batch.group, call.op)
            call.lost(h.agenda.now_us)


cdef void apply_batch(Host h, LogFlow* flow, Batch batch):
    if batch.error is not None:
        watch_fail(h.watch, b"U7", (<str>batch.error).encode())
        return
    cdef list entries = stripped(h, batch)
    h.note(batch.digest)
    try:
        results = h.machine[flow.group].apply_batch(entries)
    except Exception as error:
        stop(h, flow, f"{type(error).__name__}: {error}")
        return
    if len(results) != len(entries):
        stop(h, flow, "apply_batch gave another number of results")
        return
    h.counts.applied += len(results)
    wake(h, batch, entries, results)
    stray_machine(h, flow, entries)
    if batch.last < batch.first:
        return                        # all of it was covered by a checkpoint
    flow.applied = batch.last
    watch_chain(h.watch, h.node, batch.group, batch.last, batch.digest)
    note_agreed(h, flow, batch)
    if batch.table is not None:
        keep_table(h, flow, batch.table)
    engine_applied(h.engine, flow.group, batch.last)


cdef void apply(Host h):
    cdef vector[Delivered] taken
    cdef Delivered one
    cdef LogFlow* flow
    cdef size_t i
    cdef bint more = False
    h.apply_due = False
    if h.agenda.now_us < h.blocked_until_us:
        h.apply_soon(h.blocked_until_us - h.agenda.now_us)
        return
    for i in range(h.flows.size()):
        flow = &h.flows[i]
        if flow.next <= flow.last and not (flow.stopped or flow.paused or flow.refused):
            # In two pieces: the sessions run ahead of the batch that a checkpoint is taken at.
            if keep_wants(h, flow) and flow.next < flow.last:
                if take(h, flow, chance_between(&h.keep_chance, 1, 4), &one):
                    taken.push_back(one)
            if flow.next <= flow.last and not flow.refused \
                    and take(h, flow, SLICE_ENTRIES, &one):
                taken.push_back(one)
            more = more or (flow.next <= flow.last and not flow.refused)
    stray_tables(h, &taken)
    for batch in h.sessions.batches(&taken):
        flow = find_flow(h, batch.group)
        if not flow.stopped:     # by the batch before it
            apply_batch(h, flow, batch)
    if more:
        h.apply_soon(500)
    h.poke()


# --- callers that are told that it failed

cdef void fail_call(Host h, call, int verdict):
    watch_verdict(h.watch, call.op, verdict not in UNKNOWN)
    call.failed(h.agenda.now_us, verdict)


cdef void fail_calls(Host h):
    cdef u64 key
    failed, h.failed = h.failed, []
    for group, first, count, verdict in failed:
        for sequence in range(first, first + count):
            key = <u64>group << 48 | <u64>sequence
            call = h.waiting.pop(key, None)
            if call is None:
                watch_fail(h.watch, b"U8", b"a verdict on a value that nobody waits for")
                return
            fail_call(h, call, verdict)
    halted, h.halted = h.halted, []
    for group, turn in halted:
        if h.turns <= turn:  # the engine's verdicts come first: they say more
            h.halted.append((group, turn))
            continue
        for key in sorted(h.waiting):
            if key >> 48 == group:
                fail_call(h, h.waiting.pop(key), STOPPED_UNKNOWN)

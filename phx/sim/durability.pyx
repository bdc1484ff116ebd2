# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Relaxed groups of a host; see durability.pxd."""

from phx._core.engine cimport engine_durability, engine_sync, engine_written
from phx._core.journal cimport journal_durable
from phx._core.native cimport *
from phx.sim.host cimport Host
from phx.sim.watch_relaxed cimport (
    watch_power, watch_relaxed, watch_row_relaxed, watch_written,
)

cdef u64 NO_SYNC = ~<u64>0


cdef object doubtful(Host h):
    return h.store.facts.may_lack(h.boot) if h.relaxing is not None else ()


cdef void relaxed_begin(Host h):
    if h.relaxing is not None:
        h.counts.doubtful_groups += len(doubtful(h))
        h.relaxing.begin()


# Of what the engine waits for: how much is released by the writing alone.
cdef void count_released(Host h, u64 lsn) noexcept:
    cdef size_t i
    for i in range(h.engine.relaxed.size()):
        if h.engine.relaxed[i].lsn_end > lsn:
            break
        if h.engine.relaxed[i].lsn_end > h.durable_lsn:
            h.counts.written_votes += h.engine.relaxed[i].ballot != 0
            h.counts.written_acks += h.engine.relaxed[i].ballot == 0


cdef void written_news(Host h):
    cdef u64 lsn
    if h.relaxing is None or h.poisoned:
        return
    lsn = <u64>h.journal.written_lsn
    watch_written(h.watch, h.node, lsn)
    # (As the poll thread of a node: it looks only where something waits.)
    if h.engine.relaxed.empty() or lsn <= h.engine.written:
        return
    h.note(lsn)
    if h.tracing is not None:
        h.tracing.append((h.agenda.now_us, "written", h.node, lsn))
    count_released(h, lsn)
    engine_written(h.engine, lsn)
    h.poke()


cdef void rolled(Host h):
    cdef u64 lsn
    if h.relaxing is None:
        return
    lsn = journal_durable(h.journal)
    if lsn > h.durable_lsn:
        h.take_durable(lsn)


cdef void interval_passes(Host h):
    if h.relaxing is None or h.engine.relaxed_due_us == 0 \
            or h.shows() < h.engine.relaxed_due_us or h.engine.poisoned:
        return
    h.counts.interval_syncs += h.engine.relaxed_end > max(h.engine.durable, h.engine.lsn_needed)


cdef bint all_durable(Host h):
    if h.relaxing is None or h.engine.relaxed_end <= h.durable_lsn:
        return True
    engine_sync(h.engine)
    h.poke()
    return False


cdef void doubt(Host h):
    if h.relaxing is not None:
        h.relaxing.doubt()


cdef void power_lost(Host h):
    if h.relaxing is not None:
        h.runs += 1
        h.boot = h.runs.to_bytes(16, "big")
        watch_power(h.watch, h.node)


cdef u64 tell_durability(Host h, u32 group, u64 within_us):
    cdef u64 lsn
    watch_relaxed(h.watch, h.node, group, within_us != 0, h.turns)
    lsn = engine_durability(h.engine, group, within_us)
    h.note(lsn ^ <u64>group << 48)
    if h.tracing is not None:
        said = "none" if within_us == NO_SYNC else within_us
        h.tracing.append((h.agenda.now_us, "durability", h.node, f"g{group}", said))
    h.touch(group)
    h.poke()
    return lsn


cdef void row_changed(Host h, before, after):
    # (A row of no known run makes all of its groups doubtful, whatever else it had.)
    cdef bint anew = after.boot != before.boot and after.boot != b""
    if h.tracing is not None:
        h.tracing.append((h.agenda.now_us, "relaxed", h.node, after.relaxed))
    for group in before.relaxed:
        if anew or group not in after.relaxed:
            watch_row_relaxed(h.watch, h.node, group, False)
    for group in after.relaxed:
        watch_row_relaxed(h.watch, h.node, group, True)

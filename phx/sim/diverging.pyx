# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Machines that go astray; see diverging.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memcpy
from libcpp.vector cimport vector

from phx._core.codec cimport phx_crc32c
from phx._core.delivery cimport Batch, Delivered
from phx._core.engine cimport engine_restoring
from phx._core.entries cimport Entry
from phx._core.native cimport *
from phx.sim.handing cimport stop
from phx.sim.host cimport (
    Host, LogFlow, STRAY_LOG, STRAY_NOT, STRAY_STATE, find_flow,
)
from phx.sim.watch_odd cimport watch_found, watch_odd

# In a session table, which begins with a checksum of the rest (session_codec.pxd).
cdef Py_ssize_t CHAIN_AT = 24


cdef void is_astray(Host h, LogFlow* flow, u64 since, str what):
    flow.stray = STRAY_NOT
    h.counts.odd_machines += 1
    h.note(since ^ <u64>flow.group << 48)
    watch_odd(h.watch, h.node, flow.group, since)
    if h.tracing is not None:
        h.tracing.append((h.agenda.now_us, "is odd", h.node, f"g{flow.group}", since, what))


cdef bytes with_another_chain(bytes table, u64 how):
    cdef bytes made = PyBytes_FromStringAndSize(PyBytes_AS_STRING(table), PyBytes_GET_SIZE(table))
    cdef char* at = PyBytes_AS_STRING(made)
    cdef u32 crc
    at[CHAIN_AT + <Py_ssize_t>(how & 3)] ^= <char>(1 << (how >> 2 & 7))
    crc = phx_crc32c(0, at + 4, <u64>(PyBytes_GET_SIZE(made) - 4))
    memcpy(at, &crc, 4)
    return made


cdef void stray_tables(Host h, vector[Delivered]* taken):
    cdef LogFlow* flow
    cdef size_t i
    for i in range(taken.size()):
        flow = find_flow(h, taken[0][i].group)
        if flow.stray == STRAY_LOG and taken[0][i].first > flow.covered:
            h.sessions.load(with_another_chain(h.sessions.table(flow.group), flow.stray_how))
            is_astray(h, flow, taken[0][i].first, "log")


cdef void stray_machine(Host h, LogFlow* flow, list entries):
    if flow.stray == STRAY_STATE and entries:
        h.machine[flow.group].stray(flow.stray_how)
        is_astray(h, flow, (<Entry>entries[len(entries) - 1]).instance, "state")


cdef void note_agreed(Host h, LogFlow* flow, Batch batch):
    if batch.last % h.sessions.agreed_every == 0:
        h.comparing.note(flow.group, batch.last, batch.digest)


cdef void halt_odd(Host h, u32 group, u64 equal, u64 differs, str why):
    cdef LogFlow* flow = find_flow(h, group)
    watch_found(h.watch, h.node, group, equal, differs)
    h.note(differs ^ <u64>group << 48)
    h.keep_excused.add(group)        # its checkpoints go; somebody else has what they stand for
    if not flow.stopped:
        stop(h, flow, why)


# Nothing more is handed to its machine until another one is there.
cdef void pause_anew(Host h, u32 group):
    cdef LogFlow* flow = find_flow(h, group)
    flow.paused = flow.lost = flow.anew = True
    flow.refused = False
    engine_restoring(h.engine, group, True)
    h.poke()

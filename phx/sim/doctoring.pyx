# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Lost and older stores; see doctoring.pxd."""

from phx._core.codec cimport RECORD_SETTLED, RecordHeader
from phx._core.disk cimport DiskApi
from phx._core.journal cimport (
    JOURNAL_IO, Journal, journal_close, journal_new, journal_open, journal_replay,
)
from phx._core.memdisk cimport memory_disk_api
from phx._core.native cimport *
from phx.sim.host cimport Host

from phx.store_trim import Floor


cdef int note_settled(void* arg, const RecordHeader* header, const u8* body,
                      u64 lsn) noexcept nogil:
    cdef vector[u64]* told = <vector[u64]*>arg
    if header.kind == RECORD_SETTLED and header.group < told.size():
        told[0][header.group] = max(told[0][header.group], header.index)
    return 0


cdef bint raise_old_rows(Host h) except -1:
    cdef vector[u64] told
    cdef DiskApi api
    cdef Journal* journal
    cdef int code
    if not h.store_changed:
        return True
    told.resize(len(h.groups))
    memory_disk_api(h.disk.state, &api)
    journal = journal_new(&api, &h.journal_options)
    code = journal_open(journal, False)
    if code == 0:
        code = journal_replay(journal, note_settled, &told)
    journal_close(journal)
    if code == JOURNAL_IO:
        return False
    if code != 0:
        return True                   # whoever replays it next says why
    rows = h.store.settled()
    old = {group: Floor(told[group] + 1, told[group]) for group in h.groups
           if told[group] > rows.get(group, 0)}
    if old:
        h.store.failing = 0           # (a node does not start while its store cannot be written)
        h.store.raise_floors(old)
        h.counts.old_rows += len(old)
    h.store_changed = False
    if h.tracing is not None:
        h.tracing.append((h.agenda.now_us, "an older store", h.node, len(old)))
    return True

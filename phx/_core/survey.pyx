# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Looking at a journal; see survey.pxd."""

import os

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.string cimport memcpy, memset

from phx._core.native cimport *
from phx._core.ballot cimport ballot_counter
from phx._core.codec cimport (
    RECORD_ACCEPT, RECORD_CHOSEN, RECORD_FLOOR, RECORD_GROUP, RECORD_HEADER_BYTES, RECORD_MARK,
    RECORD_MEMBERS,
    RECORD_NODE, RECORD_PEER, RECORD_PROMISE, RECORD_SETTLED, RECORD_SUSPECT, RecordHeader,
    record_check, record_salt)
from phx._core.disk cimport DiskApi, disk_folder_look
from phx._core.journal cimport (
    JOURNAL_OK, Journal, JournalOptions, Segment, journal_close, journal_new, journal_open,
    journal_replay)
from phx._core.journal_door import CODES as _CODES
from phx._core.segment cimport SEGMENT_HEADER_BYTES, SEGMENT_NAME_BYTES, segment_name

cdef enum:
    GROUPS_MOST = 1 << 20      # ids are below it
    SEEN_ACCEPTED = 1
    SEEN_LEARNED = 2
    MEMBERS_HEAD_BYTES = 8     # of a RECORD_MEMBERS, before the value

ctypedef const u8[::1] Bytes


cdef SurveyGroup* of_group(Tally* t, u32 group) noexcept nogil:
    cdef SurveyGroup made
    if t.slots[0][group] == 0:
        memset(&made, 0, sizeof(made))
        made.group = group
        t.groups.push_back(made)
        t.slots[0][group] = <u32>t.groups.size()
    return &t.groups[0][t.slots[0][group] - 1]


cdef void span(u64 instance, bint first_seen, u64* first, u64* last) noexcept nogil:
    if first_seen or instance < first[0]:
        first[0] = instance
    if first_seen or instance > last[0]:
        last[0] = instance


cdef void tally_group(Tally* t, const RecordHeader* h) noexcept nogil:
    cdef SurveyGroup* g = of_group(t, h.group)
    g.records += 1
    g.bytes += h.body_bytes
    if h.kind == RECORD_PROMISE or h.kind == RECORD_ACCEPT:
        g.promise = max(g.promise, h.ballot)
    if h.kind == RECORD_ACCEPT:
        span(h.index, not g.seen & SEEN_ACCEPTED, &g.accepted_first, &g.accepted_last)
        g.seen |= SEEN_ACCEPTED
    elif h.kind == RECORD_CHOSEN:
        span(h.index, not g.seen & SEEN_LEARNED, &g.learned_first, &g.learned_last)
        g.seen |= SEEN_LEARNED
    elif h.kind == RECORD_SETTLED:
        g.settled = max(g.settled, h.index)


# As in a replay: the last loss counts, and that the group became whole after it, in any order.
cdef void tally_suspect(Tally* t, const RecordHeader* h) noexcept nogil:
    cdef SurveyGroup* g
    if h.kind != RECORD_SUSPECT:
        return
    g = of_group(t, h.group)
    if h.index > g.suspect_since:
        g.suspect_since = h.index
        g.suspect = h.ballot == 0
    elif h.index == g.suspect_since:
        g.suspect = g.suspect and h.ballot == 0


# The last change counts; of one change all that any record says: floors and flags only grow.
cdef void tally_members(Tally* t, const RecordHeader* h, const u8* body) noexcept nogil:
    cdef SurveyGroup* g
    cdef u32 flags = 0
    if h.kind != RECORD_MEMBERS or h.body_bytes < MEMBERS_HEAD_BYTES:
        return
    memcpy(&flags, body, sizeof(flags))
    g = of_group(t, h.group)
    if g.members == NULL or h.index > g.members_at:
        block_unref(g.members)
        g.members = block_copy(<const char*>body + MEMBERS_HEAD_BYTES,
                               h.body_bytes - MEMBERS_HEAD_BYTES)
        g.members_at = h.index
        g.members_floor = h.ballot
        g.members_flags = flags
    elif h.index == g.members_at:
        g.members_floor = max(g.members_floor, h.ballot)
        g.members_flags |= flags


# All of them, whatever their ballots, in the order of the records.
cdef void tally_value(Tally* t, const RecordHeader* h, const u8* body) noexcept nogil:
    cdef SurveyValue one
    if t.values == NULL or (h.kind != RECORD_ACCEPT and h.kind != RECORD_CHOSEN):
        return
    if h.index <= t.above[0][h.group]:
        return
    one.group = h.group
    one.instance = h.index
    one.ballot = h.ballot if h.kind == RECORD_ACCEPT else 0
    one.body = block_copy(<const char*>body, h.body_bytes)
    t.values.push_back(one)


cdef void values_clear(SurveyValues* values) noexcept nogil:
    cdef size_t at
    for at in range(values.size()):
        block_unref(values[0][at].body)
    values.clear()


cdef void groups_clear(SurveyGroups* groups) noexcept nogil:
    cdef size_t at
    for at in range(groups.size()):
        block_unref(groups[0][at].members)
    groups.clear()


cdef void tally_counter(Tally* t, const RecordHeader* h, const u8* body) noexcept nogil:
    cdef u64 above = 0
    if (h.kind == RECORD_PROMISE or h.kind == RECORD_ACCEPT or h.kind == RECORD_SUSPECT
            or h.kind == RECORD_MEMBERS):
        t.counter = max(t.counter, ballot_counter(h.ballot))
    if h.kind == RECORD_SUSPECT and h.ballot == 0 and h.body_bytes == sizeof(above):
        # The ceiling of the journal that was lost.
        memcpy(&above, body, sizeof(above))
        t.counter = max(t.counter, above)


# A ReplayRecord: never refuses.
cdef int tally(void* arg, const RecordHeader* h, const u8* body, u64 lsn) noexcept nogil:
    cdef Tally* t = <Tally*>arg
    t.records += 1
    if t.first_lsn == 0 or lsn < t.first_lsn:
        t.first_lsn = lsn
    t.end_lsn = max(t.end_lsn, lsn + RECORD_HEADER_BYTES + h.body_bytes)
    if h.kind == RECORD_NODE:
        t.incarnation = max(t.incarnation, h.index)
        t.lease_bound_us = max(t.lease_bound_us, h.ballot)
    elif h.kind == RECORD_FLOOR:
        t.floor_lsn = max(t.floor_lsn, h.index)
    elif h.kind == RECORD_MARK or h.kind == RECORD_PEER:
        pass
    elif h.group < GROUPS_MOST and (h.kind == RECORD_PROMISE or h.kind == RECORD_ACCEPT
                                    or h.kind == RECORD_CHOSEN or h.kind == RECORD_GROUP
                                    or h.kind == RECORD_MEMBERS
                                    or h.kind == RECORD_SETTLED or h.kind == RECORD_SUSPECT):
        tally_group(t, h)
        tally_counter(t, h, body)
        tally_suspect(t, h)
        tally_members(t, h, body)
        tally_value(t, h, body)
    else:
        t.odd += 1
    return 0


# Every sound record of a segment, found by its checksum at every eighth byte.
cdef void walk(const u8* data, u64 count, const Segment* s, Tally* t) noexcept nogil:
    cdef u32 salt = record_salt(s.generation)
    cdef u64 at = 0, stride
    cdef RecordHeader header
    while at + RECORD_HEADER_BYTES <= count:
        stride = record_check(data + at, count - at, salt, <u32>0xFFFFFFFF)
        if stride == 0:
            at += 8
            continue
        memcpy(&header, data + at, RECORD_HEADER_BYTES)
        tally(t, &header, data + at + RECORD_HEADER_BYTES, s.base_lsn + at)
        at += stride


cdef void walk_all(Journal* j, Tally* t) noexcept nogil:
    cdef size_t at
    cdef Segment* s
    cdef u64 count
    cdef i64 got
    cdef u8* buffer
    for at in range(j.live.size()):
        s = j.live[at]
        got = j.disk.size(j.disk.context, s.file)
        if got <= SEGMENT_HEADER_BYTES:
            continue
        count = <u64>got - SEGMENT_HEADER_BYTES
        buffer = <u8*>phx_malloc(count)
        if buffer == NULL:
            phx_fatal(b"out of memory")
        got = j.disk.read(j.disk.context, s.file, buffer, count, SEGMENT_HEADER_BYTES)
        if got > 0:
            walk(buffer, <u64>got, s, t)
        phx_free(buffer)


cdef list segments_of(vector[Segment*]* segments):
    cdef size_t at
    cdef char name[SEGMENT_NAME_BYTES]
    cdef Segment* s
    found = []
    for at in range(segments.size()):
        s = segments[0][at]
        segment_name(s.number, name)
        found.append((name.decode(), s.generation, s.base_lsn, s.end_lsn, s.bytes))
    return found


cdef list rows_of(SurveyGroups* groups):
    cdef size_t at
    cdef SurveyGroup g
    rows = []
    for at in range(groups.size()):
        g = groups[0][at]
        rows.append((
            g.group, g.promise, g.records, g.bytes,
            (g.accepted_first, g.accepted_last) if g.seen & SEEN_ACCEPTED else None,
            (g.learned_first, g.learned_last) if g.seen & SEEN_LEARNED else None,
            g.settled))
    return sorted(rows)


cdef list doubtful_of(SurveyGroups* groups):
    cdef size_t at
    return sorted([groups[0][at].group for at in range(groups.size()) if groups[0][at].suspect])


cdef dict members_of(SurveyGroups* groups):
    cdef size_t at
    cdef SurveyGroup* g
    found = {}
    for at in range(groups.size()):
        g = &groups[0][at]
        if g.members != NULL:
            found[g.group] = (g.members_at, g.members_floor, g.members_flags,
                              PyBytes_FromStringAndSize(<const char*>g.members.data,
                                                        g.members.size))
    return found


cdef list values_of(SurveyValues* values):
    cdef size_t at
    cdef SurveyValue* one
    found = []
    for at in range(values.size()):
        one = &values[0][at]
        found.append((one.group, one.instance, one.ballot,
                      PyBytes_FromStringAndSize(<const char*>one.body.data, one.body.size)))
    return found


cdef class Survey:
    def __init__(self, where, *, u64 cluster, u32 node, bytes store_id not None, above=None):
        cdef bytes path = os.fsencode(where)
        cdef DiskApi api
        cdef JournalOptions options
        cdef Journal* j
        cdef Tally t
        cdef int code
        if len(store_id) != 16:
            raise ValueError("a store id has 16 bytes")
        memset(&options, 0, sizeof(options))
        options.cluster = cluster
        options.node = node
        memcpy(options.store_id, <const char*>store_id, 16)
        options.segment_bytes = 1 << 20
        options.journal_bytes_max = <u64>1 << 50
        code = disk_folder_look(&api, path)
        if code < 0:
            raise OSError(-code, os.strerror(-code), where)
        memset(&t, 0, sizeof(t))
        j = journal_new(&api, &options)
        t.groups = phx_new[SurveyGroups]()
        t.slots = phx_new[Slots]()
        t.slots.resize(GROUPS_MOST)
        if above is not None:
            t.values = phx_new[SurveyValues]()
            t.above = phx_new[Bounds]()
            t.above.resize(GROUPS_MOST)
            for group, bound in above.items():
                if 0 <= group < GROUPS_MOST:
                    t.above[0][<size_t>group] = bound
        try:
            with nogil:
                code = journal_open(j, False)
                if code == JOURNAL_OK:
                    code = journal_replay(j, tally, &t)
            self._take(j, &t, code)
        finally:
            journal_close(j)
            groups_clear(t.groups)
            phx_delete(t.groups)
            phx_delete(t.slots)
            if t.values != NULL:
                values_clear(t.values)
                phx_delete(t.values)
                phx_delete(t.above)

    cdef _take(self, Journal* j, Tally* t, int code):
        self.verdict = None
        if code != JOURNAL_OK:
            self.verdict = (_CODES.get(code, str(code)), j.text.decode())
            self._forget(t)
            with nogil:
                walk_all(j, t)
        self.segments = segments_of(&j.live)
        self.free = segments_of(&j.free)
        self.suspects = segments_of(&j.suspects)
        self.cut_bytes = j.counters.cut_bytes
        self.records = t.records
        self.odd_records = t.odd
        self.counter = t.counter
        self.floor_lsn = t.floor_lsn
        self.first_lsn = t.first_lsn
        self.end_lsn = t.end_lsn
        self.incarnation = t.incarnation
        self.lease_bound_us = t.lease_bound_us
        self.groups = rows_of(t.groups)
        self.members = members_of(t.groups)
        self.doubtful = doubtful_of(t.groups)
        self.values = values_of(t.values) if t.values != NULL and code == JOURNAL_OK else []

    cdef void _forget(self, Tally* t) noexcept:
        """What was handed on before the damage was met is met again."""
        cdef SurveyGroups* groups = t.groups
        cdef Slots* slots = t.slots
        cdef size_t at
        for at in range(groups.size()):
            slots[0][groups[0][at].group] = 0
        cdef SurveyValues* values = t.values
        cdef Bounds* above = t.above
        groups_clear(groups)
        if values != NULL:
            values_clear(values)
        memset(t, 0, sizeof(Tally))
        t.groups = groups
        t.slots = slots
        t.values = values
        t.above = above

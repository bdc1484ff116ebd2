# distutils: language = c++
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Target for a journal that was tampered with; see journals.pxd."""

from libc.string cimport memcmp, memmove

from phx._core.codec cimport *
from phx._core.disk cimport DiskApi, pthread_mutex_destroy, pthread_mutex_init
from phx._core.journal cimport *
from phx._core.memdisk cimport MemoryDiskState, MemoryFile, memory_disk_api, memory_power_loss
from phx._core.native cimport *
from phx._core.segment cimport *
from phxfuzz.script cimport *

cdef enum:
    SEGMENT = 8192
    BASES = 4
    EDITS_MAX = 24
    RECORDS_MAX = 256
    FILES_MAX = 12

# A record of the original, and where it stands.
cdef struct Kept:
    u64 lsn
    u64 stride
    u32 file                 # index among the disk's files
    u64 offset
    u8 kind
    u64 index

cdef struct Base:
    MemoryDiskState* disk
    vector[Kept] records     # all that a replay hands on
    u32 newest               # file
    u64 floor_lsn
    JournalOptions options

cdef struct Seen:
    Base* base
    MemoryDiskState* disk
    vector[Kept] records
    u64 last_end
    bint mended
    u64 steps

cdef Base bases[BASES]


cdef MemoryDiskState* disk_new() noexcept nogil:
    cdef MemoryDiskState* disk = phx_new[MemoryDiskState]()
    pthread_mutex_init(&disk.lock, NULL)
    disk.atom = 512
    disk.random = 1
    return disk


cdef void disk_free(MemoryDiskState* disk) noexcept nogil:
    cdef size_t at
    for at in range(disk.files.size()):
        phx_delete[MemoryFile](disk.files[at])
    pthread_mutex_destroy(&disk.lock)
    phx_delete(disk)


cdef MemoryDiskState* disk_copy(MemoryDiskState* disk) noexcept nogil:
    cdef MemoryDiskState* other = disk_new()
    cdef MemoryFile* file
    cdef size_t at
    for at in range(disk.files.size()):
        file = phx_new[MemoryFile]()
        file[0] = disk.files[at][0]
        other.files.push_back(file)
    return other


# --- the originals

cdef int append(Journal* j, u8 kind, u32 group, u64 index, u64 ballot, u32 body_bytes,
                u8 fill) noexcept nogil:
    cdef Block* body = block_new(body_bytes)
    cdef Block* out
    cdef int code
    memset(body.data, fill, body_bytes)
    out = record_append(block_new(64), kind, group, index, ballot, body.data, body_bytes)
    block_unref(body)
    code = journal_append(j, out, journal_next_lsn(j), True)
    block_unref(out)
    return code


# Batches of records, each begun with a mark of what is durable; a floor now and then.
cdef int write_story(Journal* j, u32 batches, u64 recycle_every, bint end_in_sync) noexcept nogil:
    cdef u32 n, k
    cdef u64 floor_lsn
    cdef int code = JOURNAL_OK
    for n in range(batches):
        code |= append(j, RECORD_MARK, 0, journal_durable(j), 0, 0, 0)
        for k in range(1 + n % 3):
            code |= append(j, RECORD_PROMISE, k, 0, 100 + n, 0, 0)
            code |= append(j, RECORD_ACCEPT, k, n + 1, 100 + n, (n * 131 + k * 67) % 900,
                           <u8>(n + k))
        if n + 1 < batches or end_in_sync:
            code |= <int>min(journal_sync(j), 0)
        if recycle_every and n % recycle_every == recycle_every - 1 and j.live.size() > 2:
            floor_lsn = j.live[j.live.size() - 2].base_lsn
            code |= append(j, RECORD_FLOOR, 0, floor_lsn, 0, 0, 0)
            code |= <int>min(journal_sync(j), 0)
            journal_recycle(j, floor_lsn)
        if n % 5 == 4:
            journal_prepare_spare(j)
    return code


cdef int note_kept(void* arg, const RecordHeader* header, const u8* body, u64 lsn) noexcept nogil:
    cdef Base* base = <Base*>arg
    cdef Kept kept
    memset(&kept, 0, sizeof(kept))
    kept.lsn = lsn
    kept.stride = record_stride(header.body_bytes)
    kept.kind = header.kind
    kept.index = header.index
    base.records.push_back(kept)
    return 0


# Where each of the records stands in the files.
cdef int locate(Base* base) noexcept nogil:
    cdef SegmentHeader header
    cdef MemoryFile* file
    cdef u64 newest = 0
    cdef size_t n, k, found = 0
    for n in range(base.disk.files.size()):
        file = base.disk.files[n]
        if not file.seen or segment_parse(file.now.data(), file.now.size(), &header) != SEGMENT_OK:
            continue
        if header.generation > newest:
            newest = header.generation
            base.newest = <u32>n
        for k in range(base.records.size()):
            # The later generation wins where an old segment once held these positions.
            if (header.generation and base.records[k].lsn >= header.base_lsn
                    and base.records[k].lsn - header.base_lsn < SEGMENT - 4096):
                base.records[k].file = <u32>n
                base.records[k].offset = 4096 + base.records[k].lsn - header.base_lsn
    for k in range(base.records.size()):
        found += 1 if base.records[k].offset else 0
    return 0 if newest and found == base.records.size() else -1


cdef int make_base(Base* base, u32 batches, u64 recycle_every, bint end_in_sync,
                   u64 power_seed) noexcept nogil:
    cdef DiskApi api
    cdef Journal* j
    cdef int code
    memset(&base.options, 0, sizeof(JournalOptions))
    base.options.cluster = 7
    base.options.node = 1
    base.options.segment_bytes = SEGMENT
    base.options.journal_bytes_max = 64 * SEGMENT
    base.options.body_bytes_max = 2048
    base.disk = disk_new()
    memory_disk_api(base.disk, &api)
    j = journal_new(&api, &base.options)
    code = journal_open(j, True)
    if code == JOURNAL_OK:
        code = write_story(j, batches, recycle_every, end_in_sync)
    journal_close(j)
    memory_power_loss(base.disk, power_seed)
    if code != JOURNAL_OK:
        return -1
    # Opened once: from here on all of it is durable, and what was torn is told apart.
    j = journal_new(&api, &base.options)
    code = journal_open(j, False)
    if code == JOURNAL_OK:
        code = journal_replay(j, note_kept, base)
    base.floor_lsn = j.floor_lsn
    journal_close(j)
    base.disk.handles.clear()
    return locate(base) if code == JOURNAL_OK else -1


cdef int make_journals() noexcept nogil:
    cdef int code = 0
    code |= make_base(&bases[0], 4, 0, True, 1)        # one segment
    code |= make_base(&bases[1], 14, 0, False, 2)      # several, and an end that was not synced
    code |= make_base(&bases[2], 40, 4, True, 3)       # floors, segments used again
    code |= make_base(&bases[3], 41, 4, False, 5)
    return code


cdef void free_journals() noexcept nogil:
    cdef u32 n
    cdef vector[Kept] none
    for n in range(BASES):
        if bases[n].disk != NULL:
            disk_free(bases[n].disk)
        bases[n].disk = NULL
        none.clear()
        bases[n].records.swap(none)


# --- edits

cdef enum Edit:
    EDIT_FLIP = 0
    EDIT_BYTE = 1
    EDIT_WORD = 2
    EDIT_ZERO = 3
    EDIT_SECTOR = 4          # a sector of another file, or of another place in this one
    EDIT_CUT = 5
    EDIT_GROW = 6
    EDIT_DELETE = 7
    EDIT_TWIN = 8            # the same bytes under a new name
    EDIT_FIELD = 9           # of a segment's header, checksum put right
    EDIT_RECORD = 10         # bytes of a record, checksum put right
    EDIT_FORGE = 11          # a new record over the place of an old one
    EDIT_KINDS = 12


# Raw edits are half of them by the first byte of the input, so that the stronger oracle has work.
cdef void place(Script* s, Base* base, MemoryFile* file, u32 n, u64* at) noexcept nogil:
    cdef u8 how = take_u8(s)
    cdef size_t k
    at[0] = take_word(s, 2)
    if how & 1 and base.records.size():
        k = (how >> 1) * base.records.size() // 128
        if base.records[k].file == n:
            at[0] = base.records[k].offset + (at[0] & 63)
    elif how & 2:
        at[0] &= 127         # header
    if file.now.size():
        at[0] %= file.now.size()


cdef void twin(MemoryDiskState* disk, MemoryFile* file, u8 number) noexcept nogil:
    cdef MemoryFile* made
    cdef size_t n
    cdef char name[SEGMENT_NAME_BYTES]
    segment_name(0x80 + number, name)
    for n in range(disk.files.size()):
        if memcmp(disk.files[n].name, name, SEGMENT_NAME_BYTES - 8) == 0:
            return
    if disk.files.size() >= FILES_MAX:
        return
    made = phx_new[MemoryFile]()
    made[0] = file[0]
    memcpy(made.name, name, SEGMENT_NAME_BYTES)
    disk.files.push_back(made)


cdef void edit_field(Script* s, MemoryFile* file) noexcept nogil:
    cdef SegmentHeader header
    cdef u8 field = take_u8(s)
    cdef u64 word = take_word(s, 8)
    cdef u64* words = <u64*>&header
    if file.now.size() < 4096:
        return
    memcpy(&header, file.now.data(), SEGMENT_HEADER_USED)
    words[field % 11] = word
    if field & 0x40:
        header.generation = word
    # A header may state any size; memory for a gigabyte each time would only slow this down.
    if header.segment_bytes > 1 << 20 and header.segment_bytes <= SEGMENT_BYTES_MOST:
        header.segment_bytes &= 0xFFFFF
    header.crc = phx_crc32c(0, &header, 88)
    memcpy(file.now.data(), &header, SEGMENT_HEADER_USED)


cdef void edit_record(Script* s, Base* base, MemoryDiskState* disk, bint forge) noexcept nogil:
    cdef RecordHeader* header
    cdef SegmentHeader segment
    cdef MemoryFile* file
    cdef Kept* kept
    cdef u64 at, room
    cdef u8 which
    if base.records.size() == 0:
        return
    kept = &base.records[take_word(s, 2) % base.records.size()]
    file = disk.files[kept.file]
    if (file.now.size() < kept.offset + kept.stride
            or segment_parse(file.now.data(), file.now.size(), &segment) != SEGMENT_OK):
        return
    header = <RecordHeader*>(file.now.data() + kept.offset)
    room = file.now.size() - kept.offset
    which = take_u8(s)
    if forge:
        header.kind = 1 + which % 9
        header.body_bytes = <u32>min(take_word(s, 2), room - RECORD_HEADER_BYTES)
        header.index = kept.lsn + take_word(s, 2) - 0x4000 if which & 16 else take_word(s, 8)
        header.ballot = take_word(s, 8)
    else:
        at = 4 + which % (kept.stride - 4)
        (<u8*>header)[at] ^= take_u8(s)
    if record_stride(header.body_bytes) > room:
        header.body_bytes = 0
    at = RECORD_HEADER_BYTES + <u64>header.body_bytes
    memset(<u8*>header + at, 0, record_stride(header.body_bytes) - at)
    header.crc = phx_crc32c(0, <u8*>header + 4, at - 4) ^ record_salt(segment.generation)


cdef void edit(Script* s, u8 kind, Base* base, MemoryDiskState* disk) noexcept nogil:
    cdef u32 n = <u32>(take_u8(s) % disk.files.size())
    cdef MemoryFile* file = disk.files[n]
    cdef MemoryFile* other
    cdef u64 at, count, source
    if kind == EDIT_RECORD or kind == EDIT_FORGE:
        edit_record(s, base, disk, kind == EDIT_FORGE)
        return
    if kind == EDIT_FIELD:
        edit_field(s, file)
        return
    place(s, base, file, n, &at)
    if kind == EDIT_DELETE:
        file.seen = False
        file.kept = False
    elif kind == EDIT_TWIN:
        twin(disk, file, take_u8(s) & 3)
    elif kind == EDIT_GROW:
        file.now.resize(min(file.now.size() + at, <size_t>16384))
    elif file.now.size() == 0:
        return
    elif kind == EDIT_CUT:
        file.now.resize(at)
    elif kind == EDIT_FLIP:
        file.now[at] ^= <u8>(1 << (take_u8(s) & 7))
    elif kind == EDIT_BYTE:
        file.now[at] = take_u8(s)
    elif kind == EDIT_WORD:
        count = take_word(s, 8)
        at &= ~<u64>7
        if at + 8 <= file.now.size():
            memcpy(file.now.data() + at, &count, 8)
    elif kind == EDIT_ZERO:
        count = min(take_word(s, 2), <u64>file.now.size() - at)
        memset(file.now.data() + at, 0, count)
    elif kind == EDIT_SECTOR:
        other = disk.files[take_u8(s) % disk.files.size()]
        source = take_u8(s) * <u64>512
        at &= ~<u64>511
        if at + 512 <= file.now.size() and source + 512 <= other.now.size():
            memmove(file.now.data() + at, other.now.data() + source, 512)


# --- what must hold

cdef int note_seen(void* arg, const RecordHeader* header, const u8* body, u64 lsn) noexcept nogil:
    cdef Seen* seen = <Seen*>arg
    cdef Kept kept
    cdef u32 crc = phx_crc32c(0, <const u8*>header + 4, RECORD_HEADER_BYTES - 4)
    cdef u8* copied = exact(body, header.body_bytes)
    free(copied)
    seen.steps += 1
    demand(phx_crc32c(crc, body, header.body_bytes) == header.crc,
           b"a record with a bad checksum was handed on")
    demand(header.kind != 0, b"a record of no kind was handed on")
    demand((<size_t>body & 7) == 0, b"a body that is not aligned")
    demand(lsn >= seen.last_end, b"records out of order, or over each other")
    seen.last_end = lsn + record_stride(header.body_bytes)
    memset(&kept, 0, sizeof(kept))
    kept.lsn = lsn
    kept.stride = record_stride(header.body_bytes)
    kept.kind = header.kind
    kept.index = header.index
    seen.records.push_back(kept)
    return 0


cdef bint untouched(Base* base, MemoryDiskState* disk, u32 file, u64 at, u64 count) noexcept nogil:
    cdef MemoryFile* now = disk.files[file]
    cdef MemoryFile* then = base.disk.files[file]
    return (now.seen and now.now.size() >= at + count
            and memcmp(now.now.data() + at, then.now.data() + at, count) == 0)


# The highest mark of the newest segment that is still there as it was written, or 0.
cdef u64 vouched(Base* base, MemoryDiskState* disk) noexcept nogil:
    cdef u64 mark = 0
    cdef size_t k
    cdef Kept* kept
    if not untouched(base, disk, base.newest, 0, 4096):
        return 0
    for k in range(base.records.size()):
        kept = &base.records[k]
        if (kept.kind == RECORD_MARK and kept.file == base.newest and kept.index > mark
                and untouched(base, disk, kept.file, kept.offset, kept.stride)):
            mark = kept.index
    return mark


# Untampered checksums: what is handed on is the original, and all of it up to the mark.
cdef void check_original(Seen* seen, u64 mark) noexcept nogil:
    cdef Base* base = seen.base
    cdef size_t k = 0, n = 0
    cdef Kept* kept
    for n in range(seen.records.size()):
        kept = &seen.records[n]
        if kept.lsn < base.floor_lsn:
            continue         # its floor was in the tail that was cut; then more is handed on
        while k < base.records.size() and base.records[k].lsn < kept.lsn:
            demand(base.records[k].lsn >= mark, b"a record below a mark was passed over")
            k += 1
        demand(k < base.records.size() and base.records[k].lsn == kept.lsn
               and base.records[k].stride == kept.stride and base.records[k].kind == kept.kind
               and base.records[k].index == kept.index,
               b"a record was handed on that the original does not have")
        k += 1
    while k < base.records.size():
        demand(base.records[k].lsn >= mark, b"the log was cut below a mark")
        k += 1


cdef void run_journal(const u8* data, u64 count) noexcept nogil:
    cdef Script s
    cdef Seen seen
    cdef DiskApi api
    cdef Journal* j
    cdef Base* base
    cdef u8 mode, kind
    cdef u32 edits = 0
    cdef u64 mark
    cdef bint again
    cdef int code, second
    s.at = data
    s.left = count
    mode = take_u8(&s)
    base = &bases[mode & 3]
    seen.base = base
    seen.disk = disk_copy(base.disk)
    seen.last_end = 0
    seen.mended = False
    seen.steps = 0
    while s.left and edits < EDITS_MAX:
        kind = take_u8(&s) % (EDIT_FIELD if mode & 4 else EDIT_KINDS)
        if kind >= EDIT_FIELD:
            seen.mended = True
        edit(&s, kind, base, seen.disk)
        edits += 1
    for edits in range(seen.disk.files.size()):
        seen.disk.files[edits].medium = seen.disk.files[edits].now
    mark = vouched(base, seen.disk)
    memory_disk_api(seen.disk, &api)
    j = journal_new(&api, &base.options)
    code = journal_open(j, False)
    if code == JOURNAL_OK:
        code = journal_replay(j, note_seen, &seen)
    demand(code == JOURNAL_OK or j.text[0] != 0, b"a failure that says nothing")
    demand(seen.last_end == 0 or code != JOURNAL_OK or journal_next_lsn(j) >= seen.last_end,
           b"a position would be used twice")
    if code == JOURNAL_OK and not seen.mended and mark:
        check_original(&seen, mark)
    if code == JOURNAL_OK and mode & 8:
        # Life goes on: an append, and the same again after a power loss.
        second = append(j, RECORD_ACCEPT, 1, 1, 1, 64, 7)
        if second == JOURNAL_OK:
            demand(journal_sync(j) > 0, b"a sync of a sound disk failed")
    again = code == JOURNAL_OK and mode & 8
    journal_close(j)
    if again:
        memory_power_loss(seen.disk, mode)
        seen.last_end = 0
        seen.records.clear()
        j = journal_new(&api, &base.options)
        code = journal_open(j, False)
        if code == JOURNAL_OK:
            code = journal_replay(j, note_seen, &seen)
        demand(code == JOURNAL_OK, b"a journal that was open a moment ago cannot be opened")
        journal_close(j)
    disk_free(seen.disk)

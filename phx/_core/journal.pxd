"""The journal: one append-only stream of records for all groups, in reused segments.

Everything below a position that journal_sync returned is there again after any crash, byte
by byte and once, until journal_recycle gives it up; or journal_replay refuses to go on and says
where the damage is. Everything that journal_replay has handed on is durable when it returns, even
if the run before never synced it. Segment bytes: segment.pxd; files: disk.pxd; the thread that
writes: writer.pxd.

Who calls what:

    one thread, at open       journal_new, journal_open, journal_replay; at the end journal_close
    journal thread            journal_append, journal_sync (or the poll thread by writer_inline)
    any thread                journal_read, journal_read_span, journal_recycle, journal_wants_spare,
                              journal_prepare_spare, journal_pressure, journal_counters,
                              journal_poisoned, journal_durable

The table of segments is under a mutex that is never held over input or output. A segment that a
reader holds is neither reused nor removed.
"""

from phx._core.native cimport *
from phx._core.codec cimport RecordHeader
from phx._core.disk cimport DiskApi, pthread_mutex_t

cdef enum:
    JOURNAL_TEXT_BYTES = 256
    JOURNAL_FIRST_LSN = 4096       # of a new journal; 0 means "no position" everywhere
    JOURNAL_SPARES = 2             # free segments that housekeeping keeps ready; one is the reserve

cdef struct JournalOptions:
    u64 cluster
    u32 node
    u8 store_id[16]
    u64 segment_bytes          # of each new segment, header included; a multiple of 4096; 0: 32 MiB
    u64 journal_bytes_max      # all segments together; at least 3 segments. While starting: twice
                               # that (SHELF_OVER_AT_START), or a full journal could not carry over
    u32 body_bytes_max         # a record with a longer body is not taken (replay takes any)
    u32 free_segments_max      # kept for reuse, more are removed; 0: 8

cdef enum JournalError:
    JOURNAL_OK = 0
    JOURNAL_IO = -1            # see Journal.errno_seen
    JOURNAL_DAMAGED = -2       # bad bytes below a position known durable, or a missing segment
    JOURNAL_FOREIGN = -3       # another cluster, node or store id
    JOURNAL_VERSION = -4
    JOURNAL_FULL = -5          # no segment may be taken; nothing was written; try after a recycle
    JOURNAL_POISONED = -6      # an earlier write or sync failed
    JOURNAL_GONE = -7          # that position is no longer kept (or never was one)
    JOURNAL_EXISTS = -8        # create in a folder that has segments
    JOURNAL_MISSING = -9       # open in a folder that has none
    JOURNAL_NOT_YET = -10      # that position is not written yet
    JOURNAL_INVALID = -11      # impossible options, or not whole records at next_lsn

# Not 0: the record cannot be; the replay ends with JOURNAL_DAMAGED. `body` is 8-aligned; bytes
# are borrowed for the call. header.crc is the unsalted one.
ctypedef int (*ReplayRecord)(void* arg, const RecordHeader* header, const u8* body,
                             u64 lsn) noexcept nogil

cdef struct JournalCounters:
    i64 segments_live          # that hold something above the floor, the one being written included
    i64 segments_free          # zero-filled or used before; ready to be taken
    i64 records
    i64 writes                 # write calls for records
    i64 bytes_written          # of records
    i64 syncs                  # real sync calls on the commit path (appends, rolls, headers)
    i64 sync_last_ns
    i64 sync_max_ns
    i64 sync_sum_ns
    i64 rolls
    i64 segments_made          # created and zero-filled, over the life of this Journal
    i64 segments_removed
    i64 replayed_records
    i64 cut_bytes              # of a torn tail, at open

# A file of the journal, open.
cdef struct Segment:
    i64 file
    u64 bytes
    u32 number                 # of its name
    u64 generation             # 0: never written to
    u64 base_lsn               # position of the byte at offset SEGMENT_HEADER_BYTES
    u64 end_lsn                # where its records end; of the current one: written_lsn instead
    u64 previous_generation
    u64 previous_end_lsn
    i64 pins                   # readers inside it

ctypedef vector[Segment*] Segments

cdef struct Journal:
    DiskApi disk
    JournalOptions options
    pthread_mutex_t lock       # guards what follows, up to floor_lsn
    vector[Segment*] live      # in order of position; the last one is or was written to
    vector[Segment*] free
    vector[Segment*] suspects  # between open and replay: files with a bad header
    Segment* current           # NULL from an open to the first append after it
    u64 live_bytes
    u64 free_bytes
    u64 making_bytes           # neither live nor free: being made, or taken and not yet in use
    u32 next_number
    bint starting              # from an open until a higher floor is durable (journal thread only)
    u64 floor_lsn              # nothing below is kept for reading
    # --- journal thread only
    bint replayed
    bint dirty                 # written bytes that are not synced yet
    u64 next_lsn
    u64 next_generation
    u64 floor_written          # highest FLOOR record written
    Block* scratch             # for salting blocks that others hold too
    vector[Segment*] taken     # for the append that is going on
    vector[u64] splits         # where in its block a new segment begins
    # --- published, for any thread
    i64 written_lsn            # readable below
    i64 durable_lsn
    i64 floor_durable          # highest FLOOR record known durable
    i64 poisoned
    i64 errno_seen
    JournalCounters counters
    char text[JOURNAL_TEXT_BYTES]  # what went wrong: segment, position, reason; "" if nothing did
    i64 full_errno             # of a JOURNAL_FULL: why no segment could be made; 0: the budget

# `api` and `options` are copied; the disk belongs to the journal from now on. Never fails.
cdef Journal* journal_new(const DiskApi* api, const JournalOptions* options) noexcept nogil
# Closes every file, then the disk, and frees the journal; writes nothing. Also after an open that
# failed. No other call may be running.
cdef void journal_close(Journal* j) noexcept nogil
# In a forked child: closes every descriptor and the disk, takes no lock, frees nothing.
cdef void journal_abandon(Journal* j) noexcept nogil

# --- open: both, in this order. 0 or a JournalError, and then Journal.text says what and where.
# `create` makes the first segment, durably; otherwise all headers are read and checked.
cdef int journal_open(Journal* j, bint create) noexcept nogil
# Every record at or above the highest FLOOR, in order of position; cuts a torn tail, refuses
# damage. Also right after a create (nothing to hand on). All of it is durable when this returns 0.
cdef int journal_replay(Journal* j, ReplayRecord callback, void* arg) noexcept nogil
# Where the stream goes on: above everything ever seen here, cut bytes included.
cdef u64 journal_next_lsn(Journal* j) noexcept nogil

# --- journal thread
# Write the records of `block` (whole ones, first at `lsn_first` == next_lsn) without syncing.
# Borrows the block for the call; salts its checksums in place if this is the only reference to it,
# and then the block is of no further use. JOURNAL_FULL: nothing was written, and the same block may
# be offered again. `urgent` (promises, carry-over, floor) may take the segment held in reserve.
cdef int journal_append(Journal* j, Block* block, u64 lsn_first, bint urgent) noexcept nogil
# Do so many bytes of records go where the last ones went? Then an append makes, takes and syncs no
# segment, and finds nothing full.
cdef bint journal_fits(Journal* j, u64 count) noexcept nogil
# Make everything appended durable; the durable position, or a JournalError. Syncs only if needed.
cdef i64 journal_sync(Journal* j) noexcept nogil

# --- any thread
cdef bint journal_poisoned(Journal* j) noexcept nogil
cdef u64 journal_durable(Journal* j) noexcept nogil
# Segments wholly below `floor_lsn` become free, but never beyond the highest FLOOR record that is
# durable. Moves table entries only (no input or output); the number of segments freed.
cdef int journal_recycle(Journal* j, u64 floor_lsn) noexcept nogil
# The record at `lsn`: its header, and its body as a new block (the caller's reference). Checked.
# JOURNAL_NOT_YET, JOURNAL_GONE, JOURNAL_DAMAGED, JOURNAL_IO.
cdef int journal_read(Journal* j, u64 lsn, Block** body, RecordHeader* out) noexcept nogil
# As many whole, checked records from `lsn` on as lie in one segment and in bytes_max (at least
# one, however long), as one new block of stream bytes with unsalted checksums: the position of
# block.data[k] is lsn + k. For settling: one read for thousands of records.
cdef int journal_read_span(Journal* j, u64 lsn, u64 bytes_max, Block** out) noexcept nogil
# Is it worth calling journal_prepare_spare? Cheap.
cdef bint journal_wants_spare(Journal* j) noexcept nogil
# Housekeeping off the commit path (store thread): make one segment, zero-filled and synced, if one
# is wanted, and remove free ones beyond free_segments_max. 1: call again; 0: done; a JournalError
# (not poison: no record was in danger; JOURNAL_FULL when the disk or the budget is full).
cdef int journal_prepare_spare(Journal* j) noexcept nogil
# Bytes in segments that hold something live (whole segments), and the budget. At bytes_live +
# 2 * segment_bytes > bytes_max the next roll of a block that is not urgent gives JOURNAL_FULL.
cdef void journal_pressure(Journal* j, u64* bytes_live, u64* bytes_max) noexcept nogil
# A consistent enough copy for reports.
cdef void journal_counters(Journal* j, JournalCounters* out) noexcept nogil

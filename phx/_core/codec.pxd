"""Frames and journal records: their bytes, their checksums, their limits.

Every word is little-endian. Nothing here allocates on receipt; a decoder is given bytes and their
length and never reads past it.

Frame header (32 bytes), then ``payload_bytes`` of payload:

    offset  size  field
    0       4     magic          0x31584850, the letters PHX1
    4       2     version        PROTOCOL_VERSION
    6       2     kind           FRAME_*
    8       4     payload_bytes  0 .. the receiver's limit
    12      4     crc            CRC-32C of the header with this field zero, then the payload
    16      4     source         node id of the sender
    20      4     dest           node id of the receiver, 0 for whoever is connected
    24      8     cluster        cluster id

Record header (32 bytes), then ``body_bytes`` of body, then zeros to a multiple of eight:

    offset  size  field
    0       4     crc            CRC-32C of bytes 4 .. 32+body_bytes; on disk xored with the salt
    4       4     body_bytes
    8       1     kind           RECORD_*
    9       1     flags
    10      2     space          generation of the group; 0 for a record of no group
    12      4     group
    16      8     index          instance, or what the kind says
    24      8     ballot

A record's position (lsn) is the position of its first byte in the engine's stream of records. The
stream has no gaps in it: the lsn of the next record is lsn + record_stride(body_bytes).
"""

from phx._core.native cimport *

cdef enum:
    FRAME_MAGIC = 0x31584850
    PROTOCOL_VERSION = 5
    FRAME_HEADER_BYTES = 32
    RECORD_HEADER_BYTES = 32

cdef enum FrameKind:
    FRAME_HELLO = 1       # first on each connection, both ways (driver)
    FRAME_ENGINE = 2      # payload: engine messages, see wire.pxd
    FRAME_REFUSED = 3     # driver: why the connection will be closed
    # transfers, over connections of their own: phx/transfer/messages.py
    FRAME_FETCH = 4       # first on such a connection, instead of HELLO
    FRAME_OFFER = 5
    FRAME_MANIFEST = 6
    FRAME_CHUNK = 7
    FRAME_ACK = 8
    FRAME_END = 9
    FRAME_ENTRIES = 10
    # who is there? from a node that is no peer here (phx/node/joining.py); first, and alone
    FRAME_JOIN = 11
    FRAME_PEERS = 12

cdef enum RecordKind:
    RECORD_PROMISE = 1    # ballot: the group's promise
    RECORD_ACCEPT = 2     # index: instance; ballot: accepted ballot; body: the value
    # index: instance; body: a value learned as chosen (no acceptance); ballot: 0, with a membership
    # value the floor that was told with it
    RECORD_CHOSEN = 3
    # index: incarnation; ballot: longest lease this node may have granted (us)
    RECORD_NODE = 4
    RECORD_PEER = 5       # group: node id; body: its store id (16 bytes)
    RECORD_FLOOR = 6      # index: lsn below which nothing is live any more
    RECORD_MARK = 7       # index: lsn known durable when this was written
    # index: configuration version; body: member ids (u32 each). Read, and written no more
    RECORD_GROUP = 8
    # index: the store has had everything of the group up to here; ballot: lowest instance that it
    # kept then (1: all of it)
    RECORD_SETTLED = 9
    # index: the life (incarnation) that found the group's votes before it lost; ballot: 0, or the
    # ballot in which the replica became whole again; body, with ballot 0: the ceiling (u64)
    RECORD_SUSPECT = 10
    # index: the instance that made these members of the group; ballot: the floor of their ballots;
    # body: flags (u32: 1 active, 2 every value up to the instance stands before this record, 4 the
    # node was a member and is none of these), zero (u32), then the membership value (members.pxd)
    RECORD_MEMBERS = 11

cdef packed struct FrameHeader:
    u32 magic
    u16 version
    u16 kind
    u32 payload_bytes
    u32 crc
    u32 source
    u32 dest
    u64 cluster

cdef packed struct RecordHeader:
    u32 crc
    u32 body_bytes
    u8 kind
    u8 flags
    u16 space
    u32 group
    u64 index
    u64 ballot

cdef enum FrameVerdict:
    FRAME_OK = 0
    FRAME_SHORT = 1        # more bytes are needed
    FRAME_BAD_MAGIC = 2
    FRAME_BAD_VERSION = 3
    FRAME_TOO_LARGE = 4
    FRAME_BAD_CRC = 5
    FRAME_BAD_CLUSTER = 6
    FRAME_BAD_NODE = 7     # wrong source or dest

cdef extern from "crc32c.h" nogil:
    u32 phx_crc32c(u32 crc, const void* data, size_t count)
    u32 phx_crc32c_moved(u32 bits, size_t count)

cdef inline u64 align8(u64 count) noexcept nogil:
    return (count + 7) & ~<u64>7

cdef inline u64 record_stride(u32 body_bytes) noexcept nogil:
    return align8(RECORD_HEADER_BYTES + <u64>body_bytes)

# A salt that differs for any two generations less than 2**32 apart (a CRC-32C is injective on 32
# bits).
cdef inline u32 record_salt(u64 generation) noexcept nogil:
    return phx_crc32c(0, &generation, 8)

# Append a record with its crc (not salted) to `out`; returns `out`, which may have moved.
cdef Block* record_append(Block* out, u8 kind, u32 group, u64 index, u64 ballot,
                          const void* body, u32 body_bytes) noexcept nogil
# The same of a group that has a generation.
cdef Block* record_append_of(Block* out, u8 kind, u16 space, u32 group, u64 index, u64 ballot,
                             const void* body, u32 body_bytes) noexcept nogil
# Is there a whole record with a good crc (salted with `salt`) at data[0:count]? Its stride, or 0.
cdef u64 record_check(const u8* data, u64 count, u32 salt, u32 body_bytes_max) noexcept nogil

# Leave room for a frame header at the end of `out` (which must then be empty or hold earlier
# frames).
cdef Block* frame_begin(Block* out) noexcept nogil
# Fill in the header at `start` for all bytes after it.
cdef void frame_seal(Block* out, u64 start, u16 kind, u32 source, u32 dest,
                     u64 cluster) noexcept nogil
# Check the frame at data[0:count] against what is expected; FRAME_OK means that all of it is there.
# expected_source 0 accepts any source (during the handshake).
cdef int frame_check(const u8* data, u64 count, u32 payload_bytes_max, u64 cluster, u32 self_node,
                     u32 expected_source) noexcept nogil
# What to say of a frame that was not taken.
cdef const char* frame_verdict_text(int verdict) noexcept nogil

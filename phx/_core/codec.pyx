# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Frames and journal records, and the thin door for tests. Their bytes: codec.pxd."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.string cimport memcpy, memset

from phx._core.native cimport *

cdef extern from "crc32c.h" nogil:
    u32 phx_crc32c_table(u32 crc, const void* data, size_t count)
    const char* phx_crc32c_way()


# --- records

cdef Block* record_append(Block* out, u8 kind, u32 group, u64 index, u64 ballot,
                          const void* body, u32 body_bytes) noexcept nogil:
    return record_append_of(out, kind, 0, group, index, ballot, body, body_bytes)


cdef Block* record_append_of(Block* out, u8 kind, u16 space, u32 group, u64 index, u64 ballot,
                             const void* body, u32 body_bytes) noexcept nogil:
    cdef u64 stride = record_stride(body_bytes)
    out = block_reserve(out, stride)
    cdef u8* at = out.data + out.size
    cdef RecordHeader* header = <RecordHeader*>at
    # The last word first: the body may end inside it, and what it leaves must be zero.
    memset(at + stride - 8, 0, 8)
    header.body_bytes = body_bytes
    header.kind = kind
    header.flags = 0
    header.space = space
    header.group = group
    header.index = index
    header.ballot = ballot
    if body_bytes != 0:
        memcpy(at + RECORD_HEADER_BYTES, body, body_bytes)
    header.crc = phx_crc32c(0, at + 4, RECORD_HEADER_BYTES - 4 + <u64>body_bytes)
    out.size += stride
    return out


cdef u64 record_check(const u8* data, u64 count, u32 salt, u32 body_bytes_max) noexcept nogil:
    cdef RecordHeader header
    cdef u64 end, stride
    if count < RECORD_HEADER_BYTES:
        return 0
    memcpy(&header, data, RECORD_HEADER_BYTES)
    # No record has kind 0, so a run of zeros is no record under any salt.
    if header.kind == 0 or header.body_bytes > body_bytes_max:
        return 0
    stride = record_stride(header.body_bytes)
    if stride > count:
        return 0
    end = RECORD_HEADER_BYTES + <u64>header.body_bytes
    if phx_crc32c(0, data + 4, end - 4) != (header.crc ^ salt):
        return 0
    # The padding is not under the checksum. It shares its word with the last bytes that are.
    while end < stride:
        if data[end] != 0:
            return 0
        end += 1
    return stride


# --- frames

cdef u32 frame_crc(const u8* data, u64 payload_bytes) noexcept nogil:
    cdef FrameHeader header
    cdef u32 crc
    memcpy(&header, data, FRAME_HEADER_BYTES)
    header.crc = 0
    crc = phx_crc32c(0, &header, FRAME_HEADER_BYTES)
    return phx_crc32c(crc, data + FRAME_HEADER_BYTES, payload_bytes)


cdef Block* frame_begin(Block* out) noexcept nogil:
    out = block_reserve(out, FRAME_HEADER_BYTES)
    memset(out.data + out.size, 0, FRAME_HEADER_BYTES)
    out.size += FRAME_HEADER_BYTES
    return out


cdef void frame_seal(Block* out, u64 start, u16 kind, u32 source, u32 dest,
                     u64 cluster) noexcept nogil:
    cdef FrameHeader* header = <FrameHeader*>(out.data + start)
    cdef u64 payload_bytes = out.size - start - FRAME_HEADER_BYTES
    if out.size < start + FRAME_HEADER_BYTES or payload_bytes >> 32 != 0:
        phx_fatal("a frame was sealed that cannot be one")
    header.magic = FRAME_MAGIC
    header.version = PROTOCOL_VERSION
    header.kind = kind
    header.payload_bytes = <u32>payload_bytes
    header.source = source
    header.dest = dest
    header.cluster = cluster
    header.crc = frame_crc(out.data + start, payload_bytes)


# The limits come first, so that nobody waits for bytes that will never be taken; then the
# checksum, so that what is said about cluster and nodes is what the sender said.
cdef int frame_check(const u8* data, u64 count, u32 payload_bytes_max, u64 cluster, u32 self_node,
                     u32 expected_source) noexcept nogil:
    cdef FrameHeader header
    if count < FRAME_HEADER_BYTES:
        return FRAME_SHORT
    memcpy(&header, data, FRAME_HEADER_BYTES)
    if header.magic != FRAME_MAGIC:
        return FRAME_BAD_MAGIC
    if header.version != PROTOCOL_VERSION:
        return FRAME_BAD_VERSION
    if header.payload_bytes > payload_bytes_max:
        return FRAME_TOO_LARGE
    if count - FRAME_HEADER_BYTES < header.payload_bytes:
        return FRAME_SHORT
    if frame_crc(data, header.payload_bytes) != header.crc:
        return FRAME_BAD_CRC
    if header.cluster != cluster:
        return FRAME_BAD_CLUSTER
    if header.dest != 0 and header.dest != self_node:
        return FRAME_BAD_NODE
    if expected_source != 0 and header.source != expected_source:
        return FRAME_BAD_NODE
    return FRAME_OK


cdef const char* frame_verdict_text(int verdict) noexcept nogil:
    if verdict == FRAME_BAD_MAGIC:
        return "not a frame"
    if verdict == FRAME_BAD_VERSION:
        return "unknown frame version"
    if verdict == FRAME_TOO_LARGE:
        return "a frame above the limit"
    if verdict == FRAME_BAD_CRC:
        return "a frame with a bad checksum"
    if verdict == FRAME_BAD_CLUSTER:
        return "another cluster"
    return "a frame from or for another node"


# --- the door

VERDICTS = ("ok", "short", "bad magic", "bad version", "too large", "bad crc", "bad cluster",
            "bad node")


def crc32c(data not None, u32 crc=0):
    """CRC-32C of ``data``, going on from ``crc``, by the way this machine was found to have."""
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        return phx_crc32c(crc, view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


def crc32c_table(data not None, u32 crc=0):
    """The same number by the portable way."""
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        return phx_crc32c_table(crc, view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


def crc32c_moved(u32 bits, size_t count):
    """What a difference of ``bits`` in a crc32c becomes behind ``count`` more bytes."""
    return phx_crc32c_moved(bits, count)


def crc32c_way():
    """Which way crc32c() goes on this machine: ``sse4.2``, ``armv8`` or ``table``."""
    return phx_crc32c_way().decode()


def salt(u64 generation):
    """What a segment's generation is mixed into the checksums of its records as."""
    return record_salt(generation)


def encode_record(u8 kind, u32 group, u64 index, u64 ballot, bytes body not None):
    """One record, not salted, padded to a multiple of eight bytes."""
    if len(body) > 0xFFFFFFFF:
        raise ValueError("a record's body is shorter than 4 GiB")
    cdef Block* out = record_append(block_new(record_stride(<u32>len(body))), kind, group, index,
                                    ballot, <const char*>body, <u32>len(body))
    try:
        return out.data[:out.size]
    finally:
        block_unref(out)


def check_record(bytes data not None, u32 salt=0, u32 body_bytes_max=0xFFFFFFFF):
    """Bytes of the whole, sound record at the start of ``data``; 0 if there is none."""
    return record_check(<const u8*><const char*>data, len(data), salt, body_bytes_max)


def record_fields(bytes data not None):
    """(crc, body_bytes, kind, flags, space, group, index, ballot) of an unchecked record."""
    cdef RecordHeader h
    if len(data) < RECORD_HEADER_BYTES:
        raise ValueError("shorter than a record's header")
    memcpy(&h, <const char*>data, RECORD_HEADER_BYTES)
    return h.crc, h.body_bytes, h.kind, h.flags, h.space, h.group, h.index, h.ballot


def encode_frame(u16 kind, u32 source, u32 dest, u64 cluster, bytes payload not None):
    """One sealed frame."""
    cdef Block* out = frame_begin(block_new(FRAME_HEADER_BYTES + len(payload)))
    out = block_append(out, <const char*>payload, len(payload))
    frame_seal(out, 0, kind, source, dest, cluster)
    try:
        return out.data[:out.size]
    finally:
        block_unref(out)


def check_frame(bytes data not None, u64 cluster, u32 self_node, u32 expected_source=0,
                u32 payload_bytes_max=0xFFFFFFFF):
    """The verdict on the frame at the start of ``data``, one of VERDICTS."""
    return VERDICTS[frame_check(<const u8*><const char*>data, len(data), payload_bytes_max,
                                cluster, self_node, expected_source)]


def frame_fields(bytes data not None):
    """(magic, version, kind, payload_bytes, crc, source, dest, cluster) of an unchecked frame."""
    cdef FrameHeader h
    if len(data) < FRAME_HEADER_BYTES:
        raise ValueError("shorter than a frame's header")
    memcpy(&h, <const char*>data, FRAME_HEADER_BYTES)
    return h.magic, h.version, h.kind, h.payload_bytes, h.crc, h.source, h.dest, h.cluster


def time_record_encode(u32 rounds, bytes body not None):
    """Encodes ``rounds`` records into one block without the GIL, for benchmarks. Their bytes."""
    cdef u64 stride = record_stride(<u32>len(body))
    cdef const char* data = body
    cdef u32 count = <u32>len(body)
    cdef u64 done = 0
    cdef u32 i
    cdef Block* out = block_new(stride * 64)
    with nogil:
        for i in range(rounds):
            if out.size >= stride * 64:
                out.size = 0
            out = record_append(out, RECORD_ACCEPT, i, i, i, data, count)
            done += stride
        block_unref(out)
    return done


def blocks_live():
    """Native blocks that somebody in this process still holds."""
    return phx_blocks_live()


def allocations_live():
    """All that native code holds in this process: blocks, structs, and memory of any other kind."""
    return phx_blocks_live() + phx_others_live()

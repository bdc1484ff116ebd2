# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""The value of an instance, and the thin door for tests. Its bytes: batch.pxd."""

from libc.string cimport memcpy

from phx._core.members cimport Roster, roster_read
from phx._core.native cimport *

cdef enum:
    AHEAD_BYTES = 1024


cdef Block* body_noop(u64 epoch, u64 time_us) noexcept nogil:
    cdef BodyHeader header
    header.kind = BODY_NOOP
    header.version = BODY_VERSION
    header.runs = 0
    header.values = 0
    header.epoch = epoch
    header.time_us = time_us
    return block_copy(&header, BODY_HEADER_BYTES)


cdef bint body_check(const u8* data, u64 count) noexcept nogil:
    cdef BodyHeader header
    cdef RunHeader run
    cdef Roster roster
    cdef u64 at = BODY_HEADER_BYTES
    cdef u64 values = 0
    cdef u32 i
    if count < BODY_HEADER_BYTES:
        return False
    memcpy(&header, data, BODY_HEADER_BYTES)
    if header.version != BODY_VERSION:
        return False
    if header.kind == BODY_NOOP:
        return header.runs == 0 and header.values == 0 and count == BODY_HEADER_BYTES
    if header.kind == BODY_MEMBERSHIP:
        return roster_read(&roster, data, count)
    if header.kind != BODY_BATCH or header.runs == 0:
        return False
    for i in range(header.runs):
        if count - at < RUN_HEADER_BYTES:
            return False
        memcpy(&run, data + at, RUN_HEADER_BYTES)
        at += RUN_HEADER_BYTES
        if run.count == 0 or run.bytes > count - at:
            return False
        # Sequences are added to without a check from here on: they must not wrap.
        if run.first_seq > ~<u64>run.count:
            return False
        if not items_check(data + at, run.bytes, run.count):
            return False
        at += run.bytes
        values += run.count
    return at == count and values == header.values


cdef void run_begin(RunIterator* it, const u8* body, u64 count) noexcept nogil:
    cdef BodyHeader header
    it.at = it.end = body
    it.items = NULL
    it.left = 0
    if count < BODY_HEADER_BYTES:
        return
    memcpy(&header, body, BODY_HEADER_BYTES)
    it.at = body + BODY_HEADER_BYTES
    it.end = body + count
    it.left = header.runs if header.kind == BODY_BATCH else 0


cdef bint run_next(RunIterator* it) noexcept nogil:
    if it.left == 0 or <u64>(it.end - it.at) < RUN_HEADER_BYTES:
        return False
    memcpy(&it.run, it.at, RUN_HEADER_BYTES)
    if <u64>(it.end - it.at) - RUN_HEADER_BYTES < it.run.bytes:
        return False
    it.items = it.at + RUN_HEADER_BYTES
    it.at = it.items + it.run.bytes
    it.left -= 1
    return True


# Bytes of the item at items[0:left], or 0 when it is not all there.
cdef inline u64 item_bytes(const u8* items, u64 left) noexcept nogil:
    cdef u32 payload_bytes
    if left < ITEM_HEADER_BYTES:
        return 0
    memcpy(&payload_bytes, items, 4)
    if payload_bytes > left - ITEM_HEADER_BYTES:
        return 0
    return ITEM_HEADER_BYTES + <u64>payload_bytes


# Whoever walks a body first finds it in another core's cache, and each item says where the next is:
# without asking ahead every step waits for memory.
cdef u64 items_prefix(const u8* items, u64 nbytes, u32 values) noexcept nogil:
    cdef u64 at = 0
    cdef u64 step
    cdef u32 i
    for i in range(values):
        prefetch(items + at + AHEAD_BYTES)
        step = item_bytes(items + at, nbytes - at)
        if step == 0:
            return 0
        at += step
    return at


cdef u32 items_fit(const u8* items, u64 nbytes, u32 count, u64 budget, u64* used) noexcept nogil:
    cdef u64 at = 0
    cdef u64 step
    cdef u32 fit = 0
    while fit < count:
        step = item_bytes(items + at, nbytes - at)
        # The first one goes whatever the budget, or a large value would never leave.
        if step == 0 or (fit > 0 and at + step > budget):
            break
        at += step
        fit += 1
    used[0] = at
    return fit


cdef bint items_check(const u8* items, u64 nbytes, u32 count) noexcept nogil:
    # A hostile count must not cost more than the bytes that came with it.
    if <u64>count * ITEM_HEADER_BYTES > nbytes:
        return False
    return items_prefix(items, nbytes, count) == nbytes


# --- the door

def pack_items(items not None):
    """``items``, each (machine, payload), one behind the other as in a run."""
    cdef ItemHeader header
    cdef Block* out = block_new(256)
    try:
        for machine, payload in items:
            data = bytes(payload)
            header.bytes = len(data)
            header.machine = machine
            header.flags = 0
            out = block_append(out, &header, ITEM_HEADER_BYTES)
            out = block_append(out, <const char*>data, len(data))
        return out.data[:out.size]
    finally:
        block_unref(out)


def pack_noop(u64 epoch, u64 time_us):
    """The body of an instance that holds nothing."""
    cdef Block* out = body_noop(epoch, time_us)
    try:
        return out.data[:out.size]
    finally:
        block_unref(out)


def pack_body(runs not None, u64 epoch=0, u64 time_us=0):
    """A batch. Each run: (node, incarnation, low_water, first_seq, items as in pack_items)."""
    cdef BodyHeader header
    cdef RunHeader run
    cdef Block* out = block_new(256)
    header.kind = BODY_BATCH
    header.version = BODY_VERSION
    header.epoch = epoch
    header.time_us = time_us
    try:
        header.runs = len(runs)
        header.values = sum(len(items) for *_, items in runs)
        out = block_append(out, &header, BODY_HEADER_BYTES)
        for node, incarnation, low_water, first_seq, items in runs:
            packed = pack_items(items)
            run.node = node
            run.incarnation = incarnation
            run.low_water = low_water
            run.first_seq = first_seq
            run.count = len(items)
            run.bytes = len(packed)
            out = block_append(out, &run, RUN_HEADER_BYTES)
            out = block_append(out, <const char*>packed, len(packed))
        return out.data[:out.size]
    finally:
        block_unref(out)


def check_body(bytes body not None):
    """Whether the whole structure of ``body`` is sound."""
    return bool(body_check(<const u8*><const char*>body, len(body)))


def check_items(bytes items not None, u32 count):
    """Whether ``items`` is exactly ``count`` whole items."""
    return bool(items_check(<const u8*><const char*>items, len(items), count))


def prefix_bytes(bytes items not None, u32 values):
    """Bytes of the first ``values`` items; 0 if they do not fit."""
    return items_prefix(<const u8*><const char*>items, len(items), values)


def fit(bytes items not None, u32 count, u64 budget):
    """(items, bytes) of the longest prefix within ``budget`` bytes, at least one item."""
    cdef u64 used = 0
    cdef u32 whole = items_fit(<const u8*><const char*>items, len(items), count, budget, &used)
    return whole, used


def unpack_items(bytes items not None):
    """The (machine, payload) of each item. ValueError if the bytes do not end with one."""
    cdef const u8* data = <const u8*><const char*>items
    cdef u64 count = len(items)
    cdef u64 at = 0
    cdef u64 step
    cdef ItemHeader header
    unpacked = []
    while at < count:
        step = item_bytes(data + at, count - at)
        if step == 0:
            raise ValueError(f"no whole item at byte {at}")
        memcpy(&header, data + at, ITEM_HEADER_BYTES)
        unpacked.append((header.machine, items[at + ITEM_HEADER_BYTES:at + step]))
        at += step
    return unpacked


def unpack_body(bytes body not None):
    """(kind, epoch, time_us, runs) with runs as pack_body takes them. ValueError if unsound."""
    cdef const u8* data = <const u8*><const char*>body
    cdef BodyHeader header
    cdef RunIterator it
    if not body_check(data, len(body)):
        raise ValueError("not the body of an instance")
    memcpy(&header, data, BODY_HEADER_BYTES)
    runs = []
    run_begin(&it, data, len(body))
    while run_next(&it):
        runs.append((it.run.node, it.run.incarnation, it.run.low_water, it.run.first_seq,
                     unpack_items(it.items[:it.run.bytes])))
    return header.kind, header.epoch, header.time_us, runs

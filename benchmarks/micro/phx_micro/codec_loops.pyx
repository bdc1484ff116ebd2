# distutils: language = c++
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Ballots, records, frames, messages and bodies: what every byte of the log goes through."""

from libc.string cimport memcpy, memset

from phx._core.ballot cimport ballot_hostile, ballot_make, ballot_next
from phx._core.batch cimport (
    BODY_HEADER_BYTES, ITEM_HEADER_BYTES, BodyHeader, ItemHeader, RunHeader, RunIterator,
    body_check, items_check, items_fit, items_prefix, run_begin, run_next)
from phx._core.codec cimport (
    FRAME_ENGINE, FRAME_OK, RECORD_ACCEPT, frame_begin, frame_check, frame_seal, phx_crc32c,
    record_append, record_check, record_stride)
from phx._core.native cimport *
from phx._core.wire cimport AcceptBody, MSG_ACCEPT, message_append, message_check
from phx_micro.measure cimport Loop, phx_micro_opaque

cdef enum:
    BALLOTS = 1024
    ROUND_BYTES = 65536          # an encoder begins again at the front after so many


cdef class Ballots(Loop):
    """Compare, test for hostility, and every now and then take the next one."""
    cdef u64[BALLOTS] ballots
    cdef u64 highest

    def __init__(self, u64 count):
        super().__init__(count)
        for i in range(BALLOTS):
            self.ballots[i] = ballot_make(1 + i * 7919 % BALLOTS, 1 + i % 5)
        self.highest = 0

    cdef void go(self) noexcept:
        cdef u64 i, ballot, promised = 0
        for i in range(self.count):
            ballot = phx_micro_opaque(self.ballots[i & (BALLOTS - 1)])
            if ballot >= promised and not ballot_hostile(ballot, promised):
                promised = ballot
                self.seen += 1
        self.highest = ballot_next(promised, 2)

    def check(self):
        tried = [self.ballots[i] for i in range(min(self.count, <u64>BALLOTS))]
        assert self.highest == ((max(tried) >> 20) + 1) << 20 | 2
        assert self.seen >= 1


cdef class Sized(Loop):
    """With so many bytes to work on."""
    cdef u32 size
    cdef Block* bytes
    cdef Block* out

    def __init__(self, u64 count, u32 size):
        super().__init__(count)
        self.size = size
        self.bytes = block_new(size)
        for i in range(size):
            self.bytes.data[i] = i * 31 & 255
        self.bytes.size = size
        self.out = block_new(ROUND_BYTES + 2 * <u64>size + 4096)

    def __dealloc__(self):
        block_unref(self.bytes)
        block_unref(self.out)


cdef class Crc(Sized):
    cdef void go(self) noexcept:
        cdef u32 crc = 0
        cdef u64 i
        for i in range(self.count):
            crc = phx_crc32c(crc, self.bytes.data, self.size)
        self.seen = crc

    def check(self):
        from phx._core.codec import crc32c_table
        crc = 0
        for _ in range(self.count):
            crc = crc32c_table(self.bytes.data[:self.size], crc)
        assert self.seen == crc


cdef class RecordEncode(Sized):
    cdef void go(self) noexcept:
        cdef u64 i
        for i in range(self.count):
            if self.out.size >= ROUND_BYTES:
                self.out.size = 0
            self.out = record_append(self.out, RECORD_ACCEPT, 7, i, 5, self.bytes.data, self.size)

    def check(self):
        cdef u64 stride = record_stride(self.size)
        cdef u64 at = self.out.size - stride
        assert record_check(self.out.data + at, stride, 0, self.size) == stride
        from phx._core.codec import record_fields
        fields = record_fields(self.out.data[at:at + stride])
        assert fields[1:] == (self.size, RECORD_ACCEPT, 0, 0, 7, self.count - 1, 5)


cdef class RecordCheck(Sized):
    def __init__(self, u64 count, u32 size):
        super().__init__(count, size)
        self.out = record_append(self.out, RECORD_ACCEPT, 7, 1, 5, self.bytes.data, size)

    cdef void go(self) noexcept:
        cdef u64 i
        for i in range(self.count):
            self.seen += record_check(self.out.data, self.out.size, 0, self.size)

    def check(self):
        assert self.seen == self.count * record_stride(self.size)


cdef class FrameEncode(Sized):
    cdef void go(self) noexcept:
        cdef u64 i
        for i in range(self.count):
            self.out.size = 0
            self.out = frame_begin(self.out)
            self.out = block_append(self.out, self.bytes.data, self.size)
            frame_seal(self.out, 0, FRAME_ENGINE, 1, 2, 9)

    def check(self):
        assert frame_check(self.out.data, self.out.size, self.size, 9, 2, 1) == FRAME_OK
        assert self.out.data[32:self.out.size] == self.bytes.data[:self.size]


cdef class FrameCheck(Sized):
    def __init__(self, u64 count, u32 size):
        super().__init__(count, size)
        self.out = block_append(frame_begin(self.out), self.bytes.data, size)
        frame_seal(self.out, 0, FRAME_ENGINE, 1, 2, 9)

    cdef void go(self) noexcept:
        cdef u64 i
        for i in range(self.count):
            self.seen += frame_check(self.out.data, self.out.size, self.size, 9, 2, 1) == FRAME_OK

    def check(self):
        assert self.seen == self.count
        self.out.data[33] ^= 1
        assert frame_check(self.out.data, self.out.size, self.size, 9, 2, 1) != FRAME_OK


cdef class MessageEncode(Sized):
    """Accepts into a frame, as a leader fills it."""
    cdef void go(self) noexcept:
        cdef AcceptBody fixed
        cdef u64 i
        memset(&fixed, 0, sizeof(fixed))
        fixed.body_bytes = self.size
        for i in range(self.count):
            if self.out.size >= ROUND_BYTES:
                self.out.size = 0
            fixed.instance = i
            self.out = message_append(self.out, MSG_ACCEPT, 0, 0, 7, 1, 5, &fixed,
                                      sizeof(fixed), self.bytes.data, self.size)

    def check(self):
        cdef u64 at = 0
        while at < self.out.size:
            stride = message_check(self.out.data + at, self.out.size - at)
            assert stride >= self.size + 24 + sizeof(AcceptBody)
            at += stride


cdef class MessageCheck(MessageEncode):
    """Finds the messages of a frame again, as a receiver does."""
    def __init__(self, u64 count, u32 size):
        super().__init__(count, size)
        cdef AcceptBody fixed
        memset(&fixed, 0, sizeof(fixed))
        while self.out.size < ROUND_BYTES:
            self.out = message_append(self.out, MSG_ACCEPT, 0, 0, 7, 1, 5, &fixed,
                                      sizeof(fixed), self.bytes.data, size)

    cdef void go(self) noexcept:
        cdef u64 at = 0, i
        cdef u32 stride
        for i in range(self.count):
            if at >= self.out.size:
                at = 0
            stride = message_check(self.out.data + at, self.out.size - at)
            at += stride
            self.seen += stride

    def check(self):
        assert self.seen % self.count == 0
        assert self.seen // self.count >= self.size + 24 + sizeof(AcceptBody)


cdef class Values(Loop):
    """`count` values of `size` bytes, `per_body` of them in each body."""

    def __init__(self, u64 count, u32 size, u32 per_body=100):
        cdef ItemHeader item
        if count % per_body:
            raise ValueError("only whole bodies")
        super().__init__(count)
        self.size = size
        self.per_body = per_body
        self.items = block_new(1024)
        memset(&item, 0, sizeof(item))
        item.bytes = size
        payload = bytes(size)
        for i in range(per_body):
            self.items = block_append(self.items, &item, sizeof(item))
            self.items = block_append(self.items, <const char*>payload, size)
        self.body = self.packed(block_new(256))

    def __dealloc__(self):
        block_unref(self.items)
        block_unref(self.body)

    # A body of one run, as the proposer packs one: header, run, items in one piece.
    cdef Block* packed(self, Block* out) noexcept:
        cdef BodyHeader header
        cdef RunHeader run
        cdef u64 used = 0
        memset(&header, 0, sizeof(header))
        memset(&run, 0, sizeof(run))
        header.kind = header.version = 1
        header.runs = 1
        run.node = run.incarnation = 1
        run.first_seq = run.low_water = 1
        run.count = items_fit(self.items.data, self.items.size, self.per_body, 1 << 30, &used)
        run.bytes = <u32>used
        header.values = run.count
        out = block_append(out, &header, sizeof(header))
        out = block_append(out, &run, sizeof(run))
        return block_append(out, self.items.data, used)


cdef class BatchPack(Values):
    cdef void go(self) noexcept:
        cdef u64 i
        for i in range(self.count // self.per_body):
            self.body.size = 0
            self.body = self.packed(self.body)
            self.seen += self.body.size

    def check(self):
        cdef u64 bodies = self.count // self.per_body
        assert body_check(self.body.data, self.body.size)
        one = BODY_HEADER_BYTES + 32 + self.per_body * (ITEM_HEADER_BYTES + self.size)
        assert self.seen == bodies * one


cdef class BatchCheck(Values):
    cdef void go(self) noexcept:
        cdef u64 i
        for i in range(self.count // self.per_body):
            self.seen += body_check(self.body.data, self.body.size)

    def check(self):
        assert self.seen * self.per_body == self.count
        assert not body_check(self.body.data, self.body.size - 1)


cdef class BatchUnpack(Values):
    """Every item of a checked body is looked at."""
    cdef void go(self) noexcept:
        cdef RunIterator it
        cdef ItemHeader head
        cdef const u8* at
        cdef u64 i
        cdef u32 k
        for i in range(self.count // self.per_body):
            run_begin(&it, self.body.data, self.body.size)
            while run_next(&it):
                at = it.items
                for k in range(it.run.count):
                    memcpy(&head, at, ITEM_HEADER_BYTES)
                    self.seen += head.bytes
                    at += ITEM_HEADER_BYTES + head.bytes

    def check(self):
        assert self.seen == self.count * self.size


cdef class ItemsSplit(Values):
    """A run is cut in two, as when it is sent on in pieces."""
    cdef void go(self) noexcept:
        cdef u64 i, used
        cdef u32 half = self.per_body // 2 or 1
        for i in range(self.count // self.per_body):
            used = items_prefix(self.items.data, self.items.size, half)
            self.seen += items_check(self.items.data + used, self.items.size - used,
                                     self.per_body - half)

    def check(self):
        assert self.seen * self.per_body == self.count

# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Engine messages; see wire.pxd."""

from libc.string cimport memcpy

from phx._core.codec cimport align8
from phx._core.native cimport *


cdef enum:
    UNKNOWN_KIND = 0x7FFFFFFF


cdef u32 message_fixed_bytes(u8 kind) noexcept nogil:
    if kind == MSG_PREVOTE:
        return sizeof(PrevoteBody)
    if kind == MSG_PREVOTE_REPLY:
        return sizeof(PrevoteReplyBody)
    if kind == MSG_PREPARE:
        return sizeof(PrepareBody)
    if kind == MSG_PROMISE:
        return sizeof(PromiseBody)
    if kind == MSG_ACCEPT:
        return sizeof(AcceptBody)
    if kind == MSG_ACCEPTED:
        return sizeof(AcceptedBody)
    if kind == MSG_REFUSE:
        return sizeof(RefuseBody)
    if kind == MSG_CHOSEN or kind == MSG_CONFIRM:
        return sizeof(ChosenBody)
    if kind == MSG_LEARN_ASK:
        return sizeof(LearnAskBody)
    if kind == MSG_LEARN:
        return sizeof(LearnBody)
    if kind == MSG_FORWARD:
        return sizeof(ForwardBody)
    if kind == MSG_FORWARD_REPLY:
        return sizeof(ForwardReplyBody)
    if kind == MSG_TRANSFER:
        return 0
    if kind == MSG_HEARTBEAT:
        return sizeof(HeartbeatBody)
    if kind == MSG_HEARTBEAT_ACK:
        return sizeof(HeartbeatAckBody)
    if kind == MSG_REJOIN:
        return sizeof(RejoinBody)
    if kind == MSG_READ_ASK:
        return sizeof(ReadAskBody)
    if kind == MSG_READ_POINT:
        return sizeof(ReadPointBody)
    if kind == MSG_CONFIG:
        return sizeof(ConfigBody)
    if kind == MSG_CONFIG_ASK:
        return 0
    return UNKNOWN_KIND


cdef Block* message_append(Block* out, u8 kind, u8 flags, u16 space, u32 group, u32 config,
                           u64 ballot, const void* fixed, u32 fixed_bytes, const void* body,
                           u64 body_bytes) noexcept nogil:
    cdef MessageHeader header
    header.length = <u32>align8(MESSAGE_HEADER_BYTES + fixed_bytes + body_bytes)
    header.kind = kind
    header.flags = flags
    header.space = space
    header.group = group
    header.config = config
    header.ballot = ballot
    out = block_reserve(out, header.length)
    out = block_append(out, &header, sizeof(header))
    out = block_append(out, fixed, fixed_bytes)
    if body_bytes:
        out = block_append(out, body, body_bytes)
    return block_pad8(out)


cdef u32 message_check(const u8* data, u64 count) noexcept nogil:
    cdef MessageHeader header
    cdef u32 fixed
    if count < MESSAGE_HEADER_BYTES:
        return 0
    memcpy(&header, data, sizeof(header))
    if header.length > count or (header.length & 7) != 0:
        return 0
    fixed = message_fixed_bytes(header.kind)
    if fixed == UNKNOWN_KIND or header.length < <u32>MESSAGE_HEADER_BYTES + fixed:
        return 0
    return header.length


cdef u64 entry_stride(const u8* data, u64 count, u32 header_bytes,
                      u32 length_offset) noexcept nogil:
    cdef u32 body_bytes
    cdef u64 stride
    if count < header_bytes:
        return 0
    memcpy(&body_bytes, data + length_offset, 4)
    stride = align8(<u64>header_bytes + body_bytes)
    if stride > count:
        return 0
    return stride

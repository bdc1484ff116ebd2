# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""What a connection begins with; see handshake.pxd."""

from libc.string cimport memcpy, memset

from phx._core.codec cimport (
    FRAME_HEADER_BYTES, FRAME_HELLO, FRAME_JOIN, PROTOCOL_VERSION, FrameHeader, frame_begin,
    frame_seal,
)
from phx._core.members cimport NODE_MAX
from phx._core.native cimport *
from phx._core.transport cimport (
    HELLO_BYTES, REFUSED_NODE, REFUSED_UNKNOWN, REFUSED_VERSION, REFUSED_WINDOW, Hello, Transport,
    transport_link,
)


cdef Block* hello_frame(Transport* t, u32 dest, u64 now_us) noexcept nogil:
    cdef Hello hello
    cdef Block* out = frame_begin(block_new(FRAME_HEADER_BYTES + HELLO_BYTES))
    memset(&hello, 0, sizeof(Hello))
    hello.version_min = PROTOCOL_VERSION
    hello.version_max = PROTOCOL_VERSION
    hello.incarnation = t.options.incarnation
    hello.window = t.options.window
    memcpy(hello.store_id, t.options.store_id, 16)
    hello.now_us = now_us
    out = block_append(out, &hello, sizeof(Hello))
    frame_seal(out, 0, FRAME_HELLO, t.options.node, dest, t.options.cluster)
    return out


cdef u32 hello_refused(Transport* t, const FrameHeader* header, const Hello* hello, bint dials,
                       const char** why) noexcept nogil:
    if hello.version_min > PROTOCOL_VERSION or hello.version_max < PROTOCOL_VERSION:
        why[0] = "no common protocol version"
        return REFUSED_VERSION
    if header.source == 0 or header.source > NODE_MAX or header.source == t.options.node:
        why[0] = "not the id of another node"
        return REFUSED_NODE
    if header.kind != FRAME_JOIN and transport_link(t, header.source) == NULL:
        why[0] = "not a node that is known here"
        return REFUSED_UNKNOWN
    if dials and header.source > t.options.node:
        why[0] = "not a node that connects here"
        return REFUSED_NODE
    if hello.window and t.options.window and hello.window != t.options.window:
        why[0] = "another limits.window than here"
        return REFUSED_WINDOW
    return 0
